"""The ways into a container: descriptors of its namespaces, opened by its init and handed over.

Nobody outside can open them in /proc, since init is not dumpable, and a program inside that could be looked into is not
there. So init opens its own, at the last moment at which the caller's /proc is there.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from isolate.engine.descriptors import OwnedDescriptor
from isolate.engine.handing import Handing
from isolate.engine.plan import Phase, Register, Step, call
from isolate.kernel import namespaces
from isolate.kernel.constants import (
    AT_FDCWD,
    CLONE_NEWTIME,
    O_CLOEXEC,
    O_PATH,
    O_RDONLY,
    Constant,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from isolate.engine.plan import Context, Launched, Part

__all__ = ["KINDS", "ROOT", "Doors", "kinds_of", "take_doors"]

O_DIRECTORY = Constant(os.O_DIRECTORY, "O_DIRECTORY")

#: Flag to the name of the file in /proc/self/ns. Init is not in the time namespace that it makes; its children are.
KINDS: dict[int, str] = {
    kind.flag: kind.for_children if kind.flag == CLONE_NEWTIME else kind.file for kind in namespaces.KINDS
}

#: In the place of a flag: the descriptor of the root.
ROOT = 0

_came: weakref.WeakKeyDictionary[Launched, dict[int, OwnedDescriptor]] = weakref.WeakKeyDictionary()


def kinds_of(parts: Sequence[Part]) -> tuple[int, ...]:
    """The flags of the namespaces that parts make or join, ascending."""
    return tuple(sorted({int(getattr(part, "flag", 0)) for part in parts if hasattr(part, "kind")} - {0}))


def take_doors(session: Launched) -> dict[int, OwnedDescriptor]:
    """The descriptors that the init of this session has handed over, by flag."""
    return _came.pop(session, {})


@dataclass(frozen=True)
class _Kept:
    """One start's descriptors on their way to whoever asks by the session."""

    flags: tuple[int, ...]

    def receive(self, fds: list[int], session: Launched) -> None:
        """Keep them."""
        _came[session] = {flag: OwnedDescriptor(fd) for flag, fd in zip((*self.flags, ROOT), fds, strict=True)}

    def close(self) -> None:
        """They are somebody else's by now."""


class Doors:
    """The part that a container has besides those of its sandbox."""

    required: ClassVar[bool] = True

    def __init__(self, flags: tuple[int, ...]) -> None:
        self.flags = flags
        self._handing = Handing(count=len(flags) + 1, prepare=lambda: _Kept(flags), part="Container")

    def __repr__(self) -> str:
        return f"Doors({', '.join(KINDS[flag] for flag in self.flags)})"

    def steps(self, context: Context) -> Iterator[Step]:
        """Open them while the caller's /proc is there; hand them over with the root."""
        slot = self._handing.slot(context)
        registers = [Register(KINDS[flag]) for flag in self.flags]
        opening = [
            call("openat", AT_FDCWD, f"/proc/self/ns/{KINDS[flag]}".encode(), O_RDONLY | O_CLOEXEC, 0, out=register)
            for flag, register in zip(self.flags, registers, strict=True)
        ]
        text = "open the namespaces, while the caller's /proc is there"
        hints = {2: "the host's /proc is not there, or the kernel was built without one of the namespaces"}
        yield Step(Phase.SYSTEM, text, tuple(opening), path=b"/proc/self/ns", hints=hints)
        root = Register("root")
        ops = (
            call("openat", AT_FDCWD, b"/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0, out=root),
            *self._handing.hand(slot, [*registers, root]),
            *self._handing.wait(slot),
        )
        text = "hand descriptors of them and of the root to the caller, who starts commands there"
        yield Step(Phase.COVER, text, ops)
