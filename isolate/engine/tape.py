"""The tape: a plan as one flat, relocatable buffer for the interpreter (layout: ``_native/tape.h``).

A tape is compiled once and run any number of times from any thread: nothing in it is specific to a run. What is
(arguments, environment, descriptors) goes into a run block behind it.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from isolate.engine.encoding import Writer, encode_step
from isolate.engine.native import ffi, lib
from isolate.engine.plan import Buffer, Op, Part, Phase, Plan, Section, Step
from isolate.engine.record import RECORD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OP = struct.Struct("<BB6BII4HHHIq6q")
HEADER = struct.Struct("<QQ10IQ4I22I")
MAGIC = 0x31455041544F5349


@dataclass(frozen=True, slots=True, eq=False)
class Tape:
    """The bytes, and what is needed to read what comes back."""

    data: bytes
    plan: Plan
    #: For every op the index of its step.
    op_steps: tuple[int, ...]
    ops: tuple[Op, ...]
    #: The offsets in the report of the buffers that are sent back.
    reports: tuple[tuple[Buffer, int, int], ...]
    #: The parts by name, each once: what a result says of them.
    names: tuple[str, ...]
    #: Whether the supervisor writes to files of its child's in /proc, which it finds by the child's number.
    needs_proc: bool
    #: Whether the supervisor cleans up when everything inside is dead.
    cleans: bool
    #: Bytes that a record of its launcher's has at most.
    record_size: int
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


def compile_plan(
    plan: Plan,
    *,
    init: bool,
    pid_namespace: bool,
    share: bool,
    strangers: bool = False,
    owned: bool = False,
    parked: bool = False,
    ahead: bool = False,
) -> Tape:
    """Compile the steps of a plan. The keywords are the flags of ``tape.h``.

    :raises ValueError: the plan has more steps, operations or values than the launcher takes.
    """
    writer = Writer()
    ops: list[Op] = []
    sections: dict[Section, list[int]] = {s: [0, 0] for s in Section}
    for index, (step, part) in enumerate(zip(plan.steps, plan.owners, strict=True)):
        first = len(writer.rows)
        if step.phase is Phase.CLONE:
            if step.ops:
                raise ValueError(f"{step.text}: a step in the phase CLONE has flags, not ops")
            continue
        encode_step(writer, ops, step, index, not getattr(part, "required", True))
        bounds = sections[step.phase.section]
        if not bounds[1]:
            bounds[0] = first
        bounds[1] += len(writer.rows) - first
    _bounded(writer, plan)
    flags = (lib.ISO_TAPE_INIT if init else 0) | (lib.ISO_TAPE_PIDNS if pid_namespace else 0)
    flags |= (lib.ISO_TAPE_SHARE if share else 0) | (lib.ISO_TAPE_STRANGERS if strangers else 0)
    flags |= lib.ISO_TAPE_FILTERED if _filtered(plan) else 0
    flags |= (lib.ISO_TAPE_OWNED if owned else 0) | (lib.ISO_TAPE_PARKED if parked else 0)
    flags |= lib.ISO_TAPE_AHEAD if ahead else 0
    return _assemble(writer, plan, ops, sections, flags)


def _bounded(writer: Writer, plan: Plan) -> None:
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
    writer: Writer,
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
    cgroup = lib.ISO_NONE if plan.cgroup is None else writer.register(plan.cgroup)
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
    cleans = sections[Section.CLEANUP][1] > 0
    record_size = RECORD.size + len(plan.steps) + 1 + sum(n + 8 for _, _, n in reports) + 64
    op_steps = tuple(row[8] for row in writer.rows)
    return Tape(data, plan, op_steps, tuple(ops), tuple(reports), names, needs_proc, cleans, record_size)


def _gather(writer: Writer, reported: list[Buffer]) -> tuple[int, list[tuple[Buffer, int]]]:
    """Move the reported buffers to the data's end and mend the references to them."""
    writer.data += bytes(-len(writer.data) % 8)
    start = len(writer.data)
    moved: list[tuple[Buffer, int]] = []
    shifts: list[tuple[int, int, int]] = []
    for buffer in reported:
        old = writer.buffers[buffer]
        new = writer.append(buffer.data)
        moved.append((buffer, new))
        shifts.append((old, old + max(1, len(buffer.data)), new - old))
    kinds = {lib.ISO_DATA, lib.ISO_LOAD4, lib.ISO_LOAD8}
    for row in writer.rows:
        for i in range(6):
            if row[2 + i] in kinds:
                value = row[18 + i]
                row[18 + i] = value + next((d for low, high, d in shifts if low <= value < high), 0)
    return start, moved
