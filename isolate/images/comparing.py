"""The difference of two images, as somebody sees it who runs them: whatever layers they are made of."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from isolate.images.pack.change import Change, Changes
from isolate.images.pack.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.images.image import Image
    from isolate.images.pack.scan import Tree
    from isolate.images.store import Store

__all__ = ["compare"]

_PIECE = 1 << 18


def compare(store: Store, old: Image, new: Image) -> Changes:
    """The differences of the new image from the old one, file by file. Both must be unpacked in the store.

    :raises StoreError: one is not. :raises OSError: a file that the caller may not read.
    """
    first, trees = store.lease(old)
    with first:
        second, others = store.lease(new)
        with second:
            contents = store.opened.contents()
            before, after = (Stack(tuple(reversed(tops)), contents=contents) for tops in (trees, others))
            try:
                return Changes(_walk(before, after, b""))
            finally:
                before.close()
                after.close()


def _walk(before: Stack, after: Stack, top: bytes) -> Iterator[Change]:
    waiting = [top]
    while waiting:
        directory = waiting.pop()
        old = before.names(directory) if before.trees else set()
        new = after.names(directory) if after.trees else set()
        for name in sorted(old | new):
            path = directory + b"/" + name if directory else name
            was = before.lookup(path) if name in old else None
            now = after.lookup(path) if name in new else None
            if now is None:
                if was is not None:
                    yield Change(path, "removed")
                continue
            row = now[1]
            size = row.st_size if stat.S_ISREG(row.st_mode) else 0
            if was is None:
                yield Change(path, "added", size)
            elif _kind(was[1]) != _kind(row) or _other_content(path, was, now):
                yield Change(path, "modified", size)
            elif not stat.S_ISLNK(row.st_mode) and _metadata(was[1]) != _metadata(row):
                yield Change(path, "metadata", size)
            if stat.S_ISDIR(row.st_mode):
                waiting.append(path)


def _kind(row: os.stat_result) -> tuple[int, int]:
    return stat.S_IFMT(row.st_mode), row.st_rdev


def _metadata(row: os.stat_result) -> tuple[int, int, int]:
    return row.st_mode, row.st_uid, row.st_gid


def _other_content(path: bytes, was: tuple[Tree, os.stat_result], now: tuple[Tree, os.stat_result]) -> bool:
    old, new = was[1], now[1]
    if (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino):
        return False  # the same layer shows
    if stat.S_ISLNK(new.st_mode):
        return _link(path, was[0]) != _link(path, now[0])
    if not stat.S_ISREG(new.st_mode):
        return False
    if old.st_size != new.st_size:
        return True
    with open(was[0].read(path), "rb") as first, open(now[0].read(path), "rb") as second:
        while True:
            piece = first.read(_PIECE)
            if piece != second.read(_PIECE):
                return True
            if not piece:
                return False


def _link(path: bytes, tree: Tree) -> bytes:
    parent, _, base = path.rpartition(b"/")
    return os.readlink(base, dir_fd=tree.directory(parent))
