"""Requests that differ from member to member in a few places: put together once, and filled in for each.

Where a network has been idle for a while, each further function of Python that attaching a member comes by costs it
time, since the processor has to fetch it first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Form"]


class Form:
    """Requests as they are sent, with marks in the places of what varies: :meth:`Socket.exchange` takes them.

    A mark is found by its bytes, so it must be none that could stand there anyway, and as long as what replaces it.
    """

    __slots__ = ("_pieces", "_places", "count")

    def __init__(self, batch: bytes, count: int, marks: Sequence[bytes]) -> None:
        #: How many requests they are.
        self.count = count
        found = sorted((at, number) for number, mark in enumerate(marks) for at in _found(batch, mark))
        if {number for _, number in found} != set(range(len(marks))):
            raise ValueError("a mark is in none of the requests")
        self._pieces: list[bytes] = []
        self._places: list[tuple[int, int]] = []
        end = 0
        for at, number in found:
            self._pieces += [batch[end:at], b""]
            self._places.append((len(self._pieces) - 1, number))
            end = at + len(marks[number])
        self._pieces.append(batch[end:])

    def filled(self, values: Sequence[bytes]) -> bytes:
        """The requests with these values in the places of the marks."""
        pieces = self._pieces.copy()
        for at, number in self._places:
            pieces[at] = values[number]
        return b"".join(pieces)


def _found(data: bytes, mark: bytes) -> Iterator[int]:
    at = data.find(mark)
    while at >= 0:
        yield at
        at = data.find(mark, at + len(mark))
