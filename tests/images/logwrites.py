"""The log of dm-log-writes: what the kernel itself recorded of a disk (Documentation/admin-guide/device-mapper)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tests.images.recorder import FLUSH, FORCED, MARK, WRITE

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

_MAGIC = 0x6A736677736872
_SUPER = struct.Struct("<QQQI")  # magic, version, entries, bytes of a sector
_ENTRY = struct.Struct("<QQQQ")  # sector, sectors, flags, bytes of a mark
_FLUSH, _FUA, _DISCARD, _MARK = 1, 2, 4, 8


def entries(path: str | os.PathLike[str]) -> Iterator[tuple[int, int, bytes]]:
    """(kind, offset, bytes) of each entry, as the recorder has them."""
    with open(path, "rb") as file:
        magic, version, count, sector = _SUPER.unpack(file.read(_SUPER.size))
        assert (magic, version) == (_MAGIC, 1), "not a log of dm-log-writes"
        at = sector
        for _ in range(count):
            file.seek(at)
            start, sectors, flags, size = _ENTRY.unpack(file.read(_ENTRY.size))
            at += sector
            if flags & _MARK:
                yield MARK, 0, file.read(size).rstrip(b"\0")
                continue
            if flags & _FLUSH:
                yield FLUSH, 0, b""
            if flags & _DISCARD or not sectors:
                continue
            file.seek(at)
            yield FORCED if flags & _FUA else WRITE, start * sector, file.read(sectors * sector)
            at += sectors * sector
