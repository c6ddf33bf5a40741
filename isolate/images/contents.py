"""One copy of the contents that files of several layers have, whatever else differs: owner, mode, time, attributes.

``contents/`` of a store has them, by names from their digests. The files of a layer become outlines (see
:mod:`isolate.mounts.outlines`), and ``contents/`` of the layer has a link to each that they name: a file that has no
name but the one in the store's is not in use. The links are made under a shared lock of the store's, and removed under
an exclusive one.

Only the lowest layer of an image has outlines: without ``metacopy=on``, which is for root of the host alone, the kernel
goes from the lowest layer to the contents, and from no other (ovl_lookup; opening such a file is EPERM).
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import os
import secrets
import stat
from typing import TYPE_CHECKING

from isolate.images.confined import words
from isolate.images.disk import HELD, lock, open_directory, try_lock
from isolate.images.pack.scan import Tree
from isolate.images.sharing import NO_LINK, Shared
from isolate.mounts.outlines import is_name, mark

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.namespaces.ids import IdMap

__all__ = ["faults_of", "names_of", "outline", "outline_here", "outlined", "unused"]

_PIECE = 1 << 18


def outline(tree: int, contents: int, own: int, *, map: IdMap | None = None) -> Shared:
    """Let the files of a tree be outlines: their contents go to ``contents``, or are there already.

    All are descriptors of directories in one file system; ``own`` is the layer's, for its links. ``map``: by a child
    with these ids, where the caller cannot read all files. The tree must not be in use.
    """
    if map is None:
        return outline_here(tree, contents, own)
    from isolate.images.confined.start import confined  # loaded late: for root nothing of it is needed

    fds = {words.TARGET: tree, words.CONTENTS: contents, words.OUT: own}
    answer = confined("outline", {}, ids=map, fds=fds, writable=(tree, contents, own))
    return Shared(int(answer["files"]), int(answer["bytes"]))


def outline_here(top: int, contents: int, own: int) -> Shared:
    """As whoever runs this."""
    tree = Tree(top)
    held = open_directory(".", contents)  # a lock of its own: other threads have the same descriptor of the directory
    files = size = 0
    times: dict[bytes, os.stat_result] = {}
    try:
        lock(held, exclusive=False, seconds=HELD, what="the contents of files")
        groups: dict[tuple[int, int], tuple[os.stat_result, list[bytes]]] = {}
        for path, found in tree.stats():
            # A file without blocks has nothing to share: an empty file, one that is all hole, one within its inode.
            if stat.S_ISREG(found.st_mode) and found.st_size and found.st_blocks:
                groups.setdefault((found.st_dev, found.st_ino), (found, []))[1].append(path)
            elif stat.S_ISDIR(found.st_mode):
                times[path] = found
        changed: set[bytes] = set()
        for found, paths in groups.values():
            if found.st_nlink != len(paths):
                continue  # it is somebody else's as well
            try:
                fd = tree.open(paths[0])
            except PermissionError:
                continue  # not even its owner may read it
            try:
                there = _outlined(tree, paths, fd, found, contents, own)
            finally:
                os.close(fd)
            if there is None:
                continue
            changed.update(path.rpartition(b"/")[0] for path in paths)
            if there:
                files, size = files + 1, size + found.st_size
        for path in changed:
            os.utime(tree.directory(path), ns=(times[path].st_atime_ns, times[path].st_mtime_ns))
    finally:
        os.close(held)
        tree.close()
    return Shared(files, size)


def _outlined(tree: Tree, paths: list[bytes], fd: int, found: os.stat_result, contents: int, own: int) -> bool | None:
    """Make one file, which has these names, an outline: whether its contents were there; None: it stays as it is."""
    parent, _, base = paths[0].rpartition(b"/")
    directory = tree.directory(parent)
    # The mounting process reads it, whoever it is there. Before it has the name: nobody finds another mode there.
    names = list(_names(fd))
    os.fchmod(fd, 0o444)
    try:
        for name in names:
            there = _linked(name, contents, own, base, directory)
            if not there or _equal(name, own, fd):
                break  # else damaged, or a digest that begins alike
        else:
            raise OSError(errno.EMLINK, "all its names are taken")
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        os.fchmod(fd, stat.S_IMODE(found.st_mode))
        return None
    _make_outline(tree, directory, base, fd, found, name)
    for path in paths[1:]:
        source = os.dup(tree.directory(parent))
        try:
            above, _, last = path.rpartition(b"/")
            other, spare = tree.directory(above), _spare()
            os.link(base, spare, src_dir_fd=source, dst_dir_fd=other, follow_symlinks=False)
            os.rename(spare, last, src_dir_fd=other, dst_dir_fd=other)
        finally:
            os.close(source)
    return there


def _names(fd: int) -> Iterator[str]:
    """The names that the contents of a file can have, the usual one first."""
    state = hashlib.sha256()
    while data := os.read(fd, _PIECE):
        state.update(data)
    yield from names_of(state.digest())


def names_of(digest: bytes) -> tuple[str, ...]:
    """The names that contents with this digest (SHA-256) can have: another one than the first if that is taken."""
    text = base64.urlsafe_b64encode(digest).decode("ascii")
    return text[:11], text[11:22], text[22:33]


def _linked(name: str, contents: int, own: int, base: bytes, directory: int) -> bool:
    """Link contents into the layer's own directory: True if they were there, False if the file has become them."""
    while True:
        try:
            os.link(name, name, src_dir_fd=contents, dst_dir_fd=own, follow_symlinks=False)
            return True
        except FileExistsError:
            return True  # another file of this layer has them
        except FileNotFoundError:
            pass
        try:
            os.link(base, name, src_dir_fd=directory, dst_dir_fd=contents, follow_symlinks=False)
        except FileExistsError:
            continue  # another process has just made it
        os.link(base, name, src_dir_fd=directory, dst_dir_fd=own, follow_symlinks=False)
        return False


def _equal(name: str, own: int, fd: int) -> bool:
    """Whether linked contents are those of a file; they stay linked in either case, which costs nothing."""
    other = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=own)
    try:
        if os.fstat(other).st_size != os.fstat(fd).st_size:
            return False
        at = 0
        while data := os.pread(fd, _PIECE, at):
            if data != os.pread(other, _PIECE, at):
                return False
            at += len(data)
        return True
    finally:
        os.close(other)


def _make_outline(tree: Tree, directory: int, base: bytes, fd: int, found: os.stat_result, name: str) -> None:
    """Put a file without contents in the place of an open one: the same in all else."""
    spare = _spare()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    new = os.open(spare, flags, 0o600, dir_fd=directory)
    try:
        os.ftruncate(new, found.st_size)
        os.fchown(new, found.st_uid, found.st_gid)  # before the rest: it takes capabilities and set-id bits away
        mark(new, name)
        for key, value in tree.attributes(fd).items():
            os.setxattr(new, key, value)
        os.fchmod(new, stat.S_IMODE(found.st_mode))
        os.utime(new, ns=(found.st_atime_ns, found.st_mtime_ns))
    finally:
        os.close(new)
    os.rename(spare, base, src_dir_fd=directory, dst_dir_fd=directory)


def _spare() -> bytes:
    return b".outline-" + secrets.token_hex(8).encode()


def outlined(layer: int) -> bool:
    """Whether files of a layer, by the descriptor of its directory, may be outlines."""
    try:
        os.stat("contents", dir_fd=layer, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def unused(contents: int) -> tuple[int, int]:
    """Remove the contents that no layer has any more: how many, and their bytes. Not while a layer is made of them."""
    held = open_directory(".", contents)
    files = size = 0
    try:
        if not try_lock(held, exclusive=True):
            return 0, 0
        for name in os.listdir(held):
            with contextlib.suppress(FileNotFoundError):
                row = os.stat(name, dir_fd=held, follow_symlinks=False)
                if row.st_nlink == 1:
                    os.unlink(name, dir_fd=held)
                    files, size = files + 1, size + row.st_size
    finally:
        os.close(held)
    return files, size


def faults_of(layer: int, contents: int | None, known: set[int], *, deep: bool) -> Iterator[tuple[str, str]]:
    """The faults of the contents that a layer has: their names, and why. ``deep``: they are read, those of inodes
    in ``known`` not once more."""
    own = open_directory("contents", layer)
    try:
        for name in sorted(os.listdir(own)):
            row = os.stat(name, dir_fd=own, follow_symlinks=False)
            if not stat.S_ISREG(row.st_mode) or not is_name(name):
                yield name, "is no contents of a file"
                continue
            try:
                there = None if contents is None else os.stat(name, dir_fd=contents, follow_symlinks=False)
            except FileNotFoundError:
                there = None
            if there is None or there.st_ino != row.st_ino:
                yield name, "is another file for the layer" if there else "is missing"
                continue
            if not deep or row.st_ino in known:
                continue
            known.add(row.st_ino)
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=own)
            try:
                if name not in _names(fd):
                    yield name, "has other bytes than its name says"
            finally:
                os.close(fd)
    finally:
        os.close(own)
