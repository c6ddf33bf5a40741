"""One copy of a file that several layers have: equal files of unpacked layers are links to one.

Two files are equal if contents, mode, owner, time and attributes are; what is unpacked is never written to, so a link
is as good as a copy. ``objects/`` has each file once more by name: a file of which nobody but that name is left is not
in use.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.images.confined import words
from isolate.images.pack.scan import Tree

if TYPE_CHECKING:
    from isolate.namespaces.ids import IdMap

__all__ = ["NO_LINK", "Shared", "saved", "share", "unshared"]

_PIECE = 1 << 18
#: The errors of a file system that makes no (more) links to a file, or not for this caller.
NO_LINK = (errno.EMLINK, errno.EPERM, errno.EXDEV, errno.EACCES, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Shared:
    """``files`` of a tree that were there already, and the ``bytes`` that this saved."""

    files: int
    bytes: int


def share(tree: int, objects: int, *, map: IdMap | None = None) -> Shared:
    """Let files of a tree be links to equal ones that were seen before; the others will be found by the next tree.

    ``tree`` and ``objects`` are descriptors of directories in one file system. ``map``: by a child with these ids,
    where the caller cannot read all files. The tree must not be in use.
    """
    if map is None:
        return share_here(tree, objects)
    from isolate.images.confined.start import confined  # loaded late: for root nothing of it is needed

    fds = {words.TARGET: tree, words.FACTS: objects}
    answer = confined("share", {}, ids=map, fds=fds, writable=(tree, objects))
    return Shared(int(answer["files"]), int(answer["bytes"]))


def share_here(top: int, objects: int) -> Shared:
    """As whoever runs this."""
    tree = Tree(top)
    taken: set[str] = set()  # two files of one layer are two files: an archive of it would have them as links
    times: dict[bytes, os.stat_result] = {}
    files = size = 0
    try:
        rows = list(tree.stats())
        for path, found in rows:
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or not found.st_size:
                continue
            try:
                name = _name(tree, path, found)
            except PermissionError:
                continue  # not even its owner may read it
            if name in taken:
                continue
            taken.add(name)
            parent, _, base = path.rpartition(b"/")
            directory = tree.directory(parent)
            if parent not in times:
                times[parent] = os.fstat(directory)
            try:
                if _link(name, objects, base, directory, found):
                    files, size = files + 1, size + found.st_size
            except OSError as error:
                if error.errno not in NO_LINK:
                    raise
        for path, row in times.items():
            os.utime(tree.directory(path), ns=(row.st_atime_ns, row.st_mtime_ns))
    finally:
        tree.close()
    return Shared(files, size)


def _name(tree: Tree, path: bytes, found: os.stat_result) -> str:
    """The name of everything that a file is: a digest of its metadata and contents."""
    fd = tree.open(path)
    try:
        state = hashlib.sha256()
        state.update(
            b"%d %d %d %d %d\n" % (found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, found.st_size)
        )
        for key in sorted(os.listxattr(fd)):
            value = os.getxattr(fd, key)
            state.update(b"%d %s%d " % (len(os.fsencode(key)), os.fsencode(key), len(value)) + value)
        state.update(b"\n")
        while data := os.read(fd, _PIECE):
            state.update(data)
        return state.hexdigest()
    finally:
        os.close(fd)


def _link(name: str, objects: int, base: bytes, directory: int, found: os.stat_result) -> bool:
    """Put the object in the place of a file, True, or make the file the object, False."""
    place = f"{name[:2]}/{name[2:]}"
    while True:
        spare = b".share-" + secrets.token_hex(8).encode()
        try:
            os.link(place, spare, src_dir_fd=objects, dst_dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name[:2], 0o700, dir_fd=objects)
            try:
                os.link(base, place, src_dir_fd=directory, dst_dir_fd=objects, follow_symlinks=False)
            except FileExistsError:
                continue  # another process has just made it
            return False
        row = os.stat(spare, dir_fd=directory, follow_symlinks=False)
        if (row.st_mode, row.st_size, row.st_mtime_ns) != (found.st_mode, found.st_size, found.st_mtime_ns):
            # Damaged: whoever finds it is better off without.
            os.unlink(spare, dir_fd=directory)
            os.unlink(place, dir_fd=objects)
            continue
        os.rename(spare, base, src_dir_fd=directory, dst_dir_fd=directory)
        return True


def saved(directory: int) -> int:
    """The bytes on disk that the files below a directory save, each of which has one more name in every layer."""
    size = 0
    for _, _, names, fd in os.fwalk(".", dir_fd=directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # collected meanwhile
                row = os.stat(name, dir_fd=fd, follow_symlinks=False)
                size += max(row.st_nlink - 2, 0) * row.st_blocks * 512
    return size


def unshared(objects: int) -> tuple[int, int]:
    """Remove the objects that no tree has any more: how many, and their bytes.

    Nothing needs to be locked: a tree that links one at the same time has it already, and only the name is gone.
    """
    files = size = 0
    for letters in os.listdir(objects):
        try:
            fd = os.open(letters, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=objects)
        except (NotADirectoryError, FileNotFoundError):
            continue
        try:
            for name in os.listdir(fd):
                try:
                    row = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if row.st_nlink == 1:
                        os.unlink(name, dir_fd=fd)
                        files, size = files + 1, size + row.st_size
                except FileNotFoundError:
                    pass
        finally:
            os.close(fd)
    return files, size
