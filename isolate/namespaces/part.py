"""Namespaces: what a process sees (namespaces(7)). One part for each of the kernel's eight kinds.

Each part makes a new namespace for the sandbox, or joins one that exists: of a process (``pid=``), from a file such as
``/run/netns/name`` (``path=``), or by a descriptor (``fd=``, which must stay open while the sandbox is used).
Without a user namespace of its own a sandbox needs CAP_SYS_ADMIN for all but the user namespace.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from isolate.engine.plan import (
    BOTH,
    CALLERS_PROC,
    CHILD,
    KEPT,
    Buffer,
    Context,
    Label,
    Op,
    Phase,
    Register,
    RunHost,
    Split,
    Step,
    Store,
    call,
)
from isolate.errors import ConflictError
from isolate.kernel.checks import keywords
from isolate.kernel.constants import (
    AT_FDCWD,
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    O_CLOEXEC,
    O_PATH,
    O_RDONLY,
    O_WRONLY,
    Constant,
)
from isolate.namespaces import quotas
from isolate.namespaces.handle import Handle
from isolate.namespaces.ids import IdMap, IdRange, check_id, mapped
from isolate.namespaces.propagation import propagation_steps
from isolate.namespaces.quotas import write_file
from isolate.thread.entering import Irreversible, Reversible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from isolate.thread.change import Change

__all__ = [
    "CgroupNamespace",
    "IpcNamespace",
    "MountNamespace",
    "NetNamespace",
    "PidNamespace",
    "TimeNamespace",
    "UserNamespace",
    "UtsNamespace",
]

EPERM, ENOENT, EACCES, EINVAL, ENOSPC, EROFS = 1, 2, 13, 22, 28, 30


@dataclass(frozen=True, kw_only=True)
class _Namespace(Handle):
    """New, or joined by one of ``path``, ``pid`` and ``fd``."""

    path: str | bytes | os.PathLike[str] | None = None
    pid: int | None = None
    fd: int | None = None

    kind: ClassVar[str]
    flag: ClassVar[Constant]

    def __post_init__(self) -> None:
        given = [n for n in ("path", "pid", "fd") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ConflictError(f"{type(self).__name__}: {' and '.join(given)} both name a namespace to join")
        if self.path is not None:
            path = os.fsencode(self.path)
            if not path.startswith(b"/") or b"\0" in path:
                raise ValueError(f"the path of a namespace must be absolute and without NUL, not {path!r}")
        for name, lowest in (("pid", 1), ("fd", 0)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < lowest):
                raise ValueError(f"{name} must be an int from {lowest} on, not {value!r}")

    @property
    def joined(self) -> bool:
        """Whether the namespace exists already."""
        return not (self.path is None and self.pid is None and self.fd is None)

    def here(self) -> Change:
        """This thread in the namespace, and back."""
        from isolate.namespaces.change import NamespaceChange

        return NamespaceChange(self, self.flag)

    def steps(self, context: Context) -> Iterator[Step]:
        """A flag for clone, or setns in the supervisor."""
        if self.joined:
            yield self._join(context)
        else:
            yield Step(Phase.CLONE, f"new {self.kind} namespace", clone_flags=self.flag)

    def _join(self, context: Context, phase: Phase = Phase.JOIN) -> Step:
        fd = Register("namespace")
        hints = {EPERM: f"joining a {self.kind} namespace needs CAP_SYS_ADMIN in it and in the caller's user namespace"}
        if self.path is not None:
            path = os.fsencode(self.path)
            ops = (
                call("openat", AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0, out=fd),
                call("setns", fd, self.flag),
                call("close", fd),
            )
            return Step(phase, f"join the {self.kind} namespace {os.fsdecode(path)}", ops, path=path, hints=hints)
        if self.pid is not None:
            ops = (call("pidfd_open", self.pid, 0, out=fd), call("setns", fd, self.flag), call("close", fd))
            return Step(phase, f"join the {self.kind} namespace of process {self.pid}", ops, hints=hints)
        slot = context.descriptor(self.fd if self.fd is not None else -1)
        return Step(
            phase,
            f"join the {self.kind} namespace of descriptor {self.fd}",
            (call("setns", slot, self.flag),),
            hints=hints,
        )


@keywords
@dataclass(frozen=True, kw_only=True)
class UserNamespace(_Namespace, Irreversible):
    """A user namespace: ids and capabilities of its own (user_namespaces(7)).

    Inside, ``uid`` and ``gid`` are the caller's ids by default; or an explicit :class:`~isolate.IdMap` says more. Needs
    no privileges where the host allows unprivileged user namespaces. ``setgroups`` allows setgroups(2) inside, which an
    unprivileged caller cannot have (the kernel wants it denied). ``nested`` allows further user namespaces inside.

    What is used inside counts against the caller's quotas too, so the kernel's limits of this namespace are set: at
    most a quarter of what the caller may have of inotify instances and watches and of fanotify groups and marks, and
    of namespaces where any can be made inside. ``quotas`` says other numbers, by the names in /proc/sys/user without
    ``max_``: ``{"inotify_instances": 16}``. Where /proc/sys cannot be written (in a container), only what is said by
    name is an error; the rest is left out, and ``Result.applied`` tells.

    The namespace of a root caller belongs to a host uid that nobody has (4294967293), not to root: whoever has the
    owner's uid outside has all capabilities over what is inside, even a program of uid 0 that was given none. So where
    the caller has CAP_SYS_PTRACE, CAP_SETUID and CAP_SETFCAP and its own user namespace maps that uid.

    The id maps of a process that cannot be traced are root's to write, and those of CAP_DAC_OVERRIDE. Where the caller
    has neither, the set-up can be traced by the caller's own processes until the maps are written; together with a
    :class:`PidNamespace` that is joined, in which others may live, it is an error instead (EACCES).

    No process has a way back from a user namespace.

    :param path: join the namespace of this file, such as ``/run/netns/blue``; at most one of ``path``, ``pid`` and
        ``fd``.
    :param pid: join the namespace of this process.
    :param fd: join the namespace that this descriptor is of.
    :param uid: the caller's user id inside.
    :param gid: the caller's group id inside.
    :param map: more ids than one: an :class:`~isolate.IdMap`.
    :param setgroups: allow setgroups(2) inside.
    :param nested: allow further user namespaces inside.
    :param quotas: limits of what is counted for a user, by names of /proc/sys/user.

    >>> Sandbox(UserNamespace(uid=1000, gid=1000)).run(["id", "-u"]).stdout
    b'1000\\n'
    """

    uid: int = 0
    gid: int = 0
    map: IdMap | None = None
    setgroups: bool | None = None
    nested: bool = False
    quotas: Mapping[str, int] | tuple[tuple[str, int], ...] | None = None

    kind: ClassVar[str] = "user"
    flag: ClassVar[Constant] = CLONE_NEWUSER

    def __post_init__(self) -> None:
        super().__post_init__()
        check_id(self.uid, "uid")
        check_id(self.gid, "gid")
        object.__setattr__(self, "quotas", quotas.checked(self.quotas))
        if self.joined and self.quotas:
            raise ConflictError("UserNamespace: one that is joined has its quotas already")
        if self.joined and self.map is not None:
            raise ConflictError("UserNamespace: one that is joined has its map already")
        if self.map is not None and not (mapped(self.map.uids, self.uid) and mapped(self.map.gids, self.gid)):
            raise ConflictError(f"UserNamespace: uid {self.uid} or gid {self.gid} is not in the map {self.map}")

    def ids(self, context: Context) -> IdMap:
        """The map in force."""
        return self.map or IdMap([IdRange(self.uid, context.euid)], [IdRange(self.gid, context.egid)])

    def allows_setgroups(self, context: Context) -> bool:
        """Whether groups can be changed inside."""
        if self.joined:
            return True
        if self.setgroups is None:
            own = context.privileged and not _setgroups_denied()
            return own or (self.map is not None and self.map.helpers)
        return self.setgroups

    def steps(self, context: Context) -> Iterator[Step]:
        """The flag, the maps (written from outside), the identity."""
        if self.joined:
            yield self._join(context, Phase.JOIN_USER_LAST if context.privileged else Phase.JOIN_USER)
            return
        yield from super().steps(context)
        ids = self.ids(context)
        if self.setgroups and not context.privileged and not (self.map and self.map.helpers):
            raise ConflictError(
                "UserNamespace: an unprivileged caller's map needs setgroups denied (user_namespaces(7))"
            )
        yield from self._maps(context, ids)
        yield from self._identity(context, ids)
        if not self.nested:
            yield _forbid_nested(_filtered(context))
        yield from quotas.steps(dict(self.quotas or ()), context, nested=self.nested)

    def _maps(self, context: Context, ids: IdMap) -> Iterator[Step]:
        hints = {
            EACCES: "the set-up of a sandbox in a pid namespace that is joined cannot be traced, and its id maps are"
            " root's to write: run as root (or with CAP_DAC_OVERRIDE), or join the user namespace too"
            " (attach(pid).sandbox())",
            EPERM: "the kernel refuses this id map: without CAP_SETUID and CAP_SETGID only the caller's own uid and gid"
            " can be mapped",
            EINVAL: "the map is not one that the kernel takes: more than the caller's own id, or ids that the"
            " caller does not have",
        }
        # From a tree that is made once root goes on outside, and anybody else is inside of the user namespace that owns
        # the tree: a map into that, where there are the same ids.
        last = None if context.privileged else _nested_maps(ids, setgroups=self.allows_setgroups(context))
        split = BOTH if last is None else KEPT
        pid = Buffer(b"/proc/" + bytes(21), "proc")
        directory = Register("proc")
        opening: list[Op] = [
            Store(pid, 6, CHILD, 0),
            call("openat", AT_FDCWD, pid, O_PATH | O_CLOEXEC, 0, out=directory),
        ]
        if ids.helpers:
            number = Buffer(21, "pid")
            lists = [(b"newuidmap", ids.uids), (b"newgidmap", ids.gids)]
            for program, ranges in lists:
                arguments = [word.encode() for r in ranges for word in str(r).split()]
                text = f"map ids with {program.decode()}: {', '.join(map(str, ranges))}"
                yield Step(
                    Phase.ID_MAPS,
                    text,
                    (Store(number, 0, CHILD, 0), RunHost(b"/usr/bin/" + program, (program, number, *arguments))),
                    path=b"/usr/bin/" + program,
                    template=last if last is not None and program == b"newgidmap" else split,
                    hints={
                        ENOENT: f"{program.decode()} is not installed (package: uidmap)",
                        10: f"{program.decode()} refused: the ranges are not in /etc/sub{program[3:4].decode()}id for"
                        " this user",
                    },
                )
            return
        if not self.allows_setgroups(context):
            # Before gid_map: the kernel wants it so from whoever has no CAP_SETGID (since 3.19, CVE-2014-8989).
            yield Step(
                Phase.ID_MAPS,
                "deny setgroups inside",
                (*opening, *write_file(directory, b"setgroups", b"deny")),
                hints=hints,
                template=split,
            )
            opening = []
        for name, ranges in ((b"gid_map", ids.gids), (b"uid_map", ids.uids)):
            data = "".join(f"{r}\n" for r in ranges).encode()
            yield Step(
                Phase.ID_MAPS,
                f"{name.decode()}: "
                + ", ".join(
                    f"{r.inside} is {r.outside}" + (f" (+{r.count - 1})" if r.count > 1 else "") for r in ranges
                ),
                (*opening, *write_file(directory, name, data)),
                hints=hints,
                template=split,
            )
            opening = []
        split = last if last is not None else BOTH
        yield Step(Phase.ID_MAPS, "let go of the child's /proc", (call("close", directory),), template=split)

    def _identity(self, context: Context, ids: IdMap) -> Iterator[Step]:
        uid = 0 if mapped(ids.uids, 0) else self.uid
        gid = 0 if mapped(ids.gids, 0) else self.gid
        ops: list[Op] = []
        if self.allows_setgroups(context):
            # The caller's groups are the host's; nobody inside should act by them.
            ops.append(call("setgroups", 0, 0))
        ops += [call("setresgid", gid, gid, gid), call("setresuid", uid, uid, uid)]
        yield Step(Phase.IDENTITY, f"be uid {uid}, gid {gid} inside", tuple(ops), template=BOTH)


def _nested_maps(ids: IdMap, *, setgroups: bool) -> Split:
    """At a start from a tree that is made once: the maps of a user namespace within the one that owns the tree."""
    number, directory = Buffer(21, "pid"), Register("proc")
    ops: list[Op] = [
        Store(number, 0, CHILD, 0),
        call("openat", CALLERS_PROC, number, O_PATH | O_CLOEXEC, 0, out=directory),
        *([] if setgroups else write_file(directory, b"setgroups", b"deny")),
    ]
    for name, ranges in ((b"gid_map", ids.gids), (b"uid_map", ids.uids)):
        data = "".join(f"{r.inside} {r.inside} {r.count}\n" for r in ranges).encode()
        ops += write_file(directory, name, data)
    return Split(build=None, again=(*ops, call("close", directory)))


def _setgroups_denied() -> bool:
    """Whether the caller's own user namespace has setgroups denied, which those inside of it inherit."""
    try:
        with open("/proc/self/setgroups", encoding="ascii") as file:
            return file.read().strip() == "deny"
    except OSError:
        return False


def _filtered(context: Context) -> bool:
    """Whether a filter of the sandbox's refuses user namespaces, and so says what the limit would say once more."""
    asked = (getattr(part, "refuses_user_namespaces", None) for part in context.parts)
    return context.executes and any(refuses is not None and refuses() for refuses in asked)


def _forbid_nested(filtered: bool) -> Step:
    fd, done = Register("sysctl"), Label()
    # Where the caller is in a container /proc/sys is read-only or not there.
    unwritable = (EROFS, ENOENT, EACCES) if filtered else ()
    return Step(
        Phase.SYSTEM,
        "no user namespaces inside this one (user.max_user_namespaces = 0)"
        + (" (where it can be written: the filter refuses them as well)" if filtered else ""),
        (
            call(
                "openat",
                AT_FDCWD,
                b"/proc/sys/user/max_user_namespaces",
                O_WRONLY | O_CLOEXEC,
                0,
                out=fd,
                errors=unwritable,
                policy="skip",
                label=done if filtered else None,
            ),
            call("write", fd, b"0", 1, expect=1),
            call("close", fd),
            done,
        ),
        path=b"/proc/sys/user/max_user_namespaces",
        hints={
            EROFS: "/proc/sys is read-only here (a container): say UserNamespace(nested=True), or add a filter that"
            " refuses user namespaces, as Seccomp.default() does",
            ENOENT: "/proc is not mounted here: say UserNamespace(nested=True), or add a filter that refuses user"
            " namespaces, as Seccomp.default() does",
        },
    )


@keywords
@dataclass(frozen=True, kw_only=True)
class MountNamespace(_Namespace, Reversible):
    """A mount table of its own (mount_namespaces(7)); the host's never changes.

    ``propagation`` ``"private"``: nothing passes either way; ``"slave"``: what the host mounts later shows inside too;
    ``"shared"``: nothing passes to or from the host, and what is mounted inside later shows in mount namespaces that
    programs make inside, and the other way round (a container manager in a sandbox wants that).

    :param path: join the namespace of this file, such as ``/run/netns/blue``; at most one of ``path``, ``pid`` and
        ``fd``.
    :param pid: join the namespace of this process.
    :param fd: join the namespace that this descriptor is of.
    :param propagation: ``"private"``, ``"slave"`` or ``"shared"``.

    >>> Sandbox(UserNamespace(), MountNamespace()).run(["true"]).ok
    True
    """

    propagation: str = "private"

    kind: ClassVar[str] = "mount"
    flag: ClassVar[Constant] = CLONE_NEWNS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.propagation not in ("private", "slave", "shared"):
            raise ValueError(f"propagation must be 'private', 'slave' or 'shared', not {self.propagation!r}")

    def leaves_files(self) -> bool:
        """Whether there may be files in it that are there afterwards: of one that is joined nothing is known."""
        return self.joined

    def steps(self, context: Context) -> Iterator[Step]:
        """The flag, and propagation off before the first mount."""
        user = context.find(UserNamespace)
        if self.joined and user is not None and not user.joined:
            raise ConflictError(
                "a mount namespace that is joined belongs to its own user namespace: join that too, or none"
            )
        if self.joined:
            # Not in the supervisor: it goes by the host's /proc, and what is in there is somebody else's to arrange.
            yield self._join(context, Phase.PROPAGATION)
        else:
            yield from super().steps(context)
            yield from propagation_steps(self.propagation)


@keywords
@dataclass(frozen=True, kw_only=True)
class PidNamespace(_Namespace, Reversible):
    """Process ids of its own (pid_namespaces(7)): nothing outside can be seen or signalled, all inside die together.

    PID 1 is an init of isolate's that forwards signals and reaps; with ``init=False`` it is the program itself, which
    then must reap what it inherits.

    :param path: join the namespace of this file, such as ``/run/netns/blue``; at most one of ``path``, ``pid`` and
        ``fd``.
    :param pid: join the namespace of this process.
    :param fd: join the namespace that this descriptor is of.
    :param init: PID 1 is isolate's; otherwise the program itself.

    >>> Sandbox(UserNamespace(), PidNamespace()).run(["sh", "-c", "echo $$"]).stdout
    b'2\\n'
    """

    init: bool = True

    kind: ClassVar[str] = "pid"
    flag: ClassVar[Constant] = CLONE_NEWPID

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.joined and not self.init:
            # What the program leaves behind would become the child of that namespace's PID 1, out of our reach.
            raise ConflictError("PidNamespace: one that is joined has its PID 1 already, so init=False cannot be")


@keywords
@dataclass(frozen=True, kw_only=True)
class NetNamespace(_Namespace, Reversible):
    """A network of its own (network_namespaces(7)): only loopback, which is up unless ``loopback=False``.

    :param path: join the namespace of this file, such as ``/run/netns/blue``; at most one of ``path``, ``pid`` and
        ``fd``.
    :param pid: join the namespace of this process.
    :param fd: join the namespace that this descriptor is of.
    :param loopback: bring lo up.

    >>> box = Sandbox(UserNamespace(), NetNamespace())
    >>> box.run(["sh", "-c", "grep -c : /proc/self/net/dev"]).stdout
    b'1\\n'
    """

    loopback: bool = True

    kind: ClassVar[str] = "network"
    flag: ClassVar[Constant] = CLONE_NEWNET

    def steps(self, context: Context) -> Iterator[Step]:
        """A new one beside the set-up of the rest, or the flag of clone; loopback up by SIOCSIFFLAGS."""
        if self.joined or not _apart(context):
            yield from super().steps(context)
            if not self.joined and self.loopback:
                yield Step(Phase.SYSTEM, "loopback up", tuple(_socket(loopback=True)))
            return
        namespace = Register("namespace")
        up = ", loopback up" if self.loopback else ""
        ops = (call("unshare", self.flag), *_socket(loopback=self.loopback, namespace=namespace))
        yield Step(Phase.ASIDE, f"new {self.kind} namespace{up}", ops)
        entering = (call("setns", namespace, self.flag), call("close", namespace))
        yield Step(Phase.NETWORK, f"enter the {self.kind} namespace that was made meanwhile", entering)


def _apart(context: Context) -> bool:
    """Whether a network namespace can be made while the rest is set up: by a second process, where there is an init to
    wait for it, and with nobody who wants to see the network earlier."""
    pid = context.find(PidNamespace)
    if not context.executes or (pid is not None and not pid.init):
        return False
    things = [*context.parts, *(entry for part in context.parts for entry in getattr(part, "entries", ()))]
    return not any(getattr(thing, "needs_network", False) for thing in things)


def _socket(*, loopback: bool, namespace: Register | None = None) -> list[Op]:
    """By a socket in it: bring its loopback up, and get a descriptor of it without any /proc."""
    fd = Register("socket")
    ops: list[Op] = [call("socket", Constant(2, "AF_INET"), Constant(0x80002, "SOCK_DGRAM|SOCK_CLOEXEC"), 0, out=fd)]
    if loopback:
        flags = (0x41).to_bytes(2, "little")  # IFF_UP|IFF_RUNNING
        request = Buffer(b"lo".ljust(16, b"\0") + flags + bytes(22), "ifreq")
        ops.append(call("ioctl", fd, Constant(0x8914, "SIOCSIFFLAGS"), request))
    if namespace is not None:
        ops.append(call("ioctl", fd, Constant(0x894C, "SIOCGSKNS"), out=namespace))  # Linux 4.10
    return [*ops, call("close", fd)]


@keywords
@dataclass(frozen=True, kw_only=True)
class IpcNamespace(_Namespace, Reversible):
    """System V IPC and POSIX message queues of its own (ipc_namespaces(7)).

    :param path: join the namespace of this file, such as ``/run/netns/blue``; at most one of ``path``, ``pid`` and
        ``fd``.
    :param pid: join the namespace of this process.
    :param fd: join the namespace that this descriptor is of.

    >>> Sandbox(UserNamespace(), IpcNamespace()).run(["true"]).ok
    True
    """

    kind: ClassVar[str] = "ipc"
    flag: ClassVar[Constant] = CLONE_NEWIPC


@keywords
@dataclass(frozen=True, kw_only=True)
class UtsNamespace(_Namespace, Reversible):
    """A host name and domain name of its own (uts_namespaces(7)); those not given are the host's.

    :param path: join the namespace of this file, such as ``/run/netns/blue``; at most one of ``path``, ``pid`` and
        ``fd``.
    :param pid: join the namespace of this process.
    :param fd: join the namespace that this descriptor is of.
    :param hostname: host name inside, at most 64 bytes.
    :param domainname: NIS domain name inside.

    >>> Sandbox(UserNamespace(), UtsNamespace(hostname="box")).run(["uname", "-n"]).stdout
    b'box\\n'
    """

    hostname: str | None = None
    domainname: str | None = None

    kind: ClassVar[str] = "uts"
    flag: ClassVar[Constant] = CLONE_NEWUTS

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hostname", "domainname"):
            value = getattr(self, name)
            if value is not None and (
                not isinstance(value, str) or "\0" in value or not 1 <= len(os.fsencode(value)) <= 64
            ):
                raise ValueError(f"{name} must be a str of 1 to 64 bytes without NUL, not {value!r}")

    def steps(self, context: Context) -> Iterator[Step]:
        """The flag, then the names."""
        yield from super().steps(context)
        for name in ("hostname", "domainname"):
            value = getattr(self, name)
            if value is not None:
                data = os.fsencode(value)
                yield Step(Phase.SYSTEM, f"{name} {value}", (call(f"set{name}", data, len(data)),))


@keywords
@dataclass(frozen=True, kw_only=True)
class CgroupNamespace(_Namespace, Reversible):
    """A view of the cgroup tree whose root is the sandbox's own group (cgroup_namespaces(7)).

    :param path: join the namespace of this file, such as ``/run/netns/blue``; at most one of ``path``, ``pid`` and
        ``fd``.
    :param pid: join the namespace of this process.
    :param fd: join the namespace that this descriptor is of.

    >>> Sandbox(UserNamespace(), CgroupNamespace()).run(["true"]).ok
    True
    """

    kind: ClassVar[str] = "cgroup"
    flag: ClassVar[Constant] = CLONE_NEWCGROUP

    def steps(self, context: Context) -> Iterator[Step]:
        """unshare in init: the root of the view is the group that the process is in at that moment, and on v1 the child
        gets into its own only after clone."""
        if self.joined:
            yield from super().steps(context)
        else:
            text = "new cgroup namespace: its root is the group that this process is in"
            yield Step(Phase.NAMESPACES, text, (call("unshare", self.flag),))


@keywords
@dataclass(frozen=True, kw_only=True)
class TimeNamespace(_Namespace, Reversible):
    """Monotonic and boot-time clocks with an offset (time_namespaces(7), Linux 5.6).

    ``monotonic`` and ``boottime`` are seconds, rounded to the nearest nanosecond, or exact: (seconds, nanoseconds), of
    which the second is from 0 to 999,999,999 also where the first is negative. Offsets are between -2**31 and 2**31
    seconds; one that would make a clock negative is refused by the kernel (ERANGE).

    :param path: join the namespace of this file, such as ``/run/netns/blue``; at most one of ``path``, ``pid`` and
        ``fd``.
    :param pid: join the namespace of this process.
    :param fd: join the namespace that this descriptor is of.
    :param monotonic: seconds that CLOCK_MONOTONIC is ahead.
    :param boottime: seconds that CLOCK_BOOTTIME, and so uptime(1), is ahead.

    >>> box = Sandbox(UserNamespace(), TimeNamespace(boottime=864000))
    >>> float(box.run(["cat", "/proc/uptime"]).stdout.split()[0]) > 864000
    True
    """

    monotonic: float | tuple[int, int] = 0
    boottime: float | tuple[int, int] = 0
    _limit: ClassVar[int] = 2**31

    kind: ClassVar[str] = "time"
    flag: ClassVar[Constant] = CLONE_NEWTIME

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("monotonic", "boottime"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            self._offset(name)

    def _offset(self, name: str) -> tuple[int, int]:
        """Whole seconds and nanoseconds."""
        value = getattr(self, name)
        if isinstance(value, tuple):
            if len(value) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) for n in value):
                raise ValueError(f"{name} as a pair is (seconds, nanoseconds), two ints, not {value!r}")
            seconds, nanoseconds = value
            if not 0 <= nanoseconds < 1_000_000_000:
                raise ValueError(f"{name}: nanoseconds must be from 0 to 999999999, not {nanoseconds}")
        else:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not -self._limit < value < self._limit:  # also false for not-a-number
                raise ValueError(f"{name} must be seconds between -2**31 and 2**31, not {value!r}")
            # Exact arithmetic: a float times a billion would round a second time.
            seconds, nanoseconds = divmod(round(Fraction(value) * 1_000_000_000), 1_000_000_000)
        if not -self._limit < seconds < self._limit:
            raise ValueError(f"{name} must be seconds between -2**31 and 2**31, not {value!r}")
        return seconds, nanoseconds

    def steps(self, context: Context) -> Iterator[Step]:
        """unshare in init, so that its child, the payload, is born inside, after the offsets have been set."""
        if self.joined:
            yield self._join(context)
            return
        offsets, shown = b"", []
        for clock in ("monotonic", "boottime"):
            seconds, nanoseconds = self._offset(clock)
            offsets += b"%s %d %d\n" % (clock.encode(), seconds, nanoseconds)
            value = getattr(self, clock)
            shown.append(f"{seconds} s {nanoseconds} ns" if isinstance(value, tuple) else f"{value} s")
        yield Step(
            Phase.TIME,
            f"new time namespace, clocks shifted by {' and '.join(shown)}",
            (call("unshare", self.flag), *write_file(AT_FDCWD, b"/proc/self/timens_offsets", offsets)),
            path=b"/proc/self/timens_offsets",
        )
