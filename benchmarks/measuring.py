"""How rows of a table are measured: in turns, by the clock and by the CPU time of all that they start.

A row is a function that starts something, waits for its end and returns the seconds between. Who takes part in a table
is a row, or a reason why it is not here.
"""

from __future__ import annotations

import contextlib
import os
import platform
import random
import time
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import isolate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Row = "Callable[[], float]"
Rows = dict[str, "Callable[[], float]"]
SLOW = 0.04  # seconds: what takes longer has a turn in every tenth round, and five at least
COLUMNS = ("min", "p10", "p50", "p99")


def machine() -> dict[str, Any]:
    """What the numbers hold for."""
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "mounts": Path("/proc/self/mountinfo").read_text(errors="replace").count("\n"),
        "processes": sum(name.isdigit() for name in os.listdir("/proc")),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "uid": os.geteuid(),
    }


# ---- CPU time --------------------------------------------------------------------------------------------------------


class Account:
    """CPU time of this process and everything that it starts, to whomever it is handed over: that of its cgroup.

    ``read`` is None where there is none. What a runtime puts into a group of its own elsewhere is not in it.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file

    @classmethod
    def own(cls) -> Account:
        """By the group that this process is in, unless that is everybody's."""
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            places = {
                "cpuacct": "/sys/fs/cgroup/cpuacct",
                "cpu,cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
                "": "/sys/fs/cgroup",
            }
            if names not in places or path == "/":
                continue
            for name in ("cpuacct.usage", "cpu.stat"):
                file = Path(places[names] + path) / name
                if file.exists():
                    return cls(file)
        return cls(None)

    def read(self) -> float | None:
        """Seconds so far."""
        if self._file is None:
            return None
        text = self._file.read_text()
        return int(text) / 1e9 if self._file.name == "cpuacct.usage" else int(text.split()[1]) / 1e6


@contextlib.contextmanager
def accounted() -> Iterator[None]:
    """In a group of its own for accounting; without one where there can be none.

    Not as a ``with`` block of the library's: under such a block nothing starts from a tree.
    """
    try:
        group = isolate.Cgroup()
        group.__enter__()
    except (isolate.IsolateError, OSError) as error:
        print(f"CPU time is not told: {str(error).splitlines()[0]}")
        yield
        return
    directories = group.directories
    place = Path(directories["cpuacct"] if "cpuacct" in directories else directories["v2"])
    moved = False
    try:
        try:
            (place / "cgroup.procs").write_text("0")
            moved = True
        except OSError as error:
            print(f"CPU time is not told: {error}")
        yield
    finally:
        if moved:
            (place.parent / "cgroup.procs").write_text("0")  # the group stands below the one that this process was in
        group.__exit__(None, None, None)


# ---- turns -----------------------------------------------------------------------------------------------------------


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    """One call, timed."""

    def once() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return once


def alternating(rows: Rows, rounds: int, pause: float) -> dict[str, dict[str, float]]:
    """The figures of each row: one of each a round, in another order each time.

    The CPU time of a row is also that of the pause behind it: whatever it leaves to be done is its own.
    """
    account = Account.own()
    times: dict[str, list[float]] = {name: [] for name in rows}
    used: dict[str, list[float]] = {name: [] for name in rows}
    slow = {name for name, row in rows.items() if min(row() for _ in range(3)) > SLOW}
    for number in range(rounds):
        for name in random.sample(list(rows), len(rows)):
            if name in slow and number % max(1, min(10, rounds // 5)):
                continue
            before = account.read()
            times[name].append(rows[name]())
            time.sleep(20 * pause if name in slow else pause)
            after = account.read()
            if before is not None and after is not None:
                used[name].append(after - before)
    return {name: figures(times[name], used[name]) for name in rows}


def figures(times: list[float], used: list[float]) -> dict[str, float]:
    """The least, p10, p50 and p99 in milliseconds; the least and the median of CPU time."""
    cuts = quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    told = {"min": min(times) * 1e3, "p10": cuts[9] * 1e3, "p50": cuts[49] * 1e3, "p99": cuts[98] * 1e3}
    if used:
        middle = quantiles(used, n=2, method="inclusive")[0] if len(used) > 1 else used[0]
        told |= {"cpu_min": min(used) * 1e3, "cpu_p50": middle * 1e3}
    return told | {"count": len(times)}


def table(title: str, told: dict[str, Any], over: str) -> None:
    """Print it, with the ratio to one of the rows; and why others are not here."""
    columns = [*COLUMNS, "cpu_min", "cpu_p50"]
    heads = [*COLUMNS, "CPU min", "CPU p50"]
    print(f"\n{title}\n  {'ms':16}" + "".join(f"{head:>10}" for head in heads) + f"   over {over}: p10, p50, CPU min")
    base = told.get(over, {})
    for name, row in told.items():
        if "missing" in row:
            print(f"  {name:16} not here: {row['missing']}")
            continue
        shown = "".join(f"{row[c]:10.3f}" if c in row else f"{'-':>10}" for c in columns)
        compared = [f"{row[c] / base[c]:6.2f}" for c in ("p10", "p50", "cpu_min") if c in row and c in base]
        print(f"  {name:16}{shown}   {' '.join(compared)}")
