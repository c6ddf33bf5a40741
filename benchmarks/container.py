"""What a command in a container costs beside a sandbox of its own, in one run.

    python benchmarks/container.py [--rounds 300] [--limits] [--json FILE]

Every row is the time from the call to the result of a small program, in milliseconds; rows take turns, so that whatever
else the machine does hits all alike:

    cold        Sandbox.run of a sandbox that is new: planned, set up, run, taken down
    plain       Sandbox.run without a template, from its second time on: set up, run, taken down
    template    Sandbox.run as it is, from its third time on: set up from a tree of mounts that is kept
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
    limits = isolate.Limits(memory="1G", pids=100) if options.limits else None

    def sandbox() -> isolate.Sandbox:
        return isolate.presets.untrusted(limits=limits)

    box = sandbox()
    plain = isolate.Sandbox(*box.parts, template=False)
    program = ["/usr/bin/true"]

    def opened() -> None:
        with box.open():
            pass

    with box.open() as c:
        rows: dict[str, Callable[[], Any]] = {
            "cold": lambda: sandbox().run(program).check(),
            "plain": lambda: plain.run(program).check(),
            "template": lambda: box.run(program).check(),
            "container": lambda: c.run(program).check(),
        }
        if options.limits:
            small = c.with_parts(isolate.Limits(memory="64M"))
            rows["own group"] = lambda: small.run(program).check()
        rows["open"] = opened
        found = measure(rows, options.rounds)
    print(f"{'':12}{'median':>9}{'p10':>9}{'p90':>9}{'least':>9}   of it a command takes (median, p10, least)")
    command = sorted(found["container"])
    table: dict[str, Any] = {}
    for name, times in found.items():
        ordered = sorted(times)
        median, low, high = statistics.median(ordered), ordered[len(ordered) // 10], ordered[len(ordered) * 9 // 10]
        parts = statistics.median(command) / median, command[len(command) // 10] / low, command[0] / ordered[0]
        table[name] = {"median": median, "p10": low, "p90": high, "least": ordered[0], "command": parts}
        shown = "  ".join(f"{part:.2f}" for part in parts)
        print(f"{name:12}{median:9.3f}{low:9.3f}{high:9.3f}{ordered[0]:9.3f}   {shown}")
    if options.json:
        with open(options.json, "w", encoding="ascii") as file:
            json.dump(table, file, indent=2)


if __name__ == "__main__":
    main()
