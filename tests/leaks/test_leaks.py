"""Many in a row: nothing grows. Descriptors, threads, children, mounts, namespaces, memory."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import mmap
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import PIPE, IpcNamespace, MountNamespace, NetNamespace, PidNamespace, Sandbox, SetupError, UserNamespace
from tests.snapshot import resident

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.snapshot import Snapshot

BOX = Sandbox(UserNamespace(), PidNamespace(), MountNamespace(), NetNamespace(), IpcNamespace())
MEBIBYTE = 1 << 20


def run() -> None:
    assert BOX.run(["true"]).ok


def run_with_output() -> None:
    assert len(BOX.run(["head", "-c", "100000", "/dev/zero"], input=bytes(1000)).stdout) == 100_000


def spawn() -> None:
    with BOX.spawn(["cat"], stdin=PIPE, stdout=PIPE) as process:
        process.kill()


def pty() -> None:
    with BOX.spawn(["true"], pty=True) as process:
        process.wait()


def arun() -> None:
    async def several() -> None:
        await asyncio.gather(*(BOX.arun(["true"]) for _ in range(4)))

    asyncio.run(several())


def failure() -> None:
    with contextlib.suppress(SetupError):
        BOX.run(["/no/such/program"])


def late() -> None:
    BOX.run(["sleep", "1000"], timeout=0.001)


def new_sandbox() -> None:
    assert Sandbox(UserNamespace(), PidNamespace()).run(["true"]).ok


USES = {f.__name__: f for f in (run, run_with_output, spawn, pty, arun, failure, late, new_sandbox)}


def namespaces(by: float = math.inf) -> set[str]:
    """All namespaces that some process is in that has started by then, in seconds since the machine has."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            ticks = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
            if ticks / os.sysconf("SC_CLK_TCK") <= by:
                for kind in ("mnt", "pid", "net", "ipc", "user", "uts"):
                    with contextlib.suppress(OSError):
                        found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
    return found


def growth(use: Callable[[], None], times: int) -> int:
    """Bytes by which this process has grown after so many, once it is warm."""
    for _ in range(max(20, times // 10)):
        use()
    gc.collect()
    before = resident()
    for _ in range(times):
        use()
    gc.collect()
    return resident() - before


def grows(use: Callable[[], None], times: int) -> bool:
    """Whether it grows each time. Once it may: the kernel puts a huge page in the place of small ones when it likes."""
    return all(growth(use, times) >= MEBIBYTE for _ in range(3))


@pytest.mark.parametrize("name", USES)
def test_nothing_grows(name: str, clean: Snapshot) -> None:
    assert not grows(USES[name], 40)


def test_hundreds_in_a_row(clean: Snapshot) -> None:
    blocks = sys.getallocatedblocks()
    assert not grows(run, 300)
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 2000


def test_growth_would_be_seen() -> None:
    """The control: a use that keeps 200 kB each time is caught."""
    kept: list[mmap.mmap] = []

    def use() -> None:
        kept.append(
            mmap.mmap(-1, 200_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        )  # bytes could come from what earlier tests gave back to malloc alone
        kept[-1][:] = bytes(200_000)

    assert grows(use, 100)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_in_a_row(clean: Snapshot) -> None:
    assert not grows(run, 10_000)


@pytest.mark.root
def test_namespaces_go_with_their_sandbox(clean: Snapshot) -> None:
    mine = {os.readlink(f"/proc/self/ns/{k}") for k in ("mnt", "pid", "net", "ipc", "user", "uts")}
    with Sandbox(*BOX.parts, template=False).spawn(["sleep", "1000"]) as process:
        theirs = {os.readlink(f"/proc/{process.pid}/ns/{k}") for k in ("mnt", "pid", "net", "ipc", "user")}
        assert theirs.isdisjoint(mine)
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert theirs <= namespaces(now), "the control"
    # Whoever starts now, in this program or another, may be given the number of a namespace that has just gone.
    assert theirs.isdisjoint(namespaces(now))


def test_shared_memory_goes(clean: Snapshot) -> None:
    """System V segments of ended sandboxes do not stay: in its own namespace each is the first again."""
    script = (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\nid = libc.shmget(7, 1 << 20, 0o1600)\nassert id >= 0\n"
        "print(id, sum(1 for _ in open('/proc/sysvipc/shm')))"
    )
    for _ in range(10):
        assert BOX.run([sys.executable, "-I", "-S", "-c", script], check=True).stdout == b"0 2\n"


def shared() -> int:
    """Bytes of shared memory on the whole machine."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Shmem:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Shmem")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [3, pytest.param(500, marks=pytest.mark.slow)])
def test_memory_of_shared_segments_comes_back(number: int, clean: Snapshot) -> None:
    """The kernel frees an IPC namespace some time after its last process, however many have been."""
    script = (
        "import ctypes, sys\nlibc = ctypes.CDLL(None)\nlibc.shmat.restype = ctypes.c_void_p\n"
        "id = libc.shmget(0, 64 << 20, 0o1600)\naddress = libc.shmat(id, None, 0)\n"
        "ctypes.memset(address, 1, 64 << 20)\nprint('filled', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-I", "-S", "-c", script]
    for _ in range(10):  # the control: it does count, unless another program gives back as much meanwhile
        before = shared()
        with BOX.spawn(command, stdin=PIPE, stdout=PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"filled\n"
            more = shared() - before
        if more > 32 << 20:
            break
    assert more > 32 << 20
    for _ in range(number):
        assert BOX.run(command, check=True).stdout == b"filled\n"
    deadline = time.monotonic() + 30
    while (left := shared() - before) > 32 << 20:  # less than one segment
        assert time.monotonic() < deadline, f"{left >> 20} MiB are left"
        time.sleep(0.01)
