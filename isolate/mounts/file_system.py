"""A file system of any type that the kernel knows, with its own options."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from errno import EINVAL, ENODEV, ENOENT, EPERM
from typing import TYPE_CHECKING

from isolate.engine.finding import Finding
from isolate.engine.plan import EACH, Phase, Register, Step
from isolate.kernel.checks import keywords
from isolate.kernel.constants import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    NOTHING,
    Constant,
)
from isolate.kernel.paths import StrOrBytesPath, inside, text
from isolate.mounts.calls import new_file_system
from isolate.mounts.refused import OVERLAY, refused
from isolate.mounts.showing import Shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.mounts.building import Building

__all__ = ["FileSystem"]

_HINTS = {
    EPERM: Finding(
        "this type of file system cannot be mounted in a user namespace, or CAP_SYS_ADMIN is missing",
        "be root, and leave UserNamespace() out",
    ),
    ENODEV: Finding(
        "this kernel has no such file system (/proc/filesystems), and no module for it was loaded",
        "as root: modprobe its module",
        True,
    ),
    EINVAL: Finding("this file system does not know one of the options, or refuses its value", "see its man page"),
    ENOENT: Finding("the source is not there", "make it, or name another"),
}


_OWN: dict[str, dict[int, Finding]] = {
    "overlay": OVERLAY,
    "proc": {EPERM: refused("proc")},
    "sysfs": {EPERM: refused("sysfs")},
}


@keywords
@dataclass(frozen=True, repr=False)
class FileSystem(Shown):
    """A new mount of a file system of any type at ``target``, for types that have no entry of their own.

    .. code-block:: python

        FileSystem("ramfs", "/scratch", options={"mode": "700"})
        FileSystem("ext4", "/data", source="/dev/loop3", options={"errors": "remount-ro", "noload": True})

    ``options`` are the file system's own: a str or an int as their value, True for an option without one. ``source`` is
    the device, or whatever this type calls so. ``read_only``, ``suid``, ``dev`` and ``exec`` are those of the mount, as
    for :class:`Bind`. It is mounted with fsopen(2), so options are never taken for others, whatever is in them.

    The kernel decides which types can be mounted in a user namespace (FS_USERNS_MOUNT: tmpfs, ramfs, proc, overlay,
    fuse and a few others). Root can mount all types. The kernel itself reads the image: a hostile image can harm the
    host.

    Errors: ENODEV: there is no such type; EINVAL: an option; EPERM.

    :param type: of the file system, as in /proc/filesystems.
    :param target: absolute path inside the sandbox.
    :param source: device, or what this type calls so.
    :param options: the file system's own.
    :param read_only: nothing can be written.
    :param suid: set-user-ID bits work.
    :param dev: device nodes work.
    :param exec: programs can be executed.

    >>> box = Sandbox(UserNamespace(), Root(Bind("/", "/"), FileSystem("tmpfs", "/tmp", options={"size": "1M"})))
    >>> box.run(["touch", "/tmp/x"]).ok
    True
    """

    type: str
    target: StrOrBytesPath
    _: KW_ONLY
    source: StrOrBytesPath | None = None
    options: Mapping[str, str | int | bool] = field(default_factory=dict)
    read_only: bool = False
    suid: bool = False
    dev: bool = False
    exec: bool = True

    def __post_init__(self) -> None:
        if self.source is not None and not isinstance(self.source, (str, bytes, os.PathLike)):
            raise TypeError(f"FileSystem: source must be a path or a name, not {self.source!r}")
        if not isinstance(self.type, str) or not self.type or not self.type.isprintable() or "/" in self.type:
            raise ValueError(f"FileSystem: type must be the name of a file system such as 'ext4', not {self.type!r}")
        object.__setattr__(self, "target", inside(self.target, "FileSystem: target"))
        if not isinstance(self.options, Mapping):
            raise TypeError(f"FileSystem: options must be a mapping of names to values, not {self.options!r}")
        for name, value in self.options.items():
            if not isinstance(name, str) or not name or "\0" in name or name == "source":
                hint = "; source= says it" if name == "source" else ""
                raise ValueError(f"FileSystem: not an option's name: {name!r}{hint}")
            if not isinstance(value, (str, int)) or value is False or (isinstance(value, str) and "\0" in value):
                raise TypeError(f"FileSystem: option {name} must be a str, an int or True, not {value!r}")
        object.__setattr__(self, "options", _Frozen(self.options))

    @property
    def place(self) -> bytes:
        """Its target."""
        return inside(self.target)

    def tree(self, building: Building) -> tuple[Register, Iterable[Step]]:
        """A new mount, attached nowhere yet."""
        out = Register("file system")
        options: list[tuple[bytes, bytes | None]] = []
        if self.source is not None:
            import os

            options.append((b"source", os.fsencode(self.source)))
        for name, value in self.options.items():
            options.append((name.encode(), None if value is True else str(value).encode()))
        flags: Constant = NOTHING
        for wanted, flag in (
            (self.read_only, MOUNT_ATTR_RDONLY),
            (not self.suid, MOUNT_ATTR_NOSUID),
            (not self.dev, MOUNT_ATTR_NODEV),
            (not self.exec, MOUNT_ATTR_NOEXEC),
        ):
            flags = flags | flag if wanted else flags
        words = f"a new {self.type} for {text(self.place)}"
        ops = tuple(new_file_system(self.type.encode(), out, options, flags))
        hints = {**_HINTS, **_OWN.get(self.type, {})}
        return out, [Step(Phase.ROOT, words, ops, path=self.place, hints=hints, template=EACH)]

    def steps_in(self, building: Building) -> Iterator[Step]:
        """Make it, mount it."""
        out, steps = self.tree(building)
        yield from steps
        yield building.mount(out, self.place, template=building.each(self.place))


class _Frozen(dict[str, "str | int | bool"]):
    """Options that can be hashed, in their order."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))
