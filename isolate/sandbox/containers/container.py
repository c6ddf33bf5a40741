"""``Container``: a sandbox that stays, in which commands are run."""

from __future__ import annotations

import dataclasses
import os
import threading
from errno import ESRCH
from typing import TYPE_CHECKING, Any

from isolate.attributes.credentials import Credentials
from isolate.attributes.privileges import NoNewPrivs, SessionKeyring, SetIdFiles
from isolate.attributes.rlimits import Rlimits
from isolate.attributes.scheduling import Scheduling
from isolate.capabilities.part import Capabilities
from isolate.cgroups import Cgroup, Limits
from isolate.cgroups.counting import RunGroup
from isolate.cgroups.part import O_DIRECTORY
from isolate.diagnosis import start
from isolate.engine.plan import Phase, Plan, Register, Step, call
from isolate.engine.tape import compile_plan
from isolate.errors import ConflictError, SetupError
from isolate.kernel.closing import Closing
from isolate.kernel.constants import CLONE_NEWNET, CLONE_NEWPID, O_CLOEXEC, O_PATH
from isolate.landlock.part import Landlock
from isolate.mounts.dev_null import tree_of_null
from isolate.namespaces.part import NetNamespace, PidNamespace
from isolate.sandbox import outcome
from isolate.sandbox.awaiting import await_start
from isolate.sandbox.containers.acting import actor_of
from isolate.sandbox.containers.command import command_plan
from isolate.sandbox.containers.doors import ROOT, Doors, kinds_of, take_doors
from isolate.sandbox.containers.files import Files
from isolate.sandbox.containers.life import Life
from isolate.sandbox.containers.with_files import WithFiles
from isolate.sandbox.defaults import defaults
from isolate.sandbox.grouped import moved
from isolate.sandbox.planned import Planned
from isolate.sandbox.verbs import Verbs
from isolate.seccomp import Seccomp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from isolate.cgroups.events import Events
    from isolate.cgroups.stats import Stats
    from isolate.engine.descriptors import OwnedDescriptor
    from isolate.engine.plan import Part
    from isolate.engine.session import Session
    from isolate.engine.tape import Tape
    from isolate.mounts.changes import Changes
    from isolate.network import Connection, Network
    from isolate.sandbox.containers.kept import Kept

__all__ = ["Command", "Container", "open_container"]


class ContainerBox(Planned):
    """A sandbox whose init hands its namespaces over, and stays without a program.

    Should the kernel kill for memory, it is to kill a command and not all inside: its group is not killed as a whole
    unless ``Limits(oom_group=True)`` says so.
    """

    __slots__ = ("doors",)

    def __init__(self, *parts: Part) -> None:
        complete = Plan(defaults(parts), euid=os.geteuid(), egid=os.getegid()).parts
        self.doors: Doors = Doors(kinds_of(complete))
        super().__init__(*parts)

    def _plan(self) -> Plan:
        key = (os.geteuid(), os.getegid())
        plan = self._plans.get(key)
        if plan is None:
            parts = [
                dataclasses.replace(part, oom_group=False) if type(part) is Limits and part.oom_group is None else part
                for part in defaults(self.parts)
            ]
            plan = self._plans[key] = _leaf(Plan((*parts, self.doors), euid=key[0], egid=key[1]))
        return plan


def _leaf(plan: Plan) -> Plan:
    """With v2 alone: init is born in a group below the container's, since one that has processes passes no controller
    on (cgroup-v2.rst, "No Internal Process Constraint"), and commands are to have groups of their own."""
    group = plan.context.group
    if plan.cgroup is None or not isinstance(group, RunGroup) or list(group.paths) != ["v2"]:
        return plan
    leaf = Register("leaf")
    ops = (
        call("mkdirat", plan.cgroup, b"init", 0o755),
        call("openat", plan.cgroup, b"init", O_PATH | O_DIRECTORY | O_CLOEXEC, 0, out=leaf),
    )
    step = Step(
        Phase.CLONE, "init is born in a leaf: the container's group has groups for its commands", ops, cgroup=leaf
    )
    end = sum(other.phase <= Phase.CLONE for other in plan.steps)
    owner = next(part for part in plan.parts if isinstance(part, Doors))
    rows = (*plan.rows[:end], (step, owner), *plan.rows[end:])
    return Plan.of(plan.parts, plan.context, rows, cgroup=leaf)


def check_parts(parts: Sequence[Part]) -> None:
    """Refuse what cannot be a container.

    :raises ConflictError: no pid namespace of its own, or no init in it.
    """
    pid = next((part for part in parts if isinstance(part, PidNamespace)), None)
    if pid is None or pid.joined:
        raise ConflictError(
            "open: a container needs a pid namespace of its own, with which all inside ends: PidNamespace()"
        )
    if not pid.init:
        raise ConflictError("open: PidNamespace(init=False) leaves nobody who could stay without a program")


def open_container(box: Planned, own: Planned) -> Container:
    """See :meth:`isolate.Sandbox.open`. ``own`` is the :class:`ContainerBox` with the same parts."""
    tape = own.compile()
    session = start.alone(tape)
    try:
        await_start(session, (b"init",))
        group = tape.plan.context.group
        directories = {} if group is None else group.directories(session)
        return Container(box, Life(session), take_doors(session), directories)
    except BaseException:
        session.close()
        raise


#: The parts that one command may have of its own, different from the container's.
_FOR_A_COMMAND = (
    Capabilities,
    Credentials,
    Landlock,
    Limits,
    NoNewPrivs,
    Rlimits,
    Scheduling,
    Seccomp,
    SessionKeyring,
    SetIdFiles,
)


class _Inside(Verbs):
    """The base of objects that start commands in a container."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tapes: dict[tuple[int, int], Tape] = {}

    def _make(self) -> Tape:
        raise NotImplementedError

    def compile(self) -> Tape:
        """The tape of a command, made once for the caller's ids."""
        key = (os.geteuid(), os.getegid())
        tape = self._tapes.get(key)
        if tape is None:
            with self._lock:
                tape = self._tapes[key] = self._make()
        return tape


class Command(_Inside):
    """A container with other parts for a command: made by :meth:`Container.with_parts`."""

    def __init__(self, container: Container, parts: tuple[Part, ...]) -> None:
        super().__init__()
        for part in parts:
            if not isinstance(part, _FOR_A_COMMAND):
                kinds = ", ".join(kind.__name__ for kind in _FOR_A_COMMAND)
                raise ConflictError(
                    f"with_parts: {type(part).__name__} holds for the container as a whole; "
                    f"a command can have its own {kinds}"
                )
        if container._group is None and any(isinstance(part, Limits) for part in parts):
            raise ConflictError(
                "with_parts: the group of a command is below that of the container, which has none: "
                "add Limits() to its sandbox"
            )
        self.container: Container = container
        self.parts: tuple[Part, ...] = parts
        box = container.box
        for part in parts:
            if not isinstance(part, Limits):
                box = box.replace(part)
        self._box = box
        self._limits = next((part for part in parts if isinstance(part, Limits)), None)

    def __repr__(self) -> str:
        return f"{self.container!r}.with_parts({', '.join(map(repr, self.parts))})"

    def _make(self) -> Tape:
        return self.container._tape(self._box, self._limits)

    def launch(
        self, tape: Tape, run: bytes, stdio: Sequence[int], slots: Sequence[int], *, nonblocking: bool = False
    ) -> Session:
        """As the container's own."""
        return self.container.launch(tape, run, stdio, slots, nonblocking=nonblocking)


class Container(_Inside, WithFiles, Closing):
    """A sandbox that stays until its end, in which commands are run; made by :meth:`isolate.Sandbox.open`.

    :meth:`run`, :meth:`arun` and :meth:`spawn` are those of :class:`~isolate.Sandbox`: a command is in the container's
    namespaces, root and cgroup, with the same credentials, capabilities, limits and filters as a program of the
    sandbox. When it ends, everything that it has started ends. Files that it has written are there for the next
    command. Commands may run at the same time, started from any thread and from event loops.

    A verdict is about the command alone: TIMEOUT ends it and not the container. If a limit of the cgroup was
    reached while several commands ran, each of them that failed meanwhile gets that verdict.

    A context manager: at the end of the block everything inside is killed.

    >>> with Sandbox(UserNamespace(), PidNamespace()).open() as container:
    ...     container.run(["echo", "hello"]).stdout
    b'hello\\n'
    """

    def __init__(
        self, box: Planned, life: Life | Kept, doors: Mapping[int, OwnedDescriptor], directories: Mapping[str, str]
    ) -> None:
        super().__init__()
        self.box: Planned = box
        self._life = life
        self._root = doors[ROOT]
        self._doors = {flag: door for flag, door in doors.items() if flag != ROOT}
        self._connections: list[Connection] = []
        self._directories = dict(directories)
        limits = next((part for part in box.parts if isinstance(part, Limits)), Limits())
        self._group: Cgroup | None = Cgroup.view(self._directories, limits) if self._directories else None
        self._null = tree_of_null() if os.geteuid() == 0 else None
        self._joined = os.fstat(self._doors[CLONE_NEWPID]).st_ino

    def __repr__(self) -> str:
        return f"<Container {self.pid} {'runs' if self.running else 'ended'}>"

    # ---- commands ----------------------------------------------------------------------------------------------

    def _make(self) -> Tape:
        return self._tape(self.box, None)

    def _tape(self, box: Planned, limits: Limits | None) -> Tape:
        own: list[Part] = []
        if limits is None and list(self._directories) == ["v2"]:
            limits = Limits()  # where no process may be beside the groups, each command has one
        if limits is not None:
            if limits.parent is not None:
                raise ConflictError(
                    "with_parts: the group of a command is below the container's; Limits(parent=) names another"
                )
            own.append(dataclasses.replace(limits, parent=self._group) if self._group is not None else limits)
        plan = command_plan(box._plan(), self._doors, self._directories, self.pidfd, own, self._null)
        return compile_plan(plan, init=True, pid_namespace=False, share=True)

    def with_parts(self, *parts: Part) -> Command:
        """The same container with other parts for the commands that are started by what is returned.

        .. code-block:: python

            c.with_parts(Credentials(uid=1000, gid=1000), Limits(memory="64M")).run(["./submission"], timeout=2)

        Parts take the place of the sandbox's own of the same kind: :class:`~isolate.Credentials`,
        :class:`~isolate.Capabilities`, :class:`~isolate.Seccomp`, :class:`~isolate.Landlock`, :class:`~isolate.Rlimits`
        and other attributes of a process. :class:`~isolate.Limits` make a group for each command, below that of the
        container, which goes with the command.

        :raises ConflictError: a part that is the container's: a namespace, a root.
        """
        return Command(self, parts)

    def launch(
        self, tape: Tape, run: bytes, stdio: Sequence[int], slots: Sequence[int], *, nonblocking: bool = False
    ) -> Session:
        """A launcher of its own for each command."""
        if not self.running:
            raise SetupError(
                ESRCH, "run a command", part="Container", cause="the container has ended", remedy="open another one"
            )
        session = start.launch(tape, run, stdio, slots, nonblocking=nonblocking)
        session.joined = self._joined
        return session

    @property
    def _files(self) -> Files:
        if self._root.closed:
            raise ValueError("the container is closed")
        return Files(self._root, actor_of(self.box._plan().context))

    def changes(self) -> Changes | None:
        """The changes of its programs so far in overlays whose changes are in memory; None without such an overlay.

        As :attr:`isolate.Result.changes`, which the commands of a container do not have: what one of them has changed
        stays for the next.
        """
        return outcome.changes_of(self._life.session) if isinstance(self._life, Life) else None

    # ---- what it uses ------------------------------------------------------------------------------------------

    def _limited(self) -> Cgroup:
        if self._group is None:
            raise ValueError("the container has no cgroup of its own: add Limits() to the sandbox")
        return self._group

    def stats(self) -> Stats:
        """The use of everything inside so far. Needs ``Limits`` in the sandbox, ``Limits()`` at least."""
        session = self._life.session if isinstance(self._life, Life) else None
        return dataclasses.replace(self._limited().stats(), interfaces=moved(session, self._connections))

    def events(self, timeout: float | None = None) -> Events:
        """The events of its cgroup from now on: see :meth:`isolate.Cgroup.events`."""
        return self._limited().events(timeout)

    def freeze(self, timeout: float = 10.0) -> None:
        """Stop everything inside, and return when all has stopped. Commands are refused meanwhile (EBUSY).

        :raises TimeoutError: not everything has stopped within ``timeout`` seconds.
        """
        self._limited().freeze(timeout)

    def thaw(self, timeout: float = 10.0) -> None:
        """Let everything inside go on."""
        self._limited().thaw(timeout)

    def update(self, limits: Limits | None = None, **changes: Any) -> None:
        """Change limits while it runs: all of them by a :class:`~isolate.Limits`, or some by their names.

        :raises SetupError: the kernel refused one. Those written before it hold.
        """
        group = self._limited()
        if limits is not None:
            if changes:
                raise TypeError("update: either Limits or limits by their names")
            if not isinstance(limits, Limits):
                raise TypeError(f"update: limits must be a Limits, not {limits!r}")
            fixed = ("devices", "parent")
            if any(getattr(limits, name) not in (None, getattr(group.limits, name)) for name in fixed):
                raise ValueError("update: devices and parent are fixed when the group is made")
            changes = {f.name: getattr(limits, f.name) for f in dataclasses.fields(limits) if f.name not in fixed}
        group.update(**changes)

    def connect(self, network: Network, **options: Any) -> Connection:
        """Put it into a network while it runs, besides those that it is in; ``options`` are those of
        :class:`isolate.network.Interface`. It is taken out by ``close()`` of what is returned, and when it ends.

        :raises ConflictError: it has no network namespace of its own.
        """
        from isolate.network import connect  # loaded late: few containers join networks while they run

        namespace = self._doors.get(CLONE_NEWNET)
        if namespace is None:
            raise ConflictError("connect: the container is in the host's network: add NetNamespace() to the sandbox")
        connection = connect(network, NetNamespace(fd=namespace), **options)
        self._connections.append(connection)
        return connection

    # ---- life --------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Its init's process id in the caller's pid namespace."""
        return self._life.pid

    @property
    def pidfd(self) -> int:
        """A pidfd of its init, readable once the container has ended; open until :meth:`close`."""
        return self._life.pidfd

    def fileno(self) -> int:
        """A descriptor that is readable once everything inside has ended."""
        return self._life.fileno()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._life.ours and not self._life.ended()

    def kill(self) -> None:
        """Kill everything inside, the container's init with it; returns at once (then :meth:`wait`)."""
        self._life.kill()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the container has ended: nobody inside can end it, but :meth:`kill`, or the kernel for memory.

        :raises TimeoutExpired: it still runs.
        """
        if not self._life.wait(timeout):
            raise self._life.expired(timeout)

    def close(self) -> None:
        """Kill everything inside, wait for the end, release every descriptor."""
        self._life.close()
        while self._connections:
            self._connections.pop().close()
        for descriptor in (*self._doors.values(), self._root, self._null):
            if descriptor is not None:
                descriptor.close()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(
            "a Container cannot be copied or pickled: the end of the copy would be the end of the container"
        )
