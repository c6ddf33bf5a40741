"""Entries become files: by descriptor beneath one directory, never through a link, never over what is there.

Every parent is opened one component at a time from the directory above it, without following links, so no name of an
archive is ever resolved by the kernel further than one component.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from isolate.images.archive import entry as kinds
from isolate.images.archive.names import WHITEOUT, whiteout_of
from isolate.images.archive.source import Source
from isolate.images.errors import LayerError
from isolate.images.facts import Fact, Facts
from isolate.images.unpack.refusals import again, refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.images.archive.entry import Entry
    from isolate.images.unpack.below import Below
    from isolate.images.unpack.owners import Owners

__all__ = ["OPAQUE_XATTR", "Placer"]

OPAQUE_XATTR = "user.overlay.opaque"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORIES = 200
_IMPLICIT = "i"  # a directory that the archive left out
_UNMADE = "u"  # a device that is kept as a fact


class Placer:
    """Makes a tree in an empty directory.

    ``top`` is the descriptor of the directory, ``owners`` which ids can be given to files here, ``devices`` whether
    device nodes are made. ``limits`` are the numbers of :meth:`Bounds.limits`; ``lower`` are the trees below this
    layer, the uppermost first, ``known`` their facts, and ``contents`` is where those of their outlines are. ``layer``:
    whiteouts are in it. Errors leave what was made so far: the caller removes the directory.
    """

    def __init__(
        self,
        top: int,
        *,
        owners: Owners,
        limits: tuple[int, int, int, int],
        devices: bool = False,
        lower: Sequence[int] = (),
        known: Sequence[Facts] = (),
        follow: bool = False,
        contents: int | None = None,
        layer: bool = True,
    ) -> None:
        self.top = top
        self._layer = layer
        self.owners = owners
        self.devices = devices
        self.most_entries: int = limits[1]
        self.largest: int = limits[2]
        self._below: Below | None = None
        if lower:
            from isolate.images.unpack.below import Below  # loaded late: the lowest layer of an image has none

            self._below = Below(lower, known, follow=follow, contents=contents)
        #: The kind of entry at each path of this layer, or one of the two above.
        self.known: dict[bytes, str] = {b"": _IMPLICIT}
        self._prepare(top)
        self.facts: dict[bytes, Fact] = {}
        self.replaced: list[tuple[bytes, bytes]] = []
        #: Names of lower layers that hard links of this one lead to.
        self.from_lower: list[bytes] = []
        #: The directories that have no entry of their own, from :meth:`finish` on.
        self.left_out: list[bytes] = []
        self.size: int = 0  # bytes of files
        self._fds: dict[bytes, int] = {b"": top}
        self._held = b""
        #: The time of each directory, and its mode if it has bits that would be inherited. Both are set at the end.
        self._late: dict[bytes, tuple[int, int]] = {}
        self._opaque: set[bytes] = set()
        #: Directories that a whiteout removes and that this layer has: others than those below.
        self._anew: set[bytes] = set()
        self._whiteouts: list[bytes] = []

    @staticmethod
    def _prepare(top: int) -> None:
        """Take from the directory what would be inherited by everything in it."""
        os.fchmod(top, 0o755)
        for name in ("system.posix_acl_default", "system.posix_acl_access"):
            try:
                os.removexattr(top, name)
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                    raise

    def close(self) -> None:
        """Let go of the directories that are held open."""
        for fd in self._fds.values():
            if fd != self.top:
                os.close(fd)
        self._fds = {b"": self.top}
        if self._below is not None:
            self._below.close()

    # ---- one entry -------------------------------------------------------------------------------------------

    def add(self, entry: Entry, source: Source) -> None:
        """Make what an entry says, with its bytes from ``source``.

        :raises LayerError: it breaks a rule, or the file system refuses it.
        """
        path, kind = entry.path, entry.kind
        try:
            if self._below is not None and self._below.follow:
                path = entry.path = self._below.followed(path, kind, self.known)
            parent, _, base = path.rpartition(b"/")
            if base.startswith(WHITEOUT):
                self._whiteout(entry, parent, base)
                return
            known = self.known
            if path in known and not (known[path] == _IMPLICIT and kind == kinds.DIRECTORY):
                raise LayerError(path, again(known[path]))
            fd = self._fds.get(parent)
            if fd is None:
                fd = self._parent(parent, path)
            if kind == kinds.FILE:
                self._file(fd, base, entry, source)
            elif kind == kinds.DIRECTORY:
                self._directory(fd, base, entry)
            elif kind == kinds.HARD_LINK:
                self._hard_link(fd, base, entry)
                return
            else:
                self._node(fd, base, entry)
            self._count(path, kind)
        except OSError as error:
            raise refused(path, error) from error

    def _count(self, path: bytes, kind: str) -> None:
        self.known[path] = kind
        if len(self.known) - 1 > self.most_entries:
            raise LayerError(path, f"more than {self.most_entries} entries: beyond the bounds")

    def _file(self, fd: int, base: bytes, entry: Entry, source: Source) -> None:
        size, mode = entry.size, entry.mode
        if size > self.largest:
            raise LayerError(entry.path, f"a file of {size} bytes, beyond the bounds of {self.largest}")
        self.size += size
        file = os.open(base, _NEW, mode & 0o777, dir_fd=fd)
        try:
            for piece in source.pieces(size, entry.path):
                written = os.write(file, piece)
                while written < len(piece):
                    written += os.write(file, piece[written:])
            uid, gid = self._owner(entry)
            if (uid, gid) != (0, 0):
                os.fchown(file, uid, gid)
            if mode & 0o7000:
                os.fchmod(file, mode)  # after the change of owner, which takes the set-id bits away
            if entry.xattrs:
                self._xattrs(file, entry)
            os.utime(file, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(file)

    def _directory(self, fd: int, base: bytes, entry: Entry) -> None:
        path, mode = entry.path, entry.mode
        if path in self.known:
            os.chmod(b"." if not path else base, mode, dir_fd=fd)
        else:
            self._new_directory(fd, base, path, mode)
        uid, gid = self._owner(entry)
        if (uid, gid) != (0, 0):
            os.chown(base or b".", uid, gid, dir_fd=fd, follow_symlinks=False)
        if entry.xattrs:
            own = os.open(base or b".", _DIRECTORY, dir_fd=fd)
            try:
                self._xattrs(own, entry)
            finally:
                os.close(own)
        # A set-group-id directory gives its group to what is made in it: not before everything is there.
        self._late[path] = (entry.mtime, mode if mode & 0o7000 else 0)

    def _new_directory(self, fd: int, base: bytes, path: bytes, mode: int) -> None:
        os.mkdir(base, mode & 0o777, dir_fd=fd)
        if self._below is not None:
            target = self._below.link_at(path)
            if target is not None:
                self.replaced.append((path, target))

    def _hard_link(self, fd: int, base: bytes, entry: Entry) -> None:
        path, target = entry.path, entry.link
        self._held = path.rpartition(b"/")[0]
        found = self.known.get(target)
        if found is None:
            found = self._copy_up(target, path)
        if found in (kinds.DIRECTORY, _IMPLICIT):
            raise LayerError(path, "a hard link to a directory")
        if found == "w":
            raise LayerError(path, "a hard link to a whiteout, which is no file")
        parent, _, name = target.rpartition(b"/")
        if found == _UNMADE:
            self._mark(fd, base)
            self.facts[path] = Fact(same=self.facts[target].same or target)
        else:
            os.link(name, base, src_dir_fd=self._parent(parent, path), dst_dir_fd=fd, follow_symlinks=False)
            if target in self.facts:
                self.facts[path] = self.facts[target]
        self._held = b""
        self._count(path, found)

    def _node(self, fd: int, base: bytes, entry: Entry) -> None:
        path, kind = entry.path, entry.kind
        if kind == kinds.SYMLINK:
            os.symlink(entry.link, base, dir_fd=fd)
        elif kind == kinds.FIFO:
            os.mkfifo(base, entry.mode & 0o777, dir_fd=fd)
        else:
            if entry.device == (0, 0) and kind == kinds.CHARACTER_DEVICE:
                raise LayerError(path, "the character device 0:0, which would be a whiteout")
            if not self.devices:
                self._unmade(fd, base, entry)
                return
            form = stat.S_IFCHR if kind == kinds.CHARACTER_DEVICE else stat.S_IFBLK
            os.mknod(base, form | entry.mode & 0o777, os.makedev(*entry.device), dir_fd=fd)
        uid, gid = self._owner(entry)
        if (uid, gid) != (0, 0):
            os.chown(base, uid, gid, dir_fd=fd, follow_symlinks=False)
        if entry.mode & 0o7000 and kind != kinds.SYMLINK:
            os.chmod(base, entry.mode, dir_fd=fd)
        if entry.xattrs:
            self._keep(entry, dict(entry.xattrs))  # the kernel has user.* on files and directories only
        os.utime(base, ns=(entry.mtime, entry.mtime), dir_fd=fd, follow_symlinks=False)

    # ---- what the tree cannot hold -----------------------------------------------------------------------------

    def _owner(self, entry: Entry) -> tuple[int, int]:
        uid, gid = entry.uid, entry.gid
        if not uid and not gid:
            return 0, 0
        known = self.owners
        if known.has(uid, gid):
            return uid, gid
        self.facts[entry.path] = Fact(
            uid=None if known.has_uid(uid) else uid,
            gid=None if known.has_gid(gid) else gid,
        )
        return (uid if known.has_uid(uid) else 0), (gid if known.has_gid(gid) else 0)

    def _xattrs(self, file: int, entry: Entry) -> None:
        kept: dict[bytes, bytes] = {}
        for name, value in entry.xattrs.items():
            if name == b"security.capability":
                kept.update(self._capability(file, entry, value))
            elif name.startswith(b"user."):
                os.setxattr(file, name, value)
            else:
                kept[name] = value
        if kept:
            self._keep(entry, kept)

    def _capability(self, file: int, entry: Entry, value: bytes) -> dict[bytes, bytes]:
        """Set the capabilities of a file; what has to be kept instead, as the kernel would give it back changed."""
        if len(value) not in (12, 20, 24) or value[3:4] not in (b"\1", b"\2", b"\3"):
            raise LayerError(entry.path, "security.capability is none of the kernel's three versions")
        if len(value) != 20 or value[1:4] != b"\0\0\2" or value[0] > 1:
            # The kernel reads version 1 back as another, and version 3 belongs to a root that is not here.
            return {b"security.capability": value}
        os.setxattr(file, "security.capability", value)
        return {}

    def _keep(self, entry: Entry, xattrs: dict[bytes, bytes]) -> None:
        old = self.facts.get(entry.path) or Fact()
        self.facts[entry.path] = Fact(old.uid, old.gid, old.kind, old.device, old.mode, old.mtime, old.same, xattrs)

    def _unmade(self, fd: int, base: bytes, entry: Entry) -> None:
        self._mark(fd, base)
        self.facts[entry.path] = Fact(
            entry.uid, entry.gid, entry.kind, entry.device, entry.mode, entry.mtime, None, dict(entry.xattrs)
        )
        entry.kind = _UNMADE

    @staticmethod
    def _mark(fd: int, base: bytes) -> None:
        os.mknod(base, stat.S_IFCHR, 0, dir_fd=fd)

    # ---- parents -----------------------------------------------------------------------------------------------

    def _parent(self, path: bytes, name: bytes) -> int:
        """The descriptor of a directory of this layer, made where the archive left it out."""
        fd = self._fds.get(path)
        if fd is not None:
            return fd
        above, _, base = path.rpartition(b"/")
        missing: list[tuple[bytes, bytes]] = [(path, base)]
        while above not in self._fds:
            path = above
            above, _, base = path.rpartition(b"/")
            missing.append((path, base))
        fd = self._fds[above]
        if len(self._fds) + len(missing) > _OPEN_DIRECTORIES:
            self._let_go(above)
        for step, (path, base) in enumerate(reversed(missing)):
            kind = self.known.get(path)
            if kind is None:
                self._new_directory(fd, base, path, 0o755)
                self._late[path] = (0, 0)
                self._count(path, _IMPLICIT)
            elif kind == kinds.SYMLINK:
                raise LayerError(name, f"its parent {path!r} is a symbolic link of this layer")
            elif kind not in (kinds.DIRECTORY, _IMPLICIT):
                raise LayerError(name, f"its parent {path!r} is not a directory")
            new = os.open(base, _DIRECTORY, dir_fd=fd)
            if step >= _OPEN_DIRECTORIES and fd != self.top and path.rpartition(b"/")[0] in self._fds:
                os.close(self._fds.pop(path.rpartition(b"/")[0]))
            self._fds[path] = fd = new
        return fd

    def _as_below(self, path: bytes) -> None:
        """A directory that the archive left out is as the lower layers have it: this layer says nothing about it."""
        above = path.split(b"/")[:-1]
        hidden = path in self._anew or any(b"/".join(above[: n + 1]) in self._opaque for n in range(len(above)))
        row = self._below.entry(path) if self._below is not None and not hidden else None
        if row is None or row[1].kind != kinds.DIRECTORY:
            return
        tree, entry = row
        entry.xattrs = {**tree.attributes(tree.directory(path)), **entry.xattrs}
        parent, _, base = path.rpartition(b"/")
        self._directory(self._parent(parent, path), base, entry)

    def _let_go(self, keep: bytes) -> None:
        for path in [path for path in self._fds if path and path not in (keep, self._held)]:
            os.close(self._fds.pop(path))

    def _copy_up(self, target: bytes, path: bytes) -> str:
        """Make a file of a lower layer one of this layer too, for hard links. The directories that it is in are left
        out, unless they have entries as well."""
        row = self._below.entry(target) if self._below is not None else None
        if self._below is None or row is None:
            raise LayerError(path, f"a hard link to {target!r}, which is not in this layer before it, nor below it")
        tree, entry = row
        parent, _, base = target.rpartition(b"/")
        fd = self._parent(parent, path)
        if entry.kind == kinds.FILE:
            file = tree.open(target)
            try:
                entry.xattrs = {**tree.attributes(file), **entry.xattrs}
                file = tree.contents_of(file, target)
                pieces = iter(lambda: os.read(file, 1 << 18), b"")
                self._file(fd, base, entry, Source(pieces))
            finally:
                os.close(file)
        elif entry.kind == kinds.SYMLINK:
            self._node(fd, base, entry)
        else:
            raise LayerError(path, f"a hard link to {target!r}, which is neither a file nor a link below")
        self._count(target, entry.kind)
        self.from_lower.append(target)
        return entry.kind

    # ---- whiteouts ---------------------------------------------------------------------------------------------

    def _whiteout(self, entry: Entry, parent: bytes, base: bytes) -> None:
        if not self._layer:
            raise LayerError(entry.path, "a name that begins with .wh., which an image's layer cannot have")
        hidden = whiteout_of(entry.path, base)
        # A hard link, too: overlayfs's own whiteouts may be links to one inode, and some programs write them so. What
        # it leads to does not matter.
        if entry.kind not in (kinds.FILE, kinds.HARD_LINK) or entry.size:
            raise LayerError(entry.path, "a whiteout that is not an empty file")
        if entry.path in self.known:
            raise LayerError(entry.path, again(kinds.FILE))
        self._parent(parent, entry.path)
        # Counted, and known under its own name, which no file can have.
        self._count(entry.path, "w")
        if hidden is None:
            self._opaque.add(parent)
        else:
            self._whiteouts.append(parent + b"/" + hidden if parent else hidden)

    def finish(self) -> None:
        """Whiteouts, opaque directories, and the times of directories: what later entries would have changed.

        :raises LayerError: the file system refuses it.
        """
        path = b""
        try:
            for path in self._whiteouts:
                kind = self.known.get(path)
                if kind in (kinds.DIRECTORY, _IMPLICIT):
                    self._anew.add(path)
                    self._opaque.add(path)  # the layer hides what was there, and has a directory of that name itself
                elif kind is None:
                    parent, _, base = path.rpartition(b"/")
                    self._mark(self._parent(parent, path), base)
            for path in self._opaque:
                os.setxattr(self._parent(path, path), OPAQUE_XATTR, b"y")
            for path in [path for path, kind in self.known.items() if path and kind == _IMPLICIT]:
                self.left_out.append(path)
                self._as_below(path)
            # The deepest first: nothing below changes any more.
            self._late.setdefault(b"", (0, 0))
            for path in sorted(self._late, reverse=True):
                mtime, mode = self._late[path]
                parent, _, base = path.rpartition(b"/")
                fd = self._parent(parent, path)
                if mode:
                    os.chmod(base or b".", mode, dir_fd=fd)
                os.utime(base or b".", ns=(mtime, mtime), dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            raise refused(path, error) from error
