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
import re
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

import isolate
from isolate.engine import tape as tapes
from isolate.engine.native import lib
from isolate.sandbox import parked

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).resolve().parent
FREESTANDING = [
    "-O2",
    "-ffreestanding",
    "-fno-builtin",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-fno-pie",
    "-Wl,-z,noexecstack",
    "-Wl,--build-id=none",
    "-Wl,-z,norelro",
    "-s",
]
PROGRAM = "/bin/true"
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


# ---- the twin: a plan as straight-line C ---------------------------------------------------------------------------


def calls(tape: tapes.Tape) -> str:
    """Each section of a tape as a C function that makes the same calls."""
    header = tapes.HEADER.unpack_from(tape.data)
    _, _, _, _, ops_at, op_count, data_at, data_size, registers, steps, _, flags, clone_flags, *rest = header
    sections = rest[4:]
    data = tape.data[data_at : data_at + data_size]
    rows = [tapes.OP.unpack_from(tape.data, ops_at + i * tapes.OP.size) for i in range(op_count)]
    lines = [
        f"static unsigned char data[] __attribute__((aligned(16))) = {{{','.join(map(str, data))}}};",
        f"#define CLONE_FLAGS {clone_flags}ul",
        f"#define HAS_PIDNS {int(bool(flags & lib.ISO_TAPE_PIDNS))}",
        f"#define SHARE {int(bool(flags & lib.ISO_TAPE_SHARE))}",
        f"#define STEPS {steps}",
        f'_Static_assert({registers} <= sizeof reg / sizeof *reg, "registers");',
    ]
    for index, name in enumerate(("outer", "supervisor", "init", "payload", "after", "report", "cleanup", "aside")):
        first, count = sections[2 * index : 2 * index + 2]
        begin = len(lines)
        lines += [f"static void {name}(void)", "{", "\tlong r = 0;", "\t(void)r;"]
        targets = {row[16] for row in rows[first : first + count] if row[1] & (lib.ISO_JUMP | lib.ISO_OPTIONAL)}
        for at in range(first, first + count):
            if at in targets:
                lines.append(f"l{at}:;")
            lines += [f"\t{line}" for line in statement(rows[at])]
        # Jumps to the end of the section, and beyond what is here: wherever there is a goto there is its label.
        text = "\n".join(lines[begin:])
        used = set(re.findall(r"goto (l\d+);", text)) - set(re.findall(r"^(l\d+):;", text, re.M))
        lines += [f"{label}:;" for label in sorted(used)]
        lines.append("}")
    return "\n".join(lines) + "\n"


def value(kind: int, number: int) -> str:
    """An argument as a C expression."""
    names = {
        lib.ISO_IMM: f"{number}l",
        lib.ISO_DATA: f"PTR(data + {number})",
        lib.ISO_REG: f"reg[{number}]",
        lib.ISO_SLOT: f"{number}l",
        lib.ISO_CWD: 'PTR("/")',
        lib.ISO_COUNTER: "counter",
        lib.ISO_LOAD4: f"(long)*(unsigned *)(data + {number})",
        lib.ISO_LOAD8: f"*(long *)(data + {number})",
        lib.ISO_FLAGS: f"{lib.ISO_RUN_KILLABLE}l",  # the benchmark is not spared by the OOM killer
    }
    return "(-9223372036854775807l - 1)" if number == -(1 << 63) else names[kind]


def statement(row: tuple[int, ...]) -> list[str]:
    """An op as C."""
    code, flags, *rest = row
    kinds, (_, out), errors, (repeat, nr, jump, expect), numbers = (
        rest[:6],
        rest[6:8],
        rest[8:12],
        rest[12:16],
        rest[16:22],
    )
    args = [value(k, n) for k, n in zip(kinds, numbers, strict=True)]
    engine = {
        lib.ISO_OP_SYNC: "engine_sync",
        lib.ISO_OP_SESSION: "engine_session",
        lib.ISO_OP_FIND: "engine_find",
        lib.ISO_OP_FDS: "engine_fds",
        lib.ISO_OP_EXEC: "engine_exec",
        lib.ISO_OP_ASIDE: "engine_aside",
        lib.ISO_OP_MEET: "engine_meet",
    }
    if code in engine:
        return [f"{engine[code]}();"]
    if code == lib.ISO_OP_STORE:
        return [f"store((unsigned char *){args[0]}, (unsigned long){args[1]}, {args[2]});"]
    if code == lib.ISO_OP_TEST:
        otherwise = f"goto l{jump};" if flags & (lib.ISO_JUMP | lib.ISO_OPTIONAL) else "stop();"
        return [f"if ((({args[0]} & {args[1]}) == {args[2]}) == {int(bool(flags & lib.ISO_NOT))}) {otherwise}"]
    if code == lib.ISO_OP_TARGET:
        call = f"target({args[0]}, (const char *){args[1]}, {args[2]}, {args[3]}, {args[4]})"
    elif code == lib.ISO_OP_CALL:
        call = f"iso_syscall({nr}, {', '.join(args)})"
    else:
        raise SystemExit(f"the twin has no op {code}")
    lines = [f"r = {call};"]
    if repeat > 1:
        lines = [f"for (long counter = 0; counter < {repeat}; counter++) {{ {lines[0]}"]
    listed = " || ".join(f"r == -{e}" for e in errors if e) or "0"
    fate = f"goto l{jump};" if flags & lib.ISO_OPTIONAL else "stop();"
    if flags & lib.ISO_TOLERATE:
        fate = f"if (!({listed})) {{ {fate} }}" + (" break;" if repeat > 1 else "")
    elif flags & lib.ISO_JUMP:
        fate = f"if ({listed}) goto l{jump}; else stop();"
    if out != lib.ISO_NONE:
        lines.append(f"reg[{out}] = r;")
    lines.append(f"if (r < 0 && r > -4096) {{ {fate} }}")
    if flags & lib.ISO_EXACT:
        lines.append(f"else if (r != {expect}) stop();")
    if repeat > 1:
        lines.append("}")
    return lines


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


def compile_twin(directory: Path, name: str, halves: dict[str, tapes.Tape]) -> Path:
    """Compile the calls of a tape, or of the two of a template."""
    headers = []
    for kind, tape in halves.items():
        header = directory / f"{name}-{kind}.h"
        header.write_text(calls(tape))
        headers.append(f'-DTWIN_{kind}="{header}"')
    target = directory / name
    compile_c(target, [*FREESTANDING, "-DTWIN_LAUNCHER", *headers, f'-DTWIN_PROGRAM="{PROGRAM}"'])
    return target


def compile_c(target: Path, flags: list[str]) -> None:
    """Compile twin.c."""
    command = ["gcc", "-std=gnu11", "-Wall", "-Wno-unused", "-Wno-array-bounds", *flags, str(HERE / "twin.c")]
    subprocess.run([*command, "-o", str(target)], check=True)


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
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import pathlib, spawn\n"
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
    script = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import os, pathlib, time, spawn\n"
        f"box = spawn.warm(spawn.box(pathlib.Path({str(programs)!r}), net=True))\n"
        "once, used = spawn.python(box), lambda: [starts.used for starts in box._starts.values()]\n"
        "for _ in range(100):\n"
        "    before = used()\n"
        "    os.access('/this-one', 0)\n"
        "    once()\n"
        "    if used() != before: break\n"
        "    time.sleep(0.02)\n"  # whoever mounts something on the host ends the tree, and another one is made
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
