"""Sockets of a network namespace that the caller may enter only by another user namespace: made by the launcher."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.engine.descriptors import OwnedDescriptor
from isolate.engine.handing import Handing
from isolate.engine.ops import Register, Test, call
from isolate.engine.plan import Phase, Plan, Step
from isolate.engine.session import Session
from isolate.engine.tape import compile_plan, run_block
from isolate.kernel.constants import CLONE_NEWNET, CLONE_NEWUSER, Constant
from isolate.network.keeper import why

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Context

__all__ = ["Supply"]

_NS_GET_USERNS = 0xB701
_BATCH = 32


@dataclass(frozen=True)
class _Sockets:
    """The only part of the plan: join, make, hand over, end."""

    handing: Handing
    user: int
    network: int
    kind: int

    def steps(self, context: Context) -> Iterator[Step]:
        """No child is made: the last step fails, as it is meant to."""
        slot = self.handing.slot(context)
        joining = (
            call("setns", context.descriptor(self.user), CLONE_NEWUSER),
            call("setns", context.descriptor(self.network), CLONE_NEWNET),
        )
        yield Step(Phase.CGROUP, "join the network", joining)
        flags = Constant(self.kind | 0x80800, "SOCK_CLOEXEC|SOCK_NONBLOCK")
        fds = [Register("socket") for _ in range(self.handing.count)]
        making = [call("socket", Constant(2, "AF_INET"), flags, 0, out=fd) for fd in fds]
        yield Step(Phase.CGROUP, f"make {len(fds)} sockets", (*making, *self.handing.hand(slot, fds)))
        yield Step(Phase.CGROUP, "that was all", (Test(0, 1, error=errno.ECANCELED),))


class Supply:
    """IPv4 sockets of a network, unbound and non-blocking, as many as are wanted; made by the batch."""

    def __init__(self, network: int) -> None:
        self._network = network
        self._user = OwnedDescriptor(fcntl.ioctl(network, _NS_GET_USERNS))
        self._ready: dict[int, list[socket.socket]] = {socket.SOCK_STREAM: [], socket.SOCK_DGRAM: []}

    def take(self, kind: int) -> socket.socket:
        """One of them.

        :raises SetupError: none can be made.
        """
        ready = self._ready[kind]
        if not ready:
            ready += self._make(kind)
        return ready.pop()

    def _make(self, kind: int) -> list[socket.socket]:
        made: list[int] = []

        def receive(fds: list[int], session: Session) -> None:
            made.extend(fds)

        part = _Sockets(Handing(receive, _BATCH, part="Network"), self._user, self._network, kind)
        plan = Plan([part], euid=os.geteuid(), egid=os.getegid())
        tape = compile_plan(plan, init=False, pid_namespace=False, share=False)
        slots = plan.context.slots
        block = run_block(
            [b"-"], [], program=b"-", path=b"", cwd=b"/", fds=[], slots=6 + len(slots), started=False, tty=False
        )  # fmt: skip
        session = Session(tape, block, [-3] * 3, slots)
        try:
            if not made:
                raise why(session)
            session.wait_gone(5.0)
        finally:
            session.close()
        return [socket.socket(fileno=fd) for fd in made]

    def close(self) -> None:
        """Close those that nobody took."""
        for ready in self._ready.values():
            while ready:
                ready.pop().close()
        self._user.close()
