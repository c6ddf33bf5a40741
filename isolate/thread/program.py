"""Steps that run on the calling thread: compiled to a tape like a sandbox's, run by the same interpreter."""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from isolate import errors
from isolate.engine.finding import Finding
from isolate.engine.native import ffi, lib
from isolate.engine.plan import (
    Call,
    Context,
    Phase,
    Plan,
    Register,
    Row,
    Section,
    Step,
    Target,
    call,
    complete,
    in_order,
    rows_of,
)
from isolate.engine.tape import HEADER, OP, compile_plan
from isolate.errors import SetupError, ThreadedError
from isolate.kernel.constants import CLONE_NEWTIME, CLONE_NEWUSER, NOTHING, PR_SET_KEEPCAPS
from isolate.thread.blocks import entered
from isolate.thread.change import Change

if TYPE_CHECKING:
    from collections.abc import Iterable

    from isolate.engine.plan import Op, Part
    from isolate.engine.tape import Tape

__all__ = ["Program", "Running", "StepsChange", "enter", "gather", "refuse_threads", "threads"]

_APPLY, _UNDO, _CLOSE = Phase.SYSTEM, Phase.AFTER, Phase.CLEANUP
_OUT = 9  # of an op's fields: the register of its result
_OPENING = {
    "fcntl",
    "fsmount",
    "fsopen",
    "landlock_create_ruleset",
    "memfd_create",
    "open_tree",
    "openat",
    "openat2",
    "pidfd_open",
    "socket",
}
_CHECKSUM = 1  # of the header's 64-bit words
_REGISTERS = 8  # of the header's fields, magic and checksum included
_NOT_BY_US = (Phase.SYNC, Phase.SESSION, Phase.DESCRIPTORS, Phase.EXEC, Phase.PROGRAM)


def here(parts: Iterable[Part] = ()) -> Context:
    """The context of a part whose steps are for the calling thread."""
    return Context(tuple(parts), euid=os.geteuid(), egid=os.getegid(), executes=False)


def _moved(step: Step, phase: Phase) -> Step:
    return Step(phase, step.text, step.ops, path=step.path, needs=step.needs, hints=step.hints)


def gather(parts: Iterable[Any]) -> list[Row]:
    """The steps of parts for the calling thread, in the kernel's order; new namespaces by one unshare."""
    context = here(complete(parts))
    rows = [row for row in in_order(rows_of(context)) if row[0].phase not in _NOT_BY_US]
    new = [(step, part) for step, part in rows if step.phase is Phase.CLONE]
    if not new:
        return rows
    flags = NOTHING
    for step, _ in new:
        flags = flags | step.clone_flags
    hints: dict[int, str | Finding] = {
        errno.EINVAL: (
            "the kernel was built without this kind of namespace, or the process has several threads, or its children"
            " go into another pid namespace already"
        ),
        errno.ENOSPC: Finding(
            "the limit of namespaces is reached", "as root: raise user.max_*_namespaces by sysctl (namespaces(7))"
        ),
    }
    step = Step(Phase.CLONE, ", ".join(s.text for s, _ in new), (call("unshare", flags),), hints=hints)
    at = rows.index(new[0])
    return [*rows[:at], (step, new[0][1]), *(row for row in rows[at:] if row[0].phase is not Phase.CLONE)]


class Program:
    """Compiled steps: what puts in force, what takes back, what closes. Made once, run by any thread."""

    __slots__ = ("kept", "registers", "skipped", "tape")

    def __init__(
        self, owner: Part, apply: Iterable[Row], undo: Iterable[Step] = (), close: Iterable[Step] = ()
    ) -> None:
        # A register tells, in memory that no interruption can lose, that the section has run to its end.
        undone, closed = Register("undone"), Register("closed")
        first = tuple(call("close", -1, out=r, errors=(errno.EBADF,)) for r in (undone, closed))
        sections: tuple[tuple[Phase, list[Row]], ...] = (
            (_APPLY, [(Step(_APPLY, "begin", first), owner), *apply]),
            (_UNDO, [(s, owner) for s in (*undo, Step(_UNDO, "end", (call("getpid", out=undone),)))]),
            (_CLOSE, [(s, owner) for s in (*close, Step(_CLOSE, "end", (call("getpid", out=closed),)))]),
        )
        rows = [(_moved(step, phase), part) for phase, some in sections for step, part in some]
        plan = Plan.of(tuple(part for _, part in rows), here(), rows)
        self.tape: Tape = compile_plan(plan, init=False, pid_namespace=False, share=False)
        self.registers: int = HEADER.unpack_from(self.tape.data)[_REGISTERS]
        self.skipped: int = len(plan.steps)
        #: Descriptors that stay open until the block ends.
        closing = [op for step in close for op in step.ops if isinstance(op, Call)]
        self.kept: set[Register] = {arg for op in closing for arg in op.args if isinstance(arg, Register)}


_UNDONE, _CLOSED = 3, 4  # the first registers behind the engine's own


class Running:
    """A program on its way: a private copy of the tape, which keeps what was read, and the registers."""

    __slots__ = ("_copy", "_failed", "_program", "_registers", "_size", "_skipped")

    def __init__(self, program: Program) -> None:
        self._program = program
        data = program.tape.data
        self._size = len(data)
        self._copy = ffi.new("uint64_t[]", (self._size + 7) // 8)
        ffi.memmove(self._copy, data, self._size)
        self._registers = ffi.new("int64_t[]", [-1] * program.registers)
        self._registers[0] = self._registers[2] = os.getpid()
        self._failed = ffi.new("uint32_t *")
        self._skipped = ffi.new("uint8_t[]", program.skipped)

    def apply(self) -> None:
        """Put in force.

        :raises SetupError: the step that failed.
        """
        self._run(Section.INIT)

    def undo(self) -> None:
        """Take back what was put in force; nothing if that is done."""
        if self._registers[_UNDONE] < 0 and self._registers[_CLOSED] == -errno.EBADF:
            self._run(Section.AFTER)

    def close(self) -> None:
        """Close what is open; nothing if that is done."""
        if self._registers[_CLOSED] == -errno.EBADF:
            self._run(Section.CLEANUP)

    def _run(self, section: Section) -> None:
        base = ffi.cast("uint8_t *", self._copy)
        if section is not Section.INIT:  # what ran before has stored into it
            self._copy[_CHECKSUM] = lib.iso_tape_checksum(base, self._size)
        result = lib.iso_run_here(base, self._size, section, self._registers, self._failed, self._skipped)
        if result < 0:
            if section is Section.INIT:
                self._close_opened(int(self._failed[0]))
            raise _error(self._program.tape, int(self._failed[0]), int(-result))

    def _close_opened(self, failed: int) -> None:
        """A launcher that fails ends, and its descriptors with it; this process does not."""
        opened: dict[Register, int] = {}  # to its number
        for index, op in enumerate(self._program.tape.ops[:failed]):
            if isinstance(op, Target) or (isinstance(op, Call) and op.name in _OPENING):
                row = OP.unpack_from(self._program.tape.data, HEADER.size + index * OP.size)
                if op.out is not None:
                    opened[op.out] = row[_OUT]
            elif isinstance(op, Call) and op.name == "close" and isinstance(op.args[0], Register):
                opened.pop(op.args[0], None)
        for register, number in opened.items():
            if register not in self._program.kept and self._registers[number] >= 0:
                os.close(self._registers[number])


class StepsChange(Change):
    """A change whose steps are a program: a subclass sets ``_running`` in its ``apply``."""

    __slots__ = ("_running",)

    def __init__(self) -> None:
        self._running: Running | None = None

    def undo(self) -> None:
        """Run the steps that take it back."""
        if self._running is not None:
            self._running.undo()

    def release(self) -> None:
        """Close the descriptors that it keeps."""
        if self._running is not None:
            self._running.close()


def _error(tape: Tape, index: int, error: int) -> SetupError:
    found = tape.step(index)
    if found is None:
        return SetupError(error, "run the steps on this thread")
    step, part = found
    op = tape.ops[index]
    finding = step.finding(error)
    if finding is None and isinstance(op, Target):
        from isolate.engine.targets import TARGET  # loaded late: only an error needs it

        finding = TARGET.get(error)
    cause, remedy = (None, None) if finding is None else (finding.cause, finding.remedy)
    if error == errno.EPERM and (cause is None or "CAP_SYS_ADMIN" in cause):
        cause = cause or "it needs CAP_SYS_ADMIN in the user namespace that this thread is in"
        kind = getattr(part, "kind", None)
        name = type(part).__name__ if kind is not None else "MountNamespace"
        remedy = f"run as root, or first enter both for good: UserNamespace().enter(), then {name}().enter()"
        if kind == "pid":
            # A thread outside of its children's pid namespace cannot make another one for them (unshare(2), EINVAL).
            remedy += ", and use the block in a program that is then executed as a child"
    lacking = error == errno.ENOSYS or (finding is not None and finding.unsupported)
    kind = errors.UnsupportedError if lacking else SetupError
    return kind(
        error,
        step.text,
        part=type(part).__name__,
        syscall=_syscall(op),
        cause=cause,
        remedy=remedy,
        path=os.fsdecode(step.path) if step.path else None,
    )


def _syscall(op: Op) -> str | None:
    return op.name if isinstance(op, Call) else "openat2" if isinstance(op, Target) else None


# ---- threads -----------------------------------------------------------------------------------------------------


def threads() -> int:
    """How many threads this process has, those that Python does not know included."""
    return len(os.listdir("/proc/self/task"))


def refuse_threads(part: str, why: str) -> None:
    """For what the kernel does only for a process with one thread.

    :raises ThreadedError: there are more.
    """
    count = threads()
    for _ in range(100):
        if count == 1 or threading.active_count() > 1:
            break
        # Before Python 3.13 join() returns a little before the kernel's thread has gone.
        time.sleep(0.001)
        count = threads()
    if count > 1:
        raise ThreadedError(
            f"{part}: {why}, and this one has {count} threads (importing numpy or the like starts some): do it at the"
            " program's start, or in a child by Sandbox(...)"
        )


# ---- for good ------------------------------------------------------------------------------------------------------


def enter(parts: Iterable[object]) -> None:
    """Put parts in force on this thread for good, in the kernel's order.

    :raises SetupError: a step failed; what came before it stays.
    """
    rows = gather(parts)
    if not rows:
        return
    for part, flag in (("UserNamespace", CLONE_NEWUSER), ("TimeNamespace", CLONE_NEWTIME)):
        for step, _ in rows:
            for op in step.ops:
                joins = isinstance(op, Call) and op.name == "setns" and op.args[1] == flag
                if joins or (step.phase is Phase.CLONE and flag is CLONE_NEWUSER and _flags(op) & flag):
                    refuse_threads(part, "the kernel does this only for a process with one thread")
    if any(step.phase is Phase.BOUNDING for step, _ in rows):
        # Only the change of ids above was to keep capabilities. EPERM: securebits are locked, with it off.
        keep = call("prctl", PR_SET_KEEPCAPS, 0, 0, 0, 0, errors=(errno.EPERM,))
        rows.append((Step(Phase.VERIFY, "capabilities go with the next change of ids", (keep,)), rows[-1][1]))
    running = Running(Program(rows[0][1], rows))
    entered()
    running.apply()


def _flags(op: Op) -> int:
    value = op.args[0] if isinstance(op, Call) else 0
    return value if isinstance(value, int) else 0
