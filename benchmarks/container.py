"""What a command in a container costs beside a sandbox of its own, in one run.

    python benchmarks/container.py [--rounds 300] [--limits] [--json FILE]

Every row is the time from the call to the result of a small program, in milliseconds; rows take turns, so that whatever
else the machine does hits all alike:

    cold        Sandbox.run: set up, run, take down
    container   Container.run in the same sandbox, opened once
    own group   Container.with_parts(Limits(…)).run: a group for the command alone (with --limits)
    open        Sandbox.open and the end of the block, without a command
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import TYPE_CHECKING, Any

import isolate

if TYPE_CHECKING:
    from collections.abc import Callable


def measure(rows: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each row, in turns."""
    found: dict[str, list[float]] = {name: [] for name in rows}
    for row in rows.values():
        for _ in range(3):
            row()
    for _ in range(rounds):
        for name, row in rows.items():
            start = time.perf_counter()
            row()
            found[name].append((time.perf_counter() - start) * 1e3)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--limits", action="store_true", help="the sandbox has a cgroup")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    box = isolate.presets.untrusted(limits=isolate.Limits(memory="1G", pids=100) if options.limits else None)
    program = ["/usr/bin/true"]

    def opened() -> None:
        with box.open():
            pass

    with box.open() as c:
        rows: dict[str, Callable[[], Any]] = {
            "cold": lambda: box.run(program).check(),
            "container": lambda: c.run(program).check(),
        }
        if options.limits:
            small = c.with_parts(isolate.Limits(memory="64M"))
            rows["own group"] = lambda: small.run(program).check()
        rows["open"] = opened
        found = measure(rows, options.rounds)
    print(f"{'':12}{'median':>9}{'p10':>9}{'p90':>9}   of cold")
    cold = statistics.median(found["cold"])
    table = {}
    for name, times in found.items():
        ordered = sorted(times)
        median, low, high = statistics.median(ordered), ordered[len(ordered) // 10], ordered[len(ordered) * 9 // 10]
        table[name] = {"median": median, "p10": low, "p90": high, "of_cold": median / cold}
        print(f"{name:12}{median:9.3f}{low:9.3f}{high:9.3f}   {median / cold:.2f}")
    if options.json:
        with open(options.json, "w", encoding="ascii") as file:
            json.dump(table, file, indent=2)


if __name__ == "__main__":
    main()
