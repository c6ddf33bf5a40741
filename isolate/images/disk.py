"""Files of a store, so that nothing half made has a name: written without one, forced to disk, then named at once."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from isolate.engine.native import call
from isolate.images.errors import StoreError
from isolate.kernel.closing import Closing
from isolate.kernel.locks import lock_within, try_lock
from isolate.kernel.syscalls import number

if TYPE_CHECKING:
    from collections.abc import Iterator


__all__ = [
    "HELD",
    "Patience",
    "Unnamed",
    "doing",
    "is_named",
    "lock",
    "new_directory",
    "open_directory",
    "read_small",
    "rename_new",
    "replace",
    "subdirectory",
    "syncfs",
    "try_lock",
]

_RENAME_NOREPLACE = 1
HELD = 60.0  # seconds for a lock that others hold for a moment only: one that holds it longer was stopped

_CAUSES = {
    errno.ENOSPC: (
        "the file system is full",
        "free space there; in a store collect() removes what nothing names any more",
    ),
    errno.EDQUOT: (
        "the quota of this user is used up",
        "free space there; in a store collect() removes what nothing names any more",
    ),
    errno.EROFS: ("the file system is mounted read-only", "open what is there, or use a store elsewhere"),
    errno.EACCES: ("this user may not do that there", "use a store of your own: Store('~/.local/share/isolate')"),
    errno.EPERM: ("this user may not do that there", "use a store of your own: Store('~/.local/share/isolate')"),
    errno.EMFILE: ("this process has as many descriptors open as it may", "raise RLIMIT_NOFILE"),
    errno.ENFILE: ("the system has as many files open as it may", "close some"),
    errno.EIO: ("the disk failed", "look at the kernel's log (dmesg)"),
    errno.ENOENT: ("somebody else removed part of the store while it was in use", "leave the store to this library"),
    errno.EFBIG: ("a limit on the size of files is below what is needed (RLIMIT_FSIZE)", "raise it"),
}


@contextmanager
def doing(what: str, path: str | bytes | os.PathLike[str] | None = None) -> Iterator[None]:
    """Raise errors of the kernel in the block as a :class:`StoreError` with the step, the cause and a remedy.

    Errors of this library's pass as they are.
    """
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if type(error).__module__.startswith("isolate."):
            raise
        cause, remedy = _CAUSES.get(error.errno or 0, (None, None))
        raise StoreError(
            f"{what} failed",
            errno=error.errno,
            path=path if path is not None else error.filename,
            cause=cause,
            remedy=remedy,
        ) from error


def open_directory(name: str | bytes | os.PathLike[str], at: int | None = None) -> int:
    """A descriptor of a directory, not through a symbolic link as its last word."""
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)


def subdirectory(at: int, name: str, *, mode: int = 0o700, create: bool = True) -> int:
    """A descriptor of a directory in another, made where it is missing (and then forced to disk)."""
    try:
        return open_directory(name, at)
    except FileNotFoundError:
        if not create:
            raise
    try:
        os.mkdir(name, mode, dir_fd=at)
        os.fsync(at)
    except FileExistsError:
        pass
    return open_directory(name, at)


def new_directory(at: int, prefix: str = "") -> tuple[str, int]:
    """A new directory for its owner alone, locked: its name and a descriptor.

    A collector may take one for a leftover before it is locked: that one is left to it, and another made.
    """
    while True:
        name = f"{prefix}{secrets.token_hex(8)}"
        os.mkdir(name, 0o700, dir_fd=at)
        try:
            fd = open_directory(name, at)
        except FileNotFoundError:
            continue
        if try_lock(fd, exclusive=True) and is_named(fd, name, at):
            return name, fd
        os.close(fd)


def syncfs(fd: int) -> None:
    """Force everything on the file system of a descriptor to disk."""
    result = call(number("syncfs"), fd)
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def rename_new(old_at: int, old: str, new_at: int, new: str) -> bool:
    """Give a name that nothing has yet; False where somebody was first."""
    result = call(
        number("renameat2"), old_at, os.fsencode(old) + b"\0", new_at, os.fsencode(new) + b"\0", _RENAME_NOREPLACE
    )
    if result in (-errno.EEXIST, -errno.ENOTEMPTY):
        return False
    if result < 0:
        raise OSError(-result, os.strerror(-result), new)
    return True


def lock(fd: int, *, exclusive: bool, seconds: float, what: str) -> None:
    """Lock what a descriptor stands for, waiting for others so long at most.

    :raises StoreError: somebody else holds it.
    """
    if not lock_within(fd, seconds, exclusive=exclusive):
        raise _in_use(what, seconds)


def _in_use(what: str, seconds: float) -> StoreError:
    return StoreError(
        f"{what} is in use by another process",
        cause=f"it was locked for the whole of {seconds:g} s",
        remedy="try again when that process has ended (lslocks(8) shows which it is)",
    )


class Patience:
    """A wait for another process that has an end: :meth:`pause` between two looks, until ``seconds`` have passed."""

    def __init__(self, what: str, seconds: float) -> None:
        self._what = what
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def pause(self, step: float) -> None:
        """Wait for a moment.

        :raises StoreError: the time is over: somebody else has held it for the whole of it.
        """
        if time.monotonic() >= self._end:
            raise _in_use(self._what, self._seconds)
        time.sleep(step)


def is_named(fd: int, name: str, at: int) -> bool:
    """Whether the name still stands for what the descriptor stands for."""
    try:
        there = os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return False
    own = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)


class Unnamed(Closing):
    """A new file in a directory that has no name until :meth:`name` gives it one; closed without, it is gone.

    Where the file system has no such files (O_TMPFILE), it has a name that starts with ``.new-`` until then.
    """

    def __init__(self, at: int, mode: int = 0o644) -> None:
        self._at = at
        self._own: str | None = None
        try:
            self.fd: int = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=at)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
            own = f".new-{secrets.token_hex(8)}"
            self.fd = os.open(own, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode, dir_fd=at)
            self._own = own

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]

    def name(self, name: str) -> bool:
        """Force it to disk and give it a name; False where something has that name already."""
        os.fsync(self.fd)
        try:
            if self._own is None:
                os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=self._at, follow_symlinks=True)
            elif rename_new(self._at, self._own, self._at, name):
                self._own = None
            else:
                return False
        except FileExistsError:
            return False
        os.fsync(self._at)
        return True

    def close(self) -> None:
        """Let go of it; without a name it is gone."""
        if self._own is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._own, dir_fd=self._at)
            self._own = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def take(self) -> int:
        """The descriptor, which is the caller's from now on."""
        fd, self.fd = self.fd, -1
        return fd


def replace(at: int, name: str, data: bytes, mode: int = 0o644) -> None:
    """Give a file new content at once: who reads it sees the old or the new, also after a power cut."""
    own = f".new-{secrets.token_hex(8)}"
    fd = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode, dir_fd=at)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(own, name, src_dir_fd=at, dst_dir_fd=at)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(own, dir_fd=at)
        raise
    os.fsync(at)


def read_small(at: int, name: str, largest: int) -> bytes:
    """The content of a regular file of at most so many bytes."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > largest:
            raise StoreError(f"{name} is no regular file of at most {largest} bytes")
        data = b""
        while chunk := os.read(fd, largest + 1 - len(data)):
            data += chunk
            if len(data) > largest:
                raise StoreError(f"{name} has more than {largest} bytes")
        return data
    finally:
        os.close(fd)
