"""A tree as an archive: names in the order of their bytes, hard links by inode."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import TYPE_CHECKING

from isolate.images.archive import entry as kinds
from isolate.images.archive.names import check_own
from isolate.images.archive.write import END, header, order, padding
from isolate.images.errors import LayerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from isolate.images.archive.entry import Entry
    from isolate.images.pack.scan import Tree

__all__ = ["Writer", "pack_entries", "pack_tree"]

_PIECE = 1 << 18


class Writer:
    """Takes the pieces of an archive, hashes them and hands them on in larger ones."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._hash = hashlib.sha256()
        self._parts: list[bytes] = []
        self._held = 0
        self.size: int = 0

    def put(self, data: bytes) -> None:
        """The next bytes."""
        self._parts.append(data)
        self._held += len(data)
        if self._held >= _PIECE:
            self.flush()

    def flush(self) -> None:
        """Hand on what is held."""
        data = b"".join(self._parts)
        self._parts, self._held = [], 0
        self._hash.update(data)
        self.size += len(data)
        self._write(data)

    def end(self) -> str:
        """The end of the archive; its digest."""
        self.put(END)
        self.flush()
        return f"sha256:{self._hash.hexdigest()}"


def pack_entries(rows: Iterable[tuple[Entry, bytes]], write: Callable[[bytes], object]) -> tuple[str, int]:
    """Digest and size of the archive of these entries with their bytes, in this order."""
    out = Writer(write)
    for entry, data in rows:
        out.put(header(entry))
        if data:
            out.put(data + padding(len(data)))
    return out.end(), out.size


def pack_tree(
    tree: Tree,
    rows: Iterable[tuple[bytes, os.stat_result | None]],
    write: Callable[[bytes], object],
    *,
    epoch: int | None = 0,
    limits: Sequence[int] | None = None,
) -> tuple[str, int, list[bytes]]:
    """Digest and size of the archive of these paths of a tree, and the sockets that were left out.

    A path without a stat is a whiteout: its name is written as an empty file. ``limits`` are the numbers of
    :meth:`Bounds.limits`: a file full of holes costs whoever makes it nothing, and its archive is as large as it looks.
    """
    rows = sorted(rows, key=lambda row: order(row[0]))
    if limits is not None:
        _check_bounds(rows, limits)
    out = Writer(write)
    left_out: list[bytes] = []
    first: dict[tuple[int, int], bytes] = {}
    for path, found in rows:
        if found is None:
            out.put(header(_whiteout(path)))
            continue
        check_own(path)
        entry = tree.entry(path, found, epoch)
        if entry is None:
            left_out.append(path)
            continue
        if found.st_nlink > 1 and entry.kind != kinds.DIRECTORY:
            key = found.st_dev, found.st_ino
            original = first.setdefault(key, path)
            if original is not path:
                entry.kind, entry.link, entry.size, entry.xattrs = kinds.HARD_LINK, original, 0, {}
                entry.device = (0, 0)
        if entry.kind == kinds.FILE:
            _file(tree, entry, out)
        else:
            if entry.kind == kinds.DIRECTORY:
                entry.xattrs.update(tree.attributes(tree.directory(path)))
            out.put(header(entry))
    return out.end(), out.size, left_out


def _check_bounds(rows: Sequence[tuple[bytes, os.stat_result | None]], limits: Sequence[int]) -> None:
    whole, entries, largest = limits[:3]
    if len(rows) > entries:
        raise LayerError(rows[entries][0], f"more than {entries} entries: beyond the bounds")
    size = 0
    for path, found in rows:
        if found is not None and stat.S_ISREG(found.st_mode):
            size += found.st_size
            if found.st_size > largest or size > whole:
                limit = largest if found.st_size > largest else whole
                raise LayerError(path, f"a file of {found.st_size} bytes: beyond the bounds of {limit}")


def _whiteout(path: bytes) -> Entry:
    from isolate.images.archive.entry import Entry

    return Entry(path, kinds.FILE, mode=0)


def _file(tree: Tree, entry: Entry, out: Writer) -> None:
    fd = tree.open(entry.path)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
            raise LayerError(entry.path, "its size changed: the tree changes while it is read")
        for name, value in tree.attributes(fd).items():
            entry.xattrs.setdefault(name, value)
        out.put(header(entry))
        fd = tree.contents_of(fd, entry.path)
        left = entry.size
        while left:
            data = os.read(fd, min(left, _PIECE))
            if not data:
                raise LayerError(entry.path, "its size changed: the tree changes while it is read")
            left -= len(data)
            out.put(data)
        if entry.size % 512:
            out.put(padding(entry.size))
    finally:
        os.close(fd)
