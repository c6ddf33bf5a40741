"""Why a step failed: mounts, targets, sources, id maps, calls that the kernel lacks."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from isolate.diagnosis import clone
from isolate.diagnosis.host import Finding, Host
from isolate.engine.plan import Call, Cover, Engine, MapOfIds, Phase, RemoveTree, RunHost, Target
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
    """What the host's own words say of a step's failure, in a sandbox with these flags of clone; None for nothing."""
    if error in _DENIED and flags & clone.NEWUSER and host.apparmor_restricts():
        return clone.apparmor()
    if isinstance(op, RunHost):
        return helper(host, error, op)
    if isinstance(op, Engine):
        return _engine(op, error)
    if not isinstance(op, Call):
        return None
    if failed.phase is Phase.ID_MAPS and error == errno.EPERM and host.euid == 0:
        found = _root_without(host)
        if found is not None:
            return found
    about_proc = failed.phase is Phase.ID_MAPS or any(word.startswith(b"/proc/") for word in words(failed))
    if error == errno.ENOENT and about_proc and not host.exists("/proc/self/status"):
        return Finding("there is no /proc here, by which this is done", "as root: mount -t proc proc /proc")
    if op.name in _MOUNTING and error in _DENIED:
        if not flags & clone.NEWUSER and not host.capable():
            return Finding(
                "mounting needs CAP_SYS_ADMIN, which this program does not have",
                clone.privileged(host),
            )
        for kind in ("proc", "sysfs"):
            if kind.encode() in words(failed):
                return _kernel_mount(host, kind, flags)
    if op.name == "unshare" and isinstance(op.args[0], int):
        found = clone.unshare(host, error, op.args[0], flags)
        if found is not None:
            return found
    if error == errno.ENOENT and failed.path and op.name in _OPENING and failed.phase < Phase.ROOT:
        return missing(failed.path, mounted=op.name == "open_tree")
    if error == errno.ENOSYS:
        return _lacking(host, op.name)
    return None


def _root_without(host: Host) -> Finding | None:
    """Root whose capabilities are gone may write no id map but where its own id is not 0."""
    named = {6: "CAP_SETGID", 7: "CAP_SETUID", 31: "CAP_SETFCAP"}
    missing = [name for number, name in named.items() if not host.capable(number)]
    if not missing:
        return None
    return Finding(
        f"this program is root without {', '.join(missing)}: the kernel lets it map neither its own id, which is 0, nor"
        " others (user_namespaces(7))",
        "keep the capability, or run as an ordinary user, who maps the own id without any",
    )


def likely(host: Host, error: int, failed: Step, op: Op) -> Finding | None:
    """What such a failure usually comes from, where the step itself has no word on it."""
    if isinstance(op, Target):
        return target(error)
    if not isinstance(op, Call):
        return None
    if op.name in _MOUNTING:
        found = _mount(error, failed, op.name)
        if found is not None:
            return found
    if error == errno.EACCES and failed.path and failed.phase < Phase.ROOT:
        return Finding(
            f"the caller may not reach or open {os.fsdecode(failed.path)}",
            "look at the modes of the directories on the way",
        )
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


def target(error: int) -> Finding | None:
    """Why a place in the new root could not be reached or made."""
    return {
        errno.EROFS: Finding(
            "the target does not exist, and what it would be made in is read-only",
            "make it in the source beforehand, or put a Tmpfs or Overlay there first; entries are applied in order",
        ),
        errno.ENOTDIR: Finding("something on the way to the target is no directory", "look at the root's tree"),
        errno.ELOOP: Finding(
            "a symbolic link stands on the way to the target where none is followed, or links go round",
            "name the target itself",
        ),
        errno.EXDEV: Finding(
            "the target leads out of the root, or into another file system than it must lie in", "name another"
        ),
        errno.EEXIST: Finding("the target is there already and must not be", "name another"),
        errno.ENOENT: Finding("the target does not exist in the root", "make it first, for example with Dir or File"),
        errno.EOVERFLOW: Finding(
            "the directory's owner is not in the user namespace's id map, so nothing can be made in it",
            "map its owner, or put a Tmpfs there first",
        ),
        errno.EACCES: Finding(
            "the directory that the target would be made in does not allow it: its owner is not in the user "
            "namespace's id map, "
            "or its mode",
            "make the target in the source beforehand, map its owner, or put a Tmpfs there first",
        ),
        errno.ENOSPC: Finding(
            "the file system that the target would be made in is full", "make room, or raise its size"
        ),
    }.get(error)


def _mount(error: int, failed: Step, op: str) -> Finding | None:
    strings = words(failed)
    if b"overlay" in strings or any(b"upperdir" in s or b"lowerdir" in s for s in strings):
        found = overlay(error)
        if found is not None:
            return found
    if error == errno.ENODEV:
        kind = next((s.decode() for s in sorted(strings) if s.isalnum() and s.islower()), "of that name")
        return Finding(
            f"this kernel has no file system {kind}, or its module is not loaded", f"as root: modprobe {kind}", True
        )
    if error in (errno.EINVAL, errno.ENOTDIR) and op == "move_mount":
        return Finding(
            "a directory cannot be mounted on a file, nor a file on a directory",
            "name a target of the same kind, or one that is not there: it is made",
        )
    if error == errno.ENOSPC:
        return Finding(
            "the mount namespace has as many mounts as it may (fs.mount-max)", "mount less, or raise fs.mount-max"
        )
    return None


def _kernel_mount(host: Host, kind: str, flags: int) -> Finding | None:
    """proc and sysfs in a user namespace: only where the caller sees all of its own (fs/namespace.c)."""
    namespace, part, flag = (
        ("pid", "PidNamespace", 0x20000000) if kind == "proc" else ("net", "NetNamespace", 0x40000000)
    )
    if flags & clone.NEWUSER and not flags & flag:
        return Finding(
            f"{kind} shows a {namespace} namespace, and may be mounted only by who owns it: the user namespace here "
            "does not",
            f"add {part}() to the sandbox",
        )
    if not flags & clone.NEWUSER:
        return clone.seccomp(host, f"mounting {kind}")
    point = "/proc" if kind == "proc" else "/sys"
    hidden = host.over_proc() if kind == "proc" else []
    own = host.mount_of(point)
    if hidden:
        container = host.container()
        remedy = {
            "Docker": "docker run --security-opt systempaths=unconfined",
            "Podman": "podman run --security-opt unmask=ALL",
            "Kubernetes": "securityContext.procMount: Unmasked (with hostUsers: false)",
        }.get(
            container or "",
            "start this container with an unmasked /proc (Docker: --security-opt systempaths=unconfined)",
        )
        shown = ", ".join(hidden[:4]) + (" …" if len(hidden) > 4 else "")
        return Finding(
            f"the caller's own /proc is masked ({shown}), and the kernel mounts no new one in a user namespace that "
            "would show more",
            f"{remedy}; or show that /proc: presets.nested(), isolate run --preset nested",
            True,
        )
    if own is None or own[1] != kind:
        return Finding(
            f"the caller has no {kind} at {point}, and the kernel mounts a new one in a user namespace only beside "
            "one that is fully visible",
            f"mount it at {point} outside first; or leave it out",
            True,
        )
    return clone.seccomp(host, f"mounting {kind}") or Finding(
        f"the kernel mounts no new {kind} in a user namespace that would show more than the caller's own does",
        "leave it out",
        True,
    )


def overlay(error: int) -> Finding | None:
    if error == errno.EINVAL:
        return Finding(
            "overlayfs does not take these layers: the upper's file system cannot be one (an overlay itself, NFS, "
            "FAT, no extended "
            "attributes), work does not lie beside upper, or one layer lies within another",
            "put upper and work on tmpfs, ext4, XFS or btrfs (ephemeral: a tmpfs of the sandbox's own)",
            True,
        )
    if error == errno.EPERM:
        return Finding(
            "overlayfs in a user namespace needs Linux 5.11, and an upper whose owner is in the id map",
            "upgrade the kernel, or use layers that the caller owns",
            True,
        )
    if error == errno.ENODEV:
        return Finding("this kernel has no overlayfs, or its module is not loaded", "as root: modprobe overlay", True)
    if error == errno.EBUSY:
        return Finding("upper or work is in use by another overlay", "give each its own")
    if error == errno.ENOENT:
        return Finding("a layer does not exist")
    if error == errno.ESTALE:
        return Finding("upper was used with other lower layers before (the index feature)", "empty upper and work")
    return None


def helper(host: Host, error: int, op: RunHost) -> Finding | None:
    """newuidmap and newgidmap: not installed, not set-user-id, or no entry for what is asked."""
    program = os.path.basename(os.fsdecode(op.path))
    path = os.fsdecode(op.path)
    if not host.exists(path):
        return Finding(
            f"{program} is not installed", "install it (Debian, Ubuntu: apt install uidmap; Fedora: shadow-utils)"
        )
    if error != errno.ECHILD:
        return None
    full = os.path.join(host.root, path.lstrip("/"))
    if program not in ("newuidmap", "newgidmap"):
        return Finding(f"{path} failed", None)
    try:
        capability = bool(os.getxattr(full, "security.capability"))
    except OSError:
        capability = False
    if not os.stat(full).st_mode & 0o4000 and not capability:
        return Finding(
            f"{path} is neither set-user-ID nor has it file capabilities, so it can grant nothing",
            f"as root: chmod u+s {path}",
        )
    if host.status("NoNewPrivs") == "1":
        return Finding(
            f"no_new_privs is set on this program, so {path} gets no rights and can grant nothing",
            "start it without (systemd: NoNewPrivileges=no; Docker: no --security-opt no-new-privileges), or map the"
            " own id alone: UserNamespace()",
        )
    return _subordinate(host, program, [a for a in op.args if isinstance(a, bytes)])


def _subordinate(host: Host, program: str, args: list[bytes]) -> Finding:
    """Which of the ranges asked for is in no entry of the caller's."""
    import pwd

    kind = program[3:6]
    file = f"/etc/sub{kind}"
    own = os.geteuid() if kind == "uid" else os.getegid()
    try:
        user = pwd.getpwuid(host.euid).pw_name
    except KeyError:
        user = str(host.euid)
    granted = [(own, 1)]
    entries = 0
    for line in host.lines(file):
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in (user, str(host.euid)) and fields[1].isdigit() and fields[2].isdigit():
            entries += 1
            granted.append((int(fields[1]), int(fields[2])))
    numbers = [int(a) for a in args if a.isdigit()]
    for outside, count in zip(numbers[1::3], numbers[2::3], strict=False):
        if any(first <= outside and outside + count <= first + size for first, size in granted):
            continue
        held = _held_by_others(host.lines(file), (user, str(host.euid)))
        if any(outside < first + size and first < outside + count for first, size in held):
            free = free_range(host.lines(file), count)
            return Finding(
                f"{outside}-{outside + count - 1} is asked for, and {file} gives it, or some of it, to another user",
                f"as root: usermod --add-sub{kind}s {free}-{free + count - 1} {user}; and map these",
            )
        remedy = f"as root: usermod --add-sub{kind}s {outside}-{outside + count - 1} {user}"
        if not host.exists(file):
            return Finding(f"{file} does not exist, so {program} grants no ids", remedy)
        if not entries:
            return Finding(f"{file} has no entry for {user}, so {program} grants no ids", remedy)
        shown = ", ".join(f"{first}-{first + size - 1}" for first, size in granted[1:])
        return Finding(f"{file} gives {user} {shown}, and {outside}-{outside + count - 1} is asked for", remedy)
    return Finding(f"{program} refused the map, though {file} has the ranges", "run it by hand to see what it says")


def _held_by_others(rows: list[str], names: tuple[str, ...]) -> list[tuple[int, int]]:
    """The ranges of /etc/subuid or /etc/subgid that are somebody else's: (first, count)."""
    found = [row.strip().split(":") for row in rows]
    return [
        (int(fields[1]), int(fields[2]))
        for fields in found
        if len(fields) == 3 and fields[0] not in names and fields[1].isdigit() and fields[2].isdigit()
    ]


def free_range(rows: list[str], count: int = 65536) -> int:
    """The first of so many ids from 100000 on that no line of /etc/subuid or /etc/subgid gives to anybody."""
    first = 100000
    for start, size in sorted(_held_by_others(rows, ())):
        if start < first + count and first < start + size:
            first = start + size
    return first


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
