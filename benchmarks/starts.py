"""The rows of a start and its end: the library's, the programs in C that do the same, and others'."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import isolate
from benchmarks import measuring, peers, spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.measuring import Rows


def run_subprocess(program: str) -> Callable[[], float]:
    """subprocess.run of the program, without any sandbox."""
    return measuring.timed(
        lambda: subprocess.run([program], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    )


def by_this_process(directory: Path, words: list[str]) -> Callable[[], float]:
    """bubblewrap by subprocess: what this process holds is its caller's, too."""
    file = spawn.small_filter(directory)
    at = words.index("--seccomp") + 1

    def once() -> float:
        filter = os.open(file, os.O_RDONLY)
        try:
            command = [*words[:at], str(filter), *words[at + 1 :]]
            begin = time.perf_counter()
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, pass_fds=[filter])
            return time.perf_counter() - begin
        finally:
            os.close(filter)

    return once


@contextlib.contextmanager
def own(directory: Path, programs: Path, driver: Path, *, net: bool, few: bool = False) -> Iterator[Rows]:
    """The library's rows and those in C; with ``few`` what a sweep looks at."""
    rows: Rows = {}
    with contextlib.ExitStack() as stack:
        box = spawn.warm(spawn.box(programs, net=net))
        rows["isolate"] = spawn.python(box)
        rows["each time"] = spawn.python(spawn.box(programs, net=net, template=False))
        rows["pool"] = spawn.python(stack.enter_context(isolate.Pool(spawn.box(programs, net=net))))
        if not few:
            kinds = [
                ("twin", "twin", spawn.build(directory, spawn.box(programs, net=net, template=False), f"twin-{net}")),
                ("template twin", "parked", spawn.build_parked(directory, box, f"parked-{net}")),
                ("exec", "exec", programs / "true"),
            ]
            for name, kind, program in kinds:
                if program is not None:
                    made = spawn.Driver(driver, kind, [str(program)])
                    stack.callback(made.close)
                    rows[name] = made
            rows["subprocess"] = run_subprocess(str(programs / "true"))
        yield rows


def start(directory: Path, programs: Path, driver: Path, rounds: int, environment: Path | None) -> dict[str, Any]:
    """A start and its end, without and with a network namespace."""
    told: dict[str, Any] = {"versions": {}}
    for net in (False, True):
        with (
            own(directory, programs, driver, net=net) as rows,
            peers.rows(directory, programs, driver, environment, net=net) as (others, versions, missing),
        ):
            title = f"{'with' if net else 'without'} a network namespace"
            told[title] = measuring.alternating(rows | others, rounds, 0.005)
            told[title] |= {name: {"missing": why} for name, why in missing.items()}
            told["versions"] |= versions
            measuring.table(title, told[title], "twin")
    return told
