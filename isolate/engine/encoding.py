"""The ops of a step as rows of a tape, and the data that they point to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolate.engine.native import lib
from isolate.engine.plan import (
    CHILD,
    COUNTER,
    CWD,
    FLAGS,
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
    from collections.abc import Sequence

__all__ = ["Writer", "encode_step"]

_NONE: int = lib.ISO_NONE
_SCRATCH = 4096  # a path
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


class Writer:
    """The written parts of a tape: rows, data, and the numbers of registers and slots."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.pool: dict[bytes, int] = {}
        self.buffers: dict[Buffer, int] = {}
        #: The offset of the memory that steps share. The section ASIDE has its own, because it runs at the same time.
        self._shared: dict[bool, int] = {}
        self._step, self._aside, self._taken = -1, False, 0
        self._lent: dict[Buffer, int] = {}
        self.registers: dict[Register, int] = {CHILD: 0, SELF: 1, LAUNCHER: 2}
        self.rows: list[list[int]] = []
        self.slots: int = lib.ISO_SLOT_FREE

    def literal(self, data: bytes) -> int:
        at = self.pool.get(data)
        if at is None:
            at = self.append(data + b"\0")
            self.pool[data] = at
        return at

    def buffer(self, buffer: Buffer) -> int:
        at = self.buffers.get(buffer)
        if at is None:
            at = self._scratch(buffer) if buffer.scratch else self.append(buffer.data)
            self.buffers[buffer] = at
        elif buffer.scratch and self._lent[buffer] != self._step:
            raise ValueError(f"the buffer {buffer.name!r} is used by several steps, and so cannot be scratch")
        return at

    def begin(self, step: int, *, aside: bool) -> None:
        """All that follows is of this step."""
        self._step, self._aside, self._taken = step, aside, 0

    def _scratch(self, buffer: Buffer) -> int:
        self._lent[buffer] = self._step
        offset, self._taken = self._taken, self._taken + len(buffer.data) + -len(buffer.data) % 8
        if self._taken > _SCRATCH:
            return self.append(buffer.data)
        if self._aside not in self._shared:
            self._shared[self._aside] = self.append(bytes(_SCRATCH))
        return self._shared[self._aside] + offset

    def append(self, data: bytes) -> int:
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
        if value is FLAGS:
            return lib.ISO_FLAGS, 0
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


def _encode(writer: Writer, op: Op, step: int) -> Label | None:
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


def encode_step(writer: Writer, ops: list[Op], step: Step, index: int, optional: bool) -> None:
    """The rows of a step, its jumps resolved. In an optional step every other error jumps to the step's end."""
    writer.begin(index, aside=step.phase.section is Section.ASIDE)
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
