"""The words of Landlock: rights on files, scopes, and rules of paths (landlock(7))."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from isolate.engine.beneath import check_beneath
from isolate.kernel import checks
from isolate.kernel.checks import keywords

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CHANGE", "FILE", "READ", "WRITE", "Access", "FsAccess", "LandlockScope", "Path", "PathRule"]

Path: TypeAlias = "str | bytes | os.PathLike[str]"


class FsAccess(enum.IntFlag):
    """Rights on files and directories: the kernel's, under its names, and three sets of them."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15
    RESOLVE_UNIX = 1 << 16

    @classmethod
    def abi(cls, version: int) -> FsAccess:
        """All rights that an ABI of the kernel's has: 1 is Linux 5.13, 2 is 5.19, 3 is 6.2, 5 is 6.10, 9 is 7.1."""
        bits = next((bits for since, bits in _FS_BITS if version >= since), 0)
        return cls((1 << bits) - 1)

    @classmethod
    def parse(cls, text: str) -> FsAccess:
        """From the kernel's name in lower case, or ``read``, ``write``, ``execute``: the sets of :class:`Landlock`."""
        sets = {"read": READ, "write": READ | WRITE, "execute": READ | cls.EXECUTE}
        found = sets.get(text.lower()) or cls.__members__.get(text.upper())
        if found is None:
            known = [*sets, *(name.lower() for name in cls.__members__)]
            raise ValueError(f"Landlock: no right is named {text!r}{checks.nearest(text, known)}")
        return found


_FS_BITS = ((9, 17), (5, 16), (3, 15), (2, 14), (1, 13))
READ = FsAccess.READ_FILE | FsAccess.READ_DIR
#: The rights to change a tree, without making devices.
WRITE = (
    FsAccess.WRITE_FILE
    | FsAccess.TRUNCATE
    | FsAccess.REMOVE_DIR
    | FsAccess.REMOVE_FILE
    | FsAccess.MAKE_DIR
    | FsAccess.MAKE_REG
    | FsAccess.MAKE_SOCK
    | FsAccess.MAKE_FIFO
    | FsAccess.MAKE_SYM
    | FsAccess.REFER
)
#: The rights that mean something on what is no directory; the kernel takes only these in a rule for it.
FILE = (
    FsAccess.EXECUTE
    | FsAccess.WRITE_FILE
    | FsAccess.READ_FILE
    | FsAccess.TRUNCATE
    | FsAccess.IOCTL_DEV
    | FsAccess.RESOLVE_UNIX
)
#: The rights by which a program can put something else in a path's place.
CHANGE = WRITE & ~(FsAccess.WRITE_FILE | FsAccess.TRUNCATE | READ)

Access: TypeAlias = "FsAccess | str | Iterable[str]"


class LandlockScope(enum.IntFlag):
    """Objects that cannot be reached outside of the sandbox's own Landlock domain (Linux 6.12)."""

    ABSTRACT_UNIX_SOCKET = 1
    SIGNAL = 2

    @classmethod
    def parse(cls, text: str) -> LandlockScope:
        """From the name in lower case."""
        found = cls.__members__.get(text.upper())
        if found is None:
            raise ValueError(
                f"Landlock: no scope is named {text!r}{checks.nearest(text, [n.lower() for n in cls.__members__])}"
            )
        return found


def access_of(given: object) -> FsAccess:
    """Rights as a user gives them: FsAccess, a name, or several."""
    if isinstance(given, FsAccess):
        return given
    if isinstance(given, str):
        return FsAccess.parse(given)
    if isinstance(given, int):
        raise TypeError(f"Landlock: rights are FsAccess or names, not the number {given!r}")
    rights = FsAccess(0)
    for name in given:  # type: ignore[attr-defined]
        rights |= access_of(name)
    return rights


@keywords
@dataclass(frozen=True)
class PathRule:
    """Rights on a file, or on a directory with everything beneath it.

    ``path`` is absolute and as seen inside the sandbox's root. It is opened once, with the program's ids; what it leads
    to then has the rights, whatever the name leads to later. ``optional``: no error where nothing is there. Rights for
    directories are left out where the path is a file's.

    ``beneath`` is a directory that the path lies below and that a program may have written to: the path is then opened
    from there, never outside of it and never through a symbolic link. So is what lies below a directory that the rules
    themselves, or a writable entry of :class:`~isolate.Root`, let the program change.
    """

    path: Path
    access: FsAccess
    optional: bool = False
    beneath: Path | None = None

    def __init__(self, path: Path, access: Access, optional: bool = False, *, beneath: Path | None = None) -> None:
        data = os.fsencode(path)
        if not data.startswith(b"/") or b"\0" in data:
            raise ValueError(f"Landlock: a path must be absolute and without NUL, not {path!r}")
        rights = access_of(access)
        if not rights:
            raise ValueError(f"Landlock: a rule without rights for {path!r}")
        object.__setattr__(self, "path", data)
        object.__setattr__(self, "access", rights)
        object.__setattr__(self, "optional", bool(optional))
        below = None if beneath is None else check_beneath(data, beneath, "Landlock")
        object.__setattr__(self, "beneath", below)

    def __repr__(self) -> str:
        optional = ", optional=True" if self.optional else ""
        if self.beneath is not None:
            optional += f", beneath={os.fsdecode(self.beneath)!r}"
        return f"PathRule({os.fsdecode(self.path)!r}, {shown(self.access)}{optional})"


def rights_in_words(rights: FsAccess) -> tuple[str, ...]:
    """The rights in words, sets first."""
    words: list[str] = []
    for name, members in (("write", READ | WRITE), ("execute", READ | FsAccess.EXECUTE), ("read", READ)):
        if rights & members == members:
            words.append(name)
            rights &= ~members
    if rights & FsAccess.EXECUTE:  # the word alone is the set
        words.append("execute" if "write" in words else "execute without read")
        rights &= ~FsAccess.EXECUTE
    return (*words, *(name.lower() for name, member in FsAccess.__members__.items() if rights & member))


def shown(rights: FsAccess) -> str:
    """As code."""
    words = rights_in_words(rights)
    if "execute without read" in words or access_of(words) != rights:
        return f"FsAccess({int(rights):#x})"
    return repr(words[0] if len(words) == 1 else words)
