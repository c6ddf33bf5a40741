"""The interpreter on the calling thread: each op, each policy for errors, and paths that lead astray."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from isolate.engine.native import ffi, lib
from isolate.engine.plan import (
    COUNTER,
    CWD,
    SELF,
    Buffer,
    Call,
    Context,
    Engine,
    Label,
    Load,
    Phase,
    Plan,
    Register,
    RemoveTree,
    Section,
    Step,
    Store,
    Target,
    call,
)
from isolate.engine.plan import Test as Compare
from isolate.engine.tape import HEADER, compile_plan

AT_FDCWD = -100
O_RDONLY, O_DIRECTORY, O_PATH, O_CLOEXEC = os.O_RDONLY, os.O_DIRECTORY, os.O_PATH, os.O_CLOEXEC


@dataclass(frozen=True)
class Ops:
    """A part of one step."""

    ops: tuple[Any, ...]
    required: bool = True

    def steps(self, context: Context) -> list[Step]:
        return [Step(Phase.SCHEDULING, "step", self.ops)]


@dataclass
class Ran:
    """What came of it."""

    result: int
    registers: list[int]
    failed: int
    skipped: bool
    data: bytes


def run(*ops: Any, required: bool = True, section: int = Section.PAYLOAD) -> Ran:
    """Run ops on this thread. A register holds what the op before it left, in the order of first use, from 3 on."""
    tape = compile_plan(Plan([Ops(ops, required)], euid=0, egid=0), init=True, pid_namespace=False, share=True)
    memory = ffi.new("uint64_t[]", len(tape.data) // 8)
    ffi.memmove(memory, tape.data, len(tape.data))
    fields = HEADER.unpack_from(tape.data)
    registers = ffi.new("int64_t[]", fields[8])
    failed = ffi.new("uint32_t *")
    skipped = ffi.new("uint8_t[8]")
    result = lib.iso_run_here(ffi.cast("uint8_t *", memory), len(tape.data), section, registers, failed, skipped)
    data = bytes(ffi.buffer(memory))[fields[6] : fields[6] + fields[7]]
    return Ran(result, list(registers), failed[0], bool(skipped[0] & 1), data)


def test_calls_and_registers() -> None:
    ran = run(call("getppid", out=(parent := Register())), Compare(parent, os.getppid()), Compare(SELF, os.getpid()))
    assert ran.result == 0
    assert ran.registers[1] == os.getpid()
    assert ran.registers[3] == os.getppid()


def test_an_error_stops_and_names_the_op() -> None:
    ran = run(call("getpid"), call("close", 10**6), call("close", 10**6 + 1))
    assert (ran.result, ran.failed) == (-errno.EBADF, 1)


def test_ignore() -> None:
    out = Register()
    ran = run(call("close", 10**6, errors=(errno.EINTR, errno.EBADF), out=out))
    assert ran.result == 0
    assert ran.registers[3] == -errno.EBADF
    for listed in ((errno.EINTR, errno.EPERM), (errno.EINTR, errno.EPERM, errno.EIO, errno.EAGAIN)):
        assert run(call("close", 10**6, errors=listed)).result == -errno.EBADF


@pytest.mark.parametrize("policy", ["jump", "skip"])
def test_jump_and_skip(policy: str) -> None:
    end = Label()
    ran = run(Call("close", (10**6,), errors=(errno.EBADF,), policy=policy, label=end), call("close", 10**6), end)
    assert ran.result == 0
    assert ran.skipped == (policy == "skip")
    other = Label()
    assert run(Call("close", (10**6,), errors=(errno.EPERM,), policy=policy, label=other), other).result == -errno.EBADF


def test_optional_steps_are_skipped() -> None:
    ran = run(call("close", 10**6), call("close", 10**6), required=False)
    assert ran.result == 0
    assert ran.skipped
    assert not run(call("getpid"), required=False).skipped


def test_retry_until_it_works(tmp_path: Path) -> None:
    """ENOENT is retried: the file comes a little later. And what never comes is told after two seconds at most."""
    path = os.fsencode(tmp_path / "late")
    thread = threading.Timer(0.05, (tmp_path / "late").touch)
    thread.start()
    fd = Register()
    opening = Call("openat", (AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0), out=fd, errors=(errno.ENOENT,), policy="retry")
    assert run(opening, call("close", fd)).result == 0
    thread.join()
    start = time.monotonic()
    never = Call("unlinkat", (AT_FDCWD, path + b"never", 0), errors=(errno.ENOENT,), policy="retry")
    assert run(never).result == -errno.ENOENT
    assert 1.5 < time.monotonic() - start < 15


def test_exact_results() -> None:
    null = os.open("/dev/zero", os.O_RDWR)
    try:
        buffer = Buffer(16)
        assert run(call("read", null, buffer, 16, expect=16)).result == 0
        assert run(call("read", null, buffer, 16, expect=15)).result == -errno.EIO
        assert run(call("read", 10**6, buffer, 16, expect=16)).result == -errno.EBADF
    finally:
        os.close(null)


def test_repeat_with_a_counter() -> None:
    # F_GETFD of 0, 1 and 2, which are open.
    out = Register()
    assert run(Call("fcntl", (COUNTER, 1), repeat=3, out=out)).result == 0
    assert run(Call("fcntl", (COUNTER, 1), repeat=2000)).result == -errno.EBADF
    # An error that may be ends it: registers show what came last.
    ran = run(Call("fcntl", (COUNTER, 1), repeat=2000, errors=(errno.EBADF,), out=out))
    assert ran.result == 0
    assert -errno.EBADF in ran.registers


@pytest.mark.parametrize(
    ("value", "width", "wanted"),
    [
        (0x1122334455667788, 8, b"\x88\x77\x66\x55\x44\x33\x22\x11"),
        (-2, 8, b"\xfe" + b"\xff" * 7),
        (0x11223344, 4, b"\x44\x33\x22\x11" + b"z" * 4),
        (0x1122, 2, b"\x22\x11" + b"z" * 6),
        (0x11, 1, b"\x11" + b"z" * 7),
        (0, 0, b"0\0"),
        (1234567890123456789, 0, b"1234567890123456789\0"),
        (-1, 0, b"18446744073709551615\0"),
    ],
)
def test_store(value: int, width: int, wanted: bytes) -> None:
    buffer = Buffer(b"z" * 32)
    ran = run(Store(buffer, 8, value, width))
    assert ran.result == 0
    at = ran.data.index(b"z" * 8)
    assert ran.data[at + 8 : at + 8 + len(wanted)] == wanted


def test_compare_and_load() -> None:
    buffer = Buffer(b"\xf1\xff\xff\xff\x02\x00\x00\x80")
    assert run(Compare(Load(buffer, 0, 4), 0xFFFFFFF1)).result == 0
    assert run(Compare(Load(buffer, 0, 8), -(1 << 63) | 0x2FFFFFFF1)).result == 0
    assert run(Compare(Load(buffer, 4, 4), 2, mask=0xFF)).result == 0
    assert run(Compare(Load(buffer, 4, 4), 3, mask=0xFF)).result == -errno.EPROTO
    assert run(Compare(Load(buffer, 4, 4), 3, mask=0xFF, error=errno.EXDEV)).result == -errno.EXDEV
    assert run(Compare(1, 2, error=0)).result == -errno.EPROTO, "a mismatch is always an error"
    assert run(Compare(Load(buffer, 4, 4), 3, mask=0xFF, negate=True)).result == 0
    assert run(Compare(Load(buffer, 4, 4), 2, mask=0xFF, negate=True)).result == -errno.EPROTO
    end = Label()
    ran = run(Compare(1, 2, label=end, skip=True), call("close", 10**6), end)
    assert (ran.result, ran.skipped) == (0, True)


def test_what_only_a_launcher_knows() -> None:
    assert run(Engine("exec")).result == -errno.ENOSYS
    assert run(call("getpid"), section=99).result == -errno.EINVAL
    assert run(call("close", 10**6), section=Section.INIT).result == 0, "another section: nothing of it runs"


def test_working_directory_without_a_run_is_the_root() -> None:
    fd = Register()
    ran = run(call("openat", AT_FDCWD, CWD, O_PATH | O_CLOEXEC, 0, out=fd))
    try:
        assert os.path.samestat(os.fstat(ran.registers[3]), os.stat("/"))
    finally:
        os.close(ran.registers[3])


# ---- paths ----------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root that somebody else made: links that lead out, and a file outside that must stay as it is."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("outside")
    inside = tmp_path / "root"
    (inside / "dir" / "sub").mkdir(parents=True)
    (inside / "dir" / "file").write_text("inside")
    (inside / "up").symlink_to("../outside")
    (inside / "absolute").symlink_to(tmp_path / "outside")
    (inside / "loop").symlink_to("loop")
    (inside / "dangling").symlink_to("nowhere")
    (inside / "to-dir").symlink_to("/dir")
    return inside


def target(root: Path, path: str | bytes, **how: Any) -> int | str:
    """Resolve; the path of the result beneath the root, or minus an errno."""
    fd = os.open(root, O_PATH | O_DIRECTORY)
    out = Register()
    ran = run(Target(fd, os.fsencode(path), out, **how))
    try:
        if ran.result < 0:
            return ran.result
        where = os.readlink(f"/proc/self/fd/{ran.registers[3]}")
        os.close(ran.registers[3])
        return os.path.relpath(where, root)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/", "."),
        ("", "."),
        ("dir/file", "dir/file"),
        ("//dir///sub//", "dir/sub"),
        ("/dir/../dir/./sub", "dir/sub"),
        ("../../../..", "."),
        ("/to-dir/sub", "dir/sub"),
        ("up", -errno.ENOENT),
        ("up/file", -errno.ENOENT),
        ("absolute/file", -errno.ENOENT),
        ("loop", -errno.ELOOP),
        ("dangling", -errno.ENOENT),
        ("dir/file/x", -errno.ENOTDIR),
        ("missing/x", -errno.ENOENT),
        ("x" * 300, -errno.ENAMETOOLONG),
        ("x/" * 2500, -errno.ENAMETOOLONG),
    ],
)
def test_resolve(root: Path, path: str, found: int | str) -> None:
    assert target(root, path) == found
    assert (root.parent / "outside" / "file").read_text() == "outside"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("new", "new"),
        ("/a/b/c/d/", "a/b/c/d"),
        ("dir/sub/deep/er", "dir/sub/deep/er"),
        ("h/.x/..y/...", "h/.x/..y/..."),
        ("to-dir/new", "dir/new"),
        ("up/new", -errno.EEXIST),  # the link leads to nothing inside, and is not followed to make it
        ("absolute/x/y", -errno.EEXIST),
        ("dangling", -errno.EEXIST),
        ("missing/../x", -errno.EINVAL),
        ("missing/./x", -errno.EINVAL),
        ("dir/file/x", -errno.ENOTDIR),
        ("loop/x", -errno.ELOOP),
    ],
)
@pytest.mark.parametrize("kind", ["dir", "file"])
def test_make(root: Path, path: str, found: int | str, kind: str) -> None:
    assert target(root, path, make=kind, mode=0o750) == found
    assert sorted(p.name for p in (root.parent / "outside").iterdir()) == ["file"]
    if isinstance(found, str):
        assert (root / found).is_dir() == (kind == "dir")
        assert target(root, path, make=kind) == found, "a second time it is there"


def test_no_symlinks(root: Path) -> None:
    assert target(root, "to-dir/sub", symlinks=False) == -errno.ELOOP
    assert target(root, "dir/sub", symlinks=False) == "dir/sub"
    assert target(root, "to-dir/x", make="dir", symlinks=False) == -errno.ELOOP


def test_must_be_new_and_parent(root: Path) -> None:
    assert target(root, "dir", make="dir", must_be_new=True) == -errno.EEXIST
    assert target(root, "fresh", make="file", must_be_new=True) == "fresh"
    assert target(root, "/", make="dir", must_be_new=True) == -errno.EEXIST
    assert target(root, "p/q/last", parent=True) == "p/q"
    assert not (root / "p/q/last").exists()
    assert target(root, "last", parent=True) == "."
    assert target(root, "/", parent=True) == -errno.EEXIST


def test_open_for_reading_and_writing(root: Path) -> None:
    assert target(root, "dir/file", open="read") == "dir/file"
    assert target(root, "dir/file", open="write") == "dir/file"
    assert target(root, "dir", open="write") == -errno.EISDIR
    os.mkfifo(root / "fifo")
    assert target(root, "fifo", open="read") == "fifo", "it does not wait for a writer"


def test_what_is_made_is_open_as_asked(root: Path) -> None:
    """For reading or writing, and not as a mere place: also where the mode would not let one open it again."""

    def flags(path: str, **how: Any) -> int:
        fd, out = os.open(root, O_PATH | O_DIRECTORY), Register()
        ran = run(Target(fd, os.fsencode(path), out, **how))
        os.close(fd)
        assert ran.result >= 0, ran.result
        try:
            return fcntl.fcntl(ran.registers[3], fcntl.F_GETFL)
        finally:
            os.close(ran.registers[3])

    for again in (False, True):  # the control: as where it is there
        for how, access in (("write", os.O_WRONLY), ("read", os.O_RDONLY)):
            found = flags(f"new/{how}", make="file", open=how)
            assert (found & os.O_ACCMODE, found & O_PATH) == (access, 0), again
    assert flags("shut", make="file", open="write", mode=0o400) & os.O_ACCMODE == os.O_WRONLY
    assert flags("place", make="file") & O_PATH
    assert not flags("directory", make="dir", open="read") & O_PATH


def test_file_system_type(root: Path) -> None:
    """A look-alike of /proc is refused."""
    assert target(Path("/"), "proc/self/status", file_system=0x9FA0) != -errno.EXDEV
    assert target(root, "dir/file", file_system=0x9FA0) == -errno.EXDEV
    assert target(Path("/"), "proc/self/exe") == -errno.ELOOP, "magic links are never followed"


def test_remove_tree(tmp_path: Path) -> None:
    fd = os.open(tmp_path, O_PATH | O_DIRECTORY)
    try:
        (tmp_path / "tree" / "a" / "b" / "c").mkdir(parents=True)
        for name in (".hidden", "..odd", "..."):
            (tmp_path / "tree" / name / "x").mkdir(parents=True)
        for i in range(100):
            (tmp_path / "tree" / f"many{i:0100}").mkdir()
        assert run(RemoveTree(fd, b"tree")).result == 0
        assert not (tmp_path / "tree").exists()
        assert run(RemoveTree(fd, b"tree")).result == 0, "nothing there is as good"
        (tmp_path / "file").touch()
        assert run(RemoveTree(fd, b"file")).result == -errno.ENOTDIR
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        thread = threading.Timer(0.05, (tmp_path / "full" / "file").unlink)
        thread.start()
        assert run(RemoveTree(fd, b"full")).result == 0, "busy for a while"
        thread.join()
        (tmp_path / "link").symlink_to("elsewhere")
        (tmp_path / "elsewhere" / "x").mkdir(parents=True)
        assert run(RemoveTree(fd, b"link")).result == -errno.ENOTDIR
        assert (tmp_path / "elsewhere" / "x").exists()
    finally:
        os.close(fd)


@pytest.mark.parametrize(("how", "flags"), [("write", os.O_WRONLY), ("read", os.O_RDONLY), ("path", os.O_PATH)])
@pytest.mark.parametrize("there", [False, True], ids=["made", "there"])
def test_19_a_file_is_opened_as_asked_also_when_it_is_made(tmp_path: Path, how: str, flags: int, there: bool) -> None:
    """The descriptor of a file that was made is of the kind that one of a file that was there is."""
    if there:
        (tmp_path / "file").write_bytes(b"")
    fd, out = os.open(tmp_path, O_PATH | O_DIRECTORY), Register()
    ran = run(Target(fd, b"file", out, make="file", open=how, mode=0o444 if how == "write" and not there else 0o644))
    assert ran.result == 0
    got = ran.registers[3]
    try:
        assert fcntl.fcntl(got, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_PATH) == flags
        assert not os.get_inheritable(got)
        if how == "write":
            assert os.write(got, b"text") == 4
            assert (tmp_path / "file").read_bytes() == b"text"
        elif how == "read":
            assert os.read(got, 1) == b""
    finally:
        os.close(got)
        os.close(fd)
