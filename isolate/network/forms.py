"""Requests that differ from member to member in a few places: put together once, and filled in for each.

Where a network has been idle for a while, the processor first has to fetch each page of the interpreter and of its
objects that attaching a member comes by: some hundred of them take longer than what is done there. So the extension
fills the places and sends the batches, in one call.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Form"]


class Form:
    """Three batches as they are sent, with marks in the places of what varies: :func:`netlink.attach` takes them.

    A mark is found by its bytes, so it must be none that could stand there anyway, and as long as what replaces it,
    which begins at that byte of the values.
    """

    __slots__ = ("counts", "data")

    def __init__(self, batches: Sequence[tuple[bytes, int]], marks: Sequence[tuple[bytes, int]]) -> None:
        #: How many requests each batch has.
        self.counts: tuple[int, ...] = tuple(count for _, count in batches)
        data = b"".join(batch for batch, _ in batches)
        places = [(at, start, len(mark)) for mark, start in marks for at in _found(data, mark)]
        if len({start for _, start, _ in places}) != len(marks):
            raise ValueError("a mark is in none of the requests")
        head = struct.pack("=4H", *(len(batch) for batch, _ in batches), len(places))
        #: The form as the extension reads it.
        self.data: bytes = head + b"".join(struct.pack("=3H", *place) for place in places) + data


def _found(data: bytes, mark: bytes) -> Iterator[int]:
    at = data.find(mark)
    while at >= 0:
        yield at
        at = data.find(mark, at + len(mark))
