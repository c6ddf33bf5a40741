"""Which owners can be given to files here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Owners"]


class Owners:
    """The ids that a user namespace maps, as (first, count) of its inside."""

    __slots__ = ("_gids", "_pairs", "_uids")

    def __init__(self, uids: Iterable[tuple[int, int]], gids: Iterable[tuple[int, int]]) -> None:
        self._uids = tuple(uids)
        self._gids = tuple(gids)
        self._pairs: dict[tuple[int, int], bool] = {}

    def has_uid(self, uid: int) -> bool:
        """Whether the user id is mapped."""
        return any(first <= uid < first + count for first, count in self._uids)

    def has_gid(self, gid: int) -> bool:
        """Whether the group id is mapped."""
        return any(first <= gid < first + count for first, count in self._gids)

    def has(self, uid: int, gid: int) -> bool:
        """Whether both are."""
        found = self._pairs.get((uid, gid))
        if found is None:
            found = self._pairs[uid, gid] = self.has_uid(uid) and self.has_gid(gid)
        return found
