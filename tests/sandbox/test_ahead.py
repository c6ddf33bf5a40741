"""A start from the tree that is made ahead, all but the program: it is like any other, and goes with whatever dies."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import isolate
from isolate.engine.native import ffi, lib
from isolate.engine.record import KIND, RECORD
from isolate.engine.run_block import block_without_program
from isolate.sandbox import parked
from tests.snapshot import SOON

from .test_template import box_of, children, launchers, parked_box, used, waits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root
HERE = str(Path(__file__).parent.parent.parent)


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    yield
    parked.end_all()


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def ahead(box: isolate.Sandbox) -> int:
    """The init that waits for the sandbox's next start. If another program mounts something, a new tree is made."""
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        parked_box(box)
        before = used(box)
        assert box.run(["true"]).ok
        if used(box) == before:
            continue
        (launcher,) = launchers(box)
        for _ in range(1000):
            found = waits(launcher)
            if found:
                return found[0]
            time.sleep(0.002)
    raise AssertionError("the mount table changes all the time")


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_the_init_that_waits_runs_the_program() -> None:
    box = box_of()
    for _ in range(20):
        init, before = ahead(box), used(box)
        with box.spawn(["cat"], stdin=-1) as process:
            if used(box) == before + 1:
                assert parent(process.pid) == init
                return
    raise AssertionError("the mount table changes all the time")


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_signal_to_the_init_that_waits_is_not_the_programs() -> None:
    """Somebody sends it before there is a program: ``killall``, a session manager. Later ones init hands on."""
    box = box_of()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGRTMIN + 1):
        os.kill(ahead(box), number)
        assert box.run(["sh", "-c", "sleep 0.01"]).ok, number
    with box.spawn(["sleep", "60"]) as process:  # the control
        os.kill(parent(process.pid), signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM


def test_an_init_that_was_stopped_while_it_waited() -> None:
    box = box_of()
    init = ahead(box)
    os.kill(init, signal.SIGSTOP)
    until(lambda: stopped(init), "it was not stopped")
    assert box.run(["true"], timeout=SOON).ok


@pytest.mark.slow
def test_a_fork_that_was_stopped_while_it_waited() -> None:
    """It does not answer: after a second its launcher is told to have it go on."""
    box = box_of()
    init = ahead(box)
    fork = parent(init)
    for pid in (fork, init):
        os.kill(pid, signal.SIGSTOP)
        until(lambda pid=pid: stopped(pid), "it was not stopped")  # type: ignore[misc]
    assert box.run(["true"], timeout=SOON).ok
    parked.end_all()
    # The kernel has an orphaned group go on.
    until(lambda: not alive(fork) and not alive(init), "who was stopped stays")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"env": {"A": "b"}, "cwd": "/tmp"},
        {"input": b"text", "stdout": -1},
        {"stderr": isolate.STDOUT},
        {"env": {"LONG": "x" * 60000}},  # a block that is too long for a message
        {"timeout": 20.0, "cpu_time": 20.0},
    ],
    ids=["plain", "place", "input", "together", "long", "limits"],
)
def test_the_result_is_the_same(options: dict[str, Any]) -> None:
    script = "cat; echo $$ $A ${#LONG}; pwd; id; cat /proc/self/limits /proc/self/status | grep -v ctxt"
    script += "; ls /proc/self/fd /tmp; hostname; ls -l /proc/self/ns | wc -l; touch /tmp/left; echo gone >&2; exit 3"
    command = ["sh", "-c", script]
    box = box_of()
    ahead(box)
    ready, full = box.run(command, **options), box_of(template=False).run(command, **options)
    kept = [
        [
            line
            for line in (result.stdout or b"").splitlines()
            if not line.startswith((b"Vm", b"Rss", b"Mems", b"Cpus", b"SigQ"))
        ]
        for result in (ready, full)
    ]
    assert kept[0] == kept[1]
    assert (ready.stderr, ready.returncode, ready.verdict, ready.applied) == (
        full.stderr,
        full.returncode,
        full.verdict,
        full.applied,
    )


def test_descriptors_are_passed() -> None:
    box = box_of()
    ahead(box)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as read:
        with os.fdopen(writing, "wb") as write:
            assert box.run(["sh", "-c", "echo here >&7"], pass_fds={7: write.fileno()}).ok
        assert read.read() == b"here\n"


def test_time_counts_from_the_call() -> None:
    box = box_of()
    ahead(box)
    time.sleep(0.3)
    began = time.monotonic()
    result = box.run(["true"])
    assert result.wall_time <= time.monotonic() - began
    ahead(box)
    late = box.run(["sleep", "20"], timeout=0.2)
    assert late.verdict == "TIMEOUT"
    assert 0.2 <= late.wall_time < 10


@pytest.mark.parametrize("victim", ["init", "fork", "launcher", "nobody"])
def test_it_goes_with_whatever_dies(victim: str) -> None:
    box = box_of()
    init = ahead(box)
    (launcher,) = launchers(box)
    fork = parent(init)
    if victim == "nobody":
        parked.end_all()
    else:
        os.kill({"init": init, "fork": fork, "launcher": launcher}[victim], signal.SIGKILL)
    until(lambda: not alive(init), "init is left")
    until(lambda: victim == "init" or not alive(fork), "the fork is left")
    assert box.run(["true"]).ok


def test_one_that_was_killed_while_a_start_comes() -> None:
    """The fork is stopped, so it cannot have seen the end."""
    box = box_of()
    init = ahead(box)
    fork = parent(init)
    os.kill(fork, signal.SIGSTOP)
    os.kill(init, signal.SIGKILL)
    until(lambda: not alive(init), "init is left")
    go_on = subprocess.Popen(["sh", "-c", f"sleep 0.2; kill -CONT {fork}"])
    assert box.run(["echo", "here"]).stdout == b"here\n"
    go_on.wait()


def test_it_goes_with_its_owner() -> None:
    code = f"""
import sys; sys.path.insert(0, {HERE!r})
from tests.sandbox.test_ahead import *
box = box_of()
print(ahead(box), flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as owner:
        assert owner.stdout is not None
        init = int(owner.stdout.readline())
        assert alive(init)
        owner.kill()
    until(lambda: not alive(init), "init outlives its owner")


def test_a_host_name_that_changes_is_seen() -> None:
    """A new UTS namespace begins with the names of the caller's."""
    code = f"""
import socket, sys; sys.path.insert(0, {HERE!r})
from tests.sandbox.test_ahead import *
socket.sethostname("before")
box = box_of()
ahead(box)
names = [box.run(["hostname"]).stdout]
ahead(box)
socket.sethostname("after")
names.append(box.run(["hostname"]).stdout)
assert names == [b"before\\n", b"after\\n"], names
"""
    subprocess.run(["unshare", "--uts", sys.executable, "-c", code], check=True)


def test_a_pool_takes_them() -> None:
    box = box_of()
    ahead(box)
    with isolate.Pool(box) as pool:
        for n in range(4):
            assert pool.run(["echo", str(n)]).stdout == b"%d\n" % n
    (launcher,) = launchers(box) or (0,)
    assert len(children(launcher)) <= 1 or launcher == 0


def compared() -> Any:
    """What this thread hands on now; no file, and no mount table, which other programs change."""
    found = ffi.new("struct iso_compared *")
    found.mountinfo = -1
    assert lib.iso_note(found) == 0
    return found


@pytest.mark.parametrize("first", [True, False], ids=["before", "not"])
def test_the_programs_pid_may_come_before_the_launchers(first: bool) -> None:
    """Init and the supervisor go on side by side. Here a thread is both of them, so that the order is known."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    start, other = ffi.new("struct iso_start *"), ffi.new("struct iso_start *")
    lib.iso_begin(start)
    lib.iso_begin(other)
    run = block_without_program(0, later=False)

    def launcher() -> None:
        _, fds, _, _ = socket.recv_fds(theirs, 65536, 8)
        pidfd = os.pidfd_open(os.getpid())
        with socket.socket(fileno=fds[0]) as control:
            control.recv(1)  # the word that it may begin
            if first:
                control.send(KIND.pack(lib.ISO_RECORD_PROGRAM))
            told = bytearray(RECORD.size)
            told[:4] = KIND.pack(lib.ISO_RECORD_LAUNCHER)
            told[16:20] = KIND.pack(os.getpid())  # where `status` is
            socket.send_fds(control, [told], [pidfd])
        for fd in (pidfd, *fds[1:]):
            os.close(fd)

    held = compared()
    with ours, theirs:
        thread = threading.Thread(target=launcher)
        thread.start()
        try:
            devnull = [lib.ISO_DEVNULL] * 3
            assert lib.iso_start_parked(start, other, ours.fileno(), held, run, len(run), [], 0, *devnull, 0, 0) == 0
        finally:
            theirs.shutdown(socket.SHUT_RDWR)
            thread.join(SOON)
            found = start.pid, start.sender, start.pidfd >= 0
            start.pid = 0
            lib.iso_release(start)
    assert found == (os.getpid(), os.getpid() if first else 0, True)


@pytest.mark.parametrize("same", [True, False], ids=["same", "another"])
def test_a_launcher_is_told_whether_it_may_begin(same: bool) -> None:
    """The message comes first, the word after the comparison; the socket's end where something has changed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    start, other = ffi.new("struct iso_start *"), ffi.new("struct iso_start *")
    lib.iso_begin(start)
    lib.iso_begin(other)
    run, told = block_without_program(0, later=False), []

    def launcher() -> None:
        _, fds, _, _ = socket.recv_fds(theirs, 65536, 8)
        for fd in fds[1:]:
            os.close(fd)
        with socket.socket(fileno=fds[0]) as control:
            told.extend([control.recv(9), control.recv(9) if not same else b""])

    root = os.stat("/")
    rows = ffi.new("struct iso_pinned[]", 1)
    lib.iso_mounts(rows, 1, paths := ffi.from_buffer(b"/\0"))
    rows[0].inode, rows[0].major, rows[0].minor = root.st_ino, os.major(root.st_dev), os.minor(root.st_dev)
    held = compared()
    with ours, theirs:
        held.pinned, held.paths, held.count = rows, paths, 1
        assert lib.iso_fits(held) == 1
        if not same:
            rows[0].inode += 1
            assert lib.iso_fits(held) == 0
        thread = threading.Thread(target=launcher)
        thread.start()
        devnull = [lib.ISO_DEVNULL] * 3
        done = lib.iso_start_parked(start, other, ours.fileno(), held, run, len(run), [], 0, *devnull, 0, 0)
        thread.join(SOON)
    # Where it may begin, this launcher tells nothing, so there is none: it was told all the same.
    assert (done, told) == (-errno.ESTALE, [b"\1" if same else b"", b""])
    assert start.control == start.pidfd == -1
