"""What a sandbox costs to start and end, beside a C program that does the same and beside bubblewrap, in one run.

    python benchmarks/spawn.py [--rounds 200] [--resident 4] [--verify] [--json FILE]

Every row is the time from the call to the result: an empty static program run to its end in a user, mount, pid, ipc,
uts and cgroup namespace (and a network one), with a root of four read-only binds, /proc, /dev and a /tmp, without
capabilities, with no_new_privs and a small filter. Rows take turns, so that whatever
else the machine does hits all alike:

    isolate      Sandbox.run from this Python program: from the second start on from a tree that is made once
    each time    the same with template=False: all is set up anew, which is what the twin does, too
    twin         twin.c: the same processes and the same system calls, in C, written from this very sandbox's plan
    pool         Pool.run: a sandbox that has been set up and waits for its program; another begins meanwhile
    unmasked     isolate with a /proc that is neither masked nor read-only in parts, as bubblewrap's is
    template twin  the same as a template: a C program that is parked in a finished tree and forks for each start, with
                 the calls of this very sandbox's start from its tree
    plain        the same without what the library does to stay invisible: no middle process, no tape
    bubblewrap   bwrap doing the same, started by vfork from C, but for the masks of /proc. It returns when its PID 1
                 has told it the status; the namespaces are taken down behind it, while isolate and its twin return when
                 all of it is gone
    masked bwrap the same with the masks, as isolate makes them by default
    exec         vfork, exec and wait from C, without any sandbox: what the machine gives
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:  # where this is run as a file
    sys.path.insert(0, str(HERE.parent))

import isolate  # noqa: E402
from benchmarks.twins import FREESTANDING, PROGRAM, compile_c, compile_twin  # noqa: E402
from isolate.sandbox import parked  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

BINDS = ("/usr", "/etc", "/var")  # with the programs, four read-only binds


def box(
    programs: Path, *, net: bool, proc: isolate.Proc | None = None, template: bool = True, parts: tuple[Any, ...] = ()
) -> isolate.Sandbox:
    """The sandbox that is measured."""
    return isolate.Sandbox(
        isolate.UserNamespace(),
        isolate.MountNamespace(),
        isolate.PidNamespace(),
        isolate.IpcNamespace(),
        isolate.UtsNamespace(),
        isolate.CgroupNamespace(),
        isolate.Root(
            isolate.Bind(str(programs), "/bin"),
            *(isolate.Bind(path) for path in BINDS),
            proc or isolate.Proc(),
            isolate.Dev(),
            isolate.Tmpfs("/tmp", size="16M"),
        ),
        *([isolate.NetNamespace()] if net else []),
        *parts,
        template=template,
    )


def small_filter(directory: Path) -> Path:
    """The filter that isolate installs by default, as bwrap takes it."""
    from isolate.seccomp import deny_user_namespaces

    file = directory / "filter"
    file.write_bytes(deny_user_namespaces())
    return file


def bubblewrap(programs: Path, *, net: bool, masked: bool, program: str | None = None) -> list[str] | None:
    """The same by bwrap (that of the system, or another one), with the filter on descriptor 9. None: it is not here."""
    program = program or shutil.which("bwrap")
    if program is None:
        return None
    cover: list[str] = []
    if masked:
        for name in isolate.Proc().masked:
            path = f"/proc/{name}"
            if os.path.isdir(path):
                cover += ["--tmpfs", path, "--remount-ro", path]
            elif os.path.exists(path):
                cover += ["--ro-bind", "/dev/null", path]
        for name in isolate.Proc().read_only:
            if os.path.exists(f"/proc/{name}"):
                cover += ["--ro-bind", f"/proc/{name}", f"/proc/{name}"]
    return [
        program, "--unshare-user", "--uid", "0", "--gid", "0", "--unshare-pid", "--unshare-ipc", "--unshare-uts",
        "--unshare-cgroup", *(["--unshare-net"] if net else []), "--ro-bind", str(programs), "/bin",
        *(word for path in BINDS for word in ("--ro-bind", path, path)), "--proc", "/proc", *cover, "--dev", "/dev",
        "--size", "16777216", "--tmpfs", "/tmp", "--chdir", "/", "--clearenv", "--cap-drop", "ALL", "--new-session",
        "--die-with-parent", "--seccomp", "9", PROGRAM,
    ]  # fmt: skip  # options beside their values


# ---- the twins -------------------------------------------------------------------------------------------------------


def build(directory: Path, box: isolate.Sandbox, name: str) -> Path:
    """Compile the twin of a sandbox."""
    return compile_twin(directory, name, {"CALLS": box.compile()})


def build_parked(directory: Path, box: isolate.Sandbox, name: str) -> Path | None:
    """Compile the twin of a sandbox's starts from its tree, once there is one; None: there can be none."""
    for starts in warm(box)._starts.values():
        if isinstance(starts, parked.Starts):
            made = starts._template
            return compile_twin(directory, name, {"TREE": made.build, "CALLS": made.again})
    return None


def prepare(directory: Path) -> tuple[Path, Path]:
    """Compile the programs that are run, in a directory of their own, and the driver."""
    directory.chmod(0o755)
    programs = directory / "programs"
    programs.mkdir()
    compile_c(programs / "true", [*FREESTANDING, "-DTWIN_TRUE"])
    compile_c(programs / "say", [*FREESTANDING, "-DTWIN_SAY"])
    driver = directory / "driver"
    size = len(box(programs, net=True).compile().data) + 512
    compile_c(driver, ["-O2", "-DTWIN_DRIVER", f"-DPACKED={size}"])
    return programs, driver


# ---- the rows ------------------------------------------------------------------------------------------------------


class Driver:
    """A C program that starts something once per byte, and times it."""

    def __init__(
        self, driver: Path, kind: str, args: list[str], *, resident: int = 0, filter: Path | None = None
    ) -> None:
        environment = {"TWIN_RESIDENT": str(resident), **({"TWIN_FILTER": str(filter)} if filter else {})}
        self.process = subprocess.Popen(
            [str(driver), kind, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment
        )

    def __call__(self) -> float:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(b"x")
        answer = self.process.stdout.read(8)
        (nanoseconds,) = struct.unpack("<Q", answer) if len(answer) == 8 else (0,)
        if not nanoseconds:
            raise SystemExit(f"{' '.join(map(str, self.process.args))} failed")  # type: ignore[arg-type]
        return nanoseconds / 1e9

    def close(self) -> None:
        """End it."""
        self.process.communicate()


def python(box: isolate.Sandbox | isolate.Pool) -> Callable[[], float]:
    """One ``run``, timed here."""

    def once() -> float:
        start = time.perf_counter()
        result = box.run([PROGRAM], stdout=isolate.DEVNULL, stderr=isolate.DEVNULL)
        elapsed = time.perf_counter() - start
        if not result.ok:
            raise SystemExit(f"isolate: {result}")
        return elapsed

    return once


def warm(box: isolate.Sandbox) -> isolate.Sandbox:
    """The sandbox, once its starts are from a tree where they can be: that is made while the second one runs."""
    for _ in range(100):
        box.run([PROGRAM], stdout=isolate.DEVNULL, stderr=isolate.DEVNULL)
        # None: there can be no tree. What stands for one that nobody has asked for yet has no count.
        if not box.template or any(starts is None or getattr(starts, "used", 0) for starts in box._starts.values()):
            break
        time.sleep(0.02)
    return box


def measure(rows: dict[str, Callable[[], float]], rounds: int, pause: float) -> dict[str, list[float]]:
    """Times by row. Without a pause each row runs ten in a row before the next one's turn."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    names = list(rows)
    burst = 1 if pause else 10
    for name in names:
        for _ in range(3):
            rows[name]()
    for _ in range(max(1, rounds // burst)):
        random.shuffle(names)
        for name in names:
            if not pause:
                rows[name]()  # the one before was another row's: not counted
            for _ in range(burst):
                if pause:
                    time.sleep(pause)
                times[name].append(rows[name]())
    return times


def report(title: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """Print a table; the same as numbers."""
    print(f"\n{title}")
    print(f"  {'':12} {'p10':>9} {'p50':>9} {'p99':>9}   {'over the twin':>20}")
    figures: dict[str, Any] = {}
    for name, values in times.items():
        cuts = statistics.quantiles(values, n=100, method="inclusive")
        figures[name] = {"p10": cuts[9] * 1e3, "p50": cuts[49] * 1e3, "p99": cuts[98] * 1e3, "count": len(values)}
    twin = figures["twin"]
    for name, row in figures.items():
        columns = ("p10", "p50", "p99")
        ratios = " ".join(f"{row[c] / twin[c]:6.2f}" for c in columns)
        print(f"  {name:12}", *(f"{row[c]:6.3f} ms" for c in columns), " ", ratios)
    return figures


# ---- is it a twin? ---------------------------------------------------------------------------------------------------


def traced(command: list[str]) -> Counter[str]:
    """System calls by name of the last launcher that a command starts, from its first on, and of all below it."""
    with tempfile.NamedTemporaryFile("r") as log:
        subprocess.run(["strace", "-f", "-qq", "-o", log.name, *command], check=True, capture_output=True)
        lines = [line.split(None, 1) for line in log.read().splitlines()]
    start = max(i for i, (_, text) in enumerate(lines) if text.startswith("execveat("))
    outside = {pid for pid, _ in lines[:start]} - {lines[start][0]}
    inside = [text for pid, text in lines[start + 1 :] if pid not in outside]
    return Counter(text.split("(")[0] for text in inside if text[0].isalpha())


def verify(directory: Path, driver: Path, programs: Path) -> dict[str, tuple[int, int]]:
    """How often the library's processes and the twin's make each system call."""
    script = (
        f"import sys; sys.path.insert(0, {str(HERE.parent)!r}); import pathlib; from benchmarks import spawn\n"
        f"spawn.python(spawn.box(pathlib.Path({str(programs)!r}), net=True))()\n"
    )
    ours = traced([sys.executable, "-c", script])
    twin = build(directory, box(programs, net=True), "verified")
    theirs = traced(["/bin/sh", "-c", f"printf x | {driver} twin {twin}"])
    return {name: (ours[name], theirs[name]) for name in sorted(ours.keys() | theirs.keys())}


def traced_start(command: list[str], begins: str) -> Counter[str]:
    """System calls of the last start from a tree, by name: of its supervisor and of all below.

    It begins with the last line that has ``begins`` in it. The supervisor is who enters the tree, from the message on;
    the next fork that waits asks for its parent.
    """
    with tempfile.NamedTemporaryFile("r") as log:
        done = subprocess.run(
            ["strace", "-f", "-qq", "-o", log.name, *command], check=False, capture_output=True, input=b"aa*"
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        lines = [line.split(None, 1) for line in log.read().splitlines()]
    at = max(i for i, (_, text) in enumerate(lines) if begins in text)
    last = lines[at:]
    taken = {pid: n for n, (pid, text) in enumerate(last) if "recvmsg" in text and "SCM_RIGHTS" in text}
    supervisor = next(pid for pid, text in last if text.startswith("setns("))
    others = {pid for pid, _ in lines[:at]} | {pid for pid, text in last if text.startswith("getppid(")}
    inside = [text for pid, text in last if pid not in others]
    inside += [text for n, (pid, text) in enumerate(last) if pid == supervisor and n > taken[pid]]
    return Counter(text.split("(")[0] for text in inside if text[0].isalpha())


def verify_parked(directory: Path, driver: Path, programs: Path) -> dict[str, tuple[int, int]]:
    """How often a start from the library's tree and one from the twin's make each system call."""
    # The first start from the tree: later ones are made ahead. Nor does the launcher prepare the next one meanwhile.
    script = (
        f"import os, pathlib, signal, sys, time; sys.path.insert(0, {str(HERE.parent)!r})\n"
        "from benchmarks import spawn\n"
        "for _ in range(100):\n"
        f"    box = spawn.box(pathlib.Path({str(programs)!r}), net=True)\n"
        "    once = spawn.python(box)\n"
        "    once()\n"
        "    once()\n"
        "    time.sleep(0.1)\n"
        "    ready = [starts for starts in box._starts.values() if getattr(starts, 'is_ready', bool)()]\n"
        "    if not ready: continue\n"
        "    os.kill(ready[0].launcher, signal.SIGSTOP)\n"
        "    os.access('/this-one', 0)\n"
        "    once()\n"
        "    os.kill(ready[0].launcher, signal.SIGKILL)\n"
        "    if ready[0].used: break\n"  # whoever mounts something on the host ends the tree
    )
    ours = traced_start([sys.executable, "-c", script], "/this-one")
    twin = build_parked(directory, box(programs, net=True), "verified-parked")
    theirs = traced_start([str(driver), "parked", str(twin)], '"*", 1)')
    return {name: (ours[name], theirs[name]) for name in sorted(ours.keys() | theirs.keys())}


def imports(rounds: int) -> None:
    """What ``import isolate`` adds to a start of Python that imports subprocess."""
    rows = {
        "nothing": "pass",
        "subprocess": "import subprocess",
        "isolate": "import isolate",
        "Sandbox": "from isolate import Sandbox",
    }
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, line in rows.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-I", "-c", line], check=True)
            times[name].append(time.perf_counter() - start)
    print("\nstart of Python with an import (p50)")
    bare = statistics.median(times["nothing"])
    for name, values in times.items():
        p50 = statistics.median(values)
        print(f"  {name:12} {p50 * 1e3:7.2f} ms  (+{(p50 - bare) * 1e3:.2f})")


def machine() -> None:
    """What the numbers hold for."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        count = sum(1 for _ in mounts)
    print(f"kernel {platform.release()} {platform.machine()}, {os.cpu_count()} CPUs, {count} mounts", end=", ")
    print(f"uid {os.geteuid()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="What a sandbox costs, beside C and bubblewrap.")
    parser.add_argument("--rounds", type=int, default=200, help="runs of each row in each table (default: 200)")
    parser.add_argument("--resident", type=float, default=4, help="GiB that the large parent holds (default: 4)")
    parser.add_argument("--verify", action="store_true", help="compare the system calls with the twin's (strace)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    machine()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        programs, driver = prepare(directory)
        if options.verify:
            for name, (ours, theirs) in verify(directory, driver, programs).items():
                print(f"  {name:22} {ours:4} {theirs:4}{'' if ours == theirs else '   <- differs'}")
            return
        for net in (False, True):
            sandbox = box(programs, net=net)
            pool = isolate.Pool(sandbox)
            pool.__enter__()
            twin = build(directory, sandbox, f"twin-{'net' if net else 'nonet'}")
            rows: dict[str, Callable[[], float]] = {
                "isolate": python(warm(sandbox)),
                "each time": python(box(programs, net=net, template=False)),
                "pool": python(pool),
                "unmasked": python(box(programs, net=net, proc=isolate.Proc(masked=(), read_only=()))),
                "twin": Driver(driver, "twin", [str(twin)]),
                "plain": Driver(driver, "plain", [str(twin)]),
            }
            for name, masked in (("bubblewrap", False), ("masked bwrap", True)):
                command = bubblewrap(programs, net=net, masked=masked)
                if command is not None:
                    rows[name] = Driver(driver, "exec", command, filter=small_filter(directory))
            rows["exec"] = Driver(driver, "exec", [str(programs / "true")])
            words = "with" if net else "without"
            for pause, how in ((0.0, "in a burst"), (0.02, "20 ms apart")):
                title = f"{words} a network namespace, {how}"
                figures[title] = report(title, measure(rows, options.rounds, pause))
            for row in rows.values():
                if isinstance(row, Driver):
                    row.close()
            pool.close()
        if options.resident:
            figures["resident"] = large(options, driver, programs, directory)
    imports(20)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def large(options: argparse.Namespace, driver: Path, programs: Path, directory: Path) -> dict[str, Any]:
    """The same from parents that hold much memory."""
    size = int(options.resident * 2**30)
    memory = bytearray(size)
    for at in range(0, size, 4096):
        memory[at] = 1
    sandbox = box(programs, net=False)
    twin = Driver(driver, "twin", [str(build(directory, sandbox, "twin-large"))], resident=size)
    rows = {"isolate": python(sandbox), "twin": twin}
    title = f"without a network namespace, 20 ms apart, from a parent with {options.resident:g} GiB resident"
    figures = report(title, measure(rows, options.rounds // 2, 0.02))
    twin.close()
    del memory
    return figures


if __name__ == "__main__":
    main()
