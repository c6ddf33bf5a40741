"""What a sandbox takes whose program waits: memory of the processes beside the program, descriptors of the caller."""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import isolate
from isolate.sandbox import parked
from tests.ordinary import as_ordinary_user
from tests.sandbox.test_template import box_of, parked_box, so_many

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.sandbox.process import Process
    from tests.snapshot import Snapshot

SOON = 20.0


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    parked.end_all()
    gc.collect()  # no descriptor of an earlier test's is closed while this one counts
    yield
    parked.end_all()


def taken(pid: int) -> tuple[int, int]:
    """KiB of private memory, and of page tables without the top level."""
    found = dict.fromkeys(("Private_Dirty", "VmPTE"), 0)
    for name in ("smaps_rollup", "status"):
        for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in found:
                found[key] = int(value.split()[0])
    return found["Private_Dirty"], found["VmPTE"]


def beside(process: Process) -> list[int]:
    """The supervisor and init."""
    supervisor = process._session.pid
    (init,) = map(int, Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split())
    return [supervisor, init]


@pytest.mark.root
@pytest.mark.parametrize("template", [False, True])
def test_memory_is_given_back(template: bool) -> None:
    """One page of each level of the tables, a page of the stack, and what a start from no tree needs at the end."""
    if ctypes.CDLL(None).prctl(35, 15, ctypes.byref(ctypes.c_uint()), 0, 0) < 0:  # PR_SET_MM, PR_SET_MM_MAP_SIZE
        pytest.skip("a kernel without CONFIG_CHECKPOINT_RESTORE: the stack stays")
    box = box_of(template=template)
    if template:
        parked_box(box)
    with box.spawn(["sleep", "1000"]) as process:
        if template:
            assert so_many(box, 1)
        pids, deadline = beside(process), time.monotonic() + SOON
        while any(memory > 12 or tables > 12 for memory, tables in map(taken, pids)):
            assert time.monotonic() < deadline, [taken(pid) for pid in pids]
            time.sleep(0.01)
        for pid in pids:
            assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"isolate-launcher\0"
        # All that is told at an end is still told.
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON) == -signal.SIGTERM
        assert process.result().verdict is isolate.Verdict.SIGNALED


@pytest.mark.parametrize("template", [False, True])
def test_the_end_is_told_after_it(template: bool) -> None:
    """A limit and an end of the program's own come long after."""
    box = box_of(template=template)
    if template:
        parked_box(box)
    assert box.run(["sleep", "1000"], timeout=0.2).verdict is isolate.Verdict.TIMEOUT
    killed = box.run(["sh", "-c", "sleep 0.1; echo said; exit 7"])
    assert (killed.returncode, killed.stdout, killed.wall_time > 0.1) == (7, b"said\n", True)


# ---- descriptors -----------------------------------------------------------------------------------------------------


def held() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def rests() -> bool:
    """Whether the kernel numbers processes so that a pidfd can be opened again (pidfs, Linux 6.9)."""
    fd, fs = os.pidfd_open(os.getpid()), (ctypes.c_long * 32)()
    try:
        return ctypes.CDLL(None).fstatfs(fd, fs) == 0 and fs[0] == 0x50494446
    finally:
        os.close(fd)


needs_pidfs = pytest.mark.skipif(not rests(), reason="pidfds of this kernel have no numbers of their own (Linux 6.9)")


def readable(fd: int, seconds: float) -> bool:
    return bool(select.select([fd], [], [], seconds)[0])


@needs_pidfs
@pytest.mark.parametrize("parts", [(), (isolate.PidNamespace(),), (isolate.PidNamespace(init=False),)])
def test_one_descriptor(parts: tuple[Any, ...]) -> None:
    before = held()
    with isolate.Sandbox(*parts).spawn(["sleep", "1000"]) as process:
        assert len(held() - before) == 1
        assert process.poll() is None
        process.send_signal(signal.SIGCONT)
        assert len(held() - before) == 1, "what needs a pidfd for a moment has closed it again"
        fd = process.pidfd
        assert (process.pidfd, len(held() - before)) == (fd, 2)
        assert not readable(fd, 0)
        with pytest.raises(isolate.TimeoutExpired):
            process.wait(0.01)
        assert process.pidfd == fd
        process.kill()
        assert process.wait(SOON) == -signal.SIGKILL
        assert readable(fd, 0)
    assert held() == before
    assert process.pidfd == -1


def test_with_pipes_nothing_is_opened_later() -> None:
    with isolate.Sandbox().spawn(["cat"], stdin=isolate.PIPE, stdout=isolate.PIPE) as process:
        before = held()
        assert process.pidfd >= 0
        assert process.communicate(b"x", timeout=SOON) == (b"x", None)
        assert not held() - before


def ended() -> isolate.Process:
    """One that has ended and been reaped, and nobody has asked."""
    process = isolate.Sandbox(isolate.PidNamespace()).spawn(["sh", "-c", "exit 3"])
    assert readable(process.fileno(), SOON)
    deadline = time.monotonic() + SOON
    while Path(f"/proc/{process.pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return process


def test_the_pidfd_of_a_program_that_has_ended(clean: Snapshot) -> None:
    """Asked for after the end, it says what one says that was open all the time."""
    with ended() as process:
        assert readable(process.pidfd, 0)
        with pytest.raises(ProcessLookupError):
            signal.pidfd_send_signal(process.pidfd, 0)
        process.send_signal(signal.SIGKILL)
        assert process.wait(SOON) == 3
    with ended() as process:
        assert process.poll() == 3


REUSED = f"""
import ctypes, os, signal, struct, sys; sys.path.insert(0, {str(Path(__file__).parent.parent.parent)!r})
from tests.sandbox.test_idle import *
from isolate.engine import native
from isolate.engine.native import ffi

def another(pid):
    wanted = ffi.new("int32_t[1]", [pid])
    args = ffi.new("uint64_t[11]")
    args[4], args[8], args[9] = 17, int(ffi.cast("intptr_t", wanted)), 1  # exit_signal, set_tid, set_tid_size
    made = native.call(435, args, 88)
    if made == 0:
        os.execv("/bin/sleep", ["sleep", "1000"])
    return made

assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER: launchers are ours to reap
process = ended()
launcher = process._session._start.pid
assert os.waitpid(launcher, 0)[0] == launcher
other = [another(process.pid), another(launcher)]
if min(other) < 0:
    for pid in filter(lambda pid: pid > 0, other):
        os.kill(pid, signal.SIGKILL)
    print("refused", other)
    sys.exit()
assert other == [process.pid, launcher]
assert readable(process.pidfd, 0), "another process's"
process.send_signal(signal.SIGKILL)
process._session.kill()
assert process.wait(SOON) == 3
process.close()
for pid in other:
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
print("told apart")
"""


@pytest.mark.root
@needs_pidfs
def test_a_process_id_that_is_another_process_now() -> None:
    done = subprocess.run([sys.executable, "-c", REUSED], capture_output=True, text=True, check=False, timeout=60)
    if done.stdout.startswith("refused"):
        pytest.skip(f"no process id may be chosen here: {done.stdout}")
    assert (done.stdout, done.returncode) == ("told apart\n", 0), done.stderr


NO_DESCRIPTOR = f"""
import errno, os, resource, sys; sys.path.insert(0, {str(Path(__file__).parent.parent.parent)!r})
from tests.sandbox.test_idle import *
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
process = isolate.Sandbox(isolate.UserNamespace(), isolate.PidNamespace()).spawn(["sleep", "1000"])
taken = []
while True:
    try:
        taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        break
for needs in (lambda: process.pidfd, lambda: process.send_signal(signal.SIGCONT)):
    try:
        needs()
    except OSError as error:
        assert error.errno == errno.EMFILE, error
    else:
        raise AssertionError("there was a descriptor left")
assert process.poll() is None
try:
    process.wait(0.05)
    raise AssertionError("it has ended")
except isolate.TimeoutExpired:
    pass
process.kill()
assert process.wait(SOON) == -9
os.close(taken.pop())
assert readable(process.pidfd, 0)
process.close()
print("ended")
"""


@needs_pidfs
def test_without_a_descriptor_left() -> None:
    assert as_ordinary_user(NO_DESCRIPTOR) == "ended\n"


@needs_pidfs
def test_a_forked_child_sees_it_too() -> None:
    with isolate.Sandbox().spawn(["sleep", "1000"]) as process:
        child = os.fork()
        if child == 0:
            os._exit(0 if process.pidfd >= 0 and not readable(process.pidfd, 0) else 1)
        assert os.waitpid(child, 0)[1] == 0
        process.kill()
