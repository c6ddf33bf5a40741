"""The layers below the one that is extracted: what they have where an entry goes."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from isolate.images.archive import entry as kinds
from isolate.images.errors import LayerError
from isolate.images.pack.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from isolate.images.archive.entry import Entry
    from isolate.images.facts import Facts
    from isolate.images.pack.scan import Tree

__all__ = ["Below"]

_MOST_LINKS = 40  # as many as the kernel follows


class Below:
    """The trees below, the uppermost first, with what they could not hold. ``follow``: entries go where links of these
    lead. ``contents`` as for :class:`Tree`."""

    def __init__(
        self, lower: Sequence[int], facts: Sequence[Facts] = (), *, follow: bool, contents: int | None = None
    ) -> None:
        self._stack = Stack(lower, facts, contents)
        self.follow = follow

    def close(self) -> None:
        """Let go of the directories that are held open."""
        self._stack.close()

    def link_at(self, path: bytes) -> bytes | None:
        """The target of a symbolic link that stands below at a path."""
        row = self._stack.lookup(path)
        if row is None or not stat.S_ISLNK(row[1].st_mode):
            return None
        return self._target(row[0], path)

    @staticmethod
    def _target(tree: Tree, path: bytes) -> bytes:
        parent, _, base = path.rpartition(b"/")
        return os.readlink(base, dir_fd=tree.directory(parent))

    def entry(self, path: bytes) -> tuple[Tree, Entry] | None:
        """The entry below at a path; of what is in its tree without its attributes."""
        row = self._stack.lookup(path)
        if row is None:
            return None
        tree, found = row
        entry = tree.entry(path, found)
        return None if entry is None else (tree, entry)

    def followed(self, path: bytes, kind: str, known: Mapping[bytes, str]) -> bytes:
        """The place of an entry: its path, with the links of lower layers followed inside of the tree.

        The last component is followed where a directory is meant. What this layer has itself is as it is.

        :raises LayerError: too many links.
        """
        todo = path.split(b"/")[::-1]
        at: list[bytes] = []
        links = 0
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                del at[-1:]
                continue
            here = b"/".join((*at, name))
            target = None
            if here not in known and (todo or kind == kinds.DIRECTORY):
                target = self.link_at(here)
            if target is None:
                at.append(name)
                continue
            links += 1
            if links > _MOST_LINKS:
                raise LayerError(path, "its parents are too many symbolic links of lower layers")
            if target.startswith(b"/"):
                at = []
            todo += target.split(b"/")[::-1]
        return b"/".join(at)
