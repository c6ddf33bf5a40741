"""A plan divided in two: what makes a tree once, and what each start from it does.

Which steps belong to which is a property of the steps (:class:`~isolate.engine.steps.Split`). What follows from the
others is looked for here: a step that would find the host's files gone, or what an earlier step of the other half
opened. Such a sandbox is set up anew each time, and :func:`divide` says why.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple

from isolate.engine.ops import RunHost
from isolate.engine.plan import (
    CALLERS_PROC,
    CHILD,
    EACH,
    KEPT,
    LAUNCHER,
    SELF,
    Buffer,
    Call,
    Op,
    Phase,
    Plan,
    Register,
    Section,
    Split,
    Step,
    call,
)
from isolate.engine.resources import Moved
from isolate.kernel.constants import (
    AT_FDCWD,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    O_CLOEXEC,
    O_PATH,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Halves", "NotDivided", "divide"]


class NotDivided(Exception):
    """There is no tree to be made once; the text says why."""


class Halves(NamedTuple):
    """The two plans, with the same steps by number; the second has one in front, and behind them those run ahead."""

    build: Plan
    again: Plan
    #: The objects of the host that are pinned, and the buffers that identify them.
    sources: tuple[tuple[bytes, Buffer], ...]


#: The phase that makes the tree: each of its steps says itself how it is divided.
_TREE = (Phase.PROPAGATION, Phase.SOURCES, Phase.ROOT, Phase.PIVOT)
#: Phases that a start from a tree cannot have: the tree belongs to this mount namespace, and to no joined one.
_NEVER = (Phase.JOIN_USER, Phase.TREES, Phase.JOIN, Phase.JOIN_USER_LAST, Phase.TIME)
_OUTSIDE = (Section.OUTER, Section.SUPERVISOR, Section.REPORT, Section.CLEANUP, Section.THAW)
_BEFORE = (Section.OUTER, Section.SUPERVISOR)
_INSIDE = (Section.INIT, Section.ASIDE)
#: What of a start can be made before it is asked for, if anything can: see :func:`can_wait`.
MADE_AHEAD = (*_BEFORE, *_INSIDE)


def divide(plan: Plan) -> Halves:
    """Both halves of a plan.

    :raises NotDivided: it has none.
    """
    context = plan.context
    if context.ground is not None or any(isinstance(each, Moved) for each in context.resources):
        raise NotDivided("its launcher is moved by systemd")
    if context.slots or context.resources:
        raise NotDivided("a part hands descriptors over to each start")
    for part in plan.parts:
        why = getattr(part, "without_template", None)
        if why:
            raise NotDivided(why)
    for flag, what in ((CLONE_NEWUSER, "user"), (CLONE_NEWNS, "mount"), (CLONE_NEWPID, "pid")):
        if not int(plan.clone_flags) & int(flag):
            raise NotDivided(f"it has no {what} namespace of its own, new with each start")
    if not any(step.phase is Phase.PIVOT for step in plan.steps):
        raise NotDivided("it has no root of its own")
    splits = [_split(step, privileged=context.privileged) for step in plan.steps]
    first: list[Step] = []
    if not context.privileged:
        opening = call("openat", AT_FDCWD, b"/proc", O_PATH | O_CLOEXEC, 0, out=CALLERS_PROC)
        first.append(Step(Phase.INHERITED, "hold on to the caller's /proc", (opening,)))
    again = [*first, *(_copy(step, _here(step, split)) for step, split in zip(plan.steps, splits, strict=True))]
    ahead = [
        (_copy(step, ops or (), phase), owner)
        for step, split, owner in zip(plan.steps, splits, plan.owners, strict=True)
        for phase, ops in ((Phase.AHEAD, split.ahead), (Phase.STILL, split.again))
        if split.ahead and ops
    ]
    again += [step for step, _ in ahead]
    build = [
        _copy(step, step.ops if split.build is None else split.build)
        for step, split in zip(plan.steps, splits, strict=True)
    ]
    _check_registers(again)
    sources = tuple(source for split in splits for source in split.sources)
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID
    built = Plan.of(plan.parts, context, zip(build, plan.owners, strict=True), clone_flags=flags, cgroup=False)
    owners = (*(plan.owners[0],) * len(first), *plan.owners, *(owner for _, owner in ahead))
    rows = zip(again, owners, strict=True)
    repeated = Plan.of(plan.parts, context, rows, clone_flags=plan.clone_flags, cgroup=plan.cgroup or False)
    return Halves(built, repeated, sources)


def can_wait(plan: Plan) -> bool:
    """Whether all of a start but its program can be made before it is asked for.

    Not where it is made within a group that somebody else has named: nothing waits in there. Nor where a program of the
    host's is run, since what that reads may change until the start.
    """
    pid = plan.context.namespace("pid")
    if pid is not None and not pid.init:
        return False  # nobody is there to wait
    groups = any(step.phase is Phase.AHEAD for step in plan.steps)
    outside = [step for step in plan.steps if step.ops and step.phase.section in _BEFORE]
    return all(
        (groups or step.phase is not Phase.CGROUP) and not any(isinstance(op, RunHost) for op in step.ops)
        for step in outside
    )


def _split(step: Step, *, privileged: bool) -> Split:
    phase, section = step.phase, step.phase.section
    if phase in _NEVER:
        raise NotDivided(f"each start has to {step.text}" if phase is Phase.TREES else step.text)
    if step.template is not None and (privileged or not step.template.ahead):
        return step.template
    if phase in _TREE or phase is Phase.ID_MAPS:
        raise NotDivided(f"no tree can be made once with: {step.text}")
    if phase is Phase.INHERITED:
        return KEPT  # of the launcher, whose forks have it too
    if section in _OUTSIDE and phase is not Phase.CLONE and not privileged:
        raise NotDivided(f"an ordinary user's launcher cannot go on outside of the tree: {step.text}")
    return EACH


def _here(step: Step, split: Split) -> tuple[Op, ...]:
    """The ops of a start: those inside without the host's files, but for its /proc/sys, of which there is one."""
    ops = step.ops if split.again is None else () if split.ahead else split.again
    if step.phase.section not in _INSIDE:
        return ops
    return tuple(_inside(step, op) for op in ops)


def _inside(step: Step, op: Op) -> Op:
    if not isinstance(op, Call) or op.name in ("symlinkat", "fsconfig"):
        return op
    args = list(op.args)
    for n, value in enumerate(args):
        text = value.data if isinstance(value, Buffer) else value
        if not isinstance(text, bytes) or not text.startswith(b"/") or text == b"/":
            continue
        if isinstance(value, bytes) and n and args[n - 1] == AT_FDCWD and (text + b"/").startswith(b"/proc/sys/"):
            args[n] = value[1:]  # from the working directory, where the tree has one
            continue
        raise NotDivided(f"{step.text}: by a path of the host's")
    if args == list(op.args):
        return op
    changed = copy.copy(op)
    changed.args = tuple(args)
    return changed


def _check_registers(steps: Iterable[Step]) -> None:
    """Check that an earlier op fills each register that an op uses: an empty one would be descriptor 0."""
    filled = {CHILD, SELF, LAUNCHER}
    # The second process is waited for before its results are used, so its steps count as earlier.
    early = {Section.AHEAD: 0, Section.STILL: 1, **dict.fromkeys((*_BEFORE, Section.ASIDE), 2)}
    for step in sorted(steps, key=lambda step: early.get(step.phase.section, 3)):
        if step.cgroup is not None and step.cgroup not in filled:
            raise NotDivided(f"{step.text}: by a descriptor that no start opens")
        for op in step.ops:
            for register in _used(op):
                if register not in filled:
                    raise NotDivided(f"{step.text}: by a descriptor ({register.name}) that no start opens")
            out = getattr(op, "out", None)
            if out is not None:
                filled.add(out)


def _used(op: Op) -> Iterator[Register]:
    values: list[object] = []
    for name in ("args", "value", "wanted", "root", "directory", "name", "proc"):
        value = getattr(op, name, None)
        values += value if isinstance(value, tuple) else [value]
    return (value for value in values if isinstance(value, Register))


def _copy(step: Step, ops: tuple[Op, ...], phase: Phase | None = None) -> Step:
    return Step(
        phase or step.phase,
        step.text,
        ops,
        step.clone_flags,
        step.path,
        step.cgroup,
        step.needs if ops is step.ops else None,
        step.hints,
    )
