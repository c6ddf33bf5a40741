"""Namespaces that this program holds: made without a process in them, and named (namespaces(7), ip-netns(8))."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from isolate.engine import native
from isolate.engine.descriptors import OwnedDescriptor
from isolate.engine.finding import Finding
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

    from isolate.engine.plan import Context
    from isolate.engine.session import Session

__all__ = ["add_name", "check_name", "make", "remove_name"]

#: struct statx: where inode and device stand (the device as two words of 32 bits).
STATX_SIZE, _INODE, _DEVICE = 256, 32, 136
O_NOFOLLOW = Constant(os.O_NOFOLLOW, "O_NOFOLLOW")
STATX_INO = Constant(0x100, "STATX_INO")
MOVE_MOUNT_BOTH_EMPTY = Constant(0x44, "MOVE_MOUNT_F_EMPTY_PATH|MOVE_MOUNT_T_EMPTY_PATH")
_CHILD_ONLY = ("user", "time")  # a thread cannot enter a new one and leave it behind


def check_name(name: object) -> None:
    """Refuse what is no name of a namespace.

    :raises ValueError: with the characters that may be in one.
    """
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
        hints = {
            errno.EEXIST: Finding("the name is taken", "name another, or remove that one (umount it, then rm)"),
            errno.EPERM: Finding("a name needs CAP_SYS_ADMIN (mount(2))", "run as root, or do without a name"),
        }
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


def add_name(kind: str, fd: int, name: str, part: str) -> None:
    """Mount the namespace of this descriptor on a file that other programs find; ``part`` is named in errors."""
    from isolate.diagnosis import start  # loaded late: a sandbox that is only made starts nothing

    directory = "/run/netns" if kind == "network" else f"/run/isolate/{by_word(kind).file}"
    path = f"{directory}/{name}"
    try:
        at = OwnedDescriptor(open_own(directory))
    except OSError as refused:
        unsafe = isinstance(refused, PermissionError) and refused.errno == errno.EPERM
        raise SetupError(
            refused.errno or errno.EIO,
            f"open the directory of the names, {directory}",
            part=part,
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
    error = start.why(session, part)
    session.close()
    raise error


def remove_name(fd: int) -> None:
    """Remove the name of a handle, if it has one. Nothing in a forked child: the name is the parent's."""
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
