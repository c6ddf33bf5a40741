"""A namespace in force on the calling thread: unshare or setns, and setns back by a descriptor (namespaces(7))."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from isolate.engine.plan import Call, Phase, Register, Step, call
from isolate.kernel.constants import (
    AT_FDCWD,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    O_CLOEXEC,
    O_PATH,
    O_RDONLY,
    flags,
)
from isolate.kernel.namespaces import by_flag
from isolate.thread.program import Program, Running, StepsChange, gather, refuse_threads

if TYPE_CHECKING:
    from isolate.engine.plan import Part, Row

__all__ = ["NamespaceChange"]

(CLONE_FS,) = flags(CLONE_FS=0x200)
#: Mounts first: what the others read in /proc may be theirs. Pid and time are for children only, so last.
_ORDER = {int(CLONE_NEWNS): 10, int(CLONE_NEWPID): 18, int(CLONE_NEWTIME): 19}


class NamespaceChange(StepsChange):
    """The calling thread in a namespace, new or joined; the descriptor of the old one is the way back.

    The whole way in is one call into the extension, the way back another: nothing can interrupt in between.
    """

    __slots__ = ("_flag", "_part")

    def __init__(self, part: Part, flag: int) -> None:
        super().__init__()
        self._part = part
        self._flag = int(flag)

    @property
    def text(self) -> str:  # type: ignore[override]
        """The kernel's name of the kind."""
        return f"the {by_flag(self._flag).for_children} namespace"

    @property
    def order(self) -> int:  # type: ignore[override]
        """Mount first, pid and time last."""
        return _ORDER.get(self._flag, 15)

    def check(self) -> None:
        """The way back from a time namespace is barred for a process with threads."""
        if self._flag == CLONE_NEWTIME:
            why = "the kernel lets only a process with one thread go back (setns(2), EUSERS)"
            refuse_threads("with TimeNamespace", why)

    def apply(self) -> None:
        """Keep the old one, unshare or join, then what the part says of the new one."""
        self._running = Running(_program(self._part, self._flag))
        self._running.apply()

    def now(self) -> str:
        """The kernel's identity of it."""
        return os.readlink(f"/proc/thread-self/ns/{by_flag(self._flag).for_children}")


_programs: dict[tuple[Any, ...], Program] = {}


def _program(part: Part, flag: int) -> Program:
    # Equal parts have equal steps; which ids the caller has may change them.
    key = (type(part), part, os.geteuid(), os.getegid())
    found = _programs.get(key) if part.fd is None else None  # type: ignore[attr-defined]
    if found is None:
        old, entered = Register("old"), Register("entered")
        kind = by_flag(flag)
        path = f"/proc/thread-self/ns/{kind.for_children}".encode()
        keep = call("openat", AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0, out=old)
        back = call("setns", old, kind.flag)
        rows: list[Row] = [(_step("keep the way back", keep), part)]
        # From inside of a user namespace there may be a way out and none back: tried by joining what it is in.
        no_way = {errno.EPERM: "going back needs CAP_SYS_ADMIN in the user namespace that owns the present one"}
        trial = Step(Phase.SYSTEM, "see that there is a way back", (back,), hints=no_way)
        undo = [_step(f"join the old {kind.for_children} namespace", back, needs=entered)]
        close = [_step("close the way back", call("close", old), needs=old)]
        if flag == CLONE_NEWNS:
            more, undo_more, close_more = _file_system(part, entered)
            rows += more
            trial = Step(trial.phase, trial.text, (back, *undo_more[0].ops, *undo_more[1].ops), hints=no_way)
            # A thread that was started inside shares this one's file system attributes: then setns would be refused.
            apart = _step("file system attributes of this thread's own", call("unshare", CLONE_FS), needs=entered)
            undo = [apart, *undo, *undo_more]
            close += close_more
        rows.append((trial, part))
        rows += [(_noting(step, entered), owner) for step, owner in gather((part,))]
        found = Program(part, rows, undo, close)
        if len(_programs) > 256:
            _programs.clear()
        if part.fd is None:  # type: ignore[attr-defined]
            _programs[key] = found  # what is kept here must keep no descriptor
    return found


def _step(text: str, *ops: Call, needs: Register | None = None) -> Step:
    return Step(Phase.SYSTEM, text, ops, needs=needs)


def _noting(step: Step, entered: Register) -> Step:
    """The same step, its unshare or setns with the register that says "there is a way to go back"."""
    ops = tuple(
        Call(op.name, op.args, entered, op.errors, op.policy, op.label, op.expect, op.repeat)
        if isinstance(op, Call) and op.name in ("unshare", "setns")
        else op
        for op in step.ops
    )
    return Step(step.phase, step.text, ops, path=step.path, needs=step.needs, hints=step.hints)


def _file_system(part: Part, entered: Register) -> tuple[list[Row], list[Step], list[Step]]:
    """Working directory, root and umask of this thread's own; the first two are lost by setns and put back."""
    root, cwd = Register("root"), Register("cwd")
    how = O_PATH | O_CLOEXEC
    apply: list[Step] = [
        _step("file system attributes of this thread's own", call("unshare", CLONE_FS)),
        _step("keep the root directory", call("openat", AT_FDCWD, b"/", how, 0, out=root)),
        _step("keep the working directory", call("openat", AT_FDCWD, b".", how, 0, out=cwd)),
    ]
    undo = [
        _step("the old root directory", call("fchdir", root), call("chroot", b"."), needs=entered),
        _step("the old working directory", call("fchdir", cwd), needs=entered),
    ]
    close = [_step("close the directories", call("close", fd), needs=fd) for fd in (root, cwd)]
    return [(s, part) for s in apply], undo, close
