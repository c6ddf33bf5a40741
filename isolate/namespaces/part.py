"""Namespaces: what a process sees (namespaces(7)). One part for each of the kernel's eight kinds.

Each part makes a new namespace for the sandbox, or joins one that exists: of a process (``pid=``), from a file such as
``/run/netns/name`` (``path=``), or by a descriptor (``fd=``, which must stay open while the sandbox is used).
Without a user namespace of its own a sandbox needs CAP_SYS_ADMIN for all but the user namespace.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from errno import ERANGE
from typing import TYPE_CHECKING, ClassVar

from isolate.engine.finding import Finding
from isolate.engine.plan import (
    Buffer,
    Context,
    Op,
    Phase,
    Register,
    Step,
    call,
)
from isolate.errors import ConflictError
from isolate.kernel.checks import is_int, is_number, keywords
from isolate.kernel.constants import (
    AT_FDCWD,
    Constant,
)
from isolate.kernel.namespaces import by_word
from isolate.kernel.paths import encoded
from isolate.namespaces.base import Namespace
from isolate.namespaces.propagation import propagation_steps
from isolate.namespaces.quotas import write_file
from isolate.namespaces.user import UserNamespace
from isolate.thread.entering import Reversible

if TYPE_CHECKING:
    from collections.abc import Iterator


__all__ = [
    "PARTS",
    "CgroupNamespace",
    "IpcNamespace",
    "MountNamespace",
    "NetNamespace",
    "PidNamespace",
    "TimeNamespace",
    "UserNamespace",
    "UtsNamespace",
]


@keywords
@dataclass(frozen=True, kw_only=True)
class MountNamespace(Namespace, Reversible):
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
    flag: ClassVar[Constant] = by_word("mount").flag

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
class PidNamespace(Namespace, Reversible):
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
    flag: ClassVar[Constant] = by_word("pid").flag

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.joined and not self.init:
            # Processes left behind by the program would become children of that namespace's PID 1, out of our reach.
            raise ConflictError("PidNamespace: one that is joined has its PID 1 already, so init=False cannot be")


@keywords
@dataclass(frozen=True, kw_only=True)
class NetNamespace(Namespace, Reversible):
    """A network of its own (network_namespaces(7)): only loopback, which is up unless ``loopback=False``.

    Inside there are no devices, addresses, ports or abstract Unix sockets of the host. Needs CAP_SYS_ADMIN, or
    :class:`UserNamespace` beside it.

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
    flag: ClassVar[Constant] = by_word("network").flag

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
    """Use a socket in it to bring its loopback up, and to get a descriptor of it without /proc."""
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
class IpcNamespace(Namespace, Reversible):
    """System V IPC and POSIX message queues of its own (ipc_namespaces(7)).

    Inside there are no segments, semaphores or queues of others. All that are made inside go with the namespace.
    Needs CAP_SYS_ADMIN, or :class:`UserNamespace` beside it.

    :param path: join the namespace of this file, such as ``/run/netns/blue``; at most one of ``path``, ``pid`` and
        ``fd``.
    :param pid: join the namespace of this process.
    :param fd: join the namespace that this descriptor is of.

    >>> Sandbox(UserNamespace(), IpcNamespace()).run(["true"]).ok
    True
    """

    kind: ClassVar[str] = "ipc"
    flag: ClassVar[Constant] = by_word("ipc").flag


@keywords
@dataclass(frozen=True, kw_only=True)
class UtsNamespace(Namespace, Reversible):
    """A host name and domain name of its own (uts_namespaces(7)); those not given are the host's.

    Names that are changed inside are not seen outside. Needs CAP_SYS_ADMIN, or :class:`UserNamespace` beside it.

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
    flag: ClassVar[Constant] = by_word("uts").flag

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hostname", "domainname"):
            value = getattr(self, name)
            if value is not None and (
                not isinstance(value, str) or "\0" in value or not 1 <= len(encoded(value, name)) <= 64
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
class CgroupNamespace(Namespace, Reversible):
    """A view of the cgroup tree whose root is the sandbox's own group (cgroup_namespaces(7)).

    Groups above it, and their names, are not seen inside. It limits nothing: see :class:`isolate.Limits`. Needs
    CAP_SYS_ADMIN, or :class:`UserNamespace` beside it.

    :param path: join the namespace of this file, such as ``/run/netns/blue``; at most one of ``path``, ``pid`` and
        ``fd``.
    :param pid: join the namespace of this process.
    :param fd: join the namespace that this descriptor is of.

    >>> Sandbox(UserNamespace(), CgroupNamespace()).run(["true"]).ok
    True
    """

    kind: ClassVar[str] = "cgroup"
    flag: ClassVar[Constant] = by_word("cgroup").flag

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
class TimeNamespace(Namespace, Reversible):
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
    flag: ClassVar[Constant] = by_word("time").flag

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
            if len(value) != 2 or not all(is_int(n) for n in value):
                raise ValueError(f"{name} as a pair is (seconds, nanoseconds), two ints, not {value!r}")
            seconds, nanoseconds = value
            if not 0 <= nanoseconds < 1_000_000_000:
                raise ValueError(f"{name}: nanoseconds must be from 0 to 999999999, not {nanoseconds}")
        else:
            number = is_number(value)
            if not number or not -self._limit < value < self._limit:  # also false for not-a-number
                raise ValueError(f"{name} must be seconds between -2**31 and 2**31, not {value!r}")
            from fractions import Fraction  # loaded late: few sandboxes shift clocks

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
            hints={ERANGE: _NEGATIVE},
        )


_NEGATIVE = Finding(
    "a clock would be below 0, or above half of what the kernel counts to (time_namespaces(7))",
    "go back by no more than the clock shows: time.clock_gettime(time.CLOCK_BOOTTIME)",
)

#: The part of each kind, by the name of the kind's file in /proc/PID/ns.
PARTS: dict[str, type[Namespace]] = {
    by_word(part.kind).file: part
    for part in (
        UserNamespace,
        PidNamespace,
        MountNamespace,
        NetNamespace,
        IpcNamespace,
        UtsNamespace,
        CgroupNamespace,
        TimeNamespace,
    )
}
