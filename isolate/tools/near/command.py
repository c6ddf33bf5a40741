"""A command that is put together, and the list of what it lacks."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any, TypeVar

from isolate.cgroups import Limits
from isolate.errors import printable
from isolate.tools.profiles.words import ENTRIES, PARTS, class_of, keys_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from isolate.sandbox.box import Sandbox

__all__ = ["Near", "plain"]

T = TypeVar("T")


class Near:
    """The nearest command of one tool.

    ``words`` is the command, ``lacks`` what the tool has no words for, by the name of the part or argument, with the
    reason or the next best thing.
    """

    def __init__(self, tool: str, box: Sandbox, program: Sequence[str]) -> None:
        from isolate.sandbox.defaults import defaults

        self.tool = tool
        self.words: list[str] = []
        self.lacks: dict[str, str] = {}
        self.program: list[str] = list(program)
        self.parts: list[Any] = list(defaults(box.parts))

    def find(self, kind: type[T]) -> T | None:
        """The part of a class."""
        return next((part for part in self.parts if isinstance(part, kind)), None)

    def add(self, *words: object) -> None:
        """Words of the command."""
        self.words += [os.fsdecode(word) if isinstance(word, bytes) else str(word) for word in words]

    def lack(self, name: str, why: str) -> None:
        """Say what the tool has no words for."""
        self.lacks.setdefault(name, why)

    def rest(self, part: Any, *told: str, why: str = "no option") -> None:
        """Say so of each argument of a part that is not as usual and has not been told."""
        kind = type(part).__name__
        for name, key in keys_of(kind).items():
            value = getattr(part, name, None)
            if name not in told and value is not None and value != key.default and value not in ((), {}):
                self.lack(f"{kind}.{name}", f"{value!r}: {why}")

    def others(self, *told: type[Any], why: Mapping[str, str] | None = None) -> None:
        """Say so of the parts of all other classes; ``why`` has what else does it, by the name of the class."""
        for part in self.parts:
            kind = type(part).__name__
            if kind in PARTS and isinstance(part, class_of(kind)) and not isinstance(part, told):
                self.lack(kind, (why or {}).get(kind, "no option"))

    def limits(self, options: Mapping[str, str], unlimited: str) -> Iterator[tuple[str, object]]:
        """The options for the limits that are set, of a table by their names, and their values."""
        limits = self.find(Limits)
        for name, option in options.items():
            value = getattr(limits, name, None)
            if value is not None:
                yield option, unlimited if value == "max" else value

    def throttled(self) -> Iterator[tuple[str, str, int]]:
        """The limits of devices: ``("8:0", "rbps", 1048576)``."""
        limits = self.find(Limits)
        for device, given in (limits.io if limits is not None else None) or ():
            yield from ((device, name, value) for name, value in given if value is not None)

    def entry(self, entry: Any, why: str = "no option") -> None:
        """Say so of an entry of the root."""
        kind = type(entry).__name__ if type(entry).__name__ in ENTRIES else "Root"
        self.lack(f"{kind}({plain(getattr(entry, 'target', ''))!r})", why)

    def parted(self, entry: Any, signs: str) -> bool:
        """Whether a path of an entry has one of the signs by which the tool parts an option's words."""
        paths = plain(getattr(entry, "source", "")) + plain(getattr(entry, "target", ""))
        if not any(sign in paths for sign in signs):
            return False
        self.entry(entry, f"a path with one of {signs!r} would be taken for several words of an option")
        return True

    def joined(self, part: Any, why: str = "no option: nsenter starts it in the namespace") -> bool:
        """Whether a part joins a namespace that is there, which none of the tools does as it does."""
        if getattr(part, "joined", False):
            self.lack(type(part).__name__, f"joins {part!r}: {why}")
            return True
        return False

    def __str__(self) -> str:
        lines = [""]
        for word in self.words:
            quoted = shlex.quote(printable(word))
            begins = word.startswith("-") or lines[-1] == ""
            if begins and len(lines[-1]) + len(quoted) > 90:
                lines.append("   ")
            lines[-1] += f"{' ' if lines[-1] else ''}{quoted}"
        text = " \\\n".join(lines)
        if not self.lacks:
            return text
        said = "\n".join(f"  {name:28} {printable(why)}" for name, why in self.lacks.items())
        return f"{text}\n\n{self.tool} has no words for:\n{said}"


def plain(path: object) -> str:
    """A path as text."""
    return os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else str(path)
