"""Each limit against a program that hits it, and the same program without the limit."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from isolate.cgroups import Cgroup, Limits
from isolate.engine.plan import Buffer, Context, Line, Phase, Step
from isolate.errors import SetupError
from isolate.mounts import Bind, Root, Tmpfs
from isolate.sandbox.box import Sandbox
from isolate.sandbox.result import Verdict
from tests.cgroups.conftest import MIB, PYTHON, UNIFIED, python

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from isolate.sandbox.result import Result

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("groups")]

HEAP = "x = bytearray(160 << 20)"
SHARED_MEMORY = """
import os
fd = os.memfd_create("x")  # tmpfs
block = bytes(1 << 20)
for _ in range(160): os.write(fd, block)
"""
CHILDREN = """
import os, signal
children = []
for _ in range(8):
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        x = bytearray(20 << 20)
        os.write(tell, b"1")
        signal.pause()
        os._exit(0)
    os.close(tell)
    os.read(ready, 1)  # or its end: it has been killed
    children.append(pid)
for pid in children: os.kill(pid, 9)
dead = [os.waitpid(pid, 0)[1] for pid in children]
"""
GRANDCHILD = """
import os
if os.fork() == 0:
    x = bytearray(160 << 20)
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize("bomb", [HEAP, SHARED_MEMORY, CHILDREN], ids=["heap", "tmpfs", "forks"])
def test_memory(bomb: str) -> None:
    held = python(bomb, Limits(memory="64M"))
    assert held.verdict is Verdict.OOM
    assert held.peak_memory <= 64 * MIB
    assert held.stats.oom_kill >= 1
    free = python(bomb, Limits())
    assert free.verdict is Verdict.OK
    assert free.stats.oom_kill == 0
    assert free.peak_memory > 100 * MIB


KEPT = """
block = bytes(1 << 20)
with open("/mnt/kept", "wb") as file:
    for _ in range(120): file.write(block)
"""


def test_15_what_is_left_in_a_tmpfs_was_in_use() -> None:
    """Also with another file's page cache beside it, and after the memory was given back."""
    tmpfs = Root(Bind("/", "/"), Tmpfs("/mnt", size="256M"))  # where neither this checkout nor Python is
    assert python(KEPT, Limits(), tmpfs).peak_memory > 110 * MIB
    assert python("", Limits(), tmpfs).peak_memory < 40 * MIB


def test_memory_when_the_victim_is_a_child() -> None:
    """v2 takes the group along (memory.oom.group); on v1 the program lives on, and the verdict is OOM all the same."""
    assert python(GRANDCHILD, Limits(memory="64M")).verdict is Verdict.OOM
    alone = python(GRANDCHILD, Limits(memory="64M", oom_group=False))
    assert alone.verdict is Verdict.OOM
    assert alone.returncode == 0
    assert python(GRANDCHILD, Limits()).verdict is Verdict.OK


def test_timeout_is_not_told_as_oom() -> None:
    result = python("import signal; signal.pause()", Limits(memory="64M"), timeout=0.5)
    assert result.verdict is Verdict.TIMEOUT
    assert result.stats.oom_kill == 0


BOMB = """
import os, sys, signal
made = 0
try:
    for _ in range(60):
        if os.fork() == 0: signal.pause()
        made += 1
except BlockingIOError:
    print(made); sys.stdout.flush(); os._exit(3)
print(made); sys.stdout.flush()
"""


def test_pids() -> None:
    held = python(BOMB, Limits(pids=20))
    assert held.verdict is Verdict.PIDS
    assert held.returncode == 3
    assert int(held.stdout) == 18  # init and the program are two of the twenty
    assert held.stats.pids_max >= 1
    free = python(BOMB, Limits(pids=100))
    assert (free.verdict, int(free.stdout)) == (Verdict.OK, 60)


BUSY = """
import os
for _ in range(3):
    if os.fork() == 0: break
while True: pass
"""


BUSY_THREADS = """
import hashlib, threading
block = bytes(1 << 20)
def work():
    while True: hashlib.sha256(block)  # lets go of the interpreter's lock
for _ in range(3): threading.Thread(target=work).start()
work()
"""


@pytest.mark.parametrize(
    "busy", [pytest.param(BUSY, id="processes", marks=pytest.mark.slow), pytest.param(BUSY_THREADS, id="threads")]
)
def test_cpu_share_of_four_that_are_busy(busy: str) -> None:
    seen = []
    for _ in range(3):  # little, so that a busy machine can give it; what it is busy with may still take more than that
        held = python(busy, Limits(cpu=0.1), timeout=3)
        assert held.verdict is Verdict.TIMEOUT
        assert held.cpu_time / held.wall_time < 0.115
        free = python(busy, Limits(), timeout=1)
        seen.append((held.cpu_time / held.wall_time, held.stats.cpu_throttled, free.cpu_time / free.wall_time))
        if seen[-1][0] > 0.05 and seen[-1][1] > 5 and seen[-1][2] > 1.4 * 0.1:
            break
    else:
        pytest.fail(f"share, times throttled, share without the limit: {seen}")


def test_cpus() -> None:
    code = "import os; print(sorted(os.sched_getaffinity(0)))"
    assert python(code, Limits(cpus="0")).stdout == b"[0]\n"
    free = python(code, Limits()).stdout
    assert free == f"{sorted(os.sched_getaffinity(0))}\n".encode()
    if len(os.sched_getaffinity(0)) > 1:
        assert free != b"[0]\n"


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    """A loop device over a file."""
    yield from loop_device(tmp_path / "image")


@pytest.fixture
def second_loop(tmp_path: Path) -> Iterator[str]:
    """Another one."""
    yield from loop_device(tmp_path / "second")


def loop_device(image: Path) -> Iterator[str]:
    if shutil.which("losetup") is None or os.geteuid() != 0:
        pytest.skip("needs losetup and root")
    subprocess.run(["modprobe", "-q", "loop"], check=False)
    with open(image, "wb") as file:
        file.truncate(64 * MIB)
    made = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def test_page_cache_is_reclaimed_not_fatal(loop: str) -> None:
    """What the page cache holds is charged, too, and given back under the limit."""
    code = f"""
with open({loop!r}, "rb") as f:
    while f.read(1 << 20): pass
"""
    held = python(code, Limits(memory="32M"))
    assert held.verdict is Verdict.OK
    assert held.peak_charged <= 32 * MIB
    subprocess.run(["blockdev", "--flushbufs", loop], check=True)
    assert python(code, Limits()).peak_charged > 60 * MIB


def test_15_the_same_figure_with_a_cold_and_with_a_warm_cache(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(bytes(80 * MIB))
    fd = os.open(file, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    code = f"""
with open({str(file)!r}, "rb") as f:
    while f.read(1 << 20): pass
"""
    cold, warm = python(code, Limits()), python(code, Limits())
    if cold.peak_charged < 60 * MIB:
        pytest.skip(f"{tmp_path} lies on a file system that is all cache")
    assert warm.peak_charged < 30 * MIB, "control: what was charged differs"
    assert abs(cold.peak_memory - warm.peak_memory) < 4 * MIB
    assert cold.peak_memory < 30 * MIB


def assert_held(measure: Callable[[], list[float]], *rates: float) -> None:
    """Not more than each rate, and not far less: a busy disk only ever makes it slower, and once."""
    for _ in range(5):
        found = measure()
        assert all(one < 1.25 * rate for one, rate in zip(found, rates, strict=True)), found
        if all(one > rate / 3 for one, rate in zip(found, rates, strict=True)):
            return
    pytest.fail(f"{found} where the limits are {rates}")


def assert_free(measure: Callable[[], list[float]], rate: float) -> None:
    """Each is more than that: a disk that others use, too, may be as slow once."""
    for _ in range(5):
        found = measure()
        if min(found) > rate:
            return
    pytest.fail(f"the control: as slow without the limit: {found}")


def test_io_bytes_per_second(loop: str) -> None:
    dd = ["dd", f"if={loop}", "of=/dev/null", "bs=256K", "count=24", "iflag=direct"]

    def seconds(result: Result[bytes]) -> float:
        assert result.verdict is Verdict.OK, result
        return float(result.stderr.split(b" copied, ")[1].split()[0])  # the clock is the program's own

    number = os.stat(loop).st_rdev
    rate = 4 * MIB

    def held() -> list[float]:
        result = Sandbox(Limits(io={loop: {"rbps": rate}})).run(dd, timeout=60)
        assert result.stats.io[f"{os.major(number)}:{os.minor(number)}"].rbytes == 24 << 18
        return [24 * (1 << 18) / seconds(result)]

    assert_held(held, rate)
    assert_free(lambda: [24 * (1 << 18) / seconds(Sandbox(Limits()).run(dd, timeout=60))], 2 * rate)


READ_BOTH = """
import mmap, os, sys, time
block = mmap.mmap(-1, 1 << 18)
for path in sys.argv[1:]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    start = time.monotonic()
    for _ in range(16): os.readv(fd, [block])
    print(time.monotonic() - start)
"""


def test_io_of_several_devices(loop: str, second_loop: str) -> None:
    """Each is read back, in whatever order the kernel lists them, and each holds."""
    numbers = [f"{os.major(n)}:{os.minor(n)}" for n in (os.stat(p).st_rdev for p in (loop, second_loop))]
    both = Limits(io={loop: {"rbps": 4 * MIB, "wiops": 100}, second_loop: {"rbps": 8 * MIB}})
    with Cgroup(both) as group:
        held = group.held["io.max"] if UNIFIED else group.held["blkio.throttle.read_bps_device"]
        assert {line.split()[0] for line in held.splitlines()} == set(numbers)
        group.update(io={loop: {"rbps": 2 * MIB}, second_loop: {"rbps": 8 * MIB}})
    args = [*PYTHON, READ_BOTH, loop, second_loop]

    def rates(limits: Limits) -> list[float]:
        return [16 * (1 << 18) / float(t) for t in Sandbox(limits).run(args, timeout=60).stdout.split()]

    assert_held(lambda: rates(both), 4 * MIB, 8 * MIB)
    assert_free(lambda: rates(Limits()), 16 * MIB)


def test_a_line_that_is_not_there_is_an_error() -> None:
    """What a limit among others is found by: the whole line, and no other."""

    class Look:
        def __init__(self, line: bytes) -> None:
            self.line = line

        def steps(self, context: Context) -> list[Step]:
            text = Buffer(b"8:0 100\n8:16 200 \n8:160 3\n\0", "text")
            return [Step(Phase.CGROUP, "look for a line", (Line(text, self.line, errno.ERANGE),))]

    for line in (b"8:0 100", b"8:16 200", b"8:160 3"):
        assert Sandbox(Look(line)).run(["true"]).ok
    for line in (b"8:0 10", b"8:0 1000", b":0 100", b"8:16", b"9:0 1"):
        with pytest.raises(SetupError) as caught:
            Sandbox(Look(line)).run(["true"])
        assert (caught.value.errno, caught.value.step) == (errno.ERANGE, "look for a line")
    assert 'has no line "8:0 100"' in Sandbox(Look(b"8:0 100")).explain()


def test_io_operations_per_second(loop: str) -> None:
    code = f"""
import mmap, os, time
fd = os.open({loop!r}, os.O_RDWR | os.O_DIRECT)
block = mmap.mmap(-1, 4096)
start = time.monotonic()
for _ in range(60): os.writev(fd, [block])
print(time.monotonic() - start)
"""
    assert_held(lambda: [60 / float(python(code, Limits(io={loop: {"wiops": 50}})).stdout)], 50)
    assert_free(lambda: [60 / float(python(code, Limits()).stdout)], 100)


OPEN = """
import os, sys
for path in sys.argv[1:]:
    try: os.close(os.open(path, os.O_RDONLY)); print("opened")
    except OSError as e: print(e.errno)
"""


def test_devices() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    args = [*PYTHON, OPEN, "/dev/zero", "/dev/full", "/etc/passwd"]
    run = lambda limits: Sandbox(limits).run(args).stdout.split()  # noqa: E731
    assert run(Limits()) == [b"opened", b"opened", b"opened"]
    assert run(Limits(devices=["c 1:5 r"])) == [b"opened", b"1", b"opened"]
    assert run(Limits(devices=["c 1:5 w", "c 1:* rw"])) == [b"opened", b"opened", b"opened"]
    assert run(Limits(devices=())) == [b"1", b"1", b"opened"]
    assert run(Limits(devices=Limits.DEVICES)) == [b"opened", b"opened", b"opened"]


def test_all_limits_at_once_are_read_back() -> None:
    limits = Limits(memory="100M", pids=50, cpu=1.5, cpu_weight=200, cpu_burst=0.01, cpus="0", devices=Limits.DEVICES)
    files = "memory.max pids.max cpu.max cpu.max.burst cpu.weight cpuset.cpus memory.swap.max memory.oom.group"
    if UNIFIED:
        code = f"""
group = open("/proc/self/cgroup").read().strip().partition("::")[2]
for name in {files!r}.split(): print(open(f"/sys/fs/cgroup{{group}}/{{name}}").read().strip())
"""
        wanted = f"{100 * MIB} 50 150000_100000 10000 200 0 0 1".split()
        assert python(code, limits).stdout.decode().replace("150000 ", "150000_").split() == wanted
    else:
        assert python("pass", limits).verdict is Verdict.OK


def test_a_refused_limit_names_file_and_errno() -> None:
    """The kernel's own refusal, at a step: a quota below the group above cannot be got around."""
    with pytest.raises((SetupError, ValueError)) as caught:
        python("pass", Limits(cpu=0.5, cpus="0", mems="1"))
    assert "mems" in str(caught.value)
