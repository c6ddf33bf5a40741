"""Sockets of a network namespace, made by the launcher: the caller itself enters no namespace, and may not be able to.

As an ordinary user a network belongs to a user namespace, which only a process with one thread can join.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.diagnosis import start
from isolate.engine.descriptors import OwnedDescriptor
from isolate.engine.finding import Finding
from isolate.engine.handing import Handing
from isolate.engine.ops import Fail, Register, call
from isolate.engine.plan import Phase, Step
from isolate.kernel.constants import CLONE_NEWNET, CLONE_NEWUSER, Constant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Context, Launched

__all__ = ["Supply", "make"]

_NS_GET_USERNS = 0xB701
_BATCH = 32
_HINTS = {
    errno.EPERM: Finding(
        "it needs CAP_SYS_ADMIN in the user namespace that owns the network", "be root, or the user who made it"
    ),
    errno.EACCES: Finding(
        "it needs CAP_NET_RAW in the user namespace that owns the network", "be root, or the user who made it"
    ),
}


@dataclass(frozen=True)
class _Sockets:
    """The only part of the plan: join, make, hand over, end."""

    handing: Handing
    user: int | None
    network: int
    family: int
    kind: int
    protocol: int

    def steps(self, context: Context) -> Iterator[Step]:
        """No child is made: the last step fails, as it is meant to."""
        slot = self.handing.slot(context)
        joining = [call("setns", context.descriptor(self.network), CLONE_NEWNET)]
        if self.user is not None:
            joining.insert(0, call("setns", context.descriptor(self.user), CLONE_NEWUSER))
        yield Step(Phase.CGROUP, "join the network", tuple(joining), hints=_HINTS)
        flags = Constant(self.kind | 0x80800, "SOCK_CLOEXEC|SOCK_NONBLOCK")
        fds = [Register("socket") for _ in range(self.handing.count)]
        making = [call("socket", self.family, flags, self.protocol, out=fd) for fd in fds]
        yield Step(Phase.CGROUP, f"make {len(fds)} sockets there", (*making, *self.handing.hand(slot, fds)))
        yield Step(Phase.CGROUP, "that was all", (Fail(errno.ECANCELED),))


def make(network: int, family: int, kind: int, protocol: int = 0, *, count: int = 1) -> list[socket.socket]:
    """Non-blocking sockets of the network namespace that a descriptor is of.

    :raises SetupError: the caller may not join it, or a socket cannot be made there.
    """
    made: list[int] = []

    def receive(fds: list[int], session: Launched) -> None:
        made.extend(fds)

    user = OwnedDescriptor(fcntl.ioctl(network, _NS_GET_USERNS))
    try:
        found, own = os.fstat(user), os.stat("/proc/thread-self/ns/user")
        same = (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)
        handing = Handing(receive, count, part="Network")
        part = _Sockets(handing, None if same else user, network, family, kind, protocol)
        session = start.keep(part)
    finally:
        user.close()
    try:
        if not made:
            raise start.why(session, "Network")
        session.wait_gone(5.0)
    finally:
        session.close()
    return [socket.socket(fileno=fd) for fd in made]


class Supply:
    """Sockets of a network, unbound and non-blocking, as many as are wanted; made by the batch."""

    def __init__(self, network: int) -> None:
        self._network = network
        self._ready: dict[tuple[int, int], list[socket.socket]] = {}

    def take(self, kind: int, family: int = socket.AF_INET) -> socket.socket:
        """One of them.

        :raises SetupError: none can be made.
        """
        ready = self._ready.setdefault((family, kind), [])
        if not ready:
            ready += make(self._network, family, kind, count=_BATCH)
        return ready.pop()

    def close(self) -> None:
        """Close those that nobody took."""
        for ready in self._ready.values():
            while ready:
                ready.pop().close()
