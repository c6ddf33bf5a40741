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
    return (
        f"Linux {machine['kernel']}, {machine['machine']}, {machine['processors']} processors, "
        f"{machine['mounts']} mounts, {machine['processes']} processes, load {machine['load']:.1f}, "
        f"Python {machine['python']}, uid {machine['uid']}."
    )


def shown(rows: dict[str, Any], over: str) -> list[str]:
    """A table of rows with their ratio to one of them."""
    base = rows.get(over)
    lines = []
    for name, row in sorted(rows.items(), key=lambda item: float(item[1]["p10"])):
        ratios = [f"{row[c] / base[c]:.2f}" if base else "" for c in COLUMNS]
        lines.append([name, *(f"{row[c]:.2f}" for c in COLUMNS), " / ".join(ratios), str(row["count"])])
    return grid(["ms", *COLUMNS, f"over {over}", "runs"], lines)


def page(told: dict[str, Any], command: str, pictures: str | None) -> str:
    """Everything of a run, to be included by a page of the documentation."""

    def picture(name: str, words: str) -> list[str]:
        return [] if pictures is None else [f".. image:: {pictures}/{name}.png", f"   :alt: {words}", ""]

    lines = [f"Printed by ``{command}``. {about(told['machine'])}", ""]
    start = dict(told.get("start", {}))
    versions = start.pop("versions", {})
    for title, rows in start.items():
        words = f"A start and its end, {title}"
        name = "start-net" if title.startswith("with ") else "start-nonet"
        lines += [words, "~" * len(words), "", *shown(rows, "twin"), *picture(name, words)]
    if versions:
        lines += ["Versions: " + ", ".join(f"{name}: {told}" for name, told in versions.items()) + ".", ""]
    if "parts" in told:
        words = "What a part adds"
        lines += [words, "~" * len(words), "", *shown(told["parts"], "nothing more")]
    for kind, words in SWEEPS.items():
        points = told.get(kind)
        if not points:
            continue
        names = list(next(iter(points.values())))
        unit = "" if kind == "threads" else ": ms, p10 / p50"
        title = words[0].upper() + words[1:]
        rows = [
            [
                number,
                *(
                    f"{p[n]['p50']:.0f}" if kind == "threads" else f"{p[n]['p10']:.2f} / {p[n]['p50']:.2f}"
                    for n in names
                ),
            ]
            for number, p in points.items()
        ]
        lines += [title, "~" * len(title), "", *grid([f"{kind}{unit}", *names], rows), *picture(kind, title)]
    if "steady" in told:
        words = "Inside beside outside"
        lines += [words, "~" * len(words), ""]
        rows = []
        for name, row in told["steady"].items():
            pairs = [(row[side]["p10"], row[side]["p50"]) for side in ("outside", "inside")]
            pairs.append((pairs[1][0] / pairs[0][0], pairs[1][1] / pairs[0][1]))
            rows.append([name, *(f"{low:.2f} / {middle:.2f}" for low, middle in pairs)])
        lines += grid(["ms, p10 / p50", "outside", "inside", "ratio"], rows)
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
        figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(rows) + 1.4))
        names = sorted(rows, key=lambda name: -rows[name]["p10"])
        low = [rows[name]["p10"] for name in names]
        middle = [rows[name]["p50"] for name in names]
        axes.barh(names, middle, color="#bcc8dd", label="median")
        axes.barh(names, low, height=0.5, color="#4c72b0", label="p10")
        for at, (value, text) in enumerate(zip(middle, low, strict=True)):
            axes.text(value, at, f" {text:.2f} / {value:.2f}", va="center", fontsize=8)
        axes.set_xscale("log")
        axes.set_xlabel("ms")
        axes.set_title(f"A start and its end, {net}\n{words}", fontsize=9)
        axes.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(directory / f"start-{'net' if net.startswith('with ') else 'nonet'}.png", dpi=100)
        pyplot.close(figure)
    for kind, about_it in SWEEPS.items():
        points = told.get(kind)
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
