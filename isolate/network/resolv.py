"""Name resolution of a member: ``/etc/resolv.conf`` in its root, or over the host's in its mount namespace."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from isolate.engine.ops import Label, Op, Register, call
from isolate.engine.plan import Phase, Step
from isolate.kernel.constants import (
    AT_FDCWD,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOVE_MOUNT_F_EMPTY_PATH,
    O_CLOEXEC,
    O_CREAT,
    O_EXCL,
    O_WRONLY,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    Constant,
)
from isolate.mounts.calls import new_file_system
from isolate.mounts.root import Root
from isolate.namespaces.part import MountNamespace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.engine.plan import Context
    from isolate.network.address import Address

__all__ = ["PATH", "content", "without_a_root"]

PATH = "/etc/resolv.conf"
_FOLLOW = Constant(0x10, "MOVE_MOUNT_T_SYMLINKS")


def content(servers: Iterable[Address]) -> bytes:
    """The file (resolv.conf(5))."""
    return b"".join(b"nameserver %s\n" % str(server).encode() for server in servers) + b"options timeout:2 attempts:2\n"


def without_a_root(context: Context, servers: Iterable[Address]) -> Iterator[Step]:
    """Name servers for a sandbox that sees the host's files in a mount namespace of its own."""
    mounts = context.find(MountNamespace)
    if context.find(Root) is None and mounts is not None and not mounts.joined:
        yield _over_the_host(content(servers))


def _over_the_host(data: bytes) -> Step:
    """Mount such a file over the host's. Where there is none nothing changes."""
    tmpfs, fd, tree, end = Register("tmpfs"), Register("file"), Register("tree"), Label()
    flags = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    options = [(b"size", b"16k"), (b"nr_inodes", b"4"), (b"mode", b"0755")]
    name = b"resolv.conf"
    ops: list[Op] = [
        *new_file_system(b"tmpfs", tmpfs, options, flags),
        call("openat", tmpfs, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o644, out=fd),
        call("write", fd, data, len(data), expect=len(data)),
        call("close", fd),
        call("open_tree", tmpfs, name, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC, out=tree),
        call("close", tmpfs),
        call(
            "move_mount",
            tree,
            b"",
            AT_FDCWD,
            PATH.encode(),
            MOVE_MOUNT_F_EMPTY_PATH | _FOLLOW,
            errors=(errno.ENOENT,),
            policy="jump",
            label=end,
        ),
        end,
        call("close", tree),
    ]
    return Step(Phase.SYSTEM, f"{PATH} names the network's resolver", tuple(ops), path=PATH.encode())
