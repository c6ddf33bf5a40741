"""Which owners the child can give to files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from isolate.namespaces.ids import IdMap, IdRange, mapped

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["inside_ranges", "map_for"]


def map_for(wanted: IdMap | None) -> IdMap:
    """The map of the child's user namespace.

    Without one that is wanted: for root every id that root has here, each as itself; for others root alone, who is the
    caller.

    :raises ValueError: a map that has no root.
    """
    if wanted is not None:
        if not (mapped(wanted.uids, 0) and mapped(wanted.gids, 0)):
            raise ValueError(f"a map for layers needs the ids 0, which own what has no other owner: {wanted}")
        return wanted
    if os.geteuid() != 0:
        return IdMap.single(0, 0, host_uid=os.geteuid(), host_gid=os.getegid())
    return IdMap(_own("uid"), _own("gid"))


def inside_ranges(ranges: Sequence[IdRange]) -> list[tuple[int, int]]:
    """(first, count) of the ids inside."""
    return [(r.inside, r.count) for r in ranges]


def _own(kind: str) -> list[IdRange]:
    """The ids of the caller's own user namespace, each as itself."""
    with open(f"/proc/self/{kind}_map", encoding="ascii") as file:
        rows = [line.split() for line in file]
    return [IdRange(int(row[0]), int(row[0]), int(row[2])) for row in rows]
