"""System calls on mounts as ops: clone, attach, change, make; and statx(2), by which steps decide."""

from __future__ import annotations

from errno import ENOENT, ENOTDIR
from typing import TYPE_CHECKING, Any

from isolate.engine.plan import (
    Argument,
    Buffer,
    Jump,
    Label,
    Load,
    Op,
    Register,
    Test,
    call,
)
from isolate.kernel.constants import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    AT_SYMLINK_NOFOLLOW,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    FSMOUNT_CLOEXEC,
    FSOPEN_CLOEXEC,
    MOUNT_ATTR_RDONLY,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_T_EMPTY_PATH,
    MS_PRIVATE,
    NOTHING,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    S_IFDIR,
    S_IFMT,
    STATX_BASIC_STATS,
    Constant,
)

if TYPE_CHECKING:
    from collections.abc import Iterable


__all__ = [
    "STATX_DEV",
    "STATX_GID",
    "STATX_INO",
    "STATX_MNT_ID",
    "STATX_MODE",
    "STATX_RDEV",
    "STATX_SIZE",
    "STATX_UID",
    "aside",
    "attributes",
    "clone",
    "if_directory",
    "move",
    "move_to",
    "new_file_system",
    "on_top",
    "read_only",
    "stat",
]

#: The offsets of the fields of struct statx (statx(2)); 16 zero bits follow st_mode.
STATX_SIZE, STATX_UID, STATX_GID, STATX_MODE, STATX_INO = 256, 20, 24, 28, 32
STATX_RDEV, STATX_DEV, STATX_MNT_ID = 128, 136, 144


def move(tree: Argument, place: Argument) -> Op:
    """Attach a mount to what a descriptor stands for: no path is resolved any more."""
    return call("move_mount", tree, b"", place, b"", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)


def move_to(tree: Argument, directory: Argument, name: bytes) -> Op:
    """Attach a mount to a name in a directory of which it is known what stands there."""
    return call("move_mount", tree, b"", directory, name, MOVE_MOUNT_F_EMPTY_PATH)


def aside(tree: Register) -> list[Op]:
    """Attach a mount somewhere in the old root, with which it goes: before Linux 6.15 only what is attached is cloned.

    On /sys, whose files nobody needs any more, and not on the root, where it would lie on top of the old root and have
    to be let go on its own: each umount2(2) waits for all processors (synchronize_rcu).
    """
    fallback, end = Label(), Label()
    missing: dict[str, Any] = {"errors": (ENOENT, ENOTDIR), "policy": "jump", "label": fallback}
    return [
        call("move_mount", tree, b"", AT_FDCWD, b"/sys", MOVE_MOUNT_F_EMPTY_PATH, **missing),
        Jump(end),
        fallback,
        on_top(tree),
        end,
    ]


def on_top(tree: Register) -> Op:
    """Stack a mount on the root that the process has, whose own files it still sees."""
    return call("move_mount", tree, b"", AT_FDCWD, b"/", MOVE_MOUNT_F_EMPTY_PATH)


def clone(
    directory: Argument,
    path: Argument,
    out: Register,
    *,
    recursive: bool = True,
    follow: bool = True,
    **policy: object,
) -> Op:
    """A detached copy of what is mounted at a path (b"": at the descriptor itself)."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else NOTHING)
    flags = flags if follow else flags | AT_SYMLINK_NOFOLLOW
    return call("open_tree", directory, path, flags | (AT_EMPTY_PATH if path == b"" else NOTHING), out=out, **policy)


def attributes(
    tree: Register,
    flags: int,
    *,
    clear: int = 0,
    recursive: bool = False,
    private: bool = False,
    buffer: Buffer | None = None,
) -> Op:
    """mount_setattr(2) on a mount by its descriptor. Flags are added; the kernel's locked ones stay as they are."""
    propagation = int(MS_PRIVATE) if private else 0
    name = flags.name if isinstance(flags, Constant) else hex(flags)
    if buffer is None:
        buffer = Buffer(32, "")
    buffer.data = b"".join(n.to_bytes(8, "little") for n in (int(flags), int(clear), propagation, 0))
    buffer.name = f"{{set {name}}}" if flags else "{propagation private}"
    return call("mount_setattr", tree, b"", AT_EMPTY_PATH | (AT_RECURSIVE if recursive else NOTHING), buffer, 32)


def read_only(tree: Register, *, recursive: bool = False) -> Op:
    """Make the mount read-only."""
    return attributes(tree, MOUNT_ATTR_RDONLY, recursive=recursive)


def stat(fd: Argument, buffer: Buffer) -> Op:
    """statx(2) of a descriptor into a buffer of STATX_SIZE bytes."""
    return call("statx", fd, b"", AT_EMPTY_PATH, STATX_BASIC_STATS, buffer)


def if_directory(buffer: Buffer, then: list[Op], otherwise: list[Op]) -> list[Op]:
    """Ops for a directory and for anything else, by what statx(2) has said."""
    other, end = Label(), Label()
    return [
        Test(Load(buffer, STATX_MODE, 4), S_IFDIR, mask=int(S_IFMT), label=other),
        *then,
        Jump(end),
        other,
        *otherwise,
        end,
    ]


def new_file_system(
    kind: bytes,
    out: Register,
    options: Iterable[tuple[bytes, bytes | None]],
    flags: int,
    *,
    create: tuple[Op, ...] = (),
) -> list[Op]:
    """fsopen(2), fsconfig(2), fsmount(2): a mount that is attached nowhere. An option without a value is a flag."""
    fs = Register(kind.decode())
    ops: list[Op] = [call("fsopen", kind, FSOPEN_CLOEXEC, out=fs)]
    for key, value in options:
        if value is None:
            ops.append(call("fsconfig", fs, FSCONFIG_SET_FLAG, key, 0, 0))
        else:
            ops.append(call("fsconfig", fs, FSCONFIG_SET_STRING, key, value, 0))
    ops.append(call("fsconfig", fs, FSCONFIG_CMD_CREATE, 0, 0, 0))
    ops.append(call("fsmount", fs, FSMOUNT_CLOEXEC, flags, out=out))
    ops.append(call("close", fs))
    return ops
