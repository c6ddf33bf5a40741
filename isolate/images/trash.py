"""Removing from a store: first out of the way by rename, then deleted, whatever is in it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from typing import TYPE_CHECKING

from isolate.images.disk import open_directory

if TYPE_CHECKING:
    from isolate.images.opening import Opened

__all__ = ["delete", "discard", "empty"]


def discard(opened: Opened, at: int, name: str) -> None:
    """Move something to the trash, and delete it there; what cannot be deleted now is left to :func:`empty`."""
    new = secrets.token_hex(16)
    try:
        os.rename(name, new, src_dir_fd=at, dst_dir_fd=opened.trash_fd)
    except FileNotFoundError:
        return
    with contextlib.suppress(OSError):
        delete(opened.trash_fd, new)


def empty(opened: Opened) -> tuple[int, list[str]]:
    """Delete what is in the trash: how many were deleted, and what could not be."""
    done, left = 0, []
    for name in os.listdir(opened.trash_fd):
        try:
            delete(opened.trash_fd, name)
            done += 1
        except OSError:
            left.append(name)
    return done, left


def delete(at: int, name: str) -> None:
    """Remove a file or a whole directory, by descriptors; no symbolic link is followed, no depth is too much.

    Two that do it at once do not disturb each other.
    """
    try:
        os.unlink(name, dir_fd=at)
        return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
    _clear(at, name)


def _clear(at: int, name: str) -> None:
    """Without recursion: a deep directory is moved up, and removed from there."""
    top = _openable(at, name)
    if top is None:
        return
    try:
        while True:
            below: str | None = None
            for entry in os.listdir(top):
                try:
                    found = os.stat(entry, dir_fd=top, follow_symlinks=False)
                    if stat.S_ISDIR(found.st_mode):
                        below = entry
                        _flatten(top, entry)
                    else:
                        os.unlink(entry, dir_fd=top)
                except FileNotFoundError:
                    continue
            if below is None:
                break
    finally:
        os.close(top)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=at)


def _flatten(top: int, name: str) -> None:
    """Remove a directory; what directories it holds come to lie beside it."""
    fd = _openable(top, name)
    if fd is None:
        return
    try:
        for entry in os.listdir(fd):
            try:
                found = os.stat(entry, dir_fd=fd, follow_symlinks=False)
                if not stat.S_ISDIR(found.st_mode):
                    os.unlink(entry, dir_fd=fd)
                    continue
                try:
                    os.rmdir(entry, dir_fd=fd)
                    continue
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EACCES):
                        raise
                inner = _openable(fd, entry)  # a directory that may not be written to cannot be moved, either
                if inner is not None:
                    os.close(inner)
                os.rename(entry, secrets.token_hex(16), src_dir_fd=fd, dst_dir_fd=top)
            except FileNotFoundError:
                continue
    finally:
        os.close(fd)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=top)


def _openable(at: int, name: str) -> int | None:
    """A directory, made writable by its owner first where it is not; None where it has gone."""
    try:
        fd = open_directory(name, at)
        if os.fstat(fd).st_mode & 0o700 != 0o700 and os.geteuid() != 0:
            os.fchmod(fd, 0o700)
    except FileNotFoundError:
        return None
    except PermissionError:
        try:
            os.chmod(name, 0o700, dir_fd=at)
            fd = open_directory(name, at)
        except FileNotFoundError:
            return None
    return fd
