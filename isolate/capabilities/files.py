"""Capabilities of files: what exec of a file gives, kept in its extended attribute ``security.capability``.

Under ``no_new_privs``, which every sandbox has by default, and on mounts with ``nosuid`` they have no effect.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from isolate.capabilities.caps import Cap, mask, unmask
from isolate.kernel.checks import is_int

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["FileCapabilities"]

_NAME = "security.capability"
_REVISION_1, _REVISION_2, _REVISION_3, _REVISION_MASK = 0x01000000, 0x02000000, 0x03000000, 0xFF000000
_EFFECTIVE = 1
_SIZES = {_REVISION_1: 12, _REVISION_2: 20, _REVISION_3: 24}

Path: TypeAlias = "int | str | bytes | os.PathLike[str]"


@dataclass(frozen=True, init=False)
class FileCapabilities:
    """The capabilities of a file (capabilities(7)).

    ``permitted``
        Given at exec, within the bounding set.
    ``inheritable``
        Given at exec if the process has them in its inheritable set.
    ``effective``
        Whether what is given is effective at once: one flag for all.
    ``root_id``
        The uid, in the reader's user namespace, that is root of the user namespace for which they hold (version 3 of
        the attribute). None: the initial one's, or, written inside a user namespace, that one's (the kernel adds it).

    :raises ValueError: unknown names, with the nearest.
    """

    permitted: frozenset[Cap]
    inheritable: frozenset[Cap]
    effective: bool
    root_id: int | None

    def __init__(
        self,
        permitted: Iterable[Cap | str | int] = (),
        inheritable: Iterable[Cap | str | int] = (),
        effective: bool = True,
        root_id: int | None = None,
    ) -> None:
        sets = []
        for name, given in (("permitted", permitted), ("inheritable", inheritable)):
            if isinstance(given, (str, int)):
                raise TypeError(f"FileCapabilities: {name} must be a set, such as {{{given!r}}}, not {given!r}")
            sets.append(frozenset(Cap.parse(cap) for cap in given))
        if not isinstance(effective, bool):
            raise TypeError(f"FileCapabilities: effective is one flag for all, True or False, not {effective!r}")
        if root_id is not None and (not is_int(root_id)):
            raise TypeError(f"FileCapabilities: root_id must be an int, not {root_id!r}")
        if root_id is not None and not 0 <= root_id < 2**32 - 1:
            raise ValueError(f"FileCapabilities: root_id must be a uid, not {root_id}")
        object.__setattr__(self, "permitted", sets[0])
        object.__setattr__(self, "inheritable", sets[1])
        object.__setattr__(self, "effective", effective and bool(sets[0] | sets[1]))
        object.__setattr__(self, "root_id", root_id)

    def __bool__(self) -> bool:
        return bool(self.permitted or self.inheritable)

    # ---- the attribute -------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The attribute's value: version 2, or 3 with a ``root_id``."""
        revision = _REVISION_2 if self.root_id is None else _REVISION_3
        permitted, inheritable = mask(self.permitted), mask(self.inheritable)
        low, high = 0xFFFFFFFF, 32
        data = struct.pack(
            "<5I",
            revision | (_EFFECTIVE if self.effective else 0),
            permitted & low,
            inheritable & low,
            permitted >> high,
            inheritable >> high,
        )
        return data if self.root_id is None else data + struct.pack("<I", self.root_id)

    @classmethod
    def from_bytes(cls, data: bytes) -> FileCapabilities:
        """From the attribute's value, of version 1, 2 or 3.

        :raises ValueError: for anything else.
        """
        magic = int.from_bytes(data[:4], "little")
        revision = magic & _REVISION_MASK
        if len(data) < 4 or _SIZES.get(revision) != len(data) or magic & ~(_REVISION_MASK | _EFFECTIVE):
            raise ValueError(f"not a value of {_NAME}: {data[:32].hex()} ({len(data)} bytes)")
        words = struct.unpack(f"<{len(data) // 4}I", data)[1:]
        permitted, inheritable = words[0], words[1]
        if revision != _REVISION_1:
            permitted, inheritable = permitted | words[2] << 32, inheritable | words[3] << 32
        root_id = words[4] if revision == _REVISION_3 else None
        return cls(unmask(permitted), unmask(inheritable), bool(magic & _EFFECTIVE), root_id)

    @classmethod
    def read(cls, path: Path, *, follow_symlinks: bool = True) -> FileCapabilities:
        """Those of a file, by path or descriptor; empty where it has none.

        :raises OSError: ENOENT and the like; EOVERFLOW where they hold for a root that is not mapped here.
        """
        try:
            data = os.getxattr(path, _NAME, follow_symlinks=_follow(path, follow_symlinks))
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return cls()
            raise
        return cls.from_bytes(data)

    def write(self, path: Path, *, follow_symlinks: bool = True) -> None:
        """Give them to a file, and read them back. Needs CAP_SETFCAP; a later change of owner or contents clears them.

        An empty value removes the attribute.

        :raises OSError: EPERM without CAP_SETFCAP; EOPNOTSUPP where the file system has no extended attributes.
        """
        follow = _follow(path, follow_symlinks)
        if not self:
            try:
                os.removexattr(path, _NAME, follow_symlinks=follow)
            except OSError as error:
                if error.errno != errno.ENODATA:
                    raise
            return
        os.setxattr(path, _NAME, self.to_bytes(), follow_symlinks=follow)
        found = FileCapabilities.read(path, follow_symlinks=follow_symlinks)
        if (found.permitted, found.inheritable, found.effective) != (self.permitted, self.inheritable, self.effective):
            raise OSError(errno.EIO, f"the kernel keeps other capabilities than were written: {found}")

    # ---- text ----------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        """As getcap(8) writes it: ``cap_net_raw=ep``; those of one kind together."""
        groups: dict[str, list[str]] = {}
        for cap in sorted(self.permitted | self.inheritable):
            flags = "e" * self.effective + "i" * (cap in self.inheritable) + "p" * (cap in self.permitted)
            groups.setdefault(flags, []).append(str(cap).lower() if cap in Cap.__members__.values() else str(int(cap)))
        text = " ".join(f"{','.join(names)}={flags}" for flags, names in groups.items())
        return text + (f" [rootid={self.root_id}]" if self.root_id is not None else "")

    @classmethod
    def parse(cls, text: str) -> FileCapabilities:
        """From the text of cap_from_text(3): clauses such as ``cap_net_raw,cap_net_admin+ep``, ``=ep`` or ``all=i``.

        :raises ValueError: for other words, and for effective on some only: a file has one flag for all.
        """
        sets: dict[str, set[Cap]] = {"e": set(), "i": set(), "p": set()}
        for clause in text.split():
            _clause(clause, sets)
        effective, given = sets["e"], sets["p"] | sets["i"]
        if effective and effective != given:
            raise ValueError(f"a file has one effective flag for all of its capabilities: {text!r}")
        return cls(sets["p"], sets["i"], bool(effective))


def _clause(clause: str, sets: dict[str, set[Cap]]) -> None:
    at = min((clause.find(c) for c in "=+-" if c in clause), default=-1)
    if at < 0:
        raise ValueError(f"a clause needs one of = + -: {clause!r}")
    names, rest = clause[:at], clause[at:]
    if names.lower() in ("", "all"):
        if not names and rest[0] != "=":
            raise ValueError(f"only = may stand without names: {clause!r}")
        caps = set(Cap)
    else:
        caps = {Cap.parse(name) for name in names.split(",")}
    while rest:
        operator, rest = rest[0], rest[1:]
        end = next((i for i, c in enumerate(rest) if c in "=+-"), len(rest))
        flags, rest = rest[:end], rest[end:]
        if set(flags) - set(sets) or (operator != "=" and not flags):
            raise ValueError(f"flags are e, i and p: {clause!r}")
        if operator == "=":
            for members in sets.values():
                members -= caps
        for flag in flags:
            if operator == "-":
                sets[flag] -= caps
            else:
                sets[flag] |= caps


def _follow(path: Path, follow_symlinks: bool) -> bool:
    # os.getxattr refuses follow_symlinks=False together with a descriptor, for which it means nothing.
    return True if isinstance(path, int) else follow_symlinks
