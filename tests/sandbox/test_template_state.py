"""What a start inherits of its thread, and where its sources are: all of it is compared before a start from a tree."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import isolate
from isolate.engine.dividing import NotDivided, divide
from isolate.engine.native import ffi, lib
from isolate.kernel.constants import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWUTS
from isolate.sandbox import parked
from isolate.thread.disposable import on_a_thread
from tests.sandbox.test_template import box_of, from_tree, launchers, parked_box, used, without

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

libc = ctypes.CDLL(None, use_errno=True)
CLONE_FS = 0x200


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    yield
    parked.end_all()


def system(function: str, *args: Any) -> int:
    """A function of libc that ends the test where the kernel does not have it."""
    result = int(getattr(libc, function)(*[ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), function)
    return result


def state(fresh: int = 0) -> Callable[[], bool]:
    """A question: whether this thread hands on what it does now."""
    held = ffi.new("uint8_t[]", lib.ISO_STATE)
    assert lib.iso_state(held, fresh, False) == 0
    return lambda: bool(lib.iso_in_state(held, fresh, False))


def inherit() -> None:
    """A capability that may be inherited, and is ambient."""
    header, sets = struct.pack("<Ii", 0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[2] |= 1 << 10
    assert libc.capset(header, sets) == 0
    system("prctl", 47, 2, 10, 0, 0)


def filtered(number: int) -> None:
    """A filter of this thread's that refuses one system call (EPERM): none of this library's."""
    rows = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *row) for row in rows))
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(rows), ctypes.addressof(code)))
    system("prctl", 38, 1, 0, 0, 0)
    system("prctl", 22, 2, program, 0, 0)


CHANGES: dict[str, Callable[[], Any]] = {
    "memory policy": lambda: system("syscall", isolate.syscalls.number("set_mempolicy"), 1, b"\1" + bytes(15), 64),
    "where requested keys go": lambda: system("syscall", isolate.syscalls.number("keyctl"), 14, 2),
    "login": lambda: Path("/proc/thread-self/loginuid").write_text("1234"),
    "host name": lambda: system("unshare", int(CLONE_NEWUTS)),
    "network": lambda: system("unshare", int(CLONE_NEWNET)),
    "bounding set": lambda: system("prctl", 24, 21, 0, 0, 0),
    "ambient set": inherit,
    "filter": lambda: filtered(0x7FFF),
    "memory of a device": lambda: system("prctl", 57, 1, 0, 0, 0),
    "nice value": lambda: os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5),
}


@pytest.mark.root
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_this_thread_is_seen(what: str) -> None:
    def compare() -> tuple[bool, bool]:
        same = state(int(CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC))
        before = same()
        CHANGES[what]()
        return before, same()

    try:
        assert on_a_thread(compare) == (True, False)
    except OSError as error:
        pytest.skip(f"not here: {error}")


@pytest.mark.root
def test_what_is_new_with_each_start_does_not_matter() -> None:
    def compare() -> tuple[bool, bool]:
        one, other = state(int(CLONE_NEWIPC)), state()
        system("unshare", int(CLONE_NEWIPC))
        return one(), other()

    assert on_a_thread(compare) == (True, False)


@pytest.mark.root
def test_threads_with_as_many_filters() -> None:
    """Two threads have a filter each that is none of this library's: their programs have the filter of their own."""
    look = "uname >/dev/null 2>&1 && echo named; true"
    tree = box_of()
    refused, other = isolate.syscalls.number("uname"), 0x7FFF
    parks, ends = threading.Event(), threading.Event()
    found: list[bytes] = []

    def first() -> None:
        filtered(other)
        parked_box(tree)
        found.append(from_tree(tree, look))
        parks.set()
        assert ends.wait(60)

    def second() -> bytes:
        filtered(refused)
        return without(tree, look)

    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert parks.wait(60)
        assert on_a_thread(second) == b""
    finally:
        ends.set()
        thread.join()
    assert found == [b"named\n"]


@pytest.mark.root
def test_a_filter_that_refuses_the_way_into_the_tree() -> None:
    """A start without the tree needs no setns(2): it is made so, and is no error."""

    def start(refuses: bool) -> tuple[bytes, int]:
        filtered(isolate.syscalls.number("setns") if refuses else 0x7FFF)
        tree = parked_box(box_of())
        return tree.run(["echo", "started"]).stdout, used(tree)

    assert on_a_thread(lambda: start(True)) == (b"started\n", 0)
    for _ in range(5):  # another program may mount something
        stdout, count = on_a_thread(lambda: start(False))
        assert stdout == b"started\n"
        if count:
            return
    raise AssertionError("control: none is from the tree")


@pytest.mark.root
def test_a_source_in_another_mount_of_the_same_directory(tmp_path: Path) -> None:
    """Both mounts have the same directory; below one of them, or in its flags, may be something else."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    link = tmp_path / "link"
    link.symlink_to("one")

    def compare() -> tuple[int, int, int]:
        system("unshare", CLONE_FS | int(CLONE_NEWNS))
        system("mount", b"none", b"/", None, 0x4000 | 1 << 18, None)  # recursive, private
        system("mount", os.fsencode(tmp_path / "one"), os.fsencode(tmp_path / "two"), None, 0x1000, None)
        rows, paths = parked._rows([os.fsencode(link)])
        there = link.stat()
        assert there.st_ino == (tmp_path / "two").stat().st_ino
        rows[0].inode, rows[0].major, rows[0].minor = there.st_ino, os.major(there.st_dev), os.minor(there.st_dev)
        with open("/proc/thread-self/mountinfo") as mounts:
            told = [lib.iso_same(rows, 1, paths, mounts.fileno())]
            for target in ("two", "one"):
                link.unlink()
                link.symlink_to(target)
                told.append(lib.iso_same(rows, 1, paths, mounts.fileno()))
        return told[0], told[1], told[2]

    assert on_a_thread(compare) == (1, 0, 1)


def test_a_keyring_of_the_callers_has_no_template() -> None:
    with pytest.raises(NotDivided, match="session keyring"):
        divide(box_of(parts=(isolate.SessionKeyring(enabled=False),))._plan())
    divide(box_of()._plan())


@pytest.mark.slow
@pytest.mark.root
def test_a_launcher_that_is_stopped_is_told_to_go_on() -> None:
    tree = parked_box(box_of())
    (pid,) = launchers(tree)
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(3):  # the first ones may be by a fork that it has made before
            assert tree.run(["true"]).ok
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        assert used(tree) >= 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
