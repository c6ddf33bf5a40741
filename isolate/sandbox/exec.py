"""A further program in a sandbox that runs: what :meth:`isolate.Process.exec` does.

The launcher's supervisor stays outside; of the running program's namespaces it takes the one for pids, which is for its
children alone. Its child, born in there, joins the others by the program's pidfd, becomes who the first program became,
by the very same steps, and executes. What of this is inside at any instant is a process that nobody inside can trace or
look into (it is not dumpable, and its memory belongs to the caller's user namespace), executed from a sealed memfd,
whose descriptors are all close-on-exec but those passed.
"""

from __future__ import annotations

import os
from errno import EBUSY, EINVAL, EPERM, ESRCH
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from isolate.cgroups.counting import Outcome, RunGroup
from isolate.cgroups.ending import read_stats
from isolate.cgroups.hierarchy import build, discover
from isolate.cgroups.hierarchy import read as read_text
from isolate.cgroups.part import guided_step
from isolate.cgroups.stats import Stats
from isolate.diagnosis.start import launch
from isolate.engine.plan import Context, Phase, Plan, Register, Row, Step, call, in_order, section_of
from isolate.engine.resources import Moved
from isolate.engine.tape import compile_plan
from isolate.engine.waiting import ready
from isolate.errors import SetupError
from isolate.kernel.constants import (
    AT_FDCWD,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    NOTHING,
    O_CLOEXEC,
    O_WRONLY,
    Constant,
)
from isolate.mounts.dev_null import from_outside
from isolate.sandbox.joining import JoinedGroup, JoinedOutcome, steps_of_programs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from isolate.engine.plan import Buffer, Launched
    from isolate.engine.session import Session
    from isolate.engine.tape import Tape

__all__ = ["FurtherBox"]

_END = 1.0  # seconds: how long a sandbox that is going takes to tell its counters
_HINTS = {
    ESRCH: "the program has ended",
    EPERM: "joining a sandbox needs the rights that made it, and a program that the caller may look into (ptrace(2))",
    EINVAL: "the program has gone into a namespace that cannot be joined",
}


class First(Protocol):
    """The program that was started first: a :class:`~isolate.Process`."""

    @property
    def pid(self) -> int:
        """Its number."""
        ...

    @property
    def pidfd(self) -> int:
        """Its descriptor."""
        ...

    @property
    def _session(self) -> Session: ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        ...


@runtime_checkable
class Namespace(Protocol):
    """A part that is a namespace."""

    kind: str
    flag: Constant


def further_plan(process: First, original: Plan) -> Plan:
    """The steps of the first program's start that a further one needs, with "make" become "join"."""
    context = Context(original.parts, euid=os.geteuid(), egid=os.getegid())
    # Steps name them by their numbers. What resources gave was for the start alone, but for a group of a pool.
    group = original.context.group
    lent: Sequence[int] = ()
    if isinstance(group, RunGroup):
        context.group = SharedGroup(process, group)
        lent = _lent(process) if group.pool is not None else ()
    numbers = dict(enumerate(lent))
    context.hand_over([fd if fd >= 0 else numbers.get(-1 - fd, process.pidfd) for fd in original.context.slots])
    return Plan.of(original.parts, context, in_order(_rows(context, process, original), section_of))


def _rows(context: Context, process: First, original: Plan) -> Iterator[Row]:
    launch = original.owners[[step.phase for step in original.steps].index(Phase.EXEC)]
    for resource in original.context.resources:
        if isinstance(resource, Moved):  # into the group from where only systemd moves anybody
            yield guided_step(resource.guide, context), launch
    groups = _groups(process)
    if frozen(groups):
        raise SetupError(
            EBUSY,
            "execute a further program",
            part="Process.exec",
            cause="the sandbox is frozen",
            remedy="thaw() it first",
        )
    for directory in groups:  # first, while the host's files can still be seen
        # A thread that moves itself is moved at once, a process not: see isolate.cgroups.part.
        file = "tasks" if os.path.exists(os.path.join(directory, "tasks")) else "cgroup.procs"
        path, fd = os.path.join(directory, file).encode(), Register(file)
        opening = call("openat", AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0, out=fd)
        ops = (opening, call("write", fd, b"0", 1, expect=1), call("close", fd))
        yield Step(Phase.PROPAGATION, f"be in the group {directory}", ops, path=path), launch
    if context.privileged:  # who is not does not own the device either
        yield from_outside(), launch
    flags = [part.flag for part in original.parts if isinstance(part, Namespace)]
    pidfd = context.descriptor(process.pidfd)
    # Without privileges it is the user namespace that gives the right to join the one for pids.
    outside = {CLONE_NEWPID} if context.privileged else {CLONE_NEWPID, CLONE_NEWUSER}
    first, others = NOTHING, NOTHING
    for flag in sorted(set(flags)):
        first, others = (first | flag, others) if flag in outside else (first, others | flag)
    if first:
        joining = call("setns", pidfd, first)
        yield Step(Phase.JOIN, "children in the running program's pid namespace", (joining,), hints=_HINTS), launch
    if others:
        joining = call("setns", pidfd, others)
        yield Step(Phase.PROPAGATION, "join its other namespaces", (joining,), hints=_HINTS), launch
    yield from steps_of_programs(original)


class SharedGroup(JoinedGroup):
    """The first program's group, as a further one sees it: what was counted since that began is its own affair, too."""

    def __init__(self, process: First, first: RunGroup) -> None:
        super().__init__()
        self._process = process
        self._first = first
        self.pool = first.pool
        self.paths = first.paths
        self._before = self._count()

    def _count(self) -> Stats | None:
        """The counters now, or those of the sandbox's end."""
        session = self._process._session
        if session.end is None:
            found = read_stats(self._first.directories(session))
            if found != Stats():
                return found
            # The group goes with the first program, whose end is told a moment later.
            try:
                self._process.wait(_END)
            except (TimeoutError, SetupError, ValueError):
                return None
        if session.end is None:
            return None
        return self._first.outcome(session.end.report, session.tape.reports).stats

    def directories(self, session: Launched) -> dict[str, str]:
        """Those of the first program's launcher."""
        return self._first.directories(self._process._session)

    def outcome(self, report: bytes, reports: Sequence[tuple[Buffer, int, int]]) -> Outcome:
        """The group's counters so far; the launcher tells times and memory of this program alone."""
        now = self._count()
        return JoinedOutcome(now or Stats(), None, None, self._before)


def frozen(groups: Sequence[str]) -> bool:
    """Whether one of the groups is frozen: who is born or moved in there stands still."""
    for directory in groups:
        if b"frozen 1" in read_bytes(os.path.join(directory, "cgroup.events")).split(b"\n"):
            return True
        if read_bytes(os.path.join(directory, "freezer.state")).strip() not in (b"", b"THAWED"):
            return True
    return False


def read_bytes(path: str) -> bytes:
    """A small file; empty where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


class FurtherBox:
    """The requests of a spawn to a sandbox, for a further program in one that runs."""

    def __init__(self, process: First, plan: Plan) -> None:
        self._process = process
        self._plan = plan

    def compile(self) -> Tape:
        """The tape of this one start."""
        plan = further_plan(self._process, self._plan)
        return compile_plan(plan, init=True, pid_namespace=False, share=True)

    def launch(
        self, tape: Tape, run: bytes, stdio: Sequence[int], slots: Sequence[int], *, nonblocking: bool = False
    ) -> Session:
        """A launcher of its own."""
        return launch(tape, run, stdio, slots, nonblocking=nonblocking)


def _lent(process: First) -> Sequence[int]:
    """The descriptors that resources gave to the first program's start."""
    held = process._session.held
    if not held:
        raise SetupError(ESRCH, "execute a further program", part="Process.exec", cause="the program has ended")
    return [fd for each in held for fd in each.fds]


def _groups(process: First) -> list[str]:
    """Directories of the cgroups that the running program is in and the caller is not."""
    membership = read_text(f"/proc/{process.pid}/cgroup")
    # Read by number, so asked after the reading: while the pidfd says that the program lives, the number is its own.
    # (Not poll(), which waits for everything inside: the program may be gone and its number another's before that.)
    if _ended(process.pidfd) or not membership:
        raise SetupError(ESRCH, "execute a further program", part="Process.exec", cause="the program has ended")
    own = {hierarchy.key: hierarchy.own for hierarchy in discover().hierarchies}
    theirs = build(read_text("/proc/self/mountinfo"), membership)
    return [h.own for h in theirs.hierarchies if h.own and h.own != own.get(h.key)]


def _ended(pidfd: int) -> bool:
    """Whether the program itself has ended: its pidfd is readable from then on, also after it was reaped."""
    return ready(pidfd)
