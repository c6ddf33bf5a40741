"""Namespaces as objects: made without a process in them, held by a descriptor, named, looked at (ioctl_nsfs(2)).

A handle is the part of its kind, joined by a descriptor that it owns: it goes into sandboxes and ``with`` blocks, any
number of times, and closes with its last reference.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from isolate.engine.descriptors import OwnedDescriptor
from isolate.kernel.namespaces import by_word

if TYPE_CHECKING:
    from typing_extensions import Self


__all__ = ["Handle", "Identity"]

_NS_GET_USERNS, _NS_GET_PARENT, _NS_GET_OWNER_UID = 0xB701, 0xB702, 0xB704


class Identity(NamedTuple):
    """The identity of a namespace: file system and inode of their files in /proc."""

    device: int
    inode: int


class Handle:
    """The attributes and the end of a namespace that is joined by a descriptor. Mixed into every namespace part."""

    __slots__ = ()

    kind: ClassVar[str]
    fd: int | None

    def _descriptor(self) -> int:
        fd = self.fd
        if fd is None:
            raise ValueError(f"{self!r} is no handle: make one by {type(self).__name__}.create(), or join by fd=")
        if isinstance(fd, OwnedDescriptor) and fd.closed:
            raise ValueError(f"{type(self).__name__}: the handle is closed")
        return fd

    # ---- life ----------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, *, name: str | None = None, **arguments: Any) -> Self:
        """Make a namespace that this program holds; ``arguments`` are those of the part.

        ``name`` mounts it on a file that other programs find: ``/run/netns/<name>`` for a network, as ``ip netns``
        has it, ``/run/isolate/<kind>/<name>`` for others. The name goes with :meth:`close`, and with this program,
        however that ends.

        :raises UnsupportedError: a pid namespace, which cannot be without a process; attach to one.
        :raises SetupError: without the right to make it, or if the name is taken (EEXIST).
        """
        from isolate.namespaces import making  # loaded late: most sandboxes hold no namespace

        if name is not None:
            making.check_name(name)
        part = cls(**arguments)
        if part.fd is not None or getattr(part, "path", None) is not None or getattr(part, "pid", None) is not None:
            raise ValueError(f"{cls.__name__}.create makes a new one; to join one, say {part!r}")
        handle = cls(fd=making.make(part))  # type: ignore[call-arg]
        if name is not None:
            making.add_name(handle.kind, handle._descriptor(), name, cls.__name__)
        return handle

    def close(self) -> None:
        """Remove its name, and let go of it. It is gone when nobody else holds it and no process is in it."""
        fd = self.fd
        if isinstance(fd, OwnedDescriptor) and not fd.closed:
            from isolate.namespaces import making  # loaded late: as above

            making.remove_name(int(fd))
            fd.close()

    # ---- what lsns tells -----------------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        """Two handles with the same identity are of the same namespace."""
        found = os.fstat(self._descriptor())
        return Identity(found.st_dev, found.st_ino)

    def same(self, other: Handle | int) -> bool:
        """Whether it is the namespace of another handle, or the one (of this kind) that a process is in."""
        if isinstance(other, Handle):
            return self.identity == other.identity
        found = os.stat(f"/proc/{other}/ns/{by_word(self.kind).file}")
        return self.identity == (found.st_dev, found.st_ino)

    @property
    def owner(self) -> Identity:
        """The user namespace that owns it: who has capabilities in there has them over this one.

        :raises PermissionError: that lies outside of what the caller can see.
        """
        return self._related(_NS_GET_USERNS)

    @property
    def parent(self) -> Identity | None:
        """The user or pid namespace in which this one was made; None for other kinds, which have no parent.

        :raises PermissionError: that lies outside of what the caller can see.
        """
        return self._related(_NS_GET_PARENT) if self.kind in ("user", "pid") else None

    @property
    def owner_uid(self) -> int:
        """The uid that made this user namespace, as the caller sees it."""
        answer = fcntl.ioctl(self._descriptor(), _NS_GET_OWNER_UID, struct.pack("I", 0))
        return int(struct.unpack("I", answer)[0])

    def _related(self, request: int) -> Identity:
        fd = OwnedDescriptor(fcntl.ioctl(self._descriptor(), request))
        try:
            found = os.fstat(fd)
            return Identity(found.st_dev, found.st_ino)
        finally:
            fd.close()

    def processes(self) -> list[int]:
        """Pids of the processes that are in it now, of those the caller may look into; main threads count."""
        identity, file, found = self.identity, by_word(self.kind).file, []
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                seen = os.stat(f"/proc/{name}/ns/{file}")
            except OSError:
                continue  # ended, or not the caller's to look into
            if identity == (seen.st_dev, seen.st_ino):
                found.append(int(name))
        return sorted(found)
