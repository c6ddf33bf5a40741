"""The tape: a damaged one is refused whole, by the checker and by the launcher; jumps only go forward."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isolate import PidNamespace, Sandbox, SetupError, UserNamespace
from isolate.engine.native import LAUNCHER_PATH, ffi, lib
from isolate.engine.plan import Buffer, Call, Context, Label, Load, Phase, Register, Step, Store, call
from isolate.engine.plan import Test as Compare
from isolate.engine.run_block import RUN
from isolate.engine.tape import HEADER, OP, Tape
from isolate.kernel.constants import Constant
from isolate.sandbox import streams

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.snapshot import Snapshot

BOX = Sandbox(UserNamespace(), PidNamespace())
_FIELDS = (
    "magic checksum size abi ops_offset op_count data_offset data_size registers steps slots flags clone_flags "
    "cgroup_register report_offset report_size reserved"
)
FIELDS = _FIELDS.split()
_OP_FIELDS = (
    "code flags kind0 kind1 kind2 kind3 kind4 kind5 step out e0 e1 e2 e3 count number jump expect a0 a1 a2 a3 a4 a5"
)
REFUSED = (-errno.EBADMSG, -errno.ENOEXEC)


def check(data: bytes) -> int:
    """What the checker says of a copy at an aligned address with nothing readable promised behind it."""
    buffer = ffi.new("uint64_t[]", len(data) // 8 + 1)
    ffi.memmove(buffer, data, len(data))
    return lib.iso_check(ffi.cast("uint8_t *", buffer), len(data))


def sealed(data: bytes | bytearray) -> bytes:
    """With the right checksum, so that only the other checks stand between it and the interpreter."""
    data = bytearray(data)
    if len(data) < HEADER.size:
        return bytes(data)
    size = min(struct.unpack_from("<I", data, 16)[0], len(data))
    buffer = ffi.new("uint64_t[]", len(data) // 8 + 1)
    ffi.memmove(buffer, bytes(data), len(data))
    struct.pack_into("<Q", data, 8, lib.iso_tape_checksum(ffi.cast("uint8_t *", buffer), size))
    return bytes(data)


@pytest.fixture(scope="module")
def tape() -> bytes:
    data = BOX.compile().data
    assert check(data) == 0
    return data


def header(tape: bytes) -> dict[str, int]:
    return dict(zip(FIELDS, HEADER.unpack_from(tape), strict=False))


def changed(tape: bytes, **fields: int) -> bytes:
    """With other header fields and the right checksum."""
    values = list(HEADER.unpack_from(tape))
    for name, value in fields.items():
        values[FIELDS.index(name)] = value
    return sealed(HEADER.pack(*values) + tape[HEADER.size :])


# ---- damage --------------------------------------------------------------------------------------------------


def test_every_byte_counts(tape: bytes) -> None:
    """Each byte turned into another: refused, wherever it stands."""
    rng = random.Random(3)
    buffer = ffi.new("uint64_t[]", len(tape) // 8)
    ffi.memmove(buffer, tape, len(tape))
    view = ffi.cast("uint8_t *", buffer)
    for at in range(len(tape)):
        old = view[at]
        view[at] = old ^ rng.randrange(1, 256)
        assert lib.iso_check(view, len(tape)) in REFUSED, at
        view[at] = old
    assert lib.iso_check(view, len(tape)) == 0


def test_every_truncation_is_refused(tape: bytes) -> None:
    for size in range(len(tape)):
        assert lib.iso_check(ffi.from_buffer(tape), size) in REFUSED, size


@given(st.binary(max_size=4096))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert check(data) in REFUSED
    assert check(sealed(data)) in REFUSED


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_random_damage_with_a_right_checksum_is_bounded(data: st.DataObject) -> None:
    """Whatever passes the checks stays within the tape: the checker tells, and never reads beyond it."""
    tape = bytearray(BOX.compile().data)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(16, len(tape) - 1))
        tape[at] = data.draw(st.integers(0, 255))
    verdict = check(sealed(tape))
    assert verdict in (0, *REFUSED)
    if verdict == 0:
        assert sound(bytes(tape))


def sound(tape: bytes) -> bool:
    """The checker's promises, said a second time in Python."""
    h = header(tape)
    size, data_size = h["size"], h["data_size"]
    assert h["ops_offset"] + h["op_count"] * OP.size <= size <= len(tape)
    assert h["data_offset"] + data_size <= size
    assert tape[h["data_offset"] + data_size - 1] == 0
    assert h["report_offset"] + h["report_size"] <= data_size
    sections = HEADER.unpack_from(tape)[17:]
    for first, count in zip(sections[::2], sections[1::2], strict=True):
        for index in range(first, first + count):
            code, flags, *rest = OP.unpack_from(tape, h["ops_offset"] + index * OP.size)
            kinds, (step, out), jump, args = rest[:6], rest[6:8], rest[14], rest[16:]
            assert 0 < code < lib.ISO_OP_MAX
            assert step < h["steps"]
            assert out == lib.ISO_NONE or out < h["registers"]
            if flags & (lib.ISO_JUMP | lib.ISO_OPTIONAL):
                assert index < jump <= first + count
            for kind, value in zip(kinds, args, strict=True):
                bound = {
                    lib.ISO_DATA: data_size,
                    lib.ISO_REG: h["registers"],
                    lib.ISO_SLOT: h["slots"],
                    lib.ISO_LOAD4: data_size - 3,
                    lib.ISO_LOAD8: data_size - 7,
                }.get(kind)
                assert kind < lib.ISO_KINDS
                assert bound is None or 0 <= value < bound
    return True


BAD_HEADERS = [
    {"magic": 0},
    {"abi": 99},
    {"size": 1 << 31},
    {"size": 64},
    {"size": 8 * 1000 + 3},
    {"size": 132},
    {"ops_offset": 4},
    {"ops_offset": 8},
    {"data_offset": 129},
    {"ops_offset": 129},
    {"ops_offset": 1 << 30},
    {"op_count": (1 << 20) + 1},
    {"op_count": 60000},
    {"data_offset": 0},
    {"data_offset": 1 << 30},
    {"data_size": 0},
    {"data_size": 0xFFFFFFFF},
    {"registers": 2},
    {"registers": 70000},
    {"slots": 5},
    {"slots": 2000},
    {"steps": 100001},
    {"steps": 1},
    {"report_offset": 0xFFFFFFFF},
    {"report_size": 0xFFFFFFFF},
    {"cgroup_register": 70000},
]


@pytest.mark.parametrize("fields", BAD_HEADERS, ids=str)
def test_bad_headers(tape: bytes, fields: dict[str, int]) -> None:
    assert check(changed(tape, **fields)) in REFUSED


def with_op(tape: bytes, section: int, position: int, **fields: int) -> bytes:
    """With fields of one op changed, and the right checksum."""
    names = _OP_FIELDS.split()
    h = HEADER.unpack_from(tape)
    first = h[17 + 2 * section]
    at = h[FIELDS.index("ops_offset")] + (first + position) * OP.size
    values = list(OP.unpack_from(tape, at))
    for name, value in fields.items():
        values[names.index(name)] = value
    data = bytearray(tape)
    OP.pack_into(data, at, *values)
    return sealed(data)


BAD_OPS: list[dict[str, Any]] = [
    {"code": 0},
    {"code": "ISO_OP_MAX"},
    {"kind0": "ISO_KINDS"},
    {"kind0": "ISO_DATA", "a0": -1},
    {"kind0": "ISO_DATA", "a0": 1 << 40},
    {"kind1": "ISO_REG", "a1": 1 << 20},
    {"kind1": "ISO_REG", "a1": -1},
    {"kind2": "ISO_SLOT", "a2": 1 << 20},
    {"kind2": "ISO_SLOT", "a2": -1},
    {"kind3": "ISO_LOAD8", "a3": 1 << 31},
    {"kind3": "ISO_LOAD4", "a3": -1},
    {"kind3": "ISO_LOAD8", "a3": -8},
    {"kind3": "ISO_LOAD4", "a3": 1 << 31},
    {"step": 60000},
    {"out": 4097},
    {"flags": "ISO_JUMP", "jump": 0},
    {"flags": "ISO_OPTIONAL", "jump": 60000},
    {"code": "ISO_OP_STORE", "kind0": "ISO_IMM"},
    {"code": "ISO_OP_STORE", "kind0": "ISO_DATA", "a0": 0, "kind2": "ISO_IMM", "a2": 3},
    {"code": "ISO_OP_TARGET", "kind1": "ISO_IMM"},
    {"code": "ISO_OP_RMTREE", "kind1": "ISO_REG", "a1": 0},
    {"code": "ISO_OP_LINE", "kind0": "ISO_REG", "a0": 0, "kind1": "ISO_DATA"},
    {"code": "ISO_OP_LINE", "kind0": "ISO_DATA", "kind1": "ISO_REG", "a1": 0},
    {"code": "ISO_OP_RUN", "kind0": "ISO_IMM"},
]


@pytest.mark.parametrize("fields", BAD_OPS, ids=str)
def test_bad_ops(tape: bytes, fields: dict[str, Any]) -> None:
    numbers = {k: getattr(lib, v) if isinstance(v, str) else v for k, v in fields.items()}
    assert check(with_op(tape, 3, 0, **numbers)) in REFUSED
    assert check(with_op(tape, 3, 0)) == 0  # the control


def test_programs_of_the_host(tape: bytes) -> None:
    """The table of pointers lies within the data, and has a length."""
    size = header(tape)["data_size"]
    good = {"code": lib.ISO_OP_RUN, "kind0": lib.ISO_DATA, "a0": 0, "kind1": lib.ISO_DATA, "kind2": lib.ISO_IMM}
    assert check(with_op(tape, 3, 0, **good, a1=size - 16, a2=2)) == 0
    for fields in ({"a1": size - 15, "a2": 2}, {"a1": 0, "a2": 0}, {"a1": 0, "a2": 65}, {"a1": 0, "a2": 64000}):
        assert check(with_op(tape, 3, 0, **good, **fields)) in REFUSED
    assert check(with_op(tape, 3, 0, **{**good, "kind2": lib.ISO_REG}, a1=0, a2=2)) in REFUSED
    assert check(with_op(tape, 3, 0, **{**good, "kind1": lib.ISO_IMM}, a1=0, a2=2)) in REFUSED


def test_store_at_the_very_end(tape: bytes) -> None:
    """A store whose width does not fit is refused, one that just fits is not."""
    size = header(tape)["data_size"]
    store = {"code": lib.ISO_OP_STORE, "kind0": lib.ISO_DATA, "kind1": lib.ISO_IMM, "kind2": lib.ISO_IMM, "a2": 8}
    assert check(with_op(tape, 3, 0, **store, a0=size - 8)) == 0
    assert check(with_op(tape, 3, 0, **store, a0=size - 7)) in REFUSED
    store["a2"] = 0  # decimal digits: 21 bytes
    assert check(with_op(tape, 3, 0, **store, a0=size - 21)) == 0
    assert check(with_op(tape, 3, 0, **store, a0=size - 20)) in REFUSED


# ---- the launcher ---------------------------------------------------------------------------------------------


def launch(data: bytes) -> tuple[int, int, int]:
    """Hand a launcher these bytes; kind, errno and stage of its only record."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memfd = os.memfd_create("tape")
    os.write(memfd, data)
    owner = os.pidfd_open(os.getpid())
    null = os.open(os.devnull, os.O_RDWR)
    lifted = [os.dup2(fd, 500 + i) for i, fd in enumerate([null, null, null, theirs.fileno(), memfd, owner])]

    def place() -> None:
        for number, fd in enumerate(lifted):
            os.dup2(fd, number)

    child = subprocess.Popen([LAUNCHER_PATH], preexec_fn=place, close_fds=False)
    for fd in (*lifted, memfd, owner, null):
        os.close(fd)
    theirs.close()
    try:
        ours.settimeout(30)
        record = ours.recv(65536)
        assert ours.recv(10) == b"", "one record, then the end"
        assert child.wait(30) in (0, 1)
    finally:
        child.kill()
        child.wait()
        ours.close()
    kind, error, _, stage = struct.unpack_from("<IiII", record)
    return kind, error, stage


def test_the_launcher_refuses_too(tape: bytes, clean: Snapshot) -> None:
    """It trusts nobody's check: the record says so, and no child was ever made."""
    rng = random.Random(5)
    for _ in range(30):
        data = bytearray(tape)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        kind, error, stage = launch(bytes(data))
        assert (kind, stage) == (lib.ISO_RECORD_FAILED, lib.ISO_STAGE_TAPE)
        assert -error in REFUSED
    for size in (0, 1, 127, 128, len(tape) // 2, len(tape) - 8):
        assert launch(tape[:size])[2] == lib.ISO_STAGE_TAPE


_RUN_FIELDS = (
    "magic size flags argc argv envc envp program path cwd fdc fds slots later timeout_ns cpu_ns tty_uid reserved"
    " began_ns"
)


def run_block(tape: Tape, **fields: int) -> bytes:
    block, _, _ = streams.block(tape, ["true"], env=None, cwd="/", pass_fds=(), started=False, tty=False)
    names = _RUN_FIELDS.split()
    values = list(RUN.unpack_from(block))
    for name, value in fields.items():
        values[names.index(name)] = value
    return RUN.pack(*values) + block[RUN.size :]


BAD_RUNS = [
    {"magic": 1},
    {"size": 1 << 30},
    {"size": 8},
    {"argc": 0},
    {"argc": 0xFFFFFFFF},
    {"argv": 3},
    {"argv": 8},
    {"argv": 0xFFFFFFF8},
    {"envc": 0x7FFFFFFF},
    {"envp": 0xFFFFFFF8},
    {"program": 0},
    {"program": 0xFFFFFFFF},
    {"path": 0xFFFFFFFF},
    {"cwd": 0xFFFFFFFF},
    {"fdc": 0xFFFFFFFF},
    {"fds": 2},
    {"fds": 4},
    {"slots": 2},
    {"slots": 5000},
]


@pytest.mark.parametrize("fields", BAD_RUNS, ids=str)
def test_bad_run_blocks(fields: dict[str, int], clean: Snapshot) -> None:
    """What differs from run to run is checked as well."""
    compiled = BOX.compile()
    kind, error, stage = launch(compiled.data + run_block(compiled, **fields))
    assert (kind, error, stage) == (lib.ISO_RECORD_FAILED, errno.EBADMSG, lib.ISO_STAGE_TAPE)


def check_run(block: bytes, slots: int = 6) -> int:
    buffer = ffi.new("uint64_t[]", len(block) // 8 + 1)
    ffi.memmove(buffer, block, len(block))
    return lib.iso_run_check(ffi.cast("uint8_t *", buffer), len(block), slots)


@pytest.mark.parametrize("fields", BAD_RUNS, ids=str)
def test_bad_run_blocks_by_the_checker(fields: dict[str, int]) -> None:
    assert check_run(run_block(BOX.compile(), **fields)) == -errno.EBADMSG


def test_run_blocks_at_their_bounds() -> None:
    """Strings and descriptors one by one: each offset and each slot is looked at."""
    block = run_block(BOX.compile())
    fields = dict(zip(_RUN_FIELDS.split(), RUN.unpack_from(block), strict=True))
    assert check_run(block) == 0
    for size in range(len(block)):
        assert check_run(block[:size]) == -errno.EBADMSG
    assert check_run(block[:-1] + b"x") == -errno.EBADMSG, "the last string does not end"
    for table in ("argv", "envp"):
        for value in (0, fields["size"], 1 << 32, (1 << 64) - 1):
            data = bytearray(block)
            struct.pack_into("<Q", data, fields[table], value)
            assert check_run(bytes(data)) == -errno.EBADMSG
    for position, value in ((0, 6), (1, 1 << 31), (3, 0), (2, 9)):
        data = bytearray(block)
        struct.pack_into("<I", data, fields["fds"] + 4 * position, value)
        assert check_run(bytes(data)) == -errno.EBADMSG, (position, value)
    assert check_run(block, 7) == -errno.EBADMSG, "the tape names more slots than were handed over"


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_random_run_blocks_are_bounded(data: st.DataObject) -> None:
    """Refused, or sound: every offset lies within, every string ends within."""
    block = bytearray(run_block(BOX.compile()))
    for _ in range(data.draw(st.integers(1, 3))):
        block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    if check_run(bytes(block)):
        return
    fields = dict(zip(_RUN_FIELDS.split(), RUN.unpack_from(block), strict=True))
    size = fields["size"]
    assert size <= len(block)
    for table, count in (("argv", "argc"), ("envp", "envc")):
        assert RUN.size <= fields[table] <= size - 8 * (fields[count] + 1)
        strings = struct.unpack_from(f"<{fields[count]}Q", block, fields[table])
        assert all(RUN.size <= s < size for s in strings)
    assert block[size - 1] == 0


def test_good_run_block(clean: Snapshot) -> None:
    """The control of all of the above: this one starts a program that ends well."""
    compiled = BOX.compile()
    assert launch(compiled.data + run_block(compiled))[0] == lib.ISO_RECORD_ENDED


# ---- compiling ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """A part of the user's own, from the ops of one step."""

    ops: tuple[Any, ...]
    phase: Phase = Phase.SCHEDULING
    required: bool = True
    repeatable = True

    def steps(self, context: Context) -> Iterable[Step]:
        yield Step(self.phase, "the step under test", self.ops)


def test_jumps_only_go_forward(clean: Snapshot) -> None:
    label = Label()
    getpid = call("getpid")
    back = (label, getpid, Compare(1, 0, label=label))
    with pytest.raises(ValueError, match="forward"):
        Sandbox(Steps(back)).compile()
    elsewhere = (getpid, Compare(1, 0, label=Label()))
    with pytest.raises(ValueError, match="forward"):
        Sandbox(Steps(elsewhere)).compile()
    ahead = (Compare(1, 0, label=label), call("close", 10**6), label, getpid)
    assert Sandbox(Steps(ahead)).run(["true"]).ok
    with pytest.raises(SetupError, match="the step under test"):
        Sandbox(Steps((Compare(0, 0, label=label), call("close", 10**6), label))).run(["true"])


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1])
def test_arguments_of_64_bits(value: int) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        Sandbox(Steps((call("getpid", value),))).compile()


def test_arguments_of_other_kinds() -> None:
    with pytest.raises(TypeError, match="not an argument"):
        Sandbox(Steps((call("getpid", "text"),))).compile()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="six"):
        Sandbox(Steps((call("getpid", *range(7)),))).compile()
    with pytest.raises(TypeError, match="not an op"):
        Sandbox(Steps(("op",))).compile()


def test_compiling_is_deterministic_and_done_once() -> None:
    box = Sandbox(UserNamespace(), PidNamespace())
    assert box.compile() is box.compile()
    assert Sandbox(PidNamespace(), UserNamespace()).compile().data == box.compile().data


@given(st.lists(st.binary(min_size=1, max_size=40).filter(lambda b: b"\0" not in b), min_size=1, max_size=20))
def test_every_string_is_found_again(texts: list[bytes]) -> None:
    """Literals are pooled, offsets are right: each op's argument is the text that was given."""
    compiled = Sandbox(Steps(tuple(call("chdir", t) for t in texts))).compile()
    assert check(compiled.data) == 0
    h = header(compiled.data)
    found = []
    for index, op in enumerate(compiled.ops):
        if isinstance(op, Call) and op.name == "chdir" and isinstance(op.args[0], bytes):
            at = OP.unpack_from(compiled.data, h["ops_offset"] + index * OP.size)[18]
            start = h["data_offset"] + at
            found.append(compiled.data[start : compiled.data.index(b"\0", start)])
    assert found == texts


# ---- a part that a user wrote ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nice:
    """A part written outside the library: a nice value, read back."""

    value: int
    required: bool = True

    def __post_init__(self) -> None:
        if not -20 <= self.value <= 19:
            raise ValueError(f"a nice value is from -20 to 19, not {self.value}")

    def steps(self, context: Context) -> Iterable[Step]:
        which = Constant(0, "PRIO_PROCESS")
        got = Register("nice")
        buffer = Buffer(8, "nice")
        yield Step(
            Phase.SCHEDULING,
            f"nice {self.value}",
            (
                call("setpriority", which, 0, self.value),
                call("getpriority", which, 0, out=got),
                Store(buffer, 0, got),
                Compare(Load(buffer, 0), 20 - self.value, error=errno.EPROTO),
            ),
        )


def test_a_users_own_part_composes(clean: Snapshot) -> None:
    nice = Nice(min(19, os.nice(0) + 7))  # a suite may run at a low priority already, and nobody inside may raise it
    box = BOX + nice
    assert box.run(["nice"]).stdout == b"%d\n" % nice.value
    assert Sandbox(nice).run(["nice"]).stdout == b"%d\n" % nice.value
    assert BOX.run(["nice"]).stdout == b"%d\n" % os.nice(0)
    assert "setpriority(PRIO_PROCESS" in box.explain()
    assert box == Sandbox(nice, PidNamespace(), UserNamespace())
    with pytest.raises(ValueError, match="from -20 to 19"):
        Nice(30)


def test_a_users_own_part_fails_closed(clean: Snapshot, tmp_path: Path) -> None:
    """Without privileges it cannot be: the error has the part's name, and nothing ran; unless it may be missing."""
    proof = tmp_path / "ran"
    lowered = Steps((call("setpriority", 0, 0, 19), call("capset", b"\x22\x05\x08\x20" + bytes(4), bytes(24))))
    refused = Steps((call("setpriority", 0, 0, -10),), Phase.LANDLOCK)
    with pytest.raises(SetupError) as caught:
        Sandbox(lowered, refused).run(["touch", str(proof)])
    assert (caught.value.errno, caught.value.part, caught.value.syscall) == (errno.EACCES, "Steps", "setpriority")
    assert not proof.exists()
    optional = Steps(refused.ops, Phase.LANDLOCK, required=False)
    result = Sandbox(lowered, optional).run(["touch", str(proof)])
    assert result.ok
    assert result.applied["Steps"] is False
    assert proof.exists()
