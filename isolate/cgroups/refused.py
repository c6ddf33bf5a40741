"""Why the kernel refuses to make a group or to set a limit, and what helps."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from isolate.engine.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["making", "writing"]


def making(parent: str) -> Mapping[int, str | Finding]:
    """The findings of mkdir in a group, and of passing controllers on."""
    return {
        errno.EBUSY: Finding(
            f"{parent} has processes in it, so it can pass no controller on",
            "move them into a leaf: isolate.Cgroup.take_over()",
        ),
        errno.EROFS: Finding(
            f"the cgroup file system at {parent} is read-only",
            "as root: mount -o remount,rw it; in a container: have it mounted writable (Docker, Podman: --privileged)",
        ),
        errno.EACCES: Finding(
            f"{parent} is not ours to write: it has to be delegated to this user",
            "run as root, or have it delegated: python -m isolate doctor says how on this host",
        ),
        errno.EAGAIN: Finding(
            "cgroup.max.descendants or cgroup.max.depth of a group above is reached",
            "run fewer at once, or raise them",
        ),
        errno.ENOSPC: Finding(
            "no room for another group of this kind (65535 memory groups, dying ones included)",
            "run fewer at once; dying ones go when their memory is taken back: as root, "
            "echo 2 > /proc/sys/vm/drop_caches",
        ),
    }


def writing(file: str, data: bytes, parent: str) -> Mapping[int, str | Finding]:
    """The findings of writing a value to a group's file, and of another value that is read back."""
    other = "the kernel holds another value than the one asked for"
    return {
        errno.ENOENT: f"the kernel, or the group above ({parent}), has no {file}",
        errno.ERANGE: other,
        errno.EIO: other,
        errno.EINVAL: Finding(
            f"the kernel refuses {data.decode()!r} for {file}", f"compare with the values of {parent}"
        ),
        errno.EBUSY: Finding("the group uses more than that already", "end something in it, or give a higher limit"),
        errno.EACCES: Finding(
            f"{file} cannot be changed by this user",
            "run as root, or have it delegated: python -m isolate doctor says how on this host",
        ),
        errno.EPERM: f"the group above ({parent}) does not allow it",
        errno.ENODEV: Finding("there is no such device", "name one of lsblk, or of /sys/dev/block"),
    }
