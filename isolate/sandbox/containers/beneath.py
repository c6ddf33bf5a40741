"""A container's paths: opened from its root's descriptor, never through a link, never outside, never waiting."""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import dataclass

from isolate.engine import native
from isolate.engine.finding import Finding
from isolate.errors import SetupError, printable
from isolate.kernel.paths import PATH_MAX
from isolate.kernel.syscalls import number

__all__ = ["Doing", "FileInfo", "Opened", "components", "info_of", "open_beneath", "reopen_regular"]

# openat2(2): RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH
_RESOLVE = 0x02 | 0x04 | 0x08
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
_RIGHT = Finding(
    "{user} may not",
    "give it the right there (chmod, chown), or use a directory of its own, such as /tmp inside",
)
_FINDINGS = {
    errno.ELOOP: Finding(
        "a symbolic link is on the way, and none is followed", "name the place that it leads to, without the link"
    ),
    errno.EXDEV: Finding("the path leads out", "name a path that stays below the root"),
    errno.ENOENT: Finding(
        "there is no such file",
        "list() of the directory shows what is there; parents=True makes directories that are missing on the way",
    ),
    errno.ENOTDIR: Finding("something on the way is no directory", "list() of the path before it shows what it is"),
    errno.EACCES: _RIGHT,
    errno.EPERM: _RIGHT,
    errno.EROFS: Finding(
        "that file system is read-only",
        "use a directory that programs inside write to: a Tmpfs, an Overlay, or a Bind with read_only=False",
    ),
    errno.ENOSPC: Finding("the file system is full", "remove files there, or give it more room (Tmpfs(size=...))"),
    errno.EDQUOT: Finding("the file system's quota is used up", "remove files there, or have the quota raised"),
    errno.EISDIR: Finding("a directory stands there", "take another name, or remove the directory inside first"),
    errno.ENAMETOOLONG: Finding("a name is longer than that file system takes", "take a shorter one"),
}


@dataclass(frozen=True)
class FileInfo:
    """A file in a container: what it is, never what it leads to."""

    #: From the container's root; any bytes are possible in it (``os.fsencode``).
    path: str
    #: "file", "directory", "symlink", "fifo", "socket" or "device".
    kind: str
    size: int
    mode: int
    mtime: float
    #: How many names the file has.
    links: int = 1
    #: The path that :meth:`~isolate.Container.get` wrote it to; None if it was not fetched (no file or directory).
    saved: str | None = None


class Opened:
    """A descriptor for the length of a block."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


@dataclass
class Doing:
    """What is done with the files of a container or a workspace, as its errors name it."""

    step: str
    #: "Container" or "Workspace".
    part: str

    def problem(self, error: OSError, path: bytes) -> SetupError:
        """An error about one of the files."""
        user = "the container's user" if self.part == "Container" else "this program's user"
        found = _FINDINGS.get(error.errno or 0)
        if found is None and error.errno == errno.EINVAL and error.strerror:
            found = Finding(error.strerror, "list() and get() tell what it is; a program inside can read it")
        return SetupError(
            error.errno or errno.EIO,
            self.step,
            part=self.part,
            path=printable(os.fsdecode(path)),
            cause=None if found is None else found.cause.format(user=user),
            remedy=None if found is None else found.remedy,
        )

    def told(self, error: OSError, path: bytes) -> OSError:
        """The error with the step; what has it already stays as it is."""
        return error if isinstance(error, SetupError) else self.problem(error, b"/" + path)


def components(path: object) -> list[bytes]:
    """A path inside, by its names.

    :raises ValueError: ``..`` in it, a NUL byte, too long. :raises TypeError: no path.
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"a path inside the container must be a str, bytes or os.PathLike, not {path!r}")
    data = os.fsencode(path)
    names = [name for name in data.split(b"/") if name not in (b"", b".")]
    if b"\0" in data or b".." in names or len(data) >= PATH_MAX:
        raise ValueError(f"not a path inside the container: {path!r}")
    return names


def open_beneath(directory: int, path: bytes, flags: int) -> int:
    """openat2(2), beneath a directory and without symbolic links.

    :raises OSError: as the kernel says.
    """
    # O_NOFOLLOW would take the error about a link at the end for one about a directory.
    how = struct.pack("<QQQ", flags & ~os.O_NOFOLLOW | os.O_CLOEXEC, 0, _RESOLVE)
    fd = -errno.EAGAIN
    for _ in range(100):  # EAGAIN: something was renamed on the way meanwhile
        fd = native.call(number("openat2"), directory, (path or b".") + b"\0", how, len(how))
        if fd != -errno.EAGAIN:
            break
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd), os.fsdecode(path))
    return fd


def info_of(path: bytes, found: os.stat_result, saved: str | None = None) -> FileInfo:
    """The information about a file."""
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), "device")
    return FileInfo(
        os.fsdecode(path), kind, found.st_size, stat.S_IMODE(found.st_mode), found.st_mtime, found.st_nlink, saved
    )


def reopen_regular(fd: int) -> int:
    """A descriptor to read from, of an O_PATH descriptor's regular file. A FIFO or a device is never opened.

    :raises OSError: EINVAL: it is no regular file.
    """
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "device")
        raise OSError(errno.EINVAL, f"it is no regular file but a {kind}")
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
