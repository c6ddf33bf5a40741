"""The verbs: a :class:`Sandbox` is parts put together; it runs programs, starts them, or explains itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, overload

from isolate.engine.plan import Part, Phase, Plan
from isolate.errors import UnsupportedError, printable
from isolate.kernel.checks import keywords
from isolate.sandbox.defaults import Launch, defaults
from isolate.sandbox.planned import Planned, stands
from isolate.thread.entering import Reversible

if TYPE_CHECKING:
    from isolate.sandbox.containers.container import Container
    from isolate.sandbox.containers.detached import DetachedContainer
    from isolate.sandbox.prepared import Prepared
    from isolate.sandbox.words import Args
    from isolate.thread.change import Change


__all__ = ["Sandbox"]


@keywords
class Sandbox(Planned, Reversible):
    """Parts that hold together in a child: namespaces, a root, limits, credentials, filters.

    ``template``: from the second on, starts use a tree of mounts that is made once, if the result is the same as that
    of making it each time (see the documentation on starts from a template). With False each start is set up in full.

    Immutable. The order of the parts does not matter; :class:`isolate.Root` alone has an order inside. ``+`` adds
    parts. Everything that is not given has a safe default: see :mod:`isolate.sandbox.defaults`.

    :raises ConflictError: for the same part twice, or parts that contradict one another.

    :param parts: the parts that shall be in force: parts of the library, or of your own.
    :param template: start from a tree of mounts that is made once, from the second start on.

    >>> box = Sandbox(UserNamespace()) + PidNamespace()
    >>> box.run(["id", "-u"], text=True).stdout
    '0\\n'
    """

    __slots__ = ("_container",)

    def __init__(self, *parts: Part, template: bool = True) -> None:
        super().__init__(*parts, template=template)
        self._container: Planned | None = None  # with the steps that a container has besides, once one was opened

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
        from isolate.engine.dividing import MADE_AHEAD, NotDivided, can_wait, divide

        if not self.template:
            return "each start is set up anew: template=False says so\n"
        plan = self._plan()
        try:
            waits = can_wait(divide(plan).again)
        except NotDivided as error:
            return f"each start is set up anew: {printable(str(error))}\n"
        shown = [step for step in plan.steps if step.phase is not Phase.CLONE]
        numbered = [(n, step, step.template) for n, step in enumerate(shown, 1)]
        kept = [n for n, _, split in numbered if split is not None and split.again == () and not split.ahead]
        ahead = [n for n, step, _ in numbered if waits and n not in kept and step.phase.section in MADE_AHEAD]
        ahead = ahead or [n for n, _, split in numbered if split is not None and split.ahead]
        text = f"from the second start on these are done once (template): {_ranges(kept)}\n"
        return text + (f"and later these ahead of a start, for one that comes: {_ranges(ahead)}\n" if ahead else "")

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
        from isolate.sandbox.containers.container import ContainerBox, check_parts, open_container

        check_parts(self.parts)
        with self._lock:
            if self._container is None:
                self._container = ContainerBox(*self.parts)
        return open_container(self, self._container)

    def prepare(self, args: Args, **options: Any) -> Prepared:
        """Set a program up but do not execute it yet: a :class:`~isolate.Prepared` with its pid.

        Use it for work between the two, such as the hooks of a container runtime, or a debugger:

        .. code-block:: python

            with box.prepare(["./server"], stdout=PIPE) as prepared:
                connect_network(prepared.pid)
                process = prepared.start()

        Arguments are those of :meth:`spawn`. All errors are raised here, also for a program that does not exist.

        :raises SetupError: a part is not in force, or the program is not there; nothing is left of it.
        """
        from isolate.sandbox.prepared import prepare

        return prepare(self, args, options)

    # ---- on this thread ----------------------------------------------------------------------------------------

    def here(self) -> Change:
        """The object that ``with`` uses: it puts the parts (not the defaults) in force on this thread, and back.

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


class _Checked(Sandbox):
    """A sandbox whose programs end before they begin."""

    __slots__ = ()

    def _plan(self) -> Plan:
        from isolate.cgroups.limits import Limits
        from isolate.sandbox.check import EndAtOnce

        parts = [EndAtOnce() if type(part) is Launch else part for part in defaults(self.parts)]
        plan = Plan(parts, euid=os.geteuid(), egid=os.getegid())
        if stands(plan):
            return plan
        # That would be made by a start. To look is to leave the host as it is: all but the limits is tried.
        return Plan([part for part in parts if not isinstance(part, Limits)], euid=os.geteuid(), egid=os.getegid())


def _ranges(numbers: list[int]) -> str:
    """``[1, 2, 3, 5]`` as ``1-3, 5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
