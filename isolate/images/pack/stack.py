"""The trees below, one on the other, looked up as overlayfs does (Documentation/filesystems/overlayfs.rst)."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from isolate.images.pack.scan import Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolate.images.facts import Facts

__all__ = ["Stack", "is_opaque", "is_whiteout"]

_LINKS = 40
_OPAQUE = "user.overlay.opaque"


def is_whiteout(found: os.stat_result) -> bool:
    """Whether overlayfs takes it for the removal of what lies below."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def is_opaque(fd: int) -> bool:
    """Whether a directory hides what lies below. The value ``x`` only says that whiteouts of another kind are in it."""
    try:
        return os.getxattr(fd, _OPAQUE) == b"y"
    except OSError:
        return False


class Stack:
    """Trees, the uppermost first, with what they could not hold. Each may hide what is below it by whiteouts and opaque
    directories. ``contents`` as for :class:`Tree`, for all of them. ``devices``: the devices that the facts have show,
    too; to overlayfs they are whiteouts."""

    def __init__(
        self,
        tops: Sequence[int],
        facts: Sequence[Facts] = (),
        contents: int | None = None,
        *,
        devices: bool = False,
    ) -> None:
        self._devices = devices
        known = [*facts, *[None] * (len(tops) - len(facts))]
        self.trees: list[Tree] = [Tree(top, fact or None, contents) for top, fact in zip(tops, known, strict=True)]
        self._views: dict[bytes, tuple[Tree, ...]] = {b"": tuple(self.trees)}

    def close(self) -> None:
        """Let go of the directories that are held open."""
        for tree in self.trees:
            tree.close()

    def view(self, path: bytes) -> tuple[Tree, ...]:
        """The trees whose directories of that name show, the uppermost first; none where there is no directory."""
        found = self._views.get(path)
        if found is not None:
            return found
        parent, _, base = path.rpartition(b"/")
        trees: list[Tree] = []
        for tree in self.view(parent):
            try:
                row = os.stat(base, dir_fd=tree.directory(parent), follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(row.st_mode):
                break
            trees.append(tree)
            if is_opaque(tree.directory(path)):
                break
        self._views[path] = result = tuple(trees)
        return result

    def lookup(self, path: bytes) -> tuple[Tree, os.stat_result] | None:
        """The visible entry at a path: the tree that has it, and its lstat."""
        if not path:
            return (self.trees[0], os.stat(self.trees[0].top)) if self.trees else None
        parent, _, base = path.rpartition(b"/")
        for tree in self.view(parent):
            try:
                found = os.stat(base, dir_fd=tree.directory(parent), follow_symlinks=False)
            except FileNotFoundError:
                continue
            return None if self._hides(tree, path, found) else (tree, found)
        return None

    def _hides(self, tree: Tree, path: bytes, found: os.stat_result) -> bool:
        return is_whiteout(found) and not (self._devices and tree.facts is not None and tree.facts.get(path))

    def real(self, path: bytes, *, missing: bool = False, passing: Callable[[bytes], object] = lambda _: None) -> bytes:
        """The path with every link followed, as it would be with these trees as the root.

        :param missing: whether parts of it may not be there.
        :param passing: called with each link on the way.
        :raises ValueError: too many links, or a part that is not there or is no directory.
        """
        left = [part for part in path.split(b"/") if part]
        done: list[bytes] = []
        links = 0
        while left:
            part = left.pop(0)
            if part == b".":
                continue
            if part == b"..":
                del done[-1:]
                continue
            here = b"/".join([*done, part])
            row = self.lookup(here)
            if row is None:
                if not missing:
                    raise ValueError(f"/{os.fsdecode(path)}: there is no /{os.fsdecode(here)}")
            elif stat.S_ISLNK(row[1].st_mode):
                passing(here)
                links += 1
                if links > _LINKS:
                    raise ValueError(f"/{os.fsdecode(path)}: too many symbolic links")
                to = os.readlink(part, dir_fd=row[0].directory(b"/".join(done)))
                left = [each for each in to.split(b"/") if each] + left
                if to.startswith(b"/"):
                    done = []
                continue
            elif left and not stat.S_ISDIR(row[1].st_mode):
                raise ValueError(f"/{os.fsdecode(path)}: /{os.fsdecode(here)} is no directory")
            done.append(part)
        return b"/".join(done)

    def names(self, path: bytes) -> set[bytes]:
        """The names that show in a directory."""
        shown: set[bytes] = set()
        hidden: set[bytes] = set()
        for tree in self.view(path):
            with os.scandir(tree.directory(path)) as rows:
                for row in rows:
                    name = os.fsencode(row.name)
                    if name in shown or name in hidden:
                        continue
                    if self._hides(tree, path + b"/" + name if path else name, row.stat(follow_symlinks=False)):
                        hidden.add(name)
                    else:
                        shown.add(name)
        return shown
