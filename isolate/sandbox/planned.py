"""Parts with their plan and tape, made once: what a :class:`~isolate.Sandbox` and a container are started from."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any

from isolate.engine import native
from isolate.engine.plan import Part, Phase, Plan
from isolate.errors import UnsupportedError
from isolate.kernel import log
from isolate.kernel.constants import CLONE_NEWPID, CLONE_NEWTIME
from isolate.sandbox.defaults import defaults
from isolate.sandbox.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Self

    from isolate.engine.session import Session
    from isolate.engine.tape import Tape
    from isolate.mounts import Entry
    from isolate.sandbox.parked import Starts

__all__ = ["Planned", "stands"]


class _NotYet:
    """In the place of starts from a tree of which nobody has asked whether there can be any."""


_NOT_YET: Any = _NotYet()


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"Sandbox: template must be True or False, not {value!r}")
    return value


def stands(plan: Plan) -> bool:
    """Whether what the plan stands on is there."""
    return plan.context.ground is None or plan.context.ground.ready()


class Planned(Verbs):
    """Immutable parts. Plans and tapes are kept for the caller's ids, and used from any thread."""

    __slots__ = ("_lock", "_owner", "_plans", "_starts", "_tapes", "parts", "template")

    def __init__(self, *parts: Part, template: bool = False) -> None:
        self.parts: tuple[Part, ...] = parts
        #: Whether starts from the second on may be from a tree of mounts that is made once.
        self.template: bool = _flag(template)
        self._starts: dict[Tape, Starts | None] = {}
        self._plans: dict[tuple[int, int], Plan] = {}
        self._tapes: dict[tuple[int, int], Tape] = {}
        self._lock = threading.RLock()  # a signal handler may start something while its own thread is inside
        self._owner: int = native.owner()
        with contextlib.suppress(UnsupportedError):  # said by whatever starts it: to explain it, nothing is needed
            self._plan()  # refuses what can be refused without running anything

    def __add__(self, other: Part | Entry | Planned | Iterable[Part | Entry]) -> Self:
        """With more parts; entries of a root go to the end of its :class:`~isolate.Root`.

        :raises ConflictError: a part of a kind that is here: :meth:`replace` puts it in its place.
        """
        from isolate.sandbox.editing import added

        return type(self)(*added(self.parts, other), template=self.template)

    def replace(self, *parts: Part) -> Self:
        """A sandbox with these parts in the place of those of the same kind. Parts of other kinds are added.

        If a kind may be there several times (:class:`~isolate.Seccomp`), the new ones replace all of that kind.
        """
        from isolate.sandbox.editing import replaced

        return type(self)(*replaced(self.parts, parts), template=self.template)

    def without(self, *kinds: type[Any]) -> Self:
        """Without the parts of these kinds; its :class:`~isolate.Root` without entries of a kind of entry.

        :raises ValueError: there is nothing of that kind here.
        """
        from isolate.sandbox.editing import left

        return type(self)(*left(self.parts, kinds), template=self.template)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Planned) and set(self.parts) == set(other.parts)

    def __hash__(self) -> int:
        return hash(frozenset(self.parts))

    def __reduce__(self) -> tuple[object, ...]:
        return _remade, (type(self), self.parts, self.template)

    def _plan(self) -> Plan:
        """The plan for the caller's ids; it depends on nothing else that may change."""
        key = (os.geteuid(), os.getegid())
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = Plan(defaults(self.parts), euid=key[0], egid=key[1])
        return plan

    def _grounded(self) -> Plan:
        """The plan, with what it stands on made first where it has to be."""
        plan = self._plan()
        if not stands(plan):
            ground = plan.context.ground
            assert ground is not None
            ground.make()
            self._plans.clear()
            plan = self._plan()
        return plan

    def _compiled(self, plan: Plan, *, parked: bool = False, ahead: bool = False) -> Tape:
        from isolate.engine.tape import compile_plan

        log.debug(__name__, "plan of %d steps for uid %d: %r", len(plan.steps), os.geteuid(), self.parts)
        pid = plan.context.namespace("pid")
        flags = int(plan.clone_flags)
        time = any(step.phase is Phase.TIME for step in plan.steps)
        return compile_plan(
            plan,
            init=pid is None or pid.init,
            pid_namespace=bool(flags & CLONE_NEWPID),
            # A process in another time namespace may not share memory with its parent (clone(2), EINVAL).
            share=not time and not flags & CLONE_NEWTIME,
            strangers=pid is not None and pid.joined,
            owned=any(getattr(part, "for_the_caller", False) for part in plan.parts),
            parked=parked,
            ahead=ahead,
        )

    def _alone(self) -> threading.RLock:
        """The lock. A forked child has one of its own: a thread that it does not have may have held the parent's."""
        if not native.owns(self._owner):
            self._lock, self._owner = threading.RLock(), native.owner()
        return self._lock

    def compile(self) -> Tape:
        """The tape, made once for the caller's ids and then reused from any thread.

        If groups can be made only in a scope of systemd's and there is none yet, systemd is asked for it here.
        """
        key = (os.geteuid(), os.getegid())
        tape = self._tapes.get(key)
        if tape is None or not stands(tape.plan):
            with self._alone():
                tape = self._tapes.get(key)
                if tape is None or not stands(tape.plan):
                    self._starts.clear()
                    tape = self._tapes[key] = self._compiled(self._grounded())
        return tape

    def _from_tree(self, tape: Tape) -> Starts | None:
        """The starts from a tree that is made once; None where there is none. The first one is without."""
        if not self.template:
            return None
        try:
            found = self._starts[tape]
        except KeyError:
            self._starts[tape] = _NOT_YET
            return None
        return found if found is not _NOT_YET else self._divided(tape)

    def _divided(self, tape: Tape) -> Starts | None:
        with self._alone():
            found = self._starts.get(tape, None)
            if found is not _NOT_YET:
                return found
            try:
                from isolate.engine.dividing import NotDivided, can_wait, divide
                from isolate.sandbox.parked import Starts, Template
            except (OSError, ImportError, MemoryError):
                return None  # want of descriptors, or of memory: this start needs neither of these
            try:
                build, again, sources = divide(tape.plan)
            except NotDivided:
                self._starts[tape] = None
                return None
            repeated = self._compiled(again, ahead=can_wait(again))
            template = Template(self._compiled(build, parked=True), repeated, sources)
            made = self._starts[tape] = Starts(template)
        return made

    def launch(
        self, tape: Tape, run: bytes, stdio: Sequence[int], slots: Sequence[int], *, nonblocking: bool = False
    ) -> Session:
        """A launcher of its own for each start, or one that has the tree ready."""
        starts = self._from_tree(tape)
        if starts is not None:
            session = starts.start(run, stdio, slots, nonblocking=nonblocking)
            if session is not None:
                return session
        from isolate.diagnosis.start import launch

        return launch(tape, run, stdio, slots, nonblocking=nonblocking)

    def waiting(self, tape: Tape) -> Session:
        """One that is set up, or soon will be, and waits for its program."""
        from isolate.diagnosis.start import waiting

        starts = self._from_tree(tape)
        session = None if starts is None else starts.waiting()
        if session is None:
            return waiting(tape)
        session.of = tape
        return session


def _remade(kind: type[Planned], parts: tuple[Part, ...], template: bool) -> Planned:
    return kind(*parts, template=template)
