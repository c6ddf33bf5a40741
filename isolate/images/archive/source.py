"""The bytes of an archive in order: blocks, short runs, and the pieces of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolate.images.errors import LayerError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Source"]


class Source:
    """Reads from an iterator of non-empty pieces; :attr:`count` is how many bytes were taken so far."""

    __slots__ = ("_at", "_piece", "_pieces", "_taken", "_view")

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = b""
        self._view = memoryview(b"")
        self._at = 0
        self._taken = 0

    @property
    def count(self) -> int:
        """How many bytes were taken."""
        return self._taken + self._at

    def _next(self) -> bool:
        self._taken += len(self._piece)
        self._at = 0
        self._piece = next(self._pieces, b"")
        self._view = memoryview(self._piece)
        return bool(self._piece)

    def block(self) -> bytes:
        """The next 512 bytes, or fewer at the end."""
        at = self._at
        block = self._piece[at : at + 512]
        if len(block) == 512:
            self._at = at + 512
            return block
        return self.take(512)

    def take(self, size: int) -> bytes:
        """The next bytes; fewer at the end."""
        parts: list[bytes] = []
        while size:
            part = self._piece[self._at : self._at + size]
            if part:
                self._at += len(part)
                size -= len(part)
                parts.append(part)
            elif not self._next():
                break
        return b"".join(parts)

    def pieces(self, size: int, name: bytes) -> Iterator[memoryview]:
        """The next ``size`` bytes in pieces.

        :raises LayerError: the archive ends before.
        """
        while size:
            part = self._view[self._at : self._at + size]
            length = len(part)
            if length:
                self._at += length
                size -= length
                yield part
            elif not self._next():
                raise LayerError(name, "the archive is cut off within a file")

    def skip(self, size: int, name: bytes) -> None:
        """Pass over bytes."""
        at = self._at + size
        if at <= len(self._piece):
            self._at = at
            return
        for _ in self.pieces(size, name):
            pass

    def rest(self) -> Iterator[bytes]:
        """The rest, in pieces."""
        part = self._piece[self._at :]
        self._at = len(self._piece)
        if part:
            yield part
        while self._next():
            self._at = len(self._piece)
            yield self._piece
