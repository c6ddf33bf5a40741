"""The differences between the upper directory of an overlay and what lies below it, or between two trees."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from isolate.images.archive.names import OPAQUE, WHITEOUT
from isolate.images.pack.change import Change
from isolate.images.pack.stack import Stack, is_opaque, is_whiteout

if TYPE_CHECKING:
    from collections.abc import Collection

    from isolate.images.facts import Fact
    from isolate.images.pack.scan import Tree

__all__ = ["Difference", "of_trees", "of_upper"]

_PIECE = 1 << 18


class Difference:
    """Changes, and the rows of which an archive of them is made: paths with what lstat says, whiteouts without."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.rows: dict[bytes, os.stat_result | None] = {}
        #: The facts of a file that the tree below could not hold, if the file still has the same owner.
        self.kept: dict[bytes, Fact] = {}

    def removed(self, path: bytes) -> None:
        """It is gone, with everything beneath it."""
        parent, _, base = path.rpartition(b"/")
        self.changes.append(Change(path, "removed"))
        self.rows[(parent + b"/" if parent else b"") + WHITEOUT + base] = None

    def add(self, path: bytes, kind: str, found: os.stat_result) -> None:
        """It is there, or other than it was."""
        self.changes.append(Change(path, kind, found.st_size if stat.S_ISREG(found.st_mode) else 0))
        self.rows[path] = found

    def with_parents(self, tree: Tree) -> None:
        """Add the directories that changes are in: what is left out would become another directory elsewhere."""
        missing = {b""} if self.rows else set()
        for path in self.rows:
            parent = path.rpartition(b"/")[0]
            while parent and parent not in missing:
                missing.add(parent)
                parent = parent.rpartition(b"/")[0]
        for path in missing - set(self.rows):
            if path:
                above, _, base = path.rpartition(b"/")
                self.rows[path] = os.stat(base, dir_fd=tree.directory(above), follow_symlinks=False)


def of_upper(upper: Tree, lower: Stack, stubs: Collection[bytes] = ()) -> Difference:
    """The changes of an overlay's upper directory to the trees below it.

    ``stubs`` are places that something was mounted on: what was made there for that alone, and is empty, is no change.

    :raises LayerError: the upper says that something lies elsewhere (redirect) or has no data of its own (metacopy).
    """
    done = Difference()
    skipped: set[bytes] = set()
    names: dict[tuple[int, int], list[bytes]] = {}
    for path, found in upper.stats():
        parent, _, _ = path.rpartition(b"/")
        if is_whiteout(found):
            if parent not in skipped and lower.lookup(path) is not None:
                done.removed(path)
            continue
        if not stat.S_ISDIR(found.st_mode):
            if found.st_nlink > 1:
                names.setdefault((found.st_dev, found.st_ino), []).append(path)
            _compare(done, path, upper, found, lower.lookup(path))
            if parent in skipped:
                done.rows.setdefault(path, found)  # nothing of a lower layer shows here, equal or not
            continue
        below = lower.lookup(path)
        _compare(done, path, upper, found, below)
        if parent in skipped or (path and is_opaque(upper.directory(path))):
            skipped.add(path)
            done.rows.setdefault(path, found)
            if below is not None and stat.S_ISDIR(below[1].st_mode):
                if parent not in skipped:
                    done.rows[path + b"/" + OPAQUE] = None
                done.changes += [Change(name, "removed") for name in _gone(path, upper, lower)]
    _whole_groups(done, names)
    _without_stubs(done, stubs)
    done.with_parents(upper)
    return done


def _without_stubs(done: Difference, stubs: Collection[bytes]) -> None:
    made = {change.path for change in done.changes if change.kind == "added"}
    for path in sorted(made & set(stubs), reverse=True):  # the deepest first
        row = done.rows[path]
        assert row is not None
        beneath = path + b"/"
        empty = not row.st_size if stat.S_ISREG(row.st_mode) else not any(p.startswith(beneath) for p in done.rows)
        if empty and not stat.S_ISLNK(row.st_mode):
            del done.rows[path]
            done.changes = [change for change in done.changes if change.path != path]


def _whole_groups(done: Difference, names: dict[tuple[int, int], list[bytes]]) -> None:
    """A file with several names is in an archive with all of them, or links would come apart."""
    rows = done.rows
    for paths in names.values():
        changed = [path for path in paths if path in rows]
        if changed and len(changed) < len(paths):
            found = rows[changed[0]]
            for path in paths:
                rows.setdefault(path, found)


def of_trees(new: Tree, old: Stack) -> Difference:
    """The changes that make the new tree from the old ones, seen as one."""
    done = Difference()
    names: dict[tuple[int, int], list[bytes]] = {}
    for path, found in new.stats():
        below = old.lookup(path)
        if not stat.S_ISDIR(found.st_mode):
            if found.st_nlink > 1:
                names.setdefault((found.st_dev, found.st_ino), []).append(path)
            _compare(done, path, new, found, below)
            continue
        _compare(done, path, new, found, below)
        if below is not None and stat.S_ISDIR(below[1].st_mode):
            for name in _gone(path, new, old):
                done.removed(name)
    _whole_groups(done, names)
    done.with_parents(new)
    return done


def _gone(path: bytes, tree: Tree, below: Stack) -> list[bytes]:
    """The entries that a directory no longer has."""
    here = set(map(os.fsencode, os.listdir(tree.directory(path))))
    return [path + b"/" + name if path else name for name in below.names(path) - here]


def _compare(
    done: Difference, path: bytes, tree: Tree, found: os.stat_result, below: tuple[Tree, os.stat_result] | None
) -> None:
    if stat.S_ISSOCK(found.st_mode):
        done.rows[path] = found  # left out, and named, when an archive is made
        return
    if below is None:
        if path:
            done.add(path, "added", found)
        return
    old_tree, old = below
    if old_tree.facts is not None and (found.st_uid, found.st_gid) == (old.st_uid, old.st_gid):
        fact = old_tree.facts.get(path)
        if fact is not None and fact.kind is None and fact.same is None:
            done.kept[path] = fact
    if stat.S_IFMT(old.st_mode) != stat.S_IFMT(found.st_mode):
        done.add(path, "modified", found)
        return
    if not _same_contents(path, tree, found, old_tree, old):
        done.add(path, "modified", found)
    elif not _same_metadata(path, tree, found, old_tree, old):
        done.add(path, "metadata", found)


def _same_contents(path: bytes, tree: Tree, found: os.stat_result, old_tree: Tree, old: os.stat_result) -> bool:
    form = stat.S_IFMT(found.st_mode)
    if form == stat.S_IFLNK:
        parent, _, base = path.rpartition(b"/")
        fds = tree.directory(parent), old_tree.directory(parent)
        return os.readlink(base, dir_fd=fds[0]) == os.readlink(base, dir_fd=fds[1])
    if form in (stat.S_IFCHR, stat.S_IFBLK):
        return found.st_rdev == old.st_rdev
    if form != stat.S_IFREG:
        return True
    if found.st_size != old.st_size:
        return False
    if (found.st_dev, found.st_ino) == (old.st_dev, old.st_ino):
        return True
    one = tree.read(path)
    try:
        two = old_tree.read(path)
        try:
            while True:
                data = os.read(one, _PIECE)
                if data != _read(two, len(data)):
                    return False
                if not data:
                    return True
        finally:
            os.close(two)
    finally:
        os.close(one)


def _read(fd: int, size: int) -> bytes:
    data = os.read(fd, size or 1)
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            break
        data += more
    return data


def _same_metadata(path: bytes, tree: Tree, found: os.stat_result, old_tree: Tree, old: os.stat_result) -> bool:
    if (found.st_mode, found.st_uid, found.st_gid) != (old.st_mode, old.st_uid, old.st_gid):
        return False
    directory = stat.S_ISDIR(found.st_mode)
    if not directory and found.st_mtime_ns != old.st_mtime_ns:
        return False  # a directory's time changes with what is in it
    if directory:
        return tree.attributes(tree.directory(path)) == old_tree.attributes(old_tree.directory(path))
    if not stat.S_ISREG(found.st_mode):
        return True
    one = tree.open(path)
    try:
        two = old_tree.open(path)
        try:
            return tree.attributes(one) == old_tree.attributes(two)
        finally:
            os.close(two)
    finally:
        os.close(one)
