"""Lines of /etc/subuid and /etc/subgid: whose the ranges are, and which nobody has (subuid(5))."""

from __future__ import annotations

__all__ = ["free_range", "held_by_others"]


def held_by_others(rows: list[str], names: tuple[str, ...]) -> list[tuple[int, int]]:
    """The ranges of /etc/subuid or /etc/subgid that are somebody else's: (first, count)."""
    found = [row.strip().split(":") for row in rows]
    return [
        (int(fields[1]), int(fields[2]))
        for fields in found
        if len(fields) == 3 and fields[0] not in names and fields[1].isdigit() and fields[2].isdigit()
    ]


def free_range(rows: list[str], count: int = 65536) -> int:
    """The first of so many ids from 100000 on that no line of /etc/subuid or /etc/subgid gives to anybody."""
    first = 100000
    for start, size in sorted(held_by_others(rows, ())):
        if start < first + count and first < start + size:
            first = start + size
    return first
