"""A command in a container: the steps of a start, with "make" become "join".

The launcher of a command stays outside. Its child is born in the container's groups and pid namespace, joins the other
namespaces by the descriptors that the container's init has handed over, and becomes, by the very steps of the
sandbox's own programs, who those would be. What of this is inside is not dumpable at any instant.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from isolate.cgroups.counting import counted, counter_steps
from isolate.cgroups.part import joined_steps
from isolate.engine.plan import Buffer, Context, Phase, Plan, Row, Step, call, in_order, section_of
from isolate.kernel.constants import CLONE_NEWPID, CLONE_NEWUSER
from isolate.kernel.namespaces import by_flag
from isolate.mounts.dev_null import from_outside, from_tree
from isolate.sandbox.defaults import Launch
from isolate.sandbox.joining import JoinedGroup, JoinedOutcome, steps_of_programs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from isolate.engine.plan import Launched, Part

__all__ = ["CommandGroup", "command_plan"]

_HINTS = {
    errno.EPERM: "joining a container needs the rights that made it",
    errno.ENOMEM: "the container has ended: nothing can be born in its pid namespace any more",
}


def command_plan(
    original: Plan,
    doors: Mapping[int, int],
    directories: Mapping[str, str],
    spare: int,
    own: Sequence[Part] = (),
    null: int | None = None,
) -> Plan:
    """The plan of every command that is started in one container with the same parts.

    ``original`` is the plan of the sandbox with the parts that hold for the command; ``own`` are those that make
    something for the command alone (a group below the container's). ``spare`` stands for descriptors that only the
    container's own start was given; ``null`` is what :func:`isolate.mounts.dev_null.tree_of_null` has made.
    """
    context = Context(original.parts, euid=os.geteuid(), egid=os.getegid())
    context.hand_over([fd if fd >= 0 else spare for fd in original.context.slots])
    if directories and not own:
        context.group = CommandGroup(directories)
    rows = _rows(context, original, doors, directories, own, null)
    return Plan.of(original.parts, context, in_order(rows, section_of))


def _rows(
    context: Context,
    original: Plan,
    doors: Mapping[int, int],
    directories: Mapping[str, str],
    own: Sequence[Part],
    null: int | None,
) -> Iterator[Row]:
    launch = next(part for part in original.parts if isinstance(part, Launch))
    for part in own:
        for step in part.steps(context):
            if step.phase is not Phase.COVER:  # as they were when the container began
                yield step, part
    if not own:
        for step in joined_steps(directories, context, covered=False):
            yield step, launch
        group = context.group
        if isinstance(group, CommandGroup):
            for step in group.steps():
                yield step, launch
    if context.privileged:  # who is not does not own the device either
        yield from_outside() if null is None else from_tree(context.descriptor(null)), launch
    # Without privileges it is the user namespace that gives the right to join the others, with them it takes it.
    first = (CLONE_NEWPID,) if context.privileged else (CLONE_NEWUSER, CLONE_NEWPID)
    last = (CLONE_NEWUSER,) if context.privileged else ()
    others = [flag for flag in doors if flag not in first and flag not in last]
    for flags, phase, text in (
        ((f for f in first if f in doors), Phase.JOIN, "children in the container's pid namespace"),
        ((*others, *(f for f in last if f in doors)), Phase.PROPAGATION, "join its other namespaces"),
    ):
        ops = tuple(call("setns", context.descriptor(doors[flag]), by_flag(flag).flag) for flag in flags)
        if ops:
            yield Step(phase, text, ops, hints=_HINTS), launch
    yield from steps_of_programs(original)


class CommandGroup(JoinedGroup):
    """The container's group, as one command sees it: what was counted before it is not its affair.

    The counters at its start and at its end are read by the launcher, with the steps, so nothing of this differs from
    start to start.
    """

    def __init__(self, directories: Mapping[str, str]) -> None:
        super().__init__()
        self._directories = dict(directories)
        self._before: dict[tuple[int, str], Buffer] = {}

    def steps(self) -> Iterator[Step]:
        """Read the counters before and after."""
        for key, directory in self._directories.items():
            yield from counter_steps(key, directory, Phase.CGROUP, self._before)
            yield from counter_steps(key, directory, Phase.REPORT, self.buffers)

    def directories(self, session: Launched) -> dict[str, str]:
        """The container's."""
        return dict(self._directories)

    def outcome(self, report: bytes, reports: Sequence[tuple[Buffer, int, int]]) -> JoinedOutcome:
        """The group's counters at the end; the launcher tells times and memory of this command alone."""
        now, before = (counted(buffers, report, reports) for buffers in (self.buffers, self._before))
        return JoinedOutcome(now, None, None, before)
