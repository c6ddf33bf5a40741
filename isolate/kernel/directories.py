"""Directories below which names of ours stand for everybody to find: made with explicit modes, and trusted by check."""

from __future__ import annotations

import errno
import os
import stat

__all__ = ["open_own"]

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_own(path: str, mode: int = 0o755) -> int:
    """A descriptor of an absolute directory that nobody but root and this user can change.

    What is missing is made, with this mode whatever the umask is. No component may be a symbolic link, belong to
    another user, or be writable by others: whoever can write one leads the names below it elsewhere.

    :raises PermissionError: a component is none of that, named by ``filename``. :raises OSError: it cannot be opened.
    """
    at = "/"
    fd = os.open(at, _FLAGS)
    try:
        for name in path.strip("/").split("/"):
            at = os.path.join(at, name)
            following = _open(fd, name, at, mode)
            os.close(fd)
            fd = following
            _check(fd, at)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open(directory: int, name: str, path: str, mode: int) -> int:
    try:
        return _opened(directory, name, path)
    except FileNotFoundError:
        pass
    try:
        # Not for others before its mode is what it is to be: the umask may have taken from it, never added.
        os.mkdir(name, 0o700, dir_fd=directory)
    except FileExistsError:
        return _opened(directory, name, path)  # somebody was quicker; whose it is will be checked
    fd = _opened(directory, name, path)
    os.fchmod(fd, mode)
    return fd


def _opened(directory: int, name: str, path: str) -> int:
    try:
        return os.open(name, _FLAGS, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise PermissionError(errno.EPERM, "is a symbolic link, or no directory", path) from None
        error.filename = path
        raise


def _check(fd: int, path: str) -> None:
    found = os.fstat(fd)
    if found.st_uid not in (0, os.geteuid()):
        raise PermissionError(errno.EPERM, f"belongs to uid {found.st_uid}", path)
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(errno.EPERM, f"can be written by others (mode {found.st_mode & 0o7777:o})", path)
