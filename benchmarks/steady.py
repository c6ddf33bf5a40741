"""What each part adds to a start, and what runs inside beside the same outside."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import isolate
from benchmarks import measuring, spawn

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.measuring import Rows


def parts(programs: Path, rounds: int) -> dict[str, Any]:
    """What one part more adds to a start."""
    kinds: dict[str, tuple[Any, ...]] = {
        "nothing more": (),
        "NetNamespace": (isolate.NetNamespace(),),
        "TimeNamespace": (isolate.TimeNamespace(),),
        "Seccomp.default": (isolate.Seccomp.default(),),
        "Landlock": (isolate.Landlock(read=["/"], execute=["/"]),),
        "Rlimits": (isolate.Rlimits(nofile=64),),
        "Limits": (isolate.Limits(memory="256M", pids=64),),
    }
    rows: Rows = {}
    missing: dict[str, Any] = {}
    for name, more in kinds.items():
        try:
            box = spawn.box(programs, net=False, parts=more)
            box.run([spawn.PROGRAM], stdout=isolate.DEVNULL, stderr=isolate.DEVNULL, check=True)
            rows[name] = spawn.python(spawn.warm(box))
        except (isolate.IsolateError, TypeError, ValueError, SystemExit) as error:
            missing[name] = {"missing": str(error).splitlines()[0]}
    told = measuring.alternating(rows, rounds, 0.002) | missing
    measuring.table("what a part adds", told, "nothing more")
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
t, c = time.perf_counter(), time.process_time()
{code}
print(time.perf_counter() - t, time.process_time() - c)
"""


def steady(rounds: int) -> dict[str, Any]:
    """The same work inside and outside: by the clock, and CPU time."""
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
        taken: dict[str, list[tuple[float, float]]] = {"outside": [], "inside": []}
        for number in range(max(5, rounds // 10)):
            for side in ("outside", "inside") if number % 2 else ("inside", "outside"):
                if side == "outside":
                    said = subprocess.run(args, capture_output=True, check=True).stdout
                else:
                    said = box.run(args, check=True).stdout
                clock, used = said.split()
                taken[side].append((float(clock), float(used)))
        told[name] = {
            side: measuring.figures([clock for clock, _ in both], [used for _, used in both])
            for side, both in taken.items()
        }
        measuring.table(f"steady state: {name}", told[name], "outside")
    return told
