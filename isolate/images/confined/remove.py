"""Remove a tree without following links, however deep it is."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from isolate.images.errors import StoreError

if TYPE_CHECKING:
    from isolate.namespaces.ids import IdMap

__all__ = ["remove_here", "remove_tree"]

_DEPTH = 128  # directories held open
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(directory: int, name: bytes, ids: IdMap | None) -> None:
    """As the caller, and where that is not enough as a child with the wanted ids.

    :raises StoreError: something cannot be removed.
    """
    try:
        remove_here(directory, name)
    except PermissionError as error:
        if os.geteuid() == 0:
            raise _failed(error) from error
        from isolate.images.confined import words
        from isolate.images.confined.maps import map_for
        from isolate.images.confined.start import confined  # loaded late: mostly the caller alone is enough

        fds = {words.TARGET: directory}
        confined("remove", {"name": words.text(name)}, ids=map_for(ids), fds=fds, writable=(directory,))
    except OSError as error:
        raise _failed(error) from error


def _failed(error: OSError) -> StoreError:
    causes = {
        errno.EBUSY: "something is mounted there",
        errno.EPERM: "it is immutable, or belongs to somebody else",
        errno.EACCES: "a directory in it belongs to somebody else",
    }
    number = error.errno or errno.EIO
    return StoreError("a tree cannot be removed", errno=number, path=error.filename, cause=causes.get(number))


def remove_here(directory: int, name: bytes) -> None:
    """As whoever runs this. Directories without rights are given them first."""
    try:
        os.unlink(name, dir_fd=directory)
        return
    except FileNotFoundError:
        return
    except IsADirectoryError:
        pass
    except PermissionError:  # some file systems say so for directories
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
        os.close(fd)
    top = _enter(name, directory)
    held: list[tuple[int, bytes, list[bytes]]] = [(top, name, _emptied(top))]
    try:
        while held:
            fd, last, below = held[-1]
            if below:
                base = below.pop()
                if len(held) >= _DEPTH:
                    # Too deep to hold a descriptor for each level: what is below is moved to the top.
                    moved = b".removed-" + os.urandom(8).hex().encode()
                    os.rename(base, moved, src_dir_fd=fd, dst_dir_fd=top)
                    held[0][2].append(moved)
                else:
                    new = _enter(base, fd)
                    held.append((new, base, []))
                    held[-1][2].extend(_emptied(new))
                continue
            held.pop()
            os.close(fd)
            os.rmdir(last, dir_fd=held[-1][0] if held else directory)
    finally:
        for fd, _, _ in held:
            os.close(fd)


def _enter(name: bytes, directory: int) -> int:
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=directory)  # a directory: no link, which could not be opened so
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
    if os.fstat(fd).st_mode & 0o700 != 0o700:
        try:
            os.fchmod(fd, 0o700)
        except PermissionError:
            pass  # removing says so
    return fd


def _emptied(fd: int) -> list[bytes]:
    """Remove what is no directory; the names of those that are left."""
    with os.scandir(fd) as rows:
        names = [(os.fsencode(row.name), row.is_dir(follow_symlinks=False)) for row in rows]
    for name, directory in names:
        if not directory:
            os.unlink(name, dir_fd=fd)
    return [name for name, directory in names if directory]
