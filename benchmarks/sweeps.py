"""The same start while one thing of the host or of the caller changes: how much there is of it.

Each point is measured in a process of its own, which is the caller and holds what is to be held.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import isolate
from benchmarks import measuring, peers, spawn, starts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000
#: All points, and those of a quick run.
SWEEPS = {
    "mounts": ([20, 200, 1000, 5000], [20, 1000]),
    "processes": ([70, 1000, 5000, 10000], [70, 1000]),
    "descriptors": ([10, 1000, 5000, 15000], [10, 5000]),
    "memory": ([20, 512, 2048, 8192], [20, 1024]),
    "alive": ([1, 10, 100, 500, 2000], [1, 10, 100]),
    "threads": ([1, 2, 4, 8, 16], [1, 4]),
}
#: What the caller itself holds: bubblewrap is started by it there, and else by a C program that holds nothing.
HELD = ("descriptors", "memory", "alive")


@contextlib.contextmanager
def changed(kind: str, number: int, directory: Path, programs: Path) -> Iterator[None]:
    """The host, or this process, with so many of something. In a process of its own."""
    if kind == "mounts":
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(CLONE_NEWNS) == 0
        assert libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) == 0
        place = directory / "mounts"
        place.mkdir()
        assert libc.mount(bytes(place), bytes(place), None, MS_BIND, None) == 0
        for n in range(number - measuring.machine()["mounts"]):
            target = place / str(n)
            target.mkdir()
            assert libc.mount(bytes(place), bytes(target), None, MS_BIND, None) == 0, ctypes.get_errno()
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", "--recursive", str(place)], check=False)
    elif kind == "processes":
        reading, writing = os.pipe()
        # Kept: of what is dropped each further Popen asks whether it has ended.
        wanted = range(number - measuring.machine()["processes"])
        held_processes = [subprocess.Popen([str(programs / "wait")], stdin=reading, close_fds=True) for _ in wanted]
        try:
            yield
        finally:
            os.close(writing)
            for process in held_processes:
                process.wait()
    elif kind == "descriptors":
        import resource

        hard = max(resource.getrlimit(resource.RLIMIT_NOFILE)[1], number + 100)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        held = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(number)]
        yield
        for fd in held:
            os.close(fd)
    elif kind == "memory":
        memory = bytearray(number << 20)
        for at in range(0, len(memory), 4096):
            memory[at] = 1
        yield
        del memory
    elif kind == "alive":
        box = spawn.box(programs, net=False)
        with contextlib.ExitStack() as alive:
            for _ in range(number):
                alive.enter_context(
                    box.spawn(["/bin/wait"], stdin=isolate.PIPE, stdout=isolate.DEVNULL, stderr=isolate.DEVNULL)
                )
            yield


def worker(kind: str, number: int, rounds: int) -> dict[str, Any]:
    """One point of a sweep."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        programs, driver = spawn.prepare(directory)
        spawn.compile_c(programs / "wait", [*spawn.FREESTANDING, "-DTWIN_WAIT"])
        if kind == "threads":
            return together(number, rounds, programs)
        words = spawn.bubblewrap(programs, net=False, masked=True)
        with (
            changed(kind, number, directory, programs),
            starts.own(directory, programs, driver, net=False, few=True) as rows,
            peers.rows(directory, programs, driver, None, net=False, names=() if kind in HELD else ("bubblewrap",)) as (
                others,
                _,
                _,
            ),
        ):
            if kind in HELD and words is not None:
                others["bubblewrap"] = starts.by_this_process(directory, words)
            return measuring.alternating(rows | others, rounds, 0.002)


def together(number: int, rounds: int, programs: Path) -> dict[str, Any]:
    """Starts in a second by so many threads."""
    told = {}
    account = measuring.Account.own()
    for name, template in (("isolate", True), ("each time", False)):
        once = spawn.python(spawn.warm(spawn.box(programs, net=False, template=template)))
        each = max(1, rounds // number)

        def some(once: Callable[[], float] = once, each: int = each) -> None:
            for _ in range(each):
                once()

        rates, used = [], []
        for _ in range(3):
            threads = [threading.Thread(target=some) for _ in range(number)]
            before, begin = account.read(), time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            rates.append(each * number / (time.perf_counter() - begin))
            after = account.read()
            if before is not None and after is not None:
                used.append((after - before) / (each * number) * 1e3)
        told[name] = {"p50": sorted(rates)[1], "max": max(rates), "count": 3 * each * number}
        if used:
            told[name] |= {"cpu_min": min(used)}
    return told


def sweep(kind: str, rounds: int, quick: bool) -> dict[str, Any]:
    """A start at each of several sizes of the host or the caller."""
    threads = kind == "threads"
    print(f"\n{kind}: {'starts in a second, median of 3' if threads else 'a start in ms: p10, p50 and CPU min'}")
    told: dict[str, Any] = {}
    for number in SWEEPS[kind][quick]:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", "--worker", kind, str(number), "--rounds", str(rounds)],
            capture_output=True,
            check=False,
            cwd=spawn.HERE.parent,
        )
        if done.returncode:
            told[str(number)] = {"missing": peers.reason(done.stderr)}
            print(f"  {number:6}: not to be had here: {told[str(number)]['missing']}")
            continue
        point = told[str(number)] = json.loads(done.stdout.splitlines()[-1])
        shown = []
        for name, row in point.items():
            used = f" / {row['cpu_min']:.2f}" if "cpu_min" in row else ""
            shown.append(f"{name} {row['p50']:.0f}" if threads else f"{name} {row['p10']:.2f} / {row['p50']:.2f}{used}")
        print(f"  {number:6}:", "   ".join(shown), flush=True)
    return told
