"""Namespaces as objects: made without a process in them, held by a descriptor, named, looked at (ioctl_nsfs(2)).

A handle is the part of its kind, joined by a descriptor that it owns: it goes into sandboxes and ``with`` blocks, any
number of times, and closes with its last reference.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from isolate.engine import native
from isolate.engine.descriptors import OwnedDescriptor
from isolate.engine.keeper import until_owner_ends
from isolate.engine.plan import Buffer, Label, Load, Phase, Plan, Register, Step, Test, call
from isolate.errors import SetupError, UnsupportedError
from isolate.kernel.constants import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    MNT_DETACH,
    O_CLOEXEC,
    O_CREAT,
    O_EXCL,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    Constant,
)
from isolate.kernel.directories import open_own
from isolate.kernel.namespaces import by_word
from isolate.kernel.syscalls import number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from isolate.engine.plan import Context
    from isolate.engine.session import Session

__all__ = ["Handle", "Identity", "make"]

_NS_GET_USERNS, _NS_GET_PARENT, _NS_GET_OWNER_UID = 0xB701, 0xB702, 0xB704
#: struct statx: where inode and device stand (the device as two words of 32 bits).
STATX_SIZE, _INODE, _DEVICE = 256, 32, 136
O_NOFOLLOW = Constant(os.O_NOFOLLOW, "O_NOFOLLOW")
STATX_INO = Constant(0x100, "STATX_INO")
MOVE_MOUNT_BOTH_EMPTY = Constant(0x44, "MOVE_MOUNT_F_EMPTY_PATH|MOVE_MOUNT_T_EMPTY_PATH")
_CHILD_ONLY = ("user", "time")  # a thread cannot enter a new one and leave it behind


class Identity(NamedTuple):
    """What makes two namespaces the same: file system and inode of their files in /proc."""

    device: int
    inode: int


class Handle:
    """What a namespace that is joined by a descriptor can tell, and how it ends. Mixed into every namespace part."""

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
        if name is not None:
            _check_name(name)
        part = cls(**arguments)
        if part.fd is not None or getattr(part, "path", None) is not None or getattr(part, "pid", None) is not None:
            raise ValueError(f"{cls.__name__}.create makes a new one; to join one, say {part!r}")
        handle = cls(fd=make(part))  # type: ignore[call-arg]
        if name is not None:
            _add_name(handle, name)
        return handle

    def close(self) -> None:
        """Remove its name, and let go of it. It is gone when nobody else holds it and no process is in it."""
        fd = self.fd
        if isinstance(fd, OwnedDescriptor) and not fd.closed:
            _remove_name(int(fd))
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
        """Of a user or pid namespace the one that it was made in; None for other kinds, which have none.

        :raises PermissionError: that lies outside of what the caller can see.
        """
        return self._related(_NS_GET_PARENT) if self.kind in ("user", "pid") else None

    @property
    def owner_uid(self) -> int:
        """Of a user namespace the uid that made it, as the caller sees it."""
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


def _check_name(name: object) -> None:
    allowed = isinstance(name, str) and name.isascii() and all(c.isalnum() or c in "_.-" for c in name)
    if not allowed or not 1 <= len(str(name)) <= 64 or str(name)[0] in ".-":
        raise ValueError(f"name must be 1 to 64 letters, digits, '_', '.' and '-', not {name!r}")


def make(part: Any) -> OwnedDescriptor:
    """A new namespace as the part says, and no process in it."""
    if part.kind == "pid":
        raise UnsupportedError(
            errno.EOPNOTSUPP,
            "make a pid namespace without a process",
            part=type(part).__name__,
            cause="it ends with its PID 1",
            remedy="spawn a program in one, and attach to that: attach(process).pid_namespace",
        )
    if part.kind in _CHILD_ONLY:
        return _in_a_child(part)
    from isolate.thread.disposable import on_a_thread
    from isolate.thread.program import enter

    def body() -> OwnedDescriptor:
        enter((part,))
        return OwnedDescriptor(os.open(f"/proc/thread-self/ns/{by_word(part.kind).file}", os.O_RDONLY | os.O_CLOEXEC))

    return on_a_thread(body)


@dataclass(frozen=True)
class _ForTheCaller:
    """The namespace is not a sandbox's but the caller's to keep: so is a user namespace, also where that is root."""

    for_the_caller: ClassVar[bool] = True

    def steps(self, context: Context) -> Iterator[Step]:
        """None."""
        return iter(())


def _in_a_child(part: Any) -> OwnedDescriptor:
    """The namespace of a sandbox that has no program: its init is in it until the descriptor is open."""
    from isolate.diagnosis import start  # loaded late: a sandbox that is only made starts nothing
    from isolate.engine.tape import compile_plan

    plan = Plan([part, _ForTheCaller()], euid=os.geteuid(), egid=os.getegid())
    session = start.alone(compile_plan(plan, init=True, pid_namespace=False, share=False, owned=True))
    try:
        while not session.started and session.end is None:
            session.await_record(1.0)
        if not session.started:
            raise start.why(session, type(part).__name__)
        # The time namespace with the offsets is that of init's children; init itself was there before them.
        kind = by_word(part.kind).for_children
        return OwnedDescriptor(os.open(f"/proc/{session.program_pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC))
    except EOFError:
        raise start.why(session, type(part).__name__) from None
    finally:
        session.dismiss()


# ---- names -----------------------------------------------------------------------------------------------------------

_names: dict[int, tuple[int, Session, str]] = {}  # descriptor of the handle: owner, what keeps the name, its path


@dataclass(frozen=True)
class _Name:
    """The plan of a launcher that mounts a namespace on a file, waits for its owner's end, and removes the name."""

    path: bytes
    directory: int
    fd: int
    ready: int

    def steps(self, context: Context) -> Iterator[Step]:
        """Make, tell, wait, remove: by the descriptor of a directory that nobody else can write, never by a link."""
        file, tree = Register("file"), Register("tree")
        name = os.path.basename(self.path)
        directory, namespace = context.descriptor(self.directory), context.descriptor(self.fd)
        source = b"/proc/self/fd/%d" % namespace.number
        made, on_it = Buffer(STATX_SIZE, "the file"), Buffer(STATX_SIZE, "the namespace")
        hints = {errno.EEXIST: "the name is taken", errno.EPERM: "a name needs CAP_SYS_ADMIN (mount(2))"}
        making = (
            call("openat", directory, name, O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o444, out=file),
            call("statx", file, b"", AT_EMPTY_PATH, STATX_INO, made),
            call("statx", namespace, b"", AT_EMPTY_PATH, STATX_INO, on_it),
            call("open_tree", AT_FDCWD, source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC, out=tree),
            call("move_mount", tree, b"", file, b"", MOVE_MOUNT_BOTH_EMPTY),
            call("close", tree),
            call("write", context.descriptor(self.ready), b"1", 1),
        )
        yield Step(Phase.CGROUP, "mount the namespace on its name", making, path=self.path, hints=hints)
        yield until_owner_ends()
        # With the file it was ours; what stands there now may be somebody else's, who removed it and made it anew.
        for text, ours, removal in (
            (
                "unmount the name, if it is still this namespace's",
                on_it,
                call("umount2", b"/proc/self/fd/%d/%b" % (directory.number, name), MNT_DETACH | 8),
            ),  # UMOUNT_NOFOLLOW
            ("remove the name, if it is still our file", made, call("unlinkat", directory, name, 0)),
        ):
            now, end = Buffer(STATX_SIZE, "what stands there"), Label()
            gone = (errno.ENOENT,)
            ops = (
                call(
                    "statx", directory, name, AT_SYMLINK_NOFOLLOW, STATX_INO, now, errors=gone, policy="jump", label=end
                ),
                Test(Load(now, _INODE), Load(ours, _INODE), label=end),
                Test(Load(now, _DEVICE), Load(ours, _DEVICE), label=end),
                removal,
                end,
            )
            yield Step(Phase.CLEANUP, text, ops, needs=file)


def _add_name(handle: Handle, name: str) -> None:
    from isolate.diagnosis import start  # loaded late: a sandbox that is only made starts nothing

    directory = "/run/netns" if handle.kind == "network" else f"/run/isolate/{by_word(handle.kind).file}"
    path = f"{directory}/{name}"
    fd = handle._descriptor()
    try:
        at = OwnedDescriptor(open_own(directory))
    except OSError as refused:
        unsafe = isinstance(refused, PermissionError) and refused.errno == errno.EPERM
        raise SetupError(
            refused.errno or errno.EIO,
            f"open the directory of the names, {directory}",
            part=type(handle).__name__,
            path=refused.filename,
            syscall="openat",
            cause=f"{refused.filename} {refused.strerror}: others could lead the name elsewhere" if unsafe else None,
            remedy="remove it, or give it to root alone: chown root, chmod 755" if unsafe else None,
        ) from None
    told, ready = (OwnedDescriptor(end) for end in os.pipe2(os.O_CLOEXEC))
    session = start.keep(_Name(path.encode(), at, fd, ready))
    ready.close()
    at.close()
    if os.read(told, 1) == b"1":
        _names[int(fd)] = native.owner(), session, path
        return
    error = start.why(session, type(handle).__name__)
    session.close()
    raise error


def _remove_name(fd: int) -> None:
    """Nothing in a forked child: the name is the parent's."""
    owner, session, path = _names.pop(fd, (0, None, ""))
    if session is None or not native.owns(owner):
        return
    session.dismiss()
    _remove_leftover(path, fd)


def _remove_leftover(path: str, fd: int) -> None:
    """Remove a name whose launcher was killed, if the namespace that stands on it is still this one."""
    try:
        if not os.path.samestat(os.lstat(path), os.fstat(fd)):
            return
    except OSError:
        return  # as it should be: the launcher has removed it
    if native.call(number("umount2"), os.fsencode(path) + b"\0", int(MNT_DETACH) | 8) == 0:  # UMOUNT_NOFOLLOW
        with contextlib.suppress(OSError):
            if os.lstat(path).st_size == 0:
                os.unlink(path)
