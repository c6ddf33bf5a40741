"""The tape: a plan as one flat, relocatable buffer for the interpreter (layout: ``_native/tape.h``).

A tape is compiled once and run any number of times from any thread: nothing in it is specific to a run. What is
(arguments, environment, descriptors) goes into a run block behind it.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from isolate.engine.native import ffi, lib
from isolate.engine.plan import (
    CHILD,
    COUNTER,
    CWD,
    LAUNCHER,
    SELF,
    Address,
    Argument,
    Buffer,
    Call,
    Cover,
    Engine,
    Fail,
    Jump,
    Label,
    Line,
    Load,
    MapOfIds,
    Op,
    Part,
    Phase,
    Plan,
    Register,
    RemoveTree,
    RunHost,
    Section,
    Slot,
    Step,
    Store,
    Target,
    Test,
    Thaw,
    number,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OP = struct.Struct("<BB6BII4HHHIq6q")
HEADER = struct.Struct("<QQ10IQ4I18I")
RUN = struct.Struct("<14I2Q2I")
MAGIC = 0x31455041544F5349

_NONE: int = lib.ISO_NONE
_POLICIES: dict[str, int] = {
    "ignore": lib.ISO_TOLERATE,
    "retry": lib.ISO_RETRY,
    "jump": lib.ISO_JUMP,
    "skip": lib.ISO_JUMP | lib.ISO_SKIPS,
}
_ENGINE: dict[str, int] = {
    "sync": lib.ISO_OP_SYNC,
    "session": lib.ISO_OP_SESSION,
    "find": lib.ISO_OP_FIND,
    "fds": lib.ISO_OP_FDS,
    "exec": lib.ISO_OP_EXEC,
    "aside": lib.ISO_OP_ASIDE,
    "meet": lib.ISO_OP_MEET,
}


@dataclass(frozen=True, slots=True, eq=False)
class Tape:
    """The bytes, and what is needed to read what comes back."""

    data: bytes
    plan: Plan
    #: For every op the index of its step.
    op_steps: tuple[int, ...]
    ops: tuple[Op, ...]
    #: Where the buffers that travel back lie within the report.
    reports: tuple[tuple[Buffer, int, int], ...]
    #: The parts by name, each once: what a result says of them.
    names: tuple[str, ...]
    #: Whether the supervisor writes to files of its child's in /proc, which it finds by the child's number.
    needs_proc: bool
    #: Run blocks that were made for it, by what they were made from (:func:`isolate.sandbox.streams.block`).
    blocks: dict[object, object] = field(default_factory=dict, repr=False)

    @property
    def filtered(self) -> bool:
        """Whether a filter of the program's may kill it."""
        return _filtered(self.plan)

    def step(self, op: int) -> tuple[Step, Part] | None:
        """The step that an op belongs to, and its part."""
        if 0 <= op < len(self.op_steps):
            index = self.op_steps[op]
            return self.plan.steps[index], self.plan.owners[index]
        return None


def _filtered(plan: Plan) -> bool:
    return any(getattr(part, "may_kill", False) for part in plan.parts)


class _Writer:
    def __init__(self) -> None:
        self.data = bytearray()
        self.pool: dict[bytes, int] = {}
        self.buffers: dict[Buffer, int] = {}
        self.registers: dict[Register, int] = {CHILD: 0, SELF: 1, LAUNCHER: 2}
        self.rows: list[list[int]] = []
        self.slots: int = lib.ISO_SLOT_FREE

    def literal(self, data: bytes) -> int:
        at = self.pool.get(data)
        if at is None:
            at = self._append(data + b"\0")
            self.pool[data] = at
        return at

    def buffer(self, buffer: Buffer) -> int:
        at = self.buffers.get(buffer)
        if at is None:
            at = self._append(buffer.data)
            self.buffers[buffer] = at
        return at

    def _append(self, data: bytes) -> int:
        self.data += bytes(-len(self.data) % 8)
        at = len(self.data)
        self.data += data
        return at

    def register(self, register: Register) -> int:
        return self.registers.setdefault(register, len(self.registers))

    def argument(self, value: Argument) -> tuple[int, int]:
        if isinstance(value, int):
            return lib.ISO_IMM, _signed(int(value))
        if isinstance(value, bytes):
            return lib.ISO_DATA, self.literal(value)
        if isinstance(value, Register):
            return lib.ISO_REG, self.register(value)
        if isinstance(value, Buffer):
            return lib.ISO_DATA, self.buffer(value)
        if isinstance(value, Address):
            return lib.ISO_DATA, self.buffer(value.buffer) + value.offset
        if isinstance(value, Load):
            kind = lib.ISO_LOAD4 if value.width == 4 else lib.ISO_LOAD8
            return kind, self.buffer(value.buffer) + value.offset
        if isinstance(value, Slot):
            self.slots = max(self.slots, value.number + 1)
            return lib.ISO_SLOT, value.number
        if value is CWD:
            return lib.ISO_CWD, 0
        if value is COUNTER:
            return lib.ISO_COUNTER, 0
        raise TypeError(f"not an argument of an op: {value!r}")

    def op(
        self,
        code: int,
        step: int,
        args: Sequence[Argument] = (),
        *,
        flags: int = 0,
        out: Register | None = None,
        errors: Sequence[int] = (),
        repeat: int = 0,
        jump: int = 0,
        nr: int = 0,
        expect: int = 0,
    ) -> None:
        if len(args) > 6 or len(errors) > 4:
            raise ValueError("an op takes at most six arguments and four errors")
        pairs = [self.argument(a) for a in args] + [(lib.ISO_IMM, 0)] * (6 - len(args))
        register = _NONE if out is None else self.register(out)
        tolerated = [*errors, 0, 0, 0, 0][:4]
        self.rows.append(
            [code, flags, *(k for k, _ in pairs), step, register, *tolerated, repeat, nr, jump, expect]
            + [v for _, v in pairs]
        )


_JUMP_FIELD = 16  # of a row


def _signed(value: int) -> int:
    if -(1 << 63) <= value < 1 << 63:
        return value
    if 0 <= value < 1 << 64:
        return value - (1 << 64)
    raise ValueError(f"not a 64-bit argument: {value}")


def _encode(writer: _Writer, op: Op, step: int) -> Label | None:
    """Append the rows of one op; the label it jumps to, if it does."""
    if isinstance(op, Call):
        flags = _POLICIES[op.policy] if op.errors else 0
        if op.expect is not None:
            flags |= lib.ISO_EXACT
        writer.op(
            lib.ISO_OP_CALL,
            step,
            op.args,
            flags=flags,
            out=op.out,
            errors=op.errors,
            repeat=op.repeat,
            nr=number(op.name),
            expect=op.expect or 0,
        )
        return op.label
    if isinstance(op, Store):
        writer.op(lib.ISO_OP_STORE, step, (op.buffer.at(op.offset), op.value, op.width))
        return None
    if isinstance(op, Test):
        flags = (lib.ISO_JUMP if op.label else 0) | (lib.ISO_NOT if op.negate else 0)
        flags |= lib.ISO_SKIPS if op.skip else 0
        writer.op(lib.ISO_OP_TEST, step, (op.value, op.mask, op.wanted, op.error), flags=flags)
        return op.label
    if isinstance(op, Jump):  # for the interpreter, a comparison of two numbers that never holds
        flags = lib.ISO_JUMP | (lib.ISO_SKIPS if op.skip else 0)
        writer.op(lib.ISO_OP_TEST, step, (0, -1, 1, 0), flags=flags)
        return op.label
    if isinstance(op, Fail):
        writer.op(lib.ISO_OP_TEST, step, (0, -1, 1, op.error))
        return None
    if isinstance(op, Line):
        writer.op(lib.ISO_OP_LINE, step, (op.buffer, op.line, op.error))
        return None
    if isinstance(op, Target):
        how = {"dir": lib.ISO_TARGET_DIR, "file": lib.ISO_TARGET_FILE, None: 0}[op.make]
        how |= 0 if op.symlinks else lib.ISO_TARGET_NO_SYMLINKS
        how |= lib.ISO_TARGET_MUST_NEW if op.must_be_new else 0
        how |= lib.ISO_TARGET_PARENT if op.parent else 0
        how |= {"path": 0, "read": lib.ISO_TARGET_READ, "write": lib.ISO_TARGET_WRITE}[op.open]
        writer.op(
            lib.ISO_OP_TARGET,
            step,
            (op.root, op.path, how, op.mode, op.file_system),
            flags=_POLICIES[op.policy] if op.errors else 0,
            out=op.out,
            errors=op.errors,
        )
        return op.label
    if isinstance(op, Cover):
        writer.op(lib.ISO_OP_COVER, step, (op.proc, op.outer, int(op.apart)))
        return None
    if isinstance(op, (RemoveTree, Thaw)):
        flags = _POLICIES[op.policy] if op.errors else 0
        code = lib.ISO_OP_RMTREE if isinstance(op, RemoveTree) else lib.ISO_OP_THAW
        everybody = isinstance(op, RemoveTree) and op.everybody
        writer.op(code, step, (op.directory, op.name, int(everybody)), flags=flags, errors=op.errors)
        return None
    if isinstance(op, MapOfIds):
        writer.op(lib.ISO_OP_MAP, step, (op.uids, op.gids), out=op.out)
        return None
    if isinstance(op, RunHost):
        table = Buffer(8 * (len(op.args) + 1))
        for i, text in enumerate(op.args):
            writer.op(lib.ISO_OP_STORE, step, (table.at(8 * i), text, 8))
        writer.op(lib.ISO_OP_RUN, step, (op.path, table, len(op.args)))
        return None
    if isinstance(op, Engine):
        writer.op(_ENGINE[op.name], step)
        return None
    raise TypeError(f"not an op: {op!r}")


def _encode_step(writer: _Writer, ops: list[Op], step: Step, index: int, optional: bool) -> None:
    """The rows of a step, its jumps resolved. In an optional step every other error jumps to the step's end."""
    labels: dict[Label, int] = {}
    jumps: list[tuple[int, Label]] = []
    end = Label()
    sequence: list[Op] = list(step.ops)
    if step.needs is not None:
        # A register with a negative value holds the error of a step that was skipped.
        sequence.insert(0, Test(step.needs, 0, mask=-(1 << 63), label=end, skip=True))
    for op in [*sequence, end]:
        if isinstance(op, Label):
            labels[op] = len(writer.rows)
            continue
        first = len(writer.rows)
        label = _encode(writer, op, index)
        ops += [op] * (len(writer.rows) - first)
        if label is not None:
            jumps.append((len(writer.rows) - 1, label))
        elif optional:
            for row in range(first, len(writer.rows)):
                writer.rows[row][1] |= lib.ISO_OPTIONAL
                jumps.append((row, end))
    for row, label in jumps:
        if label not in labels or labels[label] <= row:
            raise ValueError(f"{step.text}: a jump must go forward within the step")
        writer.rows[row][_JUMP_FIELD] = labels[label]


def compile_plan(
    plan: Plan,
    *,
    init: bool,
    pid_namespace: bool,
    share: bool,
    strangers: bool = False,
    owned: bool = False,
    parked: bool = False,
) -> Tape:
    """Compile the steps of a plan. The keywords are the flags of ``tape.h``.

    :raises ValueError: the plan has more steps, operations or values than the launcher takes.
    """
    writer = _Writer()
    ops: list[Op] = []
    sections: dict[Section, list[int]] = {s: [0, 0] for s in Section}
    for index, (step, part) in enumerate(zip(plan.steps, plan.owners, strict=True)):
        first = len(writer.rows)
        if step.phase is Phase.CLONE:
            if step.ops:
                raise ValueError(f"{step.text}: a step in the phase CLONE has flags, not ops")
            continue
        _encode_step(writer, ops, step, index, not getattr(part, "required", True))
        bounds = sections[step.phase.section]
        if not bounds[1]:
            bounds[0] = first
        bounds[1] += len(writer.rows) - first
    _bounded(writer, plan)
    flags = (lib.ISO_TAPE_INIT if init else 0) | (lib.ISO_TAPE_PIDNS if pid_namespace else 0)
    flags |= (lib.ISO_TAPE_SHARE if share else 0) | (lib.ISO_TAPE_STRANGERS if strangers else 0)
    flags |= lib.ISO_TAPE_FILTERED if _filtered(plan) else 0
    flags |= (lib.ISO_TAPE_OWNED if owned else 0) | (lib.ISO_TAPE_PARKED if parked else 0)
    return _assemble(writer, plan, ops, sections, flags)


def _bounded(writer: _Writer, plan: Plan) -> None:
    """Refuse by name what the launcher would refuse as damaged."""
    for what, count, most in (
        ("steps", len(plan.steps), lib.ISO_MAX_STEPS),
        ("operations", len(writer.rows), lib.ISO_MAX_OPS),
        ("descriptors and other values", len(writer.registers), lib.ISO_MAX_REGISTERS),
        ("bytes of paths and contents", len(writer.data) + OP.size * len(writer.rows), lib.ISO_MAX_TAPE - 4096),
    ):
        if count > most:
            operations = Counter(type(plan.owners[row[8]]).__name__ for row in writer.rows)
            part, number = operations.most_common(1)[0]
            raise ValueError(
                f"the sandbox needs {count} {what} to be set up, and at most {most} can be; {part} has {number} of the"
                f" {len(writer.rows)} operations: give it fewer entries, such as a directory in place of its files"
            )


def _assemble(
    writer: _Writer,
    plan: Plan,
    ops: list[Op],
    sections: Mapping[Section, Sequence[int]],
    flags: int,
) -> Tape:
    # The buffers that travel back stand together, at the end of the data.
    reported = [b for b in writer.buffers if b.report]
    reports: list[tuple[Buffer, int, int]] = []
    report_offset = len(writer.data)
    if reported:
        report_offset, moved = _gather(writer, reported)
        reports = [(b, at - report_offset, len(b.data)) for b, at in moved]
    report_size = len(writer.data) - report_offset
    writer.data += b"\0" * (8 - len(writer.data) % 8)  # at least one: every string ends within the data
    rows = b"".join(OP.pack(*row) for row in writer.rows)
    cgroup = _NONE if plan.cgroup is None else writer.register(plan.cgroup)
    data_offset = HEADER.size + len(rows)
    size = data_offset + len(writer.data)
    ranges = [n for s in Section for n in sections[s]]
    fields = [
        size, lib.ISO_TAPE_ABI, HEADER.size, len(writer.rows), data_offset, len(writer.data),
        max(len(writer.registers), lib.ISO_REG_FREE), max(1, len(plan.steps)), writer.slots, flags,
        int(plan.clone_flags), cgroup, report_offset, report_size, 0, *ranges,
    ]  # fmt: skip  # in the order of the struct in C
    body = rows + bytes(writer.data)
    blank = HEADER.pack(MAGIC, 0, *fields) + body
    checksum = lib.iso_tape_checksum(ffi.from_buffer(blank), len(blank))
    data = HEADER.pack(MAGIC, checksum, *fields) + body
    names = tuple(dict.fromkeys(type(part).__name__ for part in plan.owners))
    needs_proc = sections[Section.SUPERVISOR][1] > 0
    return Tape(data, plan, tuple(row[8] for row in writer.rows), tuple(ops), tuple(reports), names, needs_proc)


def _gather(writer: _Writer, reported: list[Buffer]) -> tuple[int, list[tuple[Buffer, int]]]:
    """Move the reported buffers to the data's end and mend the references to them."""
    writer.data += bytes(-len(writer.data) % 8)
    start = len(writer.data)
    moved: list[tuple[Buffer, int]] = []
    shifts: list[tuple[int, int, int]] = []
    for buffer in reported:
        old = writer.buffers[buffer]
        new = writer._append(buffer.data)
        moved.append((buffer, new))
        shifts.append((old, old + max(1, len(buffer.data)), new - old))
    kinds = {lib.ISO_DATA, lib.ISO_LOAD4, lib.ISO_LOAD8}
    for row in writer.rows:
        for i in range(6):
            if row[2 + i] in kinds:
                value = row[18 + i]
                row[18 + i] = value + next((d for low, high, d in shifts if low <= value < high), 0)
    return start, moved


def _nanoseconds(limit: float | None) -> int:
    """A limit for the launcher, which takes 0 for none."""
    return 0 if limit is None else max(1, round(limit * 1e9))


def run_block(
    argv: Sequence[bytes],
    env: Sequence[bytes],
    *,
    program: bytes,
    path: bytes,
    cwd: bytes,
    fds: Sequence[tuple[int, int]],
    slots: int,
    started: bool,
    tty: bool,
    later: int = 0,
    timeout: float | None = None,
    cpu_time: float | None = None,
    alone: bool = False,
    terminal: tuple[int, int] = (0, -1),
) -> bytes:
    """The block behind a tape: one program's arguments. ``fds`` are (slot, number inside), numbers ascending.
    ``later`` is the slot of a socket by which the block that holds will come. ``timeout`` and ``cpu_time`` are seconds
    after which the launcher kills everything. ``alone``: there is no program, init stays until it is killed.
    ``terminal`` is which streams (a mask) become a terminal of the sandbox's own, and its owner; -1 is whoever makes
    it."""
    strings = bytearray()
    at = RUN.size
    argv_at = at + (-at % 8)
    env_at = argv_at + 8 * (len(argv) + 1)
    fds_at = env_at + 8 * (len(env) + 1)
    base = fds_at + 8 * len(fds)

    def place(text: bytes) -> int:
        nonlocal strings
        offset = base + len(strings)
        strings += text + b"\0"
        return offset

    argv_offsets = [place(a) for a in argv]
    env_offsets = [place(e) for e in env]
    program_at, path_at, cwd_at = place(program), place(path), place(cwd)
    flags = (lib.ISO_RUN_STARTED if started else 0) | (lib.ISO_RUN_TTY if tty else 0)
    flags |= lib.ISO_RUN_ALONE if alone else 0
    flags |= lib.ISO_RUN_PTY | terminal[0] << lib.ISO_RUN_PTY_SHIFT if terminal[0] else 0
    size = base + len(strings)
    head = RUN.pack(
        lib.ISO_RUN_MAGIC, size, flags, len(argv), argv_at, len(env), env_at, program_at, path_at, cwd_at,
        len(fds), fds_at, slots, later, _nanoseconds(timeout), _nanoseconds(cpu_time),
        terminal[1] & 0xFFFFFFFF, 0,
    )  # fmt: skip  # in the order of the struct in C
    tables = struct.pack(f"<{len(argv) + len(env) + 2}Q", *argv_offsets, 0, *env_offsets, 0)
    pairs = struct.pack(f"<{2 * len(fds)}I", *(n for pair in fds for n in pair))
    return head + bytes(argv_at - RUN.size) + tables + pairs + bytes(strings)
