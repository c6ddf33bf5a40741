"""The entries of a tree, read by descriptor: no link in it is ever followed, nothing in it can make us wait."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from isolate.images.archive import entry as kinds
from isolate.images.archive.entry import Entry
from isolate.images.archive.pax import MAX_XATTRS
from isolate.images.errors import LayerError
from isolate.mounts.outlines import MARKS, contents_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.images.facts import Facts

__all__ = ["Tree", "attributes"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS = {
    stat.S_IFREG: kinds.FILE,
    stat.S_IFDIR: kinds.DIRECTORY,
    stat.S_IFLNK: kinds.SYMLINK,
    stat.S_IFCHR: kinds.CHARACTER_DEVICE,
    stat.S_IFBLK: kinds.BLOCK_DEVICE,
    stat.S_IFIFO: kinds.FIFO,
}
_MOST = 512  # directories held open
_DEPTH = 2048
_OVERLAY = b"user.overlay."
_ELSEWHERE = (
    b"user.overlay.redirect",
    b"user.overlay.metacopy",
    b"trusted.overlay.redirect",
    b"trusted.overlay.metacopy",
)
_NEVER = (b"trusted.", b"security.selinux", b"security.ima", b"security.evm", b"system.")


def attributes(fd: int, *, outline: bool = False) -> dict[bytes, bytes]:
    """The extended attributes of an open file that belong into an archive. ``outline``: its contents may be elsewhere.

    :raises LayerError: overlayfs's own, which say that the contents lie elsewhere.
    """
    found: dict[bytes, bytes] = {}
    total = 0
    try:
        listed = os.listxattr(fd)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES):
            return found
        raise
    for text in listed:
        name = os.fsencode(text)
        if name in _ELSEWHERE and not (outline and name in MARKS):
            raise LayerError(b"", f"{text}: the contents are elsewhere, so this cannot be read on its own")
        if name.startswith(_NEVER) or name.startswith(_OVERLAY):
            continue
        try:
            found[name] = value = os.getxattr(fd, name)
        except OSError as error:
            # Gone since it was listed; or capabilities for a root that is not mapped here.
            if error.errno in (errno.ENODATA, errno.EOVERFLOW):
                continue
            raise
        total += len(value)
    if total > MAX_XATTRS:
        raise LayerError(b"", f"extended attributes of more than {MAX_XATTRS} bytes together")
    return found


class Tree:
    """A tree below a directory. ``facts`` say what it could not hold: entries show that instead.

    ``contents``: the tree is a store's, and files of it may be outlines of which the contents are in this directory.
    """

    def __init__(self, top: int, facts: Facts | None = None, contents: int | None = None) -> None:
        self.top = top
        self.facts = facts
        self.contents = contents
        self._fds: dict[bytes, int] = {b"": top}

    def close(self) -> None:
        """Let go of the directories that are held open."""
        for fd in self._fds.values():
            if fd != self.top:
                os.close(fd)
        self._fds = {b"": self.top}

    def directory(self, path: bytes) -> int:
        """The descriptor of a directory of the tree; stays open until others need the room, or :meth:`close`."""
        fd = self._fds.get(path)
        if fd is not None:
            return fd
        missing = [path]
        above = path.rpartition(b"/")[0]
        while above not in self._fds:
            missing.append(above)
            above = above.rpartition(b"/")[0]
        fd = self._fds[above]
        if len(self._fds) + len(missing) > _MOST:
            for other in [other for other in self._fds if other and other != above]:
                os.close(self._fds.pop(other))
        for path in reversed(missing):
            last, fd = fd, os.open(path.rpartition(b"/")[2], _DIRECTORY, dir_fd=fd)
            if len(self._fds) >= _MOST and last != self.top:
                os.close(self._fds.pop(path.rpartition(b"/")[0]))
            self._fds[path] = fd
        return fd

    def open(self, path: bytes) -> int:
        """The descriptor of a regular file of the tree, for its metadata: :meth:`contents_of` of it is to be read.

        :raises LayerError: something else stands there by now.
        """
        parent, _, base = path.rpartition(b"/")
        fd = os.open(base, _FILE, dir_fd=self.directory(parent))
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise LayerError(path, "it was a file, and is none any more: the tree changes while it is read")
        return fd

    def contents_of(self, fd: int, path: bytes) -> int:
        """The descriptor to read the contents of an open file from, instead of the one given.

        :raises LayerError: they are elsewhere, and not to be found; the given one is open.
        """
        try:
            return contents_of(fd, self.contents)
        except ValueError as error:
            raise LayerError(path, str(error)) from None

    def read(self, path: bytes) -> int:
        """The descriptor of the contents of a regular file.

        :raises LayerError: as :meth:`open` and :meth:`contents_of`.
        """
        fd = self.open(path)
        try:
            return self.contents_of(fd, path)
        except BaseException:
            os.close(fd)
            raise

    def attributes(self, fd: int) -> dict[bytes, bytes]:
        """:func:`attributes` of an open file or directory of the tree."""
        return attributes(fd, outline=self.contents is not None)

    def stats(self) -> Iterator[tuple[bytes, os.stat_result]]:
        """Every path with what lstat says, in no order but parents first. Other file systems mounted below are left
        out: their directory shows, and nothing in it."""
        top = os.stat(self.top)
        yield b"", top
        todo = [b""]
        while todo:
            path = todo.pop()
            fd = self.directory(path)
            if os.fstat(fd).st_dev != top.st_dev:
                continue
            prefix = path + b"/" if path else b""
            # By descriptor, so names are text: they come back to bytes as they were.
            with os.scandir(fd) as rows:
                for row in rows:
                    name = prefix + os.fsencode(row.name)
                    found = row.stat(follow_symlinks=False)
                    yield name, found
                    if stat.S_ISDIR(found.st_mode):
                        if name.count(b"/") >= _DEPTH:
                            raise LayerError(name[:200] + b"...", f"more than {_DEPTH} directories deep")
                        todo.append(name)

    def entry(self, path: bytes, found: os.stat_result, epoch: int | None = None) -> Entry | None:
        """The entry of a path; None for what no archive has: a socket. ``epoch`` (in seconds) is the latest time."""
        kind = _KINDS.get(stat.S_IFMT(found.st_mode))
        if kind is None:
            return None
        mtime = found.st_mtime_ns
        if epoch is not None:
            mtime = min(mtime, epoch * 1_000_000_000)
        entry = Entry(
            path,
            kind,
            mode=stat.S_IMODE(found.st_mode),
            uid=found.st_uid,
            gid=found.st_gid,
            mtime=max(mtime, 0),
        )
        if kind == kinds.FILE:
            entry.size = found.st_size
        if kind == kinds.SYMLINK:
            entry.mode = 0o777
            parent, _, base = path.rpartition(b"/")
            entry.link = os.readlink(base, dir_fd=self.directory(parent))
        elif kind in "34":
            entry.device = os.major(found.st_rdev), os.minor(found.st_rdev)
        if self.facts is not None:
            self._remember(entry, epoch)
        return entry

    def _remember(self, entry: Entry, epoch: int | None) -> None:
        """Remember what the archive said of an entry that the tree was made from."""
        assert self.facts is not None
        fact = self.facts.get(entry.path)
        if fact is None:
            return
        if fact.same is not None:
            entry.kind, entry.link = kinds.HARD_LINK, fact.same
            return
        entry.uid = entry.uid if fact.uid is None else fact.uid
        entry.gid = entry.gid if fact.gid is None else fact.gid
        if fact.kind is not None:
            entry.kind = fact.kind
            entry.device = fact.device or (0, 0)
            entry.mode = fact.mode or 0
            mtime = fact.mtime or 0
            entry.mtime = mtime if epoch is None else min(mtime, epoch * 1_000_000_000)
        entry.xattrs.update(fact.xattrs)
