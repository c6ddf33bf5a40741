"""Quotas by project id (quotactl_fd(2), ioctl FS_IOC_FSSETXATTR): ext4 and xfs count all below a directory together.

What is made in a directory that has a project and the flag PROJINHERIT is of that project, and nothing can be linked or
moved into it from another one. In a user namespace nobody can change either, whoever owns the file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.engine.native import call
from isolate.errors import SetupError
from isolate.kernel.syscalls import number
from isolate.kernel.trees import walk

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Project"]

_FSGETXATTR, _FSSETXATTR = 0x801C581F, 0x401C5820
_FSXATTR = struct.Struct("=5I8x")  # flags, extent size, extents, project, extent size of copies
_PROJINHERIT = 0x200
_Q_GETQUOTA, _Q_SETQUOTA, _PRJQUOTA = 0x800007, 0x800008, 2
_Q_XGETQSTAT, _PDQ_ENFD = 0x5805, 32
_DQBLK = struct.Struct("=8QI4x")  # hard, soft, space, hard, soft, inodes, times; which of them are said
_BLIMITS, _ILIMITS = 1, 4
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_TRIES = 100


@dataclass(frozen=True)
class Project:
    """A project of a workspace's own. Its directory has to be empty of what is of another project."""

    number: int

    @classmethod
    def of(cls, directory: int, size: int, files: int) -> Project:
        """Give a directory, and what is in it, a project that nobody has, with these limits.

        :raises SetupError: the file system has no project quotas, or this program may not set them.
        """
        try:
            if _attributes(directory)[3]:
                raise _refused(errno.EBUSY, "the directory is of another project already", "another directory")
            if not _enforced(directory):  # ext4 with the feature and mounted with noquota counts, and holds nothing
                raise OSError(errno.ESRCH, "")
            project = cls._free(directory)
            # The top counts as a file of its own.
            _quotactl(directory, _Q_SETQUOTA, project.number, (size + 1023) // 1024, files + 1)
            try:
                project._mark(directory, project.number, _PROJINHERIT)
                hard, _, _, most, *_ = _quotactl(directory, _Q_GETQUOTA, project.number)
                if (hard, most) != ((size + 1023) // 1024, files + 1) or _attributes(directory)[3] != project.number:
                    raise _refused(errno.EIO, "the kernel holds other limits than were set")
            except BaseException:
                project.end(directory)
                raise
        except OSError as error:
            if isinstance(error, SetupError):
                raise
            causes = {
                errno.ESRCH: "projects have no quotas there (ext4: mkfs -O quota,project; mount -o prjquota)",
                errno.ENOTTY: "the file system has no projects",
                errno.EOPNOTSUPP: "the file system has no projects",
                errno.EINVAL: "the file system has no projects, or this is a user namespace",
                errno.ENOSYS: "the file system, or this kernel, has no quotas",
                errno.EPERM: "only root on the host may set quotas",
            }
            found = error.errno or errno.EIO
            raise _refused(found, causes.get(found, os.strerror(found))) from None
        return project

    @classmethod
    def _free(cls, directory: int) -> Project:
        for _ in range(_TRIES):
            found = 1 << 30 | secrets.randbelow(1 << 30)
            hard, soft, space, most, some, inodes, *_ = _quotactl(directory, _Q_GETQUOTA, found)
            if not any((hard, soft, space, most, some, inodes)):
                return cls(found)
        raise _refused(errno.EBUSY, "every project that was tried is in use")

    def usage(self, directory: int) -> tuple[int, int]:
        """Bytes and files, without the top directory."""
        found = _quotactl(directory, _Q_GETQUOTA, self.number)
        return found[2], found[5] - 1

    def end(self, directory: int) -> None:
        """Take the project from what is still there, and the limits."""
        with contextlib.suppress(OSError):
            self._mark(directory, 0, 0)
        with contextlib.suppress(OSError):
            _quotactl(directory, _Q_SETQUOTA, self.number, 0, 0)

    def release(self, near: str) -> None:
        """Take the limits away, once nothing is of it any more; ``near`` is a directory of its file system."""
        with contextlib.suppress(OSError):
            fd = os.open(near, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _quotactl(fd, _Q_SETQUOTA, self.number)
            finally:
                os.close(fd)

    def _mark(self, directory: int, project: int, flag: int) -> None:
        _set(directory, project, flag)
        for fd in _below(directory):
            _set(fd, project, flag if stat.S_ISDIR(os.fstat(fd).st_mode) else 0)


def _below(directory: int) -> Iterator[int]:
    """Descriptors of the directories and regular files in it; other kinds have no contents to be counted."""
    for fd, names in walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                kind = stat.S_IFMT(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
                if kind not in (stat.S_IFDIR, stat.S_IFREG):
                    continue
                each = os.open(name, _FILE, dir_fd=fd)
                try:
                    yield each
                finally:
                    os.close(each)


def _attributes(fd: int) -> tuple[int, ...]:
    return _FSXATTR.unpack(fcntl.ioctl(fd, _FSGETXATTR, bytes(_FSXATTR.size)))


def _set(fd: int, project: int, flag: int) -> None:
    flags, extent, extents, _, copies = _attributes(fd)
    fcntl.ioctl(fd, _FSSETXATTR, _FSXATTR.pack(flags & ~_PROJINHERIT | flag, extent, extents, project, copies))


def _enforced(fd: int) -> bool:
    """Whether limits of projects are held, and not only what is used is counted."""
    state = bytearray(256)  # struct fs_quota_stat, whose flags are its second field
    done = call(number("quotactl_fd"), fd, _Q_XGETQSTAT << 8 | _PRJQUOTA, 0, state)
    if done < 0:
        raise OSError(-done, os.strerror(-done))
    return bool(struct.unpack_from("=H", state, 2)[0] & _PDQ_ENFD)


def _quotactl(fd: int, command: int, project: int, blocks: int = 0, files: int = 0) -> tuple[int, ...]:
    """quotactl_fd(2) for a project: limits in blocks of 1 KiB and in files."""
    block = bytearray(_DQBLK.pack(blocks, 0, 0, files, 0, 0, 0, 0, _BLIMITS | _ILIMITS))
    done = call(number("quotactl_fd"), fd, command << 8 | _PRJQUOTA, project, block)
    if done < 0:
        raise OSError(-done, os.strerror(-done))
    return _DQBLK.unpack(block)


def _refused(error: int, cause: str, remedy: str = "hold='memory', 'image' or 'measured'") -> SetupError:
    step = "set a quota by project"
    return SetupError(error, step, part="Workspace", syscall="quotactl_fd", cause=cause, remedy=remedy)
