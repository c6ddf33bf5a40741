"""One pass over an archive: decompressed, both digests, each entry made. Runs in the confined child."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from isolate.images.archive.compression import PIECE, decompressed, form_of
from isolate.images.archive.read import entries
from isolate.images.archive.source import Source
from isolate.images.errors import LayerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolate.images.unpack.place import Placer

__all__ = ["Pass", "unpack"]

_FREE = 64 << 20  # bytes that an archive may have before its ratio is looked at


class Pass:
    """The bytes of an archive on their way, with what is counted and hashed of them."""

    def __init__(
        self, read: Callable[[int], bytes], compression: str | None, limits: tuple[int, int, int, int]
    ) -> None:
        self._read = read
        self._most, self._ratio = limits[0], limits[3]
        self._outer = hashlib.sha256()
        self._inner = hashlib.sha256()
        self.packed: int = 0  # bytes as they came
        self.size: int = 0  # bytes decompressed
        first = self._take()
        self.compression: str = form_of(first, compression)
        self.source: Source = Source(self._pieces(first))

    def _take(self) -> bytes:
        piece = self._read(PIECE)
        self.packed += len(piece)
        if piece:
            self._outer.update(piece)
        return piece

    def _pieces(self, first: bytes) -> Iterator[bytes]:
        plain = self.compression == "none"
        for piece in decompressed(first, self._take, self.compression):
            self.size += len(piece)
            if self.size > self._most:
                raise LayerError(b"", f"the archive has more than {self._most} bytes: beyond the bounds")
            if self._ratio and self.size > _FREE and self.size > self.packed * self._ratio:
                raise LayerError(b"", f"the archive grows to more than {self._ratio} times its size: beyond the bounds")
            if not plain:
                self._inner.update(piece)
            yield piece

    @property
    def digest(self) -> str:
        """The digest of the bytes as they came."""
        return f"sha256:{self._outer.hexdigest()}"

    @property
    def diffid(self) -> str:
        """The digest of the archive, decompressed."""
        return self.digest if self.compression == "none" else f"sha256:{self._inner.hexdigest()}"


def unpack(data: Pass, placer: Placer, *, ended: bool = True) -> None:
    """Make every entry.

    :raises LayerError: the archive breaks a rule. What was made so far is left for the caller to remove.
    """
    source = data.source
    try:
        for entry in entries(source, ended=ended):
            placer.add(entry, source)
        placer.finish()
        for _ in source.rest():  # both digests are of everything
            pass
    finally:
        placer.close()


def reader(fd: int) -> Callable[[int], bytes]:
    """``read`` of a descriptor."""

    def read(size: int) -> bytes:
        return os.read(fd, size)

    return read
