"""The program's streams that are the host's ``/dev/null``, made another that its holder cannot change.

A descriptor goes with its mount: whoever has the same uid as the owner of the host's device node could change the
node's mode or times through it (fchmod(2), futimens(2)), though nothing of the host's ``/dev`` is inside. Through a
read-only mount the device can be read and written all the same, and its node cannot be changed.
"""

from __future__ import annotations

import os
import stat as stat_module
from errno import ENODEV
from typing import TYPE_CHECKING

from isolate.engine import native
from isolate.engine.descriptors import OwnedDescriptor
from isolate.engine.plan import Buffer, Jump, Label, Load, Op, Phase, Register, Step, Store, Test, call
from isolate.kernel.constants import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MOVE_MOUNT_F_EMPTY_PATH,
    MS_PRIVATE,
    O_CLOEXEC,
    O_RDWR,
    S_IFCHR,
    S_IFMT,
)
from isolate.kernel.syscalls import number
from isolate.mounts.calls import STATX_MODE, STATX_RDEV, STATX_SIZE, attributes, clone, stat

if TYPE_CHECKING:
    from isolate.engine.plan import Argument

__all__ = ["exchange", "from_outside", "from_tree", "over_the_host", "tree_of_null"]

NULL = 1 | 3 << 32  # stx_rdev_major, stx_rdev_minor
STREAMS = (0, 1, 2)


def _each(then: list[list[Op]]) -> list[Op]:
    """Ops for each of the streams that is the null device."""
    ops: list[Op] = []
    for stream, mine in zip(STREAMS, then, strict=True):
        kind, other = Buffer(STATX_SIZE, "stat", scratch=True), Label()
        ops += [
            stat(stream, kind),
            Test(Load(kind, STATX_MODE, 4), S_IFCHR, mask=int(S_IFMT), label=other),
            Test(Load(kind, STATX_RDEV), NULL, label=other),
            *mine,
            other,
        ]
    return ops


def exchange(null: Argument) -> list[Op]:
    """Put a descriptor of the null device in the place of the streams that are one."""
    return _each([[call("dup3", null, stream, 0)] for stream in STREAMS])


def _made(opening: tuple[Op, ...], tree: Register, null: Register) -> list[Op]:
    kind, made, end = Buffer(STATX_SIZE, "stat", scratch=True), Label(), Label()
    return [
        *_each([[Jump(made)]] * len(STREAMS)),  # never equal: always jumps
        Jump(end),
        made,
        clone(AT_FDCWD, b"/dev/null", tree, recursive=False),
        stat(tree, kind),
        Test(Load(kind, STATX_MODE, 4), S_IFCHR, mask=int(S_IFMT), error=ENODEV),
        Test(Load(kind, STATX_RDEV), NULL, error=ENODEV),
        attributes(tree, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, private=True),
        *opening,
        *exchange(null),
        call("close", null),
        call("close", tree),
        end,
    ]


TEXT = "streams that are the host's /dev/null: the same device, whose node cannot be changed"
HINTS = {ENODEV: "what stands there on the host is not that device"}


def over_the_host() -> Step:
    """In the sandbox's own mount namespace, with the host's files still there: mounted over the host's for the time."""
    tree, null = Register("tree"), Register("null")
    opening = (
        call("move_mount", tree, b"", AT_FDCWD, b"/dev/null", MOVE_MOUNT_F_EMPTY_PATH),
        call("openat", AT_FDCWD, b"/dev/null", O_RDWR | O_CLOEXEC, 0, out=null),
    )
    return Step(Phase.SOURCES, TEXT, tuple(_made(opening, tree, null)), path=b"/dev/null", hints=HINTS)


def from_outside() -> Step:
    """In the supervisor of a privileged caller, before another mount namespace is joined."""
    tree, null, name = Register("tree"), Register("null"), Buffer(b"/proc/self/fd/" + bytes(21), "name")
    opening = (Store(name, 14, tree, 0), call("openat", AT_FDCWD, name, O_RDWR | O_CLOEXEC, 0, out=null))
    return Step(Phase.TREES, TEXT, tuple(_made(opening, tree, null)), path=b"/dev/null", hints=HINTS)


def tree_of_null() -> OwnedDescriptor | None:
    """The mount that :func:`from_outside` makes, made once by this process; None where it cannot be, or the device is
    not what it should be. It is attached nowhere, and goes with the descriptor."""
    flags = 1 | int(O_CLOEXEC)  # OPEN_TREE_CLONE
    fd = native.call(number("open_tree"), int(AT_FDCWD), b"/dev/null\0", flags)
    if fd < 0:
        return None
    owned = OwnedDescriptor(fd)
    found = os.fstat(fd)
    wanted = int(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)
    buffer = b"".join(n.to_bytes(8, "little") for n in (wanted, 0, int(MS_PRIVATE), 0))
    is_null = stat_module.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3)
    if not is_null or native.call(number("mount_setattr"), fd, b"\0", int(AT_EMPTY_PATH), buffer, len(buffer)) < 0:
        owned.close()
        return None
    return owned


def from_tree(tree: Argument) -> Step:
    """As :func:`from_outside`, with a mount that is there."""
    null, name = Register("null"), Buffer(b"/proc/self/fd/" + bytes(21), "name")
    opening = [
        Store(name, 14, tree, 0),
        call("openat", AT_FDCWD, name, O_RDWR | O_CLOEXEC, 0, out=null),
        *exchange(null),
        call("close", null),
    ]
    return Step(Phase.TREES, TEXT, tuple(opening), path=b"/dev/null", hints=HINTS)
