"""Parts, steps and phases: what a container is made of, before anything of it exists.

A :class:`Part` yields :class:`Step` objects. A step belongs to a :class:`Phase`; phases have the order that the kernel
asks for, so the order in which a user lists parts never matters. A step's ops are symbolic: system calls by name, with
constants, strings, buffers, registers and descriptors. ``isolate.engine.tape`` turns them into bytes.

Everything here is public: a part written outside the library has the same means as the library's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.engine.context import CONTROL as CONTROL
from isolate.engine.context import FREE_SLOT as FREE_SLOT
from isolate.engine.context import Context as Context
from isolate.engine.context import Part as Part
from isolate.engine.ops import CALLERS_PROC as CALLERS_PROC
from isolate.engine.ops import CHILD as CHILD
from isolate.engine.ops import COUNTER as COUNTER
from isolate.engine.ops import CWD as CWD
from isolate.engine.ops import FLAGS as FLAGS
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
from isolate.engine.resources import Ground as Ground
from isolate.engine.resources import Guide as Guide
from isolate.engine.resources import Held as Held
from isolate.engine.resources import Launched as Launched
from isolate.engine.resources import Resource as Resource
from isolate.engine.steps import BOTH as BOTH
from isolate.engine.steps import EACH as EACH
from isolate.engine.steps import KEPT as KEPT
from isolate.engine.steps import Phase as Phase
from isolate.engine.steps import Section as Section
from isolate.engine.steps import Split as Split
from isolate.engine.steps import Step as Step
from isolate.errors import ConflictError
from isolate.kernel import syscalls
from isolate.kernel.constants import NOTHING, Constant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeAlias

    from isolate.engine import ops

#: A step with its part.
Row: TypeAlias = "tuple[Step, Part]"

#: The names by which a resource and what it holds were known before.
Lender, Lent = Resource, Held


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Plan:
    """Parts with what they bring, their steps in the kernel's order. Made without privileges; nothing runs.

    It is a value: :meth:`of` makes one of other steps, and nothing changes one that is there.
    """

    parts: tuple[Part, ...]
    context: Context
    steps: tuple[Step, ...]
    #: The part of each step.
    owners: tuple[Part, ...]
    #: The namespaces that clone makes.
    clone_flags: Constant
    #: The group that init is born in, if any.
    cgroup: ops.Register | None

    def __init__(self, parts: Iterable[Part], *, euid: int, egid: int) -> None:
        context = Context(complete(parts), euid=euid, egid=egid)
        rows = in_order(rows_of(context))
        if not any(step.phase is Phase.ASIDE for step, _ in rows):
            rows = [row for row in rows if row[0].phase not in (Phase.BEGIN_ASIDE, Phase.MEET_ASIDE)]
        self._fill(context.parts, context, rows)

    @classmethod
    def of(
        cls,
        parts: tuple[Part, ...],
        context: Context,
        rows: Iterable[Row],
        *,
        clone_flags: Constant | None = None,
        cgroup: ops.Register | bool = True,
    ) -> Plan:
        """A plan of these steps with their parts, in their order; flags and group are those of the steps unless said.

        ``cgroup=False``: in no group.
        """
        self = cls.__new__(cls)
        self._fill(parts, context, list(rows), clone_flags, cgroup)
        return self

    def _fill(
        self,
        parts: tuple[Part, ...],
        context: Context,
        rows: list[Row],
        clone_flags: Constant | None = None,
        cgroup: ops.Register | bool = True,
    ) -> None:
        flags, group = NOTHING, None
        for step, _ in rows:
            flags, group = flags | step.clone_flags, step.cgroup or group
        values = {
            "parts": parts,
            "context": context,
            "steps": tuple(step for step, _ in rows),
            "owners": tuple(part for _, part in rows),
            "clone_flags": flags if clone_flags is None else clone_flags,
            "cgroup": group if cgroup is True else cgroup or None,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Each step with its part."""
        return tuple(zip(self.steps, self.owners, strict=True))


def rows_of(context: Context) -> Iterator[Row]:
    """The steps of a context's parts, with their parts: in a fixed order, however the user listed the parts."""
    for part in sorted(context.parts, key=lambda part: (type(part).__name__, repr(part))):
        for step in part.steps(context):
            yield step, part


def in_order(rows: Iterable[Row], key: Callable[[Step], int] = lambda step: step.phase) -> list[Row]:
    """Steps in the kernel's order. Those of one phase, or of what else ``key`` says, stay as they stood."""
    return sorted(rows, key=lambda row: key(row[0]))


def section_of(step: Step) -> int:
    """A key for :func:`in_order`: for steps that stand in the right order within each process already."""
    return step.phase.section


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
