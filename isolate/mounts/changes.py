"""A change of a tree."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from isolate.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["KINDS", "Change", "Changes"]

KINDS = ("added", "modified", "metadata", "removed")
_SIGNS = {"added": "A", "modified": "C", "metadata": "M", "removed": "D"}


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """One path that differs.

    ``kind`` is ``"added"``, ``"modified"`` (other contents, another target, another kind of file), ``"metadata"`` (the
    same contents with another mode, owner, time or attribute) or ``"removed"`` (with everything beneath it). ``bytes``
    are those that the change adds to a layer: of a file also where only its metadata differs, since an archive cannot
    say that alone.
    """

    path: bytes
    kind: str
    bytes: int = 0

    def __str__(self) -> str:
        return f"{_SIGNS[self.kind]} /{printable(os.fsdecode(self.path[:4096]))}"


class Changes(Sequence[Change]):
    """Changes in the order of their paths. Immutable."""

    __slots__ = ("_rows", "complete", "left_out")

    def __init__(self, rows: Iterable[Change] = (), left_out: Iterable[bytes] = (), *, complete: bool = True) -> None:
        self._rows = tuple(sorted(rows))
        #: False where not everything was looked at: there was too much, or a directory could not be read.
        self.complete: bool = complete
        #: Sockets: no archive has them.
        self.left_out: tuple[bytes, ...] = tuple(left_out)

    @overload
    def __getitem__(self, index: int) -> Change: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Change]: ...
    def __getitem__(self, index: int | slice) -> Change | Sequence[Change]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Changes) and self._rows == other._rows

    def __hash__(self) -> int:
        return hash(self._rows)

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {kind}" for kind in KINDS if (n := sum(row.kind == kind for row in self._rows)))
        return f"<Changes: {counts or 'none'}>"

    @property
    def bytes(self) -> int:
        """The bytes that the changes add to a layer, headers not counted."""
        return sum(row.bytes for row in self._rows)
