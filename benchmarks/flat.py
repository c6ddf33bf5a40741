"""Whether a start from the tree costs the same on every host, by the CPU time of all its processes.

    python benchmarks/flat.py [--rounds 15] [--only mounts,processes,…] [--json FILE]

One thing of the host or of the caller is changed (those of ``python -m benchmarks``), and a start is measured by what a
cgroup is charged for: the caller, the launcher, init and the program, whatever else runs on the machine. Each point is
the least of so many rounds of twenty starts, in two processes of their own that take turns with those of the other
points. As root; needs a group of cpuacct, or of cgroup2.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:
    sys.path.insert(0, str(HERE.parent))

from benchmarks import spawn  # noqa: E402
from benchmarks.sweeps import changed  # noqa: E402
from isolate.sandbox import parked  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

POINTS = {
    "mounts": (20, 5000),
    "processes": (70, 10000),
    "descriptors": (10, 15000),
    "memory": (20, 8192),
    "alive": (10, 2000),
}
STARTS = 20


@contextlib.contextmanager
def counted() -> Iterator[tuple[Callable[[], None], Callable[[], float]]]:
    """A group of our own: how to go into it, and the milliseconds of CPU time that it has used."""
    home = file = None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, kinds, inner = line.split(":", 2)
        name = "cpuacct.usage" if "cpuacct" in kinds.split(",") else "cpu.stat" if not kinds else ""
        place = Path("/sys/fs/cgroup", kinds, inner.lstrip("/"))
        if name and (place / "cgroup.procs").exists() and (home is None or kinds):
            home, file = place, name
    if home is None or file is None:
        raise SystemExit("no cgroup counts CPU time here")
    group = home / f"flat-{os.getpid()}"
    group.mkdir()

    def move(to: Path) -> None:
        (to / "cgroup.procs").write_text(str(os.getpid()))

    def used() -> float:
        text = (group / file).read_text()
        return int(text) / 1e6 if file == "cpuacct.usage" else int(text.split()[1]) / 1e3

    try:
        yield lambda: move(group), used
    finally:
        move(home)
        for _ in range(600):  # what was in it may still be ending
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.05)


def worker(kind: str, number: int, rounds: int) -> float:
    """One point: the least of its rounds."""
    with contextlib.ExitStack() as stack:
        enter, used = stack.enter_context(counted())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        programs, _ = spawn.prepare(directory)
        spawn.compile_c(programs / "wait", [*spawn.FREESTANDING, "-DTWIN_WAIT"])
        stack.enter_context(changed(kind, number, directory, programs))
        stack.callback(parked.end_all)
        enter()
        once = spawn.python(spawn.warm(spawn.box(programs, net=False)))
        times = []
        for _ in range(rounds):
            before = used()
            for _ in range(STARTS):
                once()
            times.append((used() - before) / STARTS)
        return min(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default=",".join(POINTS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(worker(args.worker[0], int(args.worker[1]), args.rounds))
        return
    told: dict[str, dict[int, float]] = {}
    for kind in args.only.split(","):
        points: dict[int, list[float]] = {number: [] for number in POINTS[kind]}
        for _ in range(2):
            for number, values in points.items():
                command = [sys.executable, __file__, "--worker", kind, str(number), "--rounds", str(args.rounds)]
                values.append(float(subprocess.check_output(command, text=True).split()[-1]))
        told[kind] = {number: min(values) for number, values in points.items()}
        (few, little), (many, much) = told[kind].items()
        print(f"{kind:12} {few:6}: {little:.3f} ms   {many:6}: {much:.3f} ms   {much / little:.2f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
