"""Why a step failed, where the step itself has no word on it: privileges, sources, limits, calls that are missing."""

from __future__ import annotations

import errno
import os
import shlex
import stat
from typing import TYPE_CHECKING

from isolate.diagnosis import clone
from isolate.diagnosis.host import Finding, Host
from isolate.engine.plan import Call, Cover, Engine, MapOfIds, Phase, RemoveTree, RunHost, Target
from isolate.engine.targets import TARGET
from isolate.kernel import syscalls

if TYPE_CHECKING:
    from isolate.engine.plan import Op, Step

_DENIED = (errno.EPERM, errno.EACCES)
_MOUNTING = frozenset({"fsopen", "fsconfig", "fsmount", "mount", "move_mount", "open_tree", "mount_setattr"})
_OPENING = frozenset({"open_tree", "open", "openat", "openat2"})


def call_name(op: Op) -> str | None:
    """The system call that an op makes; None for what makes none or many."""
    if isinstance(op, Call):
        return op.name
    if isinstance(op, Target):
        return "openat2"
    if isinstance(op, RunHost):
        return "execve"
    if isinstance(op, MapOfIds):
        return "clone"
    if isinstance(op, RemoveTree):
        return "unlinkat"
    if isinstance(op, Cover):
        return "mount_setattr"
    if isinstance(op, Engine):
        return {"session": "setsid", "fds": "close_range", "exec": "execve", "find": "faccessat", "sync": "read"}.get(
            op.name
        )
    return None


def words(step: Step) -> set[bytes]:
    """The strings among a step's arguments."""
    return {a.rstrip(b"\0") for op in step.ops if isinstance(op, Call) for a in op.args if isinstance(a, bytes)}


def certain(host: Host, error: int, failed: Step, op: Op, flags: int) -> Finding | None:
    """The cause of a step's failure by the host's own facts; None for nothing. ``flags`` are those of clone."""
    if error in _DENIED and flags & clone.NEWUSER and host.apparmor_restricts():
        return clone.apparmor()
    if isinstance(op, Engine):
        return _engine(op, error)
    if not isinstance(op, Call):
        return None
    about_proc = failed.phase is Phase.ID_MAPS or any(word.startswith(b"/proc/") for word in words(failed))
    if error == errno.ENOENT and about_proc and not host.exists("/proc/self/status"):
        return Finding("there is no /proc here, by which this is done", "as root: mount -t proc proc /proc")
    if op.name in _MOUNTING and error in _DENIED and not flags & clone.NEWUSER and not host.capable():
        return Finding("mounting needs CAP_SYS_ADMIN, which this program does not have", clone.privileged(host))
    if op.name == "unshare" and isinstance(op.args[0], int):
        found = clone.unshare(host, error, op.args[0], flags)
        if found is not None:
            return found
    return None


def likely(host: Host, error: int, failed: Step, op: Op) -> Finding | None:
    """The usual cause of such a failure, where the step itself names none."""
    if isinstance(op, Target):
        return TARGET.get(error)
    if not isinstance(op, Call):
        return None
    if error == errno.ENOSYS:
        return _lacking(host, op.name)
    if error == errno.ENOENT and failed.path and op.name in _OPENING and failed.phase < Phase.ROOT:
        return missing(failed.path, mounted=op.name == "open_tree")
    if error == errno.ENOTDIR and failed.path and op.name in _OPENING and failed.phase < Phase.ROOT:
        path = os.fsdecode(failed.path)
        return Finding(
            f"something on the way to {path} is no directory, or {path} is none", "name a path that is there"
        )
    if op.name in _MOUNTING:
        found = _mount(error, op)
        if found is not None:
            return found
    if error == errno.EACCES and failed.path and failed.phase < Phase.ROOT:
        return Finding(f"the caller may not reach or open {os.fsdecode(failed.path)}", passing(host, failed.path))
    if error in (errno.EMFILE, errno.ENFILE):
        return descriptors(error)
    if error in _DENIED:
        found = clone.seccomp(host, op.name)
        if found is None and op.name in _MOUNTING and error == errno.EPERM:
            return Finding(
                "this program may be in a Landlock domain, which forbids all mounts (landlock(7)), or confined by"
                " another security module",
                "start it outside of that, or leave out what is mounted",
            )
        return found
    return None


def descriptors(error: int) -> Finding:
    """EMFILE and ENFILE."""
    if error == errno.ENFILE:
        return Finding("the system has no descriptors left (fs.file-max)", "close some, or raise fs.file-max")
    return Finding(
        "the limit of open descriptors (RLIMIT_NOFILE) is reached",
        "close some, or raise it: ulimit -n, systemd's LimitNOFILE=",
    )


def missing(path: bytes, *, mounted: bool) -> Finding:
    """ENOENT of what is opened on the host: a mount's source, a namespace's file."""
    text = os.fsdecode(path)
    first = text
    while os.path.dirname(first) != first and not os.path.lexists(os.path.dirname(first)):
        first = os.path.dirname(first)
    remedy = "make it, or name another"
    if mounted:
        remedy += "; Bind(..., optional=True) leaves out what is not there"
    if os.path.islink(first):
        link = f"{first} is a symbolic link to {os.readlink(first)}, which does not exist on the host"
        return Finding(link, "name the file itself")
    at = "" if first == text else f" (already {first} does not)"
    return Finding(f"{'the source ' if mounted else ''}{text} does not exist on the host{at}", remedy)


def passing(host: Host, path: bytes) -> str:
    """The remedy of EACCES: the first directory on the way to a path of the host that stops others than its owner."""
    way = os.fsdecode(path)
    for end in range(1, len(way)):
        if way[end] != "/":
            continue
        directory = way[:end]
        try:
            status = os.stat(directory)
        except OSError:
            break
        owner = status.st_uid == host.euid != 0
        if not os.access(directory, os.X_OK) or not (owner or status.st_mode & stat.S_IXOTH):
            mode = stat.S_IMODE(status.st_mode)
            return (
                f"{directory} (mode {mode:04o}, uid {status.st_uid}) lets no others pass: as its owner or root, "
                f"chmod o+x {shlex.quote(directory)} (or setfacl -m u:USER:x); or name a place elsewhere"
            )
    return "look at the modes of the directories on the way: namei -l, package util-linux"


def _mount(error: int, op: Call) -> Finding | None:
    if error == errno.ENODEV and op.name in ("fsopen", "mount"):
        name = op.args[0 if op.name == "fsopen" else 2]
        kind = name.rstrip(b"\0").decode() if isinstance(name, bytes) else "of that name"
        return Finding(
            f"this kernel has no file system {kind}, or its module is not loaded", f"as root: modprobe {kind}", True
        )
    if error in (errno.EINVAL, errno.ENOTDIR) and op.name == "move_mount":
        return Finding(
            "a directory cannot be mounted on a file, nor a file on a directory",
            "name a target of the same kind, or one that is not there: it is made",
        )
    if error == errno.ENOSPC:
        return Finding(
            "the mount namespace has as many mounts as it may (fs.mount-max)", "mount less, or raise fs.mount-max"
        )
    return None


def _engine(op: Engine, error: int) -> Finding | None:
    if op.name == "fds" and error == errno.EMFILE:
        return Finding(
            "the limit of descriptors inside (RLIMIT_NOFILE) leaves no room for those that are passed",
            "raise Rlimits(nofile=)",
        )
    if op.name == "sync":
        return Finding("the supervisor ended while the child waited for it: it was killed from outside", None)
    if op.name == "session" and error in (errno.EPERM, errno.ENOTTY):
        return Finding(
            "descriptor 0 cannot be the controlling terminal: it is none, or another session's", "use pty=True"
        )
    return None


def _lacking(host: Host, name: str) -> Finding:
    since = syscalls.since(name) if syscalls.known(name) else None
    release = os.uname().release
    try:
        own = tuple(map(int, release.split("-")[0].split(".")[:2]))
    except ValueError:
        own = (0, 0)
    if since is not None and own < since:
        return Finding(f"{name} came with Linux {since[0]}.{since[1]}; this is {release}", "upgrade the kernel", True)
    return clone.seccomp(host, name) or Finding(
        f"this kernel ({release}) was built without {name}", "use another kernel", True
    )
