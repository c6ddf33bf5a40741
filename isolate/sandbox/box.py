"""The verbs: a :class:`Sandbox` is parts put together; it runs programs, starts them, or explains itself."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any, Literal, overload

from isolate.engine.plan import Part, Phase, Plan
from isolate.errors import UnsupportedError, printable
from isolate.kernel.constants import CLONE_NEWPID, CLONE_NEWTIME
from isolate.namespaces.part import PidNamespace
from isolate.sandbox.defaults import Launch, defaults
from isolate.sandbox.verbs import Verbs
from isolate.thread.entering import Change, Reversible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from isolate.engine.session import Session
    from isolate.engine.tape import Tape
    from isolate.mounts import Entry
    from isolate.sandbox.containers.container import Container
    from isolate.sandbox.containers.detached import DetachedContainer
    from isolate.sandbox.parked import Starts
    from isolate.sandbox.prepared import Prepared
    from isolate.sandbox.verbs import Args


__all__ = ["Sandbox"]


class _NotYet:
    """In the place of starts from a tree of which nobody has asked whether there can be any."""


_NOT_YET: Any = _NotYet()


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"Sandbox: template must be True or False, not {value!r}")
    return value


def _stands(plan: Plan) -> bool:
    """Whether what the plan stands on is there."""
    return plan.context.ground is None or plan.context.ground.ready()


class Sandbox(Verbs, Reversible):
    """Parts that hold together in a child: namespaces, a root, limits, credentials, filters.

    ``template``: starts from the second on are from a tree of mounts that is made once, where that is the same as
    making it each time (see the documentation on starts from a template); without it each start sets all up anew.

    Immutable. The order of the parts does not matter; :class:`isolate.Root` alone has an order inside. ``+`` adds
    parts. What is not said is at its safe default: see :mod:`isolate.sandbox.defaults`.

    :raises ConflictError: for the same part twice, or parts that contradict one another.
    """

    __slots__ = ("_container", "_lock", "_plans", "_starts", "_tapes", "parts", "template")

    def __init__(self, *parts: Part, template: bool = False) -> None:
        self.parts: tuple[Part, ...] = parts
        #: Whether starts from the second on may be from a tree of mounts that is made once.
        self.template: bool = _flag(template)
        self._starts: dict[Tape, Starts | None] = {}
        self._plans: dict[tuple[int, int], Plan] = {}
        self._tapes: dict[tuple[int, int], Tape] = {}
        self._lock = threading.Lock()
        self._container: Sandbox | None = None  # with the steps that a container has besides, once one was opened
        with contextlib.suppress(UnsupportedError):  # said by whatever starts it: to explain it, nothing is needed
            self._plan()  # refuses what can be refused without running anything

    def __add__(self, other: Part | Entry | Sandbox | Iterable[Part | Entry]) -> Sandbox:
        """With more parts; entries of a root go to the end of its :class:`~isolate.Root`.

        :raises ConflictError: a part of a kind that is here: :meth:`replace` puts it in its place.
        """
        from isolate.sandbox.editing import added

        return Sandbox(*added(self.parts, other), template=self.template)

    def replace(self, *parts: Part) -> Sandbox:
        """With these parts in the place of those of the same kind; those of a kind that is not here are added.

        Of a kind that may be there several times (:class:`~isolate.Seccomp`) all give way to the new ones.
        """
        from isolate.sandbox.editing import replaced

        return Sandbox(*replaced(self.parts, parts), template=self.template)

    def without(self, *kinds: type[Any]) -> Sandbox:
        """Without the parts of these kinds; its :class:`~isolate.Root` without entries of a kind of entry.

        :raises ValueError: there is nothing of that kind here.
        """
        from isolate.sandbox.editing import left

        return Sandbox(*left(self.parts, kinds), template=self.template)

    def __repr__(self) -> str:
        return f"Sandbox({', '.join(map(repr, self.parts))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sandbox) and set(self.parts) == set(other.parts)

    def __hash__(self) -> int:
        return hash(frozenset(self.parts))

    def __reduce__(self) -> tuple[object, ...]:
        return _remade, (self.parts, self.template)

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
        if not _stands(plan):
            ground = plan.context.ground
            assert ground is not None
            ground.make()
            self._plans.clear()
            plan = self._plan()
        return plan

    def _compiled(self, plan: Plan, *, parked: bool = False) -> Tape:
        from isolate.engine.tape import compile_plan

        pid = plan.context.find(PidNamespace)
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
        )

    def compile(self) -> Tape:
        """The tape, made once for the caller's ids and then reused from any thread.

        Where groups can be made in a scope of systemd's alone, systemd is asked for it here, unless it is there.
        """
        key = (os.geteuid(), os.getegid())
        tape = self._tapes.get(key)
        if tape is None or not _stands(tape.plan):
            with self._lock:
                tape = self._tapes.get(key)
                if tape is None or not _stands(tape.plan):
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
        with self._lock:
            found = self._starts.get(tape, None)
            if found is not _NOT_YET:
                return found
            try:
                from isolate.engine.dividing import NotDivided, divide
                from isolate.sandbox.parked import Starts, Template
            except (OSError, ImportError, MemoryError):
                return None  # want of descriptors, or of memory: this start needs neither of these
            try:
                build, again, sources = divide(tape.plan)
            except NotDivided:
                self._starts[tape] = None
                return None
            template = Template(self._compiled(build, parked=True), self._compiled(again), sources)
            made = self._starts[tape] = Starts(template)
        return made

    def launch(
        self, tape: Tape, run: bytes, stdio: Sequence[int], slots: Sequence[int], *, nonblocking: bool = False
    ) -> Session:
        """A launcher of its own for each start, or one that has the tree ready."""
        from isolate.engine.session import Session

        starts = self._from_tree(tape)
        if starts is not None:
            session = starts.start(run, stdio, slots, nonblocking=nonblocking)
            if session is not None:
                return session
        return Session(tape, run, stdio, slots, nonblocking=nonblocking)

    def explain(self) -> str:
        """The ordered steps with the kernel calls behind them. Needs no privileges and runs nothing."""
        from isolate.engine.explain import explain  # loaded late: most programs explain nothing

        try:
            return explain(self._plan()) + self._about_the_tree()
        except UnsupportedError as error:
            # Without what this host cannot give; and that, with its reason.
            missing = error
        left = [part for part in self.parts if type(part).__name__ != missing.part]
        if len(left) == len(self.parts):
            raise missing
        named = ", ".join(repr(part) for part in self.parts if type(part).__name__ == missing.part)
        return f"{Sandbox(*left).explain()}not to be had here, so a start fails: {named}\n  {missing}\n"

    def _about_the_tree(self) -> str:
        """Which steps starts from the second on find done."""
        from isolate.engine.dividing import NotDivided, divide

        if not self.template:
            return ""
        plan = self._plan()
        try:
            divide(plan)
        except NotDivided as error:
            return f"each start is set up anew: {printable(str(error))}\n"
        shown = [step for step in plan.steps if step.phase is not Phase.CLONE]
        kept = [str(n) for n, step in enumerate(shown, 1) if step.template is not None and step.template.again == ()]
        return f"from the second start on these are done once (template): {', '.join(kept)}\n"

    def check(self) -> None:
        """Start a program that ends at once (one that isolate brings along): whether this host can do all of it.

        Limits for which a start would first ask systemd for a scope are left out: nothing is asked here.

        :raises SetupError: what cannot be done, with cause and remedy.
        """
        from isolate.sandbox.check import check

        check(_Checked(*self.parts))

    # ---- without a program -------------------------------------------------------------------------------------

    @overload
    def open(self) -> Container: ...
    @overload
    def open(self, *, name: str, detached: Literal[True], log_size: int | str = ...) -> DetachedContainer: ...
    def open(self, *, name: str | None = None, detached: bool = False, log_size: int | str = "1M") -> Container:
        """Set the sandbox up without a program: a :class:`~isolate.Container`, in which commands are run until its end.

        .. code-block:: python

            with box.open() as c:
                c.run(["make"]).check()
                c.run(["make", "test"], timeout=60)

        With ``detached`` it outlives this program on purpose, until it is killed: a keeper holds it, it is known by its
        ``name``, and :func:`isolate.reopen` gives it in any program of the same user. ``log_size`` is how much is kept
        of what its programs write (:meth:`~isolate.sandbox.containers.detached.DetachedContainer.keep`). Its parts are
        values of this library: none that holds a descriptor or a handle.

        :raises ValueError: a name without ``detached``, ``detached`` without a name, or a name that is none.
        :raises TypeError: a detached container cannot have one of the parts.
        :raises ConflictError: there is no pid namespace of its own, with which all inside ends.
        :raises SetupError: a part is not in force; nothing is left of it.
        """
        if detached or name is not None:
            if name is None or not detached:
                raise ValueError("open: a detached container has a name, and only that has one: name=…, detached=True")
            from isolate.sandbox.containers.detached import open_detached

            return open_detached(self, name, log_size)
        from isolate.sandbox.containers.container import open_container

        return open_container(self)

    def prepare(self, args: Args, **options: Any) -> Prepared:
        """Set a program up but do not execute it yet: a :class:`~isolate.Prepared` with its pid.

        For what has to be done between the two, such as the hooks of a container runtime, or a debugger:

        .. code-block:: python

            with box.prepare(["./server"], stdout=PIPE) as prepared:
                connect_network(prepared.pid)
                process = prepared.start()

        Arguments are those of :meth:`spawn`. What cannot be done, a program that is not there too, is told here.

        :raises SetupError: a part is not in force, or the program is not there; nothing is left of it.
        """
        from isolate.sandbox.prepared import prepare

        return prepare(self, args, options)

    # ---- on this thread ----------------------------------------------------------------------------------------

    def here(self) -> Change:
        """What ``with`` does: the parts (not the defaults) on the calling thread, in the kernel's order, and back.

        :raises IrreversibleError: a part has no way back. Nothing has been changed then.
        """
        from isolate.thread.together import together

        return together(self.parts)

    def enter(self) -> None:
        """Put the parts (not the defaults) in force on the calling thread for good, in the kernel's order.

        :raises SetupError: a step failed; what came before it stays in force.
        """
        from isolate.thread.program import enter

        enter(self.parts)


def _remade(parts: tuple[Part, ...], template: bool) -> Sandbox:
    return Sandbox(*parts, template=template)


class _Checked(Sandbox):
    """A sandbox whose programs end before they begin."""

    __slots__ = ()

    def _plan(self) -> Plan:
        from isolate.cgroups.limits import Limits
        from isolate.sandbox.check import EndAtOnce

        parts = [EndAtOnce() if type(part) is Launch else part for part in defaults(self.parts)]
        plan = Plan(parts, euid=os.geteuid(), egid=os.getegid())
        if _stands(plan):
            return plan
        # That would be made by a start. To look is to leave the host as it is: all but the limits is tried.
        return Plan([part for part in parts if not isinstance(part, Limits)], euid=os.geteuid(), egid=os.getegid())
