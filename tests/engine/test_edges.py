"""Calls and files at the edges of what the C code takes: each is refused, and nothing of it is read beyond its end."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Any

import pytest

from isolate import PidNamespace, Sandbox, SetupError, UserNamespace
from isolate.engine import native
from isolate.engine.native import ffi, lib
from tests.fence import Call, Fence

if TYPE_CHECKING:
    from pathlib import Path

    from tests.snapshot import Snapshot

BOX = Sandbox(UserNamespace(), PidNamespace())
PT_INTERP = 3


def elf(**fields: int) -> bytes:
    """A file of 4,096 bytes with an ELF header, one program header and nothing that could run."""
    values = {
        "kind": 2,
        "phoff": 64,
        "phentsize": 56,
        "phnum": 1,
        "type": PT_INTERP,
        "offset": 200,
        "size": 10,
        **fields,
    }
    head = struct.pack(
        "<4sBBB9xHHIQQQIHHHHHH",
        b"\x7fELF",
        values["kind"],
        1,
        1,
        2,
        0,
        1,
        0,
        values["phoff"],
        0,
        0,
        64,
        values["phentsize"],
        values["phnum"],
        0,
        0,
        0,
    )
    row = struct.pack("<IIQQQQQQ", values["type"], 4, values["offset"], 0, 0, values["size"], values["size"], 1)
    return (head + row).ljust(4096, b"x")


HEADS = {
    "E alone": b"\x7fE".ljust(200, b"x"),
    "EL": b"\x7fEL".ljust(200, b"x"),
    "ELG": b"\x7fELG".ljust(200, b"x"),
    "D": b"\x7fD".ljust(200, b"x"),
    "32 bits": elf(kind=1),
    "odd header": elf(phentsize=32),
    "far table": elf(phoff=5000),
    "table past the end": elf(phoff=4080),
    "interpreter past the end": elf(offset=5000),
    "interpreter too long": elf(offset=4000, size=5000),
    "another first": elf(type=1),
    "long interpreter": elf(size=3000),
    "many": elf(phnum=200, type=1),
    "short": b"x",
    "empty": b"",
}


@pytest.mark.parametrize("name", HEADS)
def test_programs_with_odd_heads(name: str, tmp_path: Path, clean: Snapshot) -> None:
    """Their first bytes are looked at for the diagnosis: whoever made them wrote what he liked."""
    program = tmp_path / "program"
    program.write_bytes(HEADS[name])
    program.chmod(0o755)
    with pytest.raises(SetupError) as caught:
        BOX.run([str(program)])
    assert caught.value.syscall == "execve"
    assert caught.value.errno in (errno.ENOEXEC, errno.ENOENT, errno.EIO, errno.EINVAL, errno.ENAMETOOLONG)


def test_search_with_odd_elements(tmp_path: Path, clean: Snapshot) -> None:
    """Empty elements, and those too long for a path, are passed over; why it was refused is that of the first."""
    long = "/" + "x" * 5000
    assert BOX.run(["true"], env={"PATH": f":{long}::/usr/bin:/bin:"}).ok
    with pytest.raises(SetupError) as caught:
        BOX.run(["true"], env={"PATH": f":{long}:"})
    assert caught.value.errno == errno.ENOENT
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "program").write_text("not to be executed")
        (tmp_path / name / "program").chmod(0o644)
    with pytest.raises(SetupError, match="one/program") as caught:
        BOX.run(["program"], env={"PATH": f"{tmp_path}/one:{tmp_path}/two"})
    assert caught.value.errno == errno.EACCES
    deep = tmp_path.joinpath(*["d" * 200] * 4)
    deep.mkdir(parents=True)
    (deep / "program").write_text("")
    with pytest.raises(SetupError) as caught:
        BOX.run([str(deep / "program")])
    assert caught.value.errno == errno.EACCES


DEFAULT = -1


@pytest.mark.parametrize(
    ("slots", "streams"),
    [
        (-1, (DEFAULT,) * 3),
        (100_000, (DEFAULT,) * 3),
        (0, (lib.ISO_STDOUT, DEFAULT, DEFAULT)),
        (0, (DEFAULT, lib.ISO_STDOUT, DEFAULT)),
    ],
)
def test_arguments_that_python_never_gives(slots: int, streams: tuple[int, int, int], clean: Snapshot) -> None:
    start = ffi.new("struct iso_start *")
    lib.iso_begin(start)
    none, path = ffi.new("int32_t[1]"), ffi.new("char[]", b"/")
    block = bytes(100)
    begun = lib.iso_start(start, block, len(block), block, len(block), none, slots, *streams, 0, -1, path, 0, 0)
    assert begun == -errno.EINVAL
    assert lib.iso_run_later(start, block, len(block), none, slots, *streams, 0) == -errno.EINVAL
    assert lib.iso_run_later(start, block, 3, none, 0, DEFAULT, DEFAULT, DEFAULT, 0) == -errno.EINVAL


def test_a_slot_that_is_no_descriptor(clean: Snapshot) -> None:
    start = ffi.new("struct iso_start *")
    lib.iso_begin(start)
    slots, path = ffi.new("int32_t[1]", [-1]), ffi.new("char[]", b"/")
    with open(os.devnull, "r+") as null:
        fd = null.fileno()
        begun = lib.iso_start(start, b"x", 1, bytes(100), 100, slots, 1, fd, fd, fd, 0, fd, path, 0, 0)
        assert begun == -errno.EBADF


def test_sections_that_are_none() -> None:
    tape = BOX.compile().data
    memory = ffi.new("uint64_t[]", -(-len(tape) // 8))
    ffi.memmove(memory, tape, len(tape))
    base, registers = ffi.cast("uint8_t *", memory), ffi.new("int64_t[4096]")
    failed, skipped = ffi.new("uint32_t *"), ffi.new("uint8_t[4096]")
    for section in (-1, 99):
        assert lib.iso_run_here(base, len(tape), section, registers, failed, skipped) == -errno.EINVAL
    memory[0] = 0
    assert lib.iso_run_here(base, len(tape), 0, registers, failed, skipped) == -errno.ENOEXEC


@pytest.mark.root
@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOMEM, errno.EPERM, errno.EINTR], ids=errno.errorcode.get)
def test_making_the_launcher_anew_fails_at_each_call(error: int) -> None:
    """The memfd, its content, its seals: made again where the program has closed it, or an error that says so."""

    def program(begin: Any, end: Any) -> object:
        BOX.run(["true"]).check()
        os.close(native.launcher_fd())
        begin()
        try:
            fd = native.launcher_fd()
            told: object = "made" if fd >= 0 else "the file"
        except OSError as caught:
            told = caught.errno
        end()
        return told, str(BOX.run(["true"]).verdict)

    def undisturbed() -> list[Call]:
        outcome = Fence(program).drive()
        assert outcome.value == ("made", "OK"), outcome.error
        return outcome.calls

    names = set()
    for one in undisturbed():
        if one.role != "caller" or one.name not in (
            "memfd_create",
            "write",
            "pwrite64",
            "fcntl",
            "fstat",
            "newfstatat",
        ):
            continue

        def decide(now: Call, one: Call = one) -> int | None:
            return error if (now.role, now.index) == (one.role, one.index) else None

        outcome = Fence(program).drive(decide)
        assert outcome.error is None, (one.name, outcome.error)
        told, after = outcome.value
        assert told in ("made", "the file", error), one.name
        assert after == "OK", one.name
        names.add(one.name)
    assert {"memfd_create", "fcntl"} <= names
