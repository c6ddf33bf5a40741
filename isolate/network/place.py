"""A member's place in a network: taken before its sandbox starts, or for something that runs already."""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING, Any, Protocol

from isolate.engine.descriptors import OwnedDescriptor
from isolate.errors import SetupError
from isolate.kernel.checks import is_int
from isolate.kernel.closing import Closing
from isolate.network.netlink import ROUTE, Socket
from isolate.network.sockets import make

if TYPE_CHECKING:
    from isolate.engine.plan import Launched
    from isolate.namespaces import NetNamespace
    from isolate.network.address import Address
    from isolate.network.link import Counters
    from isolate.network.members import Member

__all__ = ["Connection", "Place", "Running", "netlink_of"]


class Running(Protocol):
    """A process that runs: a :class:`~isolate.Process`."""

    @property
    def pid(self) -> int:
        """Its number."""
        ...

    @property
    def pidfd(self) -> int:
        """Its descriptor."""
        ...


class Joined(Protocol):
    """The requests of a place to its network: :class:`~isolate.network.Network` is one."""

    def _publish(self, wanted: Any) -> Any: ...

    def _attach(self, member: Member, inside: Socket) -> Any: ...

    def counters(self, member: Member) -> Counters:
        """The traffic of its interface."""
        ...

    def leave(self, member: Member, *, wait: bool) -> None:
        """Take it out."""
        ...


class Place:
    """A member's place in a network, for one start. What init hands over is a netlink socket of its network."""

    def __init__(self, network: Joined, member: Member) -> None:
        self.network = network
        self.member = member

    def publish(self) -> None:
        """Reserve its ports on the host.

        :raises SetupError: one is in use.
        """
        wanted = self.member.wish.publish
        if wanted:
            self.member.published = self.network._publish(wanted)

    def receive(self, fds: list[int], session: Launched) -> None:
        """Attach the network that the netlink socket is of."""
        (fd,) = fds
        made = socket.socket(fileno=fd)
        try:
            if made.family != socket.AF_NETLINK or made.proto != ROUTE:
                raise OSError("what init handed over is no socket of rtnetlink")
            self.network._attach(self.member, Socket(ROUTE, made=made, part="Interface"))
        finally:
            made.close()

    def counters(self) -> tuple[str, Counters]:
        """The device inside, and what it has moved."""
        return self.member.wish.device, self.network.counters(self.member)

    def ended(self) -> None:
        """Leave: name, addresses and ports are others' now."""
        self.close()

    def close(self, *, wait: bool = False) -> None:
        """Leave. Nothing happens a second time."""
        self.network.leave(self.member, wait=wait)


class Connection(Closing):
    """Something that runs, in a network; a context manager that takes it out again."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def __repr__(self) -> str:
        return f"<Connection {self.device} {' '.join(map(str, self.addresses))}>"

    @property
    def addresses(self) -> list[Address]:
        """The addresses that it was given."""
        return list(self._place.member.addresses)

    @property
    def device(self) -> str:
        """The name of the device inside."""
        return self._place.member.wish.device

    def counters(self) -> tuple[str, Counters]:
        """The device inside, and what it has moved."""
        return self._place.counters()

    def close(self) -> None:
        """Take it out: the device inside is gone when this returns."""
        self._place.close(wait=True)


def netlink_of(target: NetNamespace | Running | int) -> Socket:
    """A socket of rtnetlink in the network of a process, or of a handle of :class:`~isolate.NetNamespace`.

    :raises SetupError: there is no such process (any more), or the caller may not join its network.
    """
    fd, ours = _descriptor(target)
    (made,) = make(fd, socket.AF_NETLINK, socket.SOCK_RAW, ROUTE)
    if ours is not None:
        ours.close()
    return Socket(ROUTE, made=made, part="Interface")


def _descriptor(target: NetNamespace | Running | int) -> tuple[int, OwnedDescriptor | None]:
    fd = getattr(target, "fd", None)
    if isinstance(fd, int):
        return fd, None
    pid = target if isinstance(target, int) else getattr(target, "pid", None)
    path = getattr(target, "path", None)
    if path is None and not is_int(pid):
        raise TypeError(f"connect takes a Process, a pid or a NetNamespace that is joined, not {target!r}")
    path = path if path is not None else f"/proc/{pid}/ns/net"
    try:
        ours = OwnedDescriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise SetupError(
            error.errno or 3,
            f"open the network of {target!r}",
            part="Interface",
            syscall="openat",
            path=str(path),
            cause="there is no such process (any more)" if error.errno in (2, 3) else "the caller may not look into it",
        ) from None
    # The process may have ended, and its number be another's: its pidfd tells, now that the network is held.
    pidfd = getattr(target, "pidfd", None)
    if isinstance(pidfd, int):
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if poll.poll(0):
            ours.close()
            raise SetupError(3, f"open the network of {target!r}", part="Interface", cause="the program has ended")
    return ours, ours
