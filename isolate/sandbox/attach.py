"""Joining what runs: the namespaces of a process (:func:`attach`), and a further program in a sandbox.

Namespaces are pinned by descriptors, and the process by its pidfd: should its number be used again, nothing of the
new process is taken for the old one's.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from errno import EACCES, ENOENT, ESRCH
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from isolate.attributes.credentials import Credentials
from isolate.cgroups import Cgroup, CgroupPool, Limits
from isolate.cgroups.ending import read_stats
from isolate.cgroups.hierarchy import build, discover
from isolate.cgroups.hierarchy import read as read_text
from isolate.cgroups.part import joined_steps
from isolate.engine.descriptors import OwnedDescriptor
from isolate.engine.plan import Context
from isolate.engine.waiting import ready
from isolate.errors import IsolateError, SetupError
from isolate.kernel.checks import is_int
from isolate.kernel.closing import Closing
from isolate.kernel.namespaces import KINDS
from isolate.kernel.proc import fields
from isolate.namespaces.part import (
    PARTS,
    CgroupNamespace,
    IpcNamespace,
    MountNamespace,
    NetNamespace,
    PidNamespace,
    TimeNamespace,
    UserNamespace,
    UtsNamespace,
)
from isolate.sandbox.box import Sandbox
from isolate.sandbox.joining import JoinedGroup, JoinedOutcome
from isolate.sandbox.process import Process
from isolate.seccomp import Seccomp

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from isolate.cgroups.stats import Stats
    from isolate.engine.plan import Buffer, Launched, Part, Step
    from isolate.sandbox.result import Result

__all__ = ["Attached", "attach"]

#: Seconds for the launcher of a process whose group is gone to send its last record.
LAST_COUNTS = 5.0

_WORDS = {kind.typed: kind.file for kind in KINDS}


@runtime_checkable
class Guarding(Protocol):
    """A part that some programs could get around, also those that join its namespaces later."""

    def check_joining(self, context: Context) -> None:
        """Refuse such a program.

        :raises ConflictError: it is one.
        """
        ...


class Attached(Closing):
    """The namespaces of a process that runs; made by :func:`attach`, a context manager that lets go of them.

    ``user``, ``mount``, ``pid_namespace``, ``net``, ``ipc``, ``uts``, ``cgroup`` and ``time`` are parts that join one:
    ``with attach(pid).net:`` has the calling thread in that network, ``Sandbox(attach(pid).net)`` a child. They stay
    valid after the process has ended, and as long as one of these parts is there. A kind that the kernel was built
    without is missing. ``run`` and ``spawn`` start a program in all of them, with the ids of the process.

    Needs what :func:`attach` needs, and to join them CAP_SYS_ADMIN in the user namespace that owns each: root, or an
    ordinary user in sandboxes of its own. Source: setns(2), namespaces(7), pidfd_open(2).

    :param pid: of the process.
    :param pidfd: that pins it.
    :raises SetupError: ESRCH: the process has ended meanwhile; EACCES: the caller may not look into it.

    >>> with Sandbox().spawn(["sleep", "9"]) as process, attach(process) as there:
    ...     there.run(["true"]).ok
    True
    """

    def __init__(self, pid: int, pidfd: int, process: Process | None = None) -> None:
        #: The process, as this program numbers it.
        self.pid = pid
        self._process = process
        self._pidfd = OwnedDescriptor(os.dup(pidfd))
        self._ids = (0, 0)
        self._parts: dict[str, Any] = {}
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        root = f"/proc/{self.pid}"
        try:
            for kind, part in PARTS.items():
                try:
                    fd = os.open(f"{root}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    if not os.path.exists(root):
                        raise
                    continue  # the kernel was built without this kind
                self._parts[kind] = part(fd=OwnedDescriptor(fd))
            self._ids = _ids_inside(root)
        except OSError as error:
            # A process that has gone, or another one under its number by now: the pidfd tells below.
            if self.alive:
                raise _denied(self.pid, error) from None
        if not self.alive:
            raise _gone(self.pid)

    def __repr__(self) -> str:
        return f"<Attached to process {self.pid}{'' if self.alive else ' (ended)'}>"

    @property
    def alive(self) -> bool:
        """Whether the process has not ended yet."""
        if self._pidfd.closed:
            return False
        return not ready(self._pidfd)

    # ---- one by one ----------------------------------------------------------------------------------------------

    def _part(self, kind: str) -> Any:
        if kind not in self._parts:
            raise SetupError(ENOENT, f"join the {kind} namespace of process {self.pid}", part="attach")
        return self._parts[kind]

    @property
    def user(self) -> UserNamespace:
        """Its user namespace."""
        return self._part("user")  # type: ignore[no-any-return]

    @property
    def mount(self) -> MountNamespace:
        """Its mount namespace."""
        return self._part("mnt")  # type: ignore[no-any-return]

    @property
    def pid_namespace(self) -> PidNamespace:
        """The pid namespace that it is in."""
        return self._part("pid")  # type: ignore[no-any-return]

    @property
    def net(self) -> NetNamespace:
        """Its network namespace."""
        return self._part("net")  # type: ignore[no-any-return]

    @property
    def ipc(self) -> IpcNamespace:
        """Its IPC namespace."""
        return self._part("ipc")  # type: ignore[no-any-return]

    @property
    def uts(self) -> UtsNamespace:
        """Its UTS namespace."""
        return self._part("uts")  # type: ignore[no-any-return]

    @property
    def cgroup(self) -> CgroupNamespace:
        """Its cgroup namespace."""
        return self._part("cgroup")  # type: ignore[no-any-return]

    @property
    def time(self) -> TimeNamespace:
        """Its time namespace."""
        return self._part("time")  # type: ignore[no-any-return]

    # ---- all together --------------------------------------------------------------------------------------------

    def sandbox(self, *parts: Part, only: Iterable[str] | None = None, group: bool = True) -> Sandbox:
        """A sandbox in every namespace of the process that is not the caller's own already, with more parts.

        ``only`` names the kinds: ``"user"``, ``"mount"``, ``"pid"``, ``"net"``, ``"ipc"``, ``"uts"``, ``"cgroup"`` and
        ``"time"``.

        Programs are in the process's cgroup too, and so within its limits, unless :class:`~isolate.Limits`, a
        :class:`~isolate.Cgroup` or a :class:`~isolate.CgroupPool` says otherwise; ``group=False`` leaves them in the
        caller's. It takes the right to write the group's ``cgroup.procs``.

        Safe defaults hold as in every sandbox: no capability, no new privileges; and :meth:`Seccomp.default` filters
        the system calls, unless a policy is given: what is in the process's namespaces is not trusted. Unless
        :class:`~isolate.Credentials`
        are given, programs run with the process's ids. For a further program with all of the process's own
        restrictions, see :meth:`isolate.Process.exec`.

        :raises ConflictError: the process is a :class:`Process` behind :class:`~isolate.network.Userspace`, and the
            parts give capabilities that are refused there.
        """
        kinds = set(PARTS) if only is None else {_kind(word) for word in only}
        joined = [
            part
            for kind, part in self._parts.items()
            if kind in kinds and not _own(kind, part.fd) and not _given(type(part), parts)
        ]
        same_ids = "user" in kinds or _own("user", self.user.fd or 0)
        if same_ids and not _given(Credentials, parts):
            joined.append(Credentials(uid=self._ids[0], gid=self._ids[1]))
        if joined and not _given(Seccomp, parts):
            joined.append(Seccomp.default())
        if any(isinstance(part, NetNamespace) for part in joined):
            self._check(parts)
        if group and not any(_given(kind, parts) for kind in (Limits, Cgroup, CgroupPool)):
            joined += self._group()
        return Sandbox(*joined, *parts)

    def _check(self, parts: Sequence[Part]) -> None:
        """Have the parts that the process was started with refuse what they would not start in their network."""
        session = self._process._session if self._process is not None else None
        for part in session.tape.plan.parts if session is not None else ():
            if isinstance(part, Guarding):
                part.check_joining(Context(parts, euid=os.geteuid(), egid=os.getegid()))

    def _group(self) -> list[TargetGroup]:
        membership = read_text(f"/proc/{self.pid}/cgroup")
        # Asked after the reading: while it lives, the number is its own.
        if not self.alive:
            raise _gone(self.pid)
        own = {hierarchy.key: hierarchy.own for hierarchy in discover().hierarchies}
        theirs = build(read_text("/proc/self/mountinfo"), membership).hierarchies
        found = tuple((h.key, h.own) for h in theirs if h.own and h.own != own.get(h.key))
        return [TargetGroup(found, self._process)] if found else []

    def run(self, args: Any, **options: Any) -> Result[Any]:
        """Run a program inside to its end: :meth:`Sandbox.run` of :meth:`sandbox`."""
        return self.sandbox().run(args, **options)

    def spawn(self, args: Any, **options: Any) -> Process:
        """Start a program inside: :meth:`Sandbox.spawn` of :meth:`sandbox`."""
        return self.sandbox().spawn(args, **options)

    # ---- life ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the descriptors. Parts that were taken out hold their own until they go."""
        self._parts.clear()
        self._pidfd.close()


@dataclass(frozen=True)
class TargetGroup:
    """The cgroup of a process that runs, by hierarchy: what is started is born in it."""

    directories: tuple[tuple[str, str], ...]
    #: The process itself, where it is one of ours: it knows the group's last counts.
    process: Process | None = field(default=None, compare=False, repr=False)

    def steps(self, context: Context) -> Iterator[Step]:
        """Into each of them. What its own mounts let programs write there is the process's affair."""
        context.group = _Counted(dict(self.directories), self.process)
        yield from joined_steps(dict(self.directories), context, covered=False)


class _Counted(JoinedGroup):
    """The group of another process: what it counts while a program of ours runs tells why that failed."""

    def __init__(self, directories: dict[str, str], process: Process | None) -> None:
        super().__init__()
        self._directories = directories
        self._process = process
        self._before = read_stats(directories)

    def directories(self, session: Launched) -> dict[str, str]:
        """Those of the process."""
        return self._directories

    def outcome(self, report: bytes, reports: Sequence[tuple[Buffer, int, int]]) -> JoinedOutcome:
        """The counts since the last call."""
        before, self._before = self._before, self._now()
        return JoinedOutcome(self._before, None, None, before)

    def _now(self) -> Stats:
        """The counts so far. An OOM killer that ends all of a group ends the process too, and its launcher removes the
        group: its result has the last counts then."""
        found = read_stats(self._directories)
        if self._process is not None and not all(map(os.path.isdir, self._directories.values())):
            with contextlib.suppress(IsolateError, ValueError, OSError):
                last: Stats | None = self._process.result(timeout=LAST_COUNTS).stats
                return last or found
        return found


def attach(process: int | Process) -> Attached:
    """The namespaces of a running process: its pid, or a :class:`~isolate.Process`.

    Needs the right to look into it (ptrace(2), PTRACE_MODE_READ): root, or the same user, and it is dumpable.

    :raises SetupError: ESRCH: there is no such process (any more); EACCES: the caller may not look into it.

    :param process: its pid, or a :class:`Process`.

    >>> with Sandbox().spawn(["sleep", "9"]) as process, attach(process) as there:
    ...     there.net.identity.inode > 0
    True
    """
    if isinstance(process, Process):
        if process.pidfd < 0:
            raise ValueError(f"{process!r} is closed")
        return Attached(process.pid, process.pidfd, process)
    if not is_int(process):
        raise TypeError(f"attach takes a pid or a Process, not {process!r}")
    if process < 1:
        raise ValueError(f"not a pid: {process}")
    if process >= 1 << 31:
        raise _gone(process)  # the kernel has no such number, and Python's call takes none
    try:
        pidfd = OwnedDescriptor(os.pidfd_open(process))
    except OSError as error:
        if error.errno == ESRCH:
            raise _gone(process) from None
        raise SetupError(
            error.errno or ESRCH,
            f"attach to process {process}",
            part="attach",
            syscall="pidfd_open",
            cause="it is a thread, not a process" if error.errno in (22, ENOENT) else None,
        ) from None
    try:
        return Attached(process, pidfd)
    finally:
        pidfd.close()


def _kind(word: str) -> str:
    name = _WORDS.get(word)
    if name is None:
        from isolate.kernel.checks import nearest

        raise ValueError(f"no kind of namespace is named {word!r}{nearest(word, _WORDS)}")
    return name


def _given(kind: type[object], parts: tuple[Part, ...]) -> bool:
    return any(isinstance(part, kind) for part in parts)


def _own(kind: str, fd: int) -> bool:
    ours, theirs = os.stat(f"/proc/thread-self/ns/{kind}"), os.fstat(fd)
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def _ids_inside(root: str) -> tuple[int, int]:
    """Effective uid and gid of a process as its own user namespace has them."""
    found = []
    with open(f"{root}/status", "rb") as status:
        rows = {name: value.split() for name, value in fields(status.read()).items()}
    for row, name in (("Uid", "uid_map"), ("Gid", "gid_map")):
        seen = int(rows[row][1])
        with open(f"{root}/{name}", encoding="ascii") as file:
            ranges = [tuple(map(int, line.split())) for line in file]
        found.append(next((i + seen - o for i, o, n in ranges if o <= seen < o + n), seen))
    return found[0], found[1]


def _gone(pid: int) -> SetupError:
    cause = "there is no such process, or it has ended"
    return SetupError(ESRCH, f"attach to process {pid}", part="attach", cause=cause, remedy="name one that runs: ps -e")


def _denied(pid: int, error: OSError) -> SetupError:
    return SetupError(
        error.errno or EACCES,
        f"open the namespaces of process {pid}",
        part="attach",
        path=error.filename,
        cause="the caller may not look into it: it is another user's, has other capabilities, or is not dumpable",
        remedy="be root, or whoever started it",
    )
