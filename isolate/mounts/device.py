"""A device node by its number, wherever the host has it: also in a user namespace, which can make none."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import KW_ONLY, dataclass
from errno import ENODEV
from typing import TYPE_CHECKING

from isolate.engine.plan import Register, Step
from isolate.errors import UnsupportedError
from isolate.kernel.checks import keywords
from isolate.kernel.paths import StrOrBytesPath, inside
from isolate.mounts.dev import open_device
from isolate.mounts.showing import Shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.mounts.building import Building

__all__ = ["Device"]

_MOST = 10_000  # nodes that are looked at


@keywords
@dataclass(frozen=True, repr=False)
class Device(Shown):
    """The device ``number`` (major, minor) at ``target``: a character device, or with ``block`` a block device.

    .. code-block:: python

        Root(..., Dev(), Device("/dev/kvm", (10, 232)), Device("/dev/fuse", (10, 229)))

    The host's own node of that number is shown, found in its /dev, opened by descriptor and verified to be the device
    of this number when the sandbox starts. So it works in a user namespace, too, and the node's mode and owner are the
    host's, which cannot be changed from inside: whoever may not use the device outside may not inside. A :class:`Dev`
    has the harmless ones already.

    :raises UnsupportedError: when something starts: the host has no node of that number.

    :param target: absolute path inside the sandbox.
    :param number: (major, minor) of the device.
    :param block: a block device, not a character device.

    >>> box = Sandbox(UserNamespace(), Root(Bind("/", "/"), Tmpfs("/tmp"), Device("/tmp/null", (1, 3))))
    >>> box.run(["sh", "-c", "echo x > /tmp/null; cat /tmp/null"]).stdout
    b''
    """

    target: StrOrBytesPath
    number: tuple[int, int]
    _: KW_ONLY
    block: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", inside(self.target, "Device: target"))
        pair = self.number
        if not isinstance(pair, tuple) or len(pair) != 2 or not all(type(n) is int and 0 <= n < 1 << 20 for n in pair):
            raise ValueError(f"Device: number must be (major, minor), not {pair!r}")

    @property
    def place(self) -> bytes:
        """Its target."""
        return inside(self.target)

    def steps_in(self, building: Building) -> Iterator[Step]:
        """The host's node while it is there, mounted on a file."""
        tree, path = Register("device"), self.place
        yield open_device(self._host_path(), self.number, tree, block=self.block)
        yield building.mount(tree, path, kind="file", template=building.kept(path))

    def _host_path(self) -> bytes:
        major, minor = self.number
        wanted = os.makedev(major, minor)
        kind = "block" if self.block else "char"
        seen = 0
        for directory, names, files in os.walk(b"/dev"):
            names[:] = [name for name in names if name not in (b"shm", b"mqueue", b"pts", b"fd")]
            for name in sorted(files):
                path = os.path.join(directory, name)
                seen += 1
                with contextlib.suppress(OSError):
                    found = os.lstat(path)
                    right = stat.S_ISBLK(found.st_mode) if self.block else stat.S_ISCHR(found.st_mode)
                    if right and found.st_rdev == wanted:
                        return path
            if seen > _MOST:
                break
        raise UnsupportedError(
            ENODEV,
            f"show device {major}:{minor}",
            part="Root",
            path="/dev",
            cause=f"the host's /dev has no {kind} device of that number",
            remedy="load the module of the device, or have the host make the node (mknod)",
        )
