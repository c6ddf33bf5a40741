"""The figures of a run as a page's tables (reStructuredText), and as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

COLUMNS = ("min", "p10", "p50", "p99")
SWEEPS = {
    "mounts": "mounts of the caller's mount namespace",
    "processes": "processes of the host",
    "descriptors": "open descriptors of the caller",
    "memory": "MiB that the caller holds",
    "alive": "sandboxes that the caller keeps alive",
    "threads": "threads that start at the same time: starts in a second",
}


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A simple table."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    rule = "  ".join("=" * width for width in widths)
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return [rule, text[0], rule, *text[1:], rule, ""]


def about(machine: dict[str, Any]) -> str:
    """What the figures hold for, in a sentence."""
    end = f" (at the end {machine['load at the end']:.1f})" if "load at the end" in machine else ""
    return (
        f"Linux {machine['kernel']}, {machine['machine']}, {machine['processors']} processors, "
        f"{machine['mounts']} mounts, {machine['processes']} processes, load {machine['load']:.1f}{end}, "
        f"Python {machine['python']}, uid {machine['uid']}."
    )


def here(rows: dict[str, Any]) -> dict[str, Any]:
    """Those that were measured."""
    return {name: row for name, row in rows.items() if "missing" not in row}


def reasons(rows: dict[str, Any]) -> dict[str, str]:
    """Why the others are not here."""
    return {name: row["missing"] for name, row in rows.items() if "missing" in row}


def shown(rows: dict[str, Any], over: str) -> list[str]:
    """A table of rows with their ratio to one of them."""
    base = rows.get(over, {})
    lines = []
    for name, row in sorted(here(rows).items(), key=lambda item: float(item[1]["p10"])):
        ratios = [f"{row[c] / base[c]:.2f}" for c in ("p10", "p50", "cpu_min") if c in row and c in base]
        values = [f"{row[c]:.2f}" if c in row else "" for c in (*COLUMNS, "cpu_min", "cpu_p50")]
        lines.append([name, *values, " / ".join(ratios), str(row["count"])])
    return grid(["ms", *COLUMNS, "CPU min", "CPU p50", f"over {over}", "runs"], lines)


def compared(row: dict[str, Any], base: dict[str, Any], *, turned: bool = False) -> tuple[float | None, ...]:
    """Ratios of p10, p50 and the least CPU time."""
    found = []
    for column in ("p10", "p50", "cpu_min"):
        ratio = row[column] / base[column] if column in row and column in base else None
        found.append(1 / ratio if turned and ratio else ratio)
    return tuple(found)


def goals(told: dict[str, Any]) -> list[tuple[str, str, tuple[float | None, ...]]]:
    """What was to be reached, and what this run has: p10, p50 and the least CPU time."""
    found = []
    start = told.get("start", {})
    for title, most in (("without a network namespace", 0.32), ("with a network namespace", 0.35)):
        rows = here(start.get(title, {}))
        own = rows.get("isolate")
        for other, goal in (("twin", 0.70), ("bubblewrap", most)):
            if own and other in rows:
                found.append((f"a start from the tree {title} / {other}", f"<= {goal}", compared(own, rows[other])))
        if own and "template twin" in rows:
            found.append((f"the same / template twin {title}", "", compared(own, rows["template twin"])))
        if own and "twin" in rows:
            found.append(
                (f"p99 of it / p99 of the twin, {title}", "<= 1.5", (own["p99"] / rows["twin"]["p99"], None, None))
            )
    for kind, unit in (("mounts", ""), ("processes", ""), ("descriptors", ""), ("memory", " MiB")):
        points = here(told.get(kind, {}))
        if len(points) > 1:
            first, *_, last = points
            ratio = compared(points[last]["isolate"], points[first]["isolate"])
            found.append((f"{last}{unit} / {first}{unit}: {SWEEPS[kind]}", "<= 1.10", ratio))
    alive = here(told.get("alive", {}))
    if "10" in alive and len(alive) > 1:
        last = list(alive)[-1]
        ratio = compared(alive[last]["isolate"], alive["10"]["isolate"], turned=True)
        found.append((f"rate with {last} / with 10: {SWEEPS['alive']}", ">= 0.9", ratio))
    rows = here(told.get("parts", {}))
    if "Limits" in rows:
        found.append(("Limits / without", "<= 1.25", compared(rows["Limits"], rows["nothing more"])))
    return found


def beside_goals(told: dict[str, Any]) -> list[str]:
    """The goals as a table, and what a busy machine makes of it."""
    rows = []
    for what, goal, ratios in goals(told):
        rows.append([what, goal, *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)])
    if not rows:
        return []
    words = "Beside the goals"
    lines = [words, "~" * len(words), ""]
    machine = told["machine"]
    if max(machine["load"], machine.get("load at the end", 0)) > machine["processors"]:
        lines += [
            ".. warning::",
            "",
            "   Other programs took the processors during this run. So ``min``, p10 and CPU time say how rows compare;",
            "   medians say more of the others than of the rows.",
            "",
        ]
    return [*lines, *grid(["ratio", "goal", "p10", "p50", "CPU min"], rows)]


def missing(places: dict[str, dict[str, str]]) -> list[str]:
    """Who is not here, and why; a reason that holds for several tables is told once."""
    lines = []
    for name in dict.fromkeys(name for reasons in places.values() for name in reasons):
        by = {where: reasons[name] for where, reasons in places.items() if name in reasons}
        if len(set(by.values())) == 1 and len(by) == len(places):
            lines.append(f"- {name}: {escaped(next(iter(by.values())))}")
        else:
            lines += [f"- {name}, {where}: {escaped(why)}" for where, why in by.items()]
    return ["Not in the tables:", "", *lines, ""] if lines else []


def escaped(text: str) -> str:
    """Nothing of it means something to reStructuredText."""
    return "".join("\\" + c if c in "\\*`_|<>" else c for c in text)


def page(told: dict[str, Any], command: str, pictures: str | None) -> str:
    """Everything of a run, to be included by a page of the documentation."""

    def picture(name: str, words: str) -> list[str]:
        return [] if pictures is None else [f".. image:: {pictures}/{name}.png", f"   :alt: {words}", ""]

    took = f" It took {told['seconds'] / 60:.0f} minutes." if "seconds" in told else ""
    lines = [f"Printed by ``{command.strip()}``. {about(told['machine'])}{took}", ""]
    lines += beside_goals(told)
    start = dict(told.get("start", {}))
    versions = start.pop("versions", {})
    for title, rows in start.items():
        words = f"A start and its end, {title}"
        name = "start-net" if title.startswith("with ") else "start-nonet"
        lines += [words, "~" * len(words), "", "*Over twin* is p10 / p50 / the least CPU time.", ""]
        lines += [*shown(rows, "twin"), *picture(name, words)]
    lines += missing({title: reasons(rows) for title, rows in start.items()})
    if versions:
        said = ", ".join(f"{name}: {escaped(told)}" for name, told in versions.items())
        lines += [f"Versions: {said}.", ""]
    if "parts" in told:
        words = "What a part adds"
        lines += [words, "~" * len(words), "", *shown(told["parts"], "nothing more")]
        lines += missing({"": reasons(told["parts"])})
    for kind, words in SWEEPS.items():
        points = here(told.get(kind, {}))
        if not points:
            continue
        threads = kind == "threads"
        names = list(next(iter(points.values())))
        unit = "" if threads else ": ms, p10 / p50 / CPU min"
        title = words[0].upper() + words[1:]
        rows = []
        for number, point in points.items():
            columns = ("p50",) if threads else ("p10", "p50", "cpu_min")
            digits = 0 if threads else 2
            rows.append(
                [number, *(" / ".join(f"{point[n][c]:.{digits}f}" for c in columns if c in point[n]) for n in names)]
            )
        lines += [title, "~" * len(title), "", *grid([f"{kind}{unit}", *names], rows), *picture(kind, title)]
        lines += missing({"": reasons(told[kind])})
    if "steady" in told:
        words = "Inside beside outside"
        lines += [words, "~" * len(words), ""]
        columns = ("min", "p50", "cpu_min")
        rows = []
        for name, row in told["steady"].items():
            sides = [[row[side][c] for c in columns] for side in ("outside", "inside")]
            ratio = [b / a for a, b in zip(*sides, strict=True)]
            rows.append([name, *(" / ".join(f"{value:.2f}" for value in each) for each in (*sides, ratio))])
        lines += grid(["ms, min / p50 / CPU min", "outside", "inside", "ratio"], rows)
    return "\n".join(lines)


def plots(told: dict[str, Any], directory: Path) -> None:
    """A picture of each table."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    machine = told["machine"]
    words = f"Linux {machine['kernel']}, {machine['processors']} processors, load {machine['load']:.1f}"
    for net, rows in told.get("start", {}).items():
        if net == "versions":
            continue
        rows = here(rows)
        names = sorted(rows, key=lambda name: -rows[name]["p10"])
        figure, (clock, used) = pyplot.subplots(1, 2, figsize=(10, 0.4 * len(rows) + 1.4), sharey=True)
        low, middle = ([rows[name][column] for name in names] for column in ("p10", "p50"))
        clock.barh(names, middle, color="#bcc8dd", label="median")
        clock.barh(names, low, height=0.5, color="#4c72b0", label="p10")
        for at, (value, text) in enumerate(zip(middle, low, strict=True)):
            clock.text(value, at, f" {text:.2f} / {value:.2f}", va="center", fontsize=8)
        least = [rows[name].get("cpu_min", 0) for name in names]
        used.barh(names, least, height=0.5, color="#55a868", label="the least of the runs")
        for at, value in enumerate(least):
            used.text(value, at, f" {value:.2f}", va="center", fontsize=8)
        for axes, what in ((clock, "ms from call to result"), (used, "ms of CPU time")):
            axes.set_xscale("log")
            axes.margins(x=0.25)
            axes.set_xlabel(what)
            axes.legend(fontsize=8, loc="lower right")
        figure.suptitle(f"A start and its end, {net}. {words}", fontsize=9)
        figure.tight_layout()
        figure.savefig(directory / f"start-{'net' if net.startswith('with ') else 'nonet'}.png", dpi=100)
        pyplot.close(figure)
    for kind, about_it in SWEEPS.items():
        points = here(told.get(kind, {}))
        if not points:
            continue
        figure, axes = pyplot.subplots(figsize=(6, 3.4))
        numbers = [int(number) for number in points]
        column = "p50" if kind == "threads" else "p10"
        for name in next(iter(points.values())):
            axes.plot(numbers, [point.get(name, {}).get(column) for point in points.values()], "o-", label=name)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(about_it.partition(":")[0])
        axes.set_ylabel("starts in a second" if kind == "threads" else "ms, p10")
        axes.set_title(words, fontsize=9)
        axes.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(directory / f"{kind}.png", dpi=100)
        pyplot.close(figure)
