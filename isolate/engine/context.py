"""Parts, and what a part may know and ask while it yields its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from isolate.engine.ops import Slot
from isolate.kernel.checks import integer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from isolate.engine.resources import Counted, Ground, Resource
    from isolate.engine.steps import Step

__all__ = ["CONTROL", "FREE_SLOT", "Context", "Part"]

P = TypeVar("P")


@runtime_checkable
class Part(Protocol):
    """A part of a :class:`~isolate.Sandbox`: any object that yields steps.

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
    ``without_template``
        Words why no start may be from a tree that is made once, or None: it keeps state of the caller's, say, that is
        not compared.
    ``makes_root``
        True: the sandbox has a root of its own by this part.
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


class _Own(int):
    """A descriptor of this process, where a launcher would have a slot."""

    @property
    def number(self) -> int:
        """Itself."""
        return int(self)


class Context:
    """The information that a part can use while it yields its steps.

    >>> class Nice:
    ...     def steps(self, context: Context):
    ...         yield Step(Phase.VERIFY, f"{len(context.parts)} parts and more")
    >>> "parts and more" in Sandbox(Nice()).explain()
    True
    """

    def __init__(self, parts: Sequence[Part], *, euid: int, egid: int, executes: bool = True) -> None:
        #: Whether a program is executed when all holds. False for what is put in force on the calling thread: no
        #: launcher stands between, and descriptors are this process's own.
        self.executes: bool = executes
        self.parts: tuple[Part, ...] = tuple(parts)
        #: Effective ids of the caller.
        self.euid: int = euid
        self.egid: int = egid
        self._slots: list[int] = []
        self.shared: dict[object, object] = {}
        #: The resources of which each start gets its own, in the order of the slots.
        self.resources: list[Resource] = []
        #: The object that counts and limits each run, if any: see :class:`isolate.Limits`.
        self.group: Counted | None = None
        #: The object that must exist before the plan is compiled, if any.
        self.ground: Ground | None = None

    @property
    def privileged(self) -> bool:
        """Whether the caller is root, and so needs no user namespace for the rest.

        On the calling thread False with a user namespace: from inside nobody has rights over the parent's ids
        (user_namespaces(7)).
        """
        return self.euid == 0 and (self.executes or self.namespace("user") is None)

    def find(self, kind: type[P]) -> P | None:
        """The part of that class, if there is one."""
        for part in self.parts:
            if isinstance(part, kind):
                return part
        return None

    def namespace(self, kind: str) -> Any:
        """The part of that kind of namespace, such as ``"pid"``, new or joined; None if there is none.

        As :meth:`find` with its class, for those who should not load every kind of namespace to ask.
        """
        for part in self.parts:
            if getattr(part, "kind", None) == kind and hasattr(part, "joined"):
                return part
        return None

    def descriptor(self, fd: int) -> Slot:
        """Hand a descriptor of the caller's to the launcher. It must stay open as long as the sandbox is used."""
        number = integer("a descriptor", fd, 0)
        if not self.executes:
            return _Own(number)  # type: ignore[return-value]  # an argument of an op, as a slot is
        if fd not in self._slots:
            self._slots.append(fd)
        return Slot(FREE_SLOT + self._slots.index(fd), fd)

    def resource(self, resource: Resource, count: int) -> tuple[Slot, ...]:
        """Slots for what ``resource.take()`` gives to each start: descriptors that differ from start to start."""
        self.resources.append(resource)
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
