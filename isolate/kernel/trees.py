"""Trees that somebody else made, or still writes to: looked through and removed by descriptor, through no link."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MOST", "remove_here", "walk"]

#: So deep directories are looked through: each level is held open.
MOST = 200
_DEPTH = 128  # directories held open
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def walk(directory: int) -> Iterator[tuple[int, list[str]]]:
    """Each directory from this one on, open while it is looked at, and the names in it. Those that this user may not
    open are left out.

    :raises OSError: ENAMETOOLONG: directories are deeper than :data:`MOST`.
    """
    held: list[tuple[int, list[str]]] = []
    fd = os.open(".", _DIRECTORY, dir_fd=directory)
    try:
        while True:
            held.append((fd, []))
            if len(held) > MOST:
                raise OSError(errno.ENAMETOOLONG, f"directories are deeper than {MOST}")
            with os.scandir(fd) as rows:
                found = [(row.name, row.is_dir(follow_symlinks=False)) for row in rows]
            held[-1][1].extend(name for name, below in found if below)
            yield fd, [name for name, _ in found]
            while True:
                at, below = held[-1]
                if below:
                    try:
                        fd = os.open(below.pop(), _DIRECTORY, dir_fd=at)
                        break
                    except (FileNotFoundError, NotADirectoryError, PermissionError):
                        continue  # gone meanwhile, or another id's
                held.pop()
                os.close(at)
                if not held:
                    return
    finally:
        for at, _ in held:
            os.close(at)


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
        # Use a descriptor, because a process that still writes there may put a link in its place.
        handle = os.open(name, os.O_PATH | _DIRECTORY, dir_fd=directory)
        try:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)
        finally:
            os.close(handle)
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
