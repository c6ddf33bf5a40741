"""What a block on the calling thread costs, beside the same system calls made bare through the same extension.

    python benchmarks/here.py [--rounds 300] [--json FILE]

Rows take turns, so that whatever else the machine does hits both alike. ``with`` is the block, empty; ``bare`` makes
the system calls that the kernel needs for it, in the same order, with nothing around them. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import TYPE_CHECKING

import isolate
from isolate.engine.native import ffi, lib
from isolate.kernel import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("openat", "setns", "unshare", "close", "socket", "ioctl", "capget", "capset", "prctl")
N = {name: syscalls.number(name) for name in NAMES}
GOALS = {"NetNamespace": 1.3, "UtsNamespace": None, "Capabilities": 5.0, "Capabilities (no ambient)": 5.0}


def call(name: str, *args: int) -> int:
    """One system call; anything but success ends the benchmark."""
    result = lib.iso_call(N[name], *args, *[0] * (6 - len(args)))
    if result < 0:
        raise OSError(-result, f"{os.strerror(-result)}: {name}")
    return result


def address(data: object) -> int:
    """Where a cffi buffer lies."""
    return int(ffi.cast("intptr_t", data))


def namespace(kind: str, flag: int, *, loopback: bool = False) -> Callable[[], None]:
    """Keep the old one, see that it can be joined, unshare, go back."""
    path = ffi.new("char[]", f"/proc/thread-self/ns/{kind}".encode())
    request = ffi.new("char[40]", b"lo".ljust(16, b"\0") + (0x41).to_bytes(2, "little"))

    def bare() -> None:
        old = call("openat", -100, address(path), os.O_RDONLY | os.O_CLOEXEC, 0)
        call("setns", old, flag)
        call("unshare", flag)
        if loopback:
            fd = call("socket", 2, 0x80002, 0)
            call("ioctl", fd, 0x8914, address(request))
            call("close", fd)
        call("setns", old, flag)
        call("close", old)

    return bare


def capabilities(*, ambient: bool) -> Callable[[], None]:
    """Read the sets, make CAP_NET_ADMIN the only effective one, put the old sets back."""
    header = ffi.new("uint32_t[2]", [0x20080522, 0])
    bit = 1 << isolate.Cap.NET_ADMIN

    def bare() -> None:
        old, new = ffi.new("uint32_t[6]"), ffi.new("uint32_t[6]")
        call("capget", address(header), address(old))
        new[0], new[1], new[4] = bit, old[1], old[4]
        new[2] = bit if ambient else 0
        call("capset", address(header), address(new))
        if ambient:
            call("prctl", 47, 2, isolate.Cap.NET_ADMIN)
        call("capset", address(header), address(old))

    return bare


def starts(rounds: int) -> dict[str, float]:
    """Medians in µs of starting and ending /bin/true: without a network of its own, with a ready one, with a new one.

    The ready ones are made, and their sandboxes compiled, before: each is used once.
    """
    base = (isolate.PidNamespace(), isolate.MountNamespace())
    ready = [isolate.Sandbox(*base, isolate.NetNamespace.create()) for _ in range(rounds)]
    for box in ready:
        box.compile()
    plain, new = isolate.Sandbox(*base), isolate.Sandbox(*base, isolate.NetNamespace())
    times: dict[str, list[int]] = {"none": [], "ready": [], "new": []}
    for box in ready:
        for name, chosen in (("none", plain), ("ready", box), ("new", new)):
            start = time.perf_counter_ns()
            chosen.run(["/bin/true"])
            times[name].append(time.perf_counter_ns() - start)
    return {name: statistics.median(taken[3:]) / 1000 for name, taken in times.items()}


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json")
    options = parser.parse_args()
    rows: dict[str, tuple[object, Callable[[], None]]] = {
        "NetNamespace": (isolate.NetNamespace(), namespace("net", 0x40000000, loopback=True)),
        "UtsNamespace": (isolate.UtsNamespace(), namespace("uts", 0x4000000)),
        "Capabilities": (isolate.Capabilities({"NET_ADMIN"}), capabilities(ambient=True)),
        "Capabilities (no ambient)": (
            isolate.Capabilities({"NET_ADMIN"}, permitted={"NET_ADMIN"}, ambient=(), inheritable=()),
            capabilities(ambient=False),
        ),
    }
    times: dict[str, tuple[list[int], list[int]]] = {name: ([], []) for name in rows}
    for turn in range(options.rounds + 20):
        for name, (part, bare) in rows.items():
            for which in (0, 1) if turn % 2 else (1, 0):
                start = time.perf_counter_ns()
                if which:
                    bare()
                else:
                    with part:  # type: ignore[attr-defined]
                        pass
                took = time.perf_counter_ns() - start
                if turn >= 20:  # the first rounds compile and import
                    times[name][which].append(took)
    report: dict[str, dict[str, float | None]] = {}
    for name, (block, bare_times) in times.items():
        a, b = statistics.median(block) / 1000, statistics.median(bare_times) / 1000
        goal = GOALS[name]
        report[name] = {"with_us": a, "bare_us": b, "ratio": a / b, "goal": goal}
        print(f"{name:28} with {a:9.2f} µs   bare {b:9.2f} µs   {a / b:5.2f}x" + (f"   goal {goal}x" if goal else ""))
    found = starts(min(options.rounds, 60))
    report["start"] = {**found, "ratio": found["ready"] / found["none"], "goal": 1.15}
    print(
        f"start and end a program   no network of its own {found['none']:.0f} µs   a ready one {found['ready']:.0f} µs"
        f"   a new one {found['new']:.0f} µs   ready/none {found['ready'] / found['none']:.2f}x   goal 1.15x"
    )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
