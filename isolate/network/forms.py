"""Requests that differ from member to member in a few places: put together once, and filled in for each.

Where a network has been idle for a while, each further function of Python that attaching a member comes by costs it
time, since the processor has to fetch it first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.network.netlink import Message

__all__ = ["Form"]


class Form:
    """Requests with marks in the places of what varies. Their words have the marks, too: errors need their own.

    A mark is found by its bytes, so it must be none that could stand there anyway, and as long as what replaces it.
    """

    __slots__ = ("_parts",)

    def __init__(self, messages: Sequence[Message], marks: Sequence[bytes]) -> None:
        self._parts: list[tuple[Message, list[tuple[int, int, int]]]] = []
        for message in messages:
            places = []
            for number, mark in enumerate(marks):
                at = message.body.find(mark)
                while at >= 0:
                    places.append((at, at + len(mark), number))
                    at = message.body.find(mark, at + len(mark))
            self._parts.append((message, places))
        if {number for _, places in self._parts for _, _, number in places} != set(range(len(marks))):
            raise ValueError("a mark is in none of the requests")

    def filled(self, values: Sequence[bytes]) -> list[Message]:
        """The requests with these values in the places of the marks."""
        found = []
        for message, places in self._parts:
            body = bytearray(message.body)
            for begin, end, number in places:
                body[begin:end] = values[number]
            found.append(message._replace(body=bytes(body)))
        return found
