"""Parts, steps and phases: what a container is made of, before anything of it exists.

A :class:`Part` yields :class:`Step` objects. A step belongs to a :class:`Phase`; phases have the order that the kernel
asks for, so the order in which a user lists parts never matters. A step's ops are symbolic: system calls by name, with
constants, strings, buffers, registers and descriptors. ``isolate.engine.tape`` turns them into bytes.

Everything here is public: a part written outside the library has the same means as the library's own.
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from isolate.engine.ops import CALLERS_PROC as CALLERS_PROC
from isolate.engine.ops import CHILD as CHILD
from isolate.engine.ops import COUNTER as COUNTER
from isolate.engine.ops import CWD as CWD
from isolate.engine.ops import LAUNCHER as LAUNCHER
from isolate.engine.ops import SELF as SELF
from isolate.engine.ops import Address as Address
from isolate.engine.ops import Argument as Argument
from isolate.engine.ops import Buffer as Buffer
from isolate.engine.ops import Call as Call
from isolate.engine.ops import Cover as Cover
from isolate.engine.ops import Engine as Engine
from isolate.engine.ops import Fail as Fail
from isolate.engine.ops import Jump as Jump
from isolate.engine.ops import Label as Label
from isolate.engine.ops import Line as Line
from isolate.engine.ops import Load as Load
from isolate.engine.ops import MapOfIds as MapOfIds
from isolate.engine.ops import Op as Op
from isolate.engine.ops import Register as Register
from isolate.engine.ops import RemoveTree as RemoveTree
from isolate.engine.ops import RunHost as RunHost
from isolate.engine.ops import Slot as Slot
from isolate.engine.ops import Store as Store
from isolate.engine.ops import Target as Target
from isolate.engine.ops import Test as Test
from isolate.engine.ops import Thaw as Thaw
from isolate.engine.ops import call as call
from isolate.errors import ConflictError
from isolate.kernel import syscalls
from isolate.kernel.constants import NOTHING, Constant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from isolate.engine.finding import Finding


class Section(enum.IntEnum):
    """Which process runs a step, and when (the launcher's sections, in ``_native/tape.h``)."""

    OUTER = 0
    SUPERVISOR = 1
    INIT = 2
    PAYLOAD = 3
    AFTER = 4
    REPORT = 5
    CLEANUP = 6
    ASIDE = 7
    THAW = 8


class Phase(enum.IntEnum):
    """When a step runs. The hundreds are the section; the order within is the kernel's, with its reason beside it.

    >>> Phase.VERIFY < Phase.EXEC
    True
    """

    # The supervisor, outside the sandbox, before the child exists.
    INHERITED = 3  # first, with the caller's own rights: what the child would inherit and is not to
    JOIN_USER = 5  # without privileges the user namespace comes first: it gives the rights to join the others
    TREES = 8  # clones of the caller's mounts by descriptor: a mount namespace entered later refuses them
    JOIN = 10  # existing namespaces: new ones are made inside of those
    JOIN_USER_LAST = 15  # with privileges it comes last: joining it gives them up
    CGROUP = 20  # the group must exist to be born into
    CLONE = 90  # no ops: the flags of clone

    # The supervisor, while the child waits.
    ADOPT = 110  # what only the outside may write: oom_score_adj
    ID_MAPS = 120  # last: from here on the child is somebody

    # init.
    ENTER = 205  # first of all: what comes after is charged to the group (v1; with v2 init is born in it)
    BEGIN_ASIDE = 207  # the section ASIDE begins, in a process of the same group
    PROPAGATION = 210  # before the first mount, or mounts would show on the host
    SOURCES = 220  # opened while the caller's file system and rights are still there
    TIME = 230  # offsets can be set only before the first process is inside
    QUOTAS = 235  # while the supervisor writes the id maps: nobody needs to be somebody for it
    SYNC = 240  # wait for the id maps
    IDENTITY = 250  # become root of the user namespace: files made below must have an owner it knows
    HARDEN = 260  # not dumpable from here on (before the id maps, /proc/self would not be ours)
    NAMESPACES = 270  # those that clone does not make: what is mounted below shows them
    ROOT = 280  # build the new root
    MEET_ASIDE = 284  # wait for the section ASIDE
    NETWORK = 286  # enter the network namespace that was made there
    SYSTEM = 288  # host name, loopback, sysctls: in all namespaces, with the caller's /proc still there
    PIVOT = 290  # enter it, let go of the old one
    COVER = 292  # once every mount is where the program will see it

    # The payload, from a process that does not exist any more after exec.
    SESSION = 310
    RLIMITS = 320  # before credentials: raising needs CAP_SYS_RESOURCE
    ORDINARY = 328  # no priority of the caller's: before a part asks for one
    SCHEDULING = 330  # before credentials: CAP_SYS_NICE
    KEYRING = 340
    BOUNDING = 350  # needs CAP_SETPCAP, so before capabilities go
    CREDENTIALS = 360  # groups, then gid, then uid: each needs what the next gives up
    CAPABILITIES = 370  # after the change of uid, which clears what it finds
    DIRECTORY = 375  # the working directory is entered with the payload's rights, not with ours
    NO_NEW_PRIVS = 380  # Landlock and seccomp ask for it
    LANDLOCK = 385
    PROGRAM = 388  # look the program up: with the payload's rights, before the filter
    VERIFY = 390  # what holds is read back from the kernel
    DESCRIPTORS = 394  # as late as can be; nothing is opened after it
    SECCOMP = 396  # last: nothing of ours has to be allowed but exec
    FILTERED = 397  # whether the filter is there, where the filter lets one ask
    EXEC = 398

    # init, once the program runs.
    AFTER = 410
    # The supervisor, once everything inside is dead but an init that has reaped it all: the kernel takes the namespaces
    # down meanwhile.
    REPORT = 510
    # The supervisor, once everything inside is dead.
    CLEANUP = 610
    # A second process of init's, from BEGIN_ASIDE to MEET_ASIDE: what takes long and needs nothing of what init does.
    ASIDE = 710
    # The supervisor, before every kill, any number of times: a process in a frozen v1 group does not die.
    THAW = 810

    @property
    def section(self) -> Section:
        """The section that the phase belongs to."""
        return Section(self // 100)


# ---- steps and parts -----------------------------------------------------------------------------------------------


class Split:
    """How a step is divided where the tree of a sandbox is made once, and many are started from it.

    ``build`` are the ops that are run once, when the tree is made, and ``again`` those that each start runs; None
    stands for the step's own. ``sources`` are the paths of the host that ``build`` pins, each with the buffer into
    which it has put the statx(2) of what it found: a start compares.
    """

    __slots__ = ("again", "build", "sources")

    def __init__(
        self,
        build: Iterable[Op] | None = (),
        again: Iterable[Op] | None = (),
        sources: tuple[tuple[bytes, Buffer], ...] = (),
    ) -> None:
        self.build: tuple[Op, ...] | None = None if build is None else tuple(build)
        self.again: tuple[Op, ...] | None = None if again is None else tuple(again)
        self.sources: tuple[tuple[bytes, Buffer], ...] = sources


#: A step whose effect stays in the tree.
KEPT = Split(build=None)
#: A step that each start does for itself, and that needs nothing of the host's files.
EACH = Split(again=None)
#: A step that both do.
BOTH = Split(build=None, again=None)


class Step:
    """One thing that a part does: in a phase, in words, with its ops.

    :param phase: when, and in which process.
    :param text: what it does, for errors and ``explain()``.
    :param ops: calls, in order.
    :param clone_flags: flags of clone that it needs.
    :param path: that it is about.

    >>> Step(Phase.VERIFY, "nothing to do").text
    'nothing to do'

    :param cgroup: whether the step is about the child's cgroup.
    :param needs: capabilities or parts that it needs.
    :param hints: errno to what a person should read.

    :param template: whether the step may be done once for many starts.
    """

    __slots__ = ("cgroup", "clone_flags", "hints", "needs", "ops", "path", "phase", "template", "text")

    def __init__(
        self,
        phase: Phase,
        text: str,
        ops: tuple[Op, ...] = (),
        clone_flags: int = 0,
        path: bytes | None = None,
        cgroup: Register | None = None,
        needs: Register | None = None,
        hints: Mapping[int, str | Finding] = MappingProxyType({}),
        template: Split | None = None,
    ) -> None:
        self.phase: Phase = phase
        self.text: str = text
        self.ops: tuple[Op, ...] = ops
        #: Namespace flags for the clone of init (phase CLONE).
        self.clone_flags: int = clone_flags
        #: The path that an error should name.
        self.path: bytes | None = path
        #: A register with the descriptor of the cgroup to be born in (CLONE_INTO_CGROUP).
        self.cgroup: Register | None = cgroup
        #: The step needs this register's descriptor; if the step that fills it was skipped, so is this one.
        self.needs: Register | None = needs
        #: What an errno means here: a whole finding, or a cause alone, whose remedy the diagnosis finds.
        self.hints: Mapping[int, str | Finding] = hints
        #: How it is divided between a tree that is made once and the starts from it. None in a phase that makes the
        #: tree: not at all, and a sandbox with such a step is set up anew each time.
        self.template: Split | None = template


@runtime_checkable
class Part(Protocol):
    """What composes in a :class:`~isolate.Sandbox`: anything that yields steps.

    Optional attributes, read with ``getattr``:

    ``required``
        False: errors in its steps skip them, and ``Result.applied`` tells.
    ``repeatable``
        True: several of the same class do not conflict.
    ``brings()``
        Parts that are added if no part of their class is there.
    ``leaves_files()``
        Whether the program can change files of the host that are there afterwards; then it may make none that give
        rights to others (:class:`~isolate.SetIdFiles`).
    ``root_entries(context)``
        Entries at the end of the :class:`~isolate.Root`, if the sandbox has one.
    ``variables()``
        Variables of the environment for programs that are started without an environment of their own.
    ``needs_network``
        True: its steps before the phase NETWORK are to find the new network namespace; it is then made by clone, which
        takes longer. So may an entry of :class:`~isolate.Root` say.

    A part should be a frozen, hashable dataclass, and refuse bad arguments when it is made.

    >>> isinstance(NoNewPrivs(), Part)
    True
    """

    def steps(self, context: Context) -> Iterable[Step]:
        """The steps of the part, in the order in which they stand within their phases."""
        ...


P = TypeVar("P")


class Lent(Protocol):
    """What a lender gives to one start: descriptors, and for a cgroup its directories. Closed with the start's end."""

    fds: list[int]
    directories: dict[str, str]

    def close(self) -> None:
        """Give it back."""
        ...


class Lender(Protocol):
    """Whoever gives each start something of its own."""

    def take(self) -> Lent:
        """For one start."""
        ...


class Launched(Protocol):
    """A launcher that runs, as a resource sees it; ``isolate.engine.session.Session`` is one."""

    @property
    def pid(self) -> int:
        """The launcher's process id."""
        ...

    @property
    def pidfd(self) -> int:
        """The launcher's pidfd."""
        ...

    def adopt(self, pidfd: int, pid: int) -> None:
        """Take the program's pidfd, which init has handed over."""
        ...


class Held(Protocol):
    """What a resource gives to one start: descriptors for its slots. Closed with the start's end."""

    fds: list[int]

    def started(self, session: Launched) -> None:
        """The launcher runs, and has its own copies of the descriptors.

        :raises SetupError: the sandbox cannot be had; it is taken down.
        """
        ...

    def close(self) -> None:
        """Give it back."""
        ...


class Resource(Protocol):
    """Something that each start gets of its own, such as a place in a network. Any number of them a sandbox."""

    def take(self) -> Held:
        """For one start."""
        ...


class Ground(Protocol):
    """What a plan stands on and that is made when something starts, never while planning."""

    def ready(self) -> bool:
        """Whether it is there, as it was when the plan was made."""
        ...

    def make(self) -> None:
        """Make it; the plan is then made again."""
        ...


class Guide(Protocol):
    """Whoever moves each launcher to where its steps can be done."""

    def move(self, pid: int) -> None:
        """Called when the launcher runs; a step of its waits for the byte that is sent to it afterwards."""
        ...


class Context:
    """What a part may know and ask while it yields its steps.

    >>> class Nice:
    ...     def steps(self, context: Context):
    ...         yield Step(Phase.VERIFY, f"{len(context.parts)} parts and more")
    >>> "parts and more" in Sandbox(Nice()).explain()
    True
    """

    #: Whether a program is executed when all holds; not so for what is put in force on the calling thread.
    executes: bool = True

    def __init__(self, parts: Sequence[Part], *, euid: int, egid: int) -> None:
        self.parts: tuple[Part, ...] = tuple(parts)
        #: Effective ids of the caller.
        self.euid: int = euid
        self.egid: int = egid
        self._slots: list[int] = []
        self.shared: dict[object, object] = {}
        #: Who gives each start the descriptors behind the slots that :meth:`lend` made.
        self.lender: Lender | None = None
        #: The lender and the resources, in the order of their slots.
        self.givers: list[Lender | Resource] = []
        #: What has to be there before the plan is compiled, if anything.
        self.ground: Ground | None = None
        #: Who moves each launcher, if anybody: a step of the phase CGROUP waits until it has.
        self.guide: Guide | None = None

    @property
    def privileged(self) -> bool:
        """Whether the caller is root, and so needs no user namespace for the rest."""
        return self.euid == 0

    def find(self, kind: type[P]) -> P | None:
        """The part of that class, if there is one."""
        for part in self.parts:
            if isinstance(part, kind):
                return part
        return None

    def descriptor(self, fd: int) -> Slot:
        """Hand a descriptor of the caller's to the launcher. It must stay open as long as the sandbox is used."""
        if isinstance(fd, bool) or not isinstance(fd, int) or fd < 0:
            raise ValueError(f"not a descriptor: {fd!r}")
        if fd not in self._slots:
            self._slots.append(fd)
        return Slot(FREE_SLOT + self._slots.index(fd), fd)

    def lend(self, lender: Lender, count: int) -> tuple[Slot, ...]:
        """Slots for descriptors that differ from start to start: what ``lender.take()`` gives. One lender a sandbox."""
        if self.lender is not None:
            raise ConflictError("two parts want to lend each start descriptors of its own")
        self.lender = lender
        return self._give(lender, count)

    def resource(self, resource: Resource, count: int) -> tuple[Slot, ...]:
        """Slots for what ``resource.take()`` gives to each start."""
        return self._give(resource, count)

    def _give(self, giver: Lender | Resource, count: int) -> tuple[Slot, ...]:
        self.givers.append(giver)
        first, lent = len(self._slots), sum(fd < 0 for fd in self._slots)
        numbers = [-1 - lent - i for i in range(count)]
        self._slots += numbers
        return tuple(Slot(FREE_SLOT + first + i, number) for i, number in enumerate(numbers))

    def hand_over(self, slots: Sequence[int]) -> None:
        """Descriptors for slots whose numbers are given: those of another plan."""
        self._slots = list(slots)

    @property
    def slots(self) -> tuple[int, ...]:
        """The descriptors handed over; -1, -2, … stand for those lent."""
        return tuple(self._slots)


FREE_SLOT = 6  # ISO_SLOT_FREE; a test compares

#: The socket to the Python program, open in every process of the sandbox until the phase DESCRIPTORS closes it.
CONTROL = Slot(3, -1)  # ISO_SLOT_CONTROL; a test compares


class Plan:
    """Parts with what they bring, their steps in the kernel's order. Made without privileges; nothing runs."""

    def __init__(self, parts: Iterable[Part], *, euid: int, egid: int) -> None:
        self.parts: tuple[Part, ...] = complete(parts)
        self.context: Context = Context(self.parts, euid=euid, egid=egid)
        rows: list[tuple[int, int, Step, Part]] = []
        # A fixed order among parts: steps of one phase stand in the same order however the user listed the parts.
        for index, part in enumerate(sorted(self.parts, key=_rank)):
            rows += [(step.phase, index, step, part) for step in part.steps(self.context)]
        if not any(row[0] is Phase.ASIDE for row in rows):
            rows = [row for row in rows if row[0] not in (Phase.BEGIN_ASIDE, Phase.MEET_ASIDE)]
        rows.sort(key=lambda row: row[:2])
        self.steps: tuple[Step, ...] = tuple(row[2] for row in rows)
        self.owners: tuple[Part, ...] = tuple(row[3] for row in rows)
        self.clone_flags: Constant = NOTHING
        self.cgroup: Register | None = None
        for step in self.steps:
            self.clone_flags = self.clone_flags | step.clone_flags
            self.cgroup = step.cgroup or self.cgroup


def _rank(part: Part) -> tuple[str, str]:
    return type(part).__name__, repr(part)


def complete(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The parts and, transitively, what they bring. Two of one class conflict unless the class says it repeats."""
    listed: list[Part] = []
    for part in parts:
        if not isinstance(part, Part) or isinstance(part, type):
            hint = f"; did you mean {part.__name__}()?" if isinstance(part, type) else ""
            hint = "; it is an entry of Root: Root(…)" if hasattr(part, "steps_in") and not hint else hint
            hint = "; parts are given one by one: Sandbox(*parts)" if isinstance(part, (list, tuple, set)) else hint
            raise TypeError(f"not a part: {part!r}{hint}")
        for other in listed:
            if type(other) is type(part) and not getattr(part, "repeatable", False):
                raise ConflictError(f"two parts say {type(part).__name__}: {other!r} and {part!r}")
        listed.append(part)
    for part in _brought(listed):
        if not any(isinstance(other, type(part)) for other in listed):
            listed.append(part)
    return tuple(listed)


def _brought(listed: list[Part]) -> Iterator[Part]:
    for part in listed:  # grows while we walk: what is brought may bring more
        brings = getattr(part, "brings", None)
        if brings is not None:
            yield from brings()


def number(name: str) -> int:
    """The number of a system call on this architecture."""
    return syscalls.number(name)
