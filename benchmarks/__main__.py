"""Every figure of a start in one run, as tables, JSON and pictures.

    python -m benchmarks [--quick] [--json FILE] [--plots DIRECTORY] [--only start,mounts,…] [--peers DIRECTORY]

Rows of one table take turns, so that whatever else the machine does hits all alike; what a machine is like at the time
(kernel, processors, mounts, processes, load) stands with the figures. ``start`` is the one that benchmarks/spawn.py
explains, with ``subprocess`` and the peers that are there (benchmarks/peers.py). The sweeps change one thing of the
host or of the caller and look at the same start: ``mounts``, ``processes``, ``descriptors``, ``memory``, ``alive``
(sandboxes that the caller keeps) and ``threads`` (which start at the same time: starts in a second). ``parts`` is what
each part adds, ``steady`` what runs inside beside outside. Needs gcc; pictures need matplotlib (extra ``benchmark``).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import isolate
from benchmarks import peers, spawn, tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Rows = dict[str, "Callable[[], float]"]
CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000
SWEEPS = {
    "mounts": ([20, 200, 1000, 5000], [20, 1000]),
    "processes": ([70, 1000, 5000, 10000], [70, 1000]),
    "descriptors": ([10, 1000, 5000, 15000], [10, 5000]),
    "memory": ([20, 512, 2048, 8192], [20, 1024]),
    "alive": ([1, 10, 100, 500, 2000], [1, 10, 100]),
    "threads": ([1, 2, 4, 8, 16], [1, 4]),
}


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


def figures(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """The least, p10, p50 and p99 in milliseconds."""
    told = {}
    for name, values in times.items():
        cuts = quantiles(values, n=100, method="inclusive") if len(values) > 1 else values * 99
        told[name] = {
            "min": min(values) * 1e3,
            "p10": cuts[9] * 1e3,
            "p50": cuts[49] * 1e3,
            "p99": cuts[98] * 1e3,
            "count": len(values),
        }
    return told


def table(title: str, told: dict[str, dict[str, float]], over: str) -> None:
    """Print it, with the ratio to one of the rows."""
    print(f"\n{title}\n  {'':16} {'p10':>9} {'p50':>9} {'p99':>9}   over {over}")
    base = told.get(over)
    for name, row in told.items():
        ratios = "" if base is None else " ".join(f"{row[c] / base[c]:6.2f}" for c in ("p10", "p50", "p99"))
        print(f"  {name:16}", *(f"{row[c]:6.3f} ms" for c in ("p10", "p50", "p99")), " ", ratios)


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    """One call, timed."""

    def once() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return once


def run_subprocess(program: str) -> Callable[[], float]:
    """subprocess.run of the program, without any sandbox."""
    return timed(lambda: subprocess.run([program], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True))


@contextlib.contextmanager
def starts(directory: Path, programs: Path, driver: Path, *, net: bool, few: bool = False) -> Iterator[Rows]:
    """The rows of a start; with ``few`` those that a sweep looks at."""
    rows: Rows = {}
    with contextlib.ExitStack() as stack:
        box = spawn.box(programs, net=net)
        rows["isolate"] = spawn.python(spawn.warm(box))
        rows["each time"] = spawn.python(spawn.box(programs, net=net, template=False))
        command = spawn.bubblewrap(programs, net=net, masked=True)
        if command is not None:
            made = spawn.Driver(driver, "exec", command, filter=spawn.small_filter(directory))
            stack.callback(made.close)
            rows["bubblewrap"] = made
        if not few:
            rows["pool"] = spawn.python(stack.enter_context(isolate.Pool(spawn.box(programs, net=net))))
            twin = spawn.build(directory, spawn.box(programs, net=net, template=False), f"twin-{net}")
            for name, kind, args in (
                ("twin", "twin", [str(twin)]),
                ("exec", "exec", [str(programs / "true")]),
            ):
                made = spawn.Driver(driver, kind, args)
                stack.callback(made.close)
                rows[name] = made
            rows["subprocess"] = run_subprocess(str(programs / "true"))
        yield rows


def alternating(rows: Rows, rounds: int, pause: float) -> dict[str, list[float]]:
    """Times by row, one of each a round in another order each time; who is slow has a turn in every tenth."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    slow = {name for name, row in rows.items() if min(row() for _ in range(3)) > peers.SLOW}
    for number in range(rounds):
        for name in random.sample(list(rows), len(rows)):
            if name in slow and number % 10:
                continue
            time.sleep(pause)
            times[name].append(rows[name]())
    return times


def start(directory: Path, programs: Path, driver: Path, rounds: int, environment: Path | None) -> dict[str, Any]:
    """A start and its end, without and with a network namespace."""
    told: dict[str, Any] = {"versions": {}}
    for net in (False, True):
        with (
            starts(directory, programs, driver, net=net) as rows,
            peers.rows(directory, programs, environment, net=net) as (others, versions),
        ):
            title = f"{'with' if net else 'without'} a network namespace"
            told[title] = figures(alternating(rows | others, rounds, 0.005))
            told["versions"] |= versions
            table(title, told[title], "twin")
    return told


# ---- sweeps ----------------------------------------------------------------------------------------------------------


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
        for n in range(number - machine()["mounts"]):
            target = place / str(n)
            target.mkdir()
            assert libc.mount(bytes(place), bytes(target), None, MS_BIND, None) == 0, ctypes.get_errno()
        yield
    elif kind == "processes":
        reading, writing = os.pipe()
        # Kept: of what is dropped each further Popen asks whether it has ended.
        wanted = range(number - machine()["processes"])
        held_processes = [subprocess.Popen([str(programs / "wait")], stdin=reading, close_fds=True) for _ in wanted]
        yield
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
        alive = [
            box.spawn(["/bin/wait"], stdin=isolate.PIPE, stdout=isolate.DEVNULL, stderr=isolate.DEVNULL)
            for _ in range(number)
        ]
        yield
        for process in alive:
            process.close()


def worker(kind: str, number: int, rounds: int) -> dict[str, Any]:
    """One point of a sweep."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        programs, driver = spawn.prepare(directory)
        spawn.compile_c(programs / "wait", [*spawn.FREESTANDING, "-DTWIN_WAIT"])
        if kind == "threads":
            return together(number, rounds, programs)
        with (
            changed(kind, number, directory, programs),
            starts(directory, programs, driver, net=False, few=True) as rows,
        ):
            told: dict[str, Any] = figures(spawn.measure(rows, rounds, 0.002))
        if kind == "mounts":
            subprocess.run(["umount", "--lazy", "--recursive", str(directory / "mounts")], check=False)
        return told


def together(number: int, rounds: int, programs: Path) -> dict[str, Any]:
    """Starts in a second by so many threads."""
    told = {}
    for name, template in (("isolate", True), ("each time", False)):
        once = spawn.python(spawn.warm(spawn.box(programs, net=False, template=template)))

        def some(once: Callable[[], float] = once) -> None:
            for _ in range(max(1, rounds // number)):
                once()

        threads = [threading.Thread(target=some) for _ in range(number)]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rate = max(1, rounds // number) * number / (time.perf_counter() - begin)
        told[name] = {"p10": rate, "p50": rate, "p99": rate, "count": rounds}
    return told


def sweep(kind: str, rounds: int, quick: bool) -> dict[str, Any]:
    """A start at each of several sizes of the host or the caller."""
    print(f"\n{kind}: {'starts in a second' if kind == 'threads' else 'p50 of a start in ms'}")
    told: dict[str, Any] = {}
    for number in SWEEPS[kind][quick]:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", "--worker", kind, str(number), "--rounds", str(rounds)],
            stdout=subprocess.PIPE,
            check=False,
            cwd=spawn.HERE.parent,
        )
        if done.returncode:
            print(f"  {number:6}: not to be had here")
            continue
        point = told[str(number)] = json.loads(done.stdout.splitlines()[-1])
        print(f"  {number:6}:", "  ".join(f"{name} {row['p50']:.2f}" for name, row in point.items()))
    return told


# ---- parts and steady state ------------------------------------------------------------------------------------------


def parts(programs: Path, rounds: int) -> dict[str, Any]:
    """What one part more adds to a start."""
    kinds: dict[str, tuple[Any, ...]] = {
        "nothing more": (),
        "NetNamespace": (isolate.NetNamespace(),),
        "Seccomp.default": (isolate.Seccomp.default(),),
        "Landlock": (isolate.Landlock(read=["/"], execute=["/"]),),
        "Rlimits": (isolate.Rlimits(nofile=64),),
        "Limits": (isolate.Limits(memory="256M", pids=64),),
    }
    rows: Rows = {}
    for name, more in kinds.items():
        try:
            box = spawn.box(programs, net=False, parts=more)
            box.run([spawn.PROGRAM], stdout=isolate.DEVNULL, stderr=isolate.DEVNULL, check=True)
            once = spawn.python(spawn.warm(box))
        except (isolate.IsolateError, TypeError, ValueError, SystemExit) as error:
            print(f"  {name} is left out: {str(error).splitlines()[0]}")
            continue
        rows[name] = once
    told = figures(spawn.measure(rows, rounds, 0.002))
    table("what a part adds", told, "nothing more")
    return told


STEADY = {
    "processor": "sum(i * i for i in range(1000000))",
    "files": "[open('/etc/passwd').close() for _ in range(10000)]",
    "system calls": "[os.getppid() for _ in range(200000)]",
    "loopback": "[(a.send(b'x'), b.recv(1)) for _ in range(5000)]",
}
PROGRAM = """
import os, socket, sys, time
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen()
a = socket.create_connection(s.getsockname()); b = s.accept()[0]
t = time.perf_counter()
{code}
print(time.perf_counter() - t)
"""


def steady(rounds: int) -> dict[str, Any]:
    """The same work inside and outside."""
    roots = {os.path.realpath(path) for path in ("/bin", "/lib", "/lib64", "/usr", "/etc", sys.prefix, sys.base_prefix)}
    entries = [isolate.Bind(path) for path in sorted(roots) if os.path.isdir(path)]
    tops = {entry.place for entry in entries}
    links = [
        isolate.Symlink(os.readlink(path), path)
        for path in ("/bin", "/lib", "/lib64")
        if os.path.islink(path) and path.encode() not in tops
    ]
    entries = [e for e in entries if not any(e.place.startswith(top + b"/") for top in tops)]
    box = isolate.Sandbox(
        isolate.UserNamespace(),
        isolate.NetNamespace(),
        isolate.Seccomp.default(),
        isolate.Root(*entries, *links, isolate.Proc(), isolate.Dev(), isolate.Tmpfs("/tmp")),
    )
    told: dict[str, Any] = {}
    for name, code in STEADY.items():
        args = [sys.executable, "-c", PROGRAM.format(code=code)]
        rows: Rows = {
            "outside": lambda args=args: float(subprocess.run(args, capture_output=True, check=True).stdout),
            "inside": lambda args=args: float(box.run(args, check=True).stdout),
        }
        told[name] = figures(spawn.measure(rows, max(3, rounds // 10), 0.001))
        table(f"steady state: {name}", told[name], "outside")
    return told


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Every figure of a start in one run.")
    parser.add_argument("--quick", action="store_true", help="few runs and small sweeps: two minutes")
    parser.add_argument("--rounds", type=int, help="runs of each row (default: 200, 20 with --quick)")
    parser.add_argument("--only", help="some of: start, parts, steady, " + ", ".join(SWEEPS))
    parser.add_argument("--peers", type=Path, metavar="DIRECTORY", help="a Python environment with peers of PyPI")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--plots", type=Path, help="make pictures in this directory")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the tables as reStructuredText there")
    parser.add_argument("--pictures", metavar="PATH", help="where the page finds the pictures")
    parser.add_argument("--worker", nargs=2, metavar=("KIND", "NUMBER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    rounds = options.rounds or (20 if options.quick else 200)
    if options.worker:
        print(json.dumps(worker(options.worker[0], int(options.worker[1]), rounds)))
        return
    wanted = options.only.split(",") if options.only else ["start", "parts", *SWEEPS, "steady"]
    unknown = set(wanted) - {"start", "parts", "steady", *SWEEPS}
    if unknown:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    told: dict[str, Any] = {"machine": machine()}
    print(", ".join(f"{name} {value}" for name, value in told["machine"].items()))
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        programs, driver = spawn.prepare(directory)
        if "start" in wanted:
            told["start"] = start(directory, programs, driver, rounds, options.peers)
        if "parts" in wanted:
            told["parts"] = parts(programs, rounds)
        for kind in SWEEPS:
            if kind in wanted:
                told[kind] = sweep(kind, max(10, rounds // 2), options.quick)
        if "steady" in wanted:
            told["steady"] = steady(rounds)
    if options.json:
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    if options.plots:
        tables.plots(told, options.plots)
    if options.page:
        words = "python -m benchmarks " + " ".join(sys.argv[1:])
        options.page.write_text(tables.page(told, words, options.pictures))


if __name__ == "__main__":
    main()
