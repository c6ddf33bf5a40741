"""Objects that init makes inside are handed to the Python program, which may use them before init goes on.

A socket belongs to the network that it was made in, so whoever holds it acts in there: init makes it, and the program
listens, or asks the kernel by netlink, from outside. No process of the program's enters the sandbox.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Protocol

from isolate.engine.ops import Buffer, Op, Register, Slot, Store, call
from isolate.errors import SetupError
from isolate.kernel.constants import Constant

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolate.engine.plan import Context, Launched
    from isolate.engine.session import Session

__all__ = ["Closing", "Handing", "Taker", "bind_and_listen", "give"]

SOL_SOCKET, SCM_RIGHTS = 1, 1
MSG_NOSIGNAL = Constant(0x4000, "MSG_NOSIGNAL")
#: Seconds that a start may take until it hands over what it made: a frozen group must not stop its caller for good.
PATIENCE = 30.0


class Closing(Protocol):
    """The part of a hand-over that stays until the sandbox ends.

    With a method ``ended`` it lets go of what others may want as soon as the sandbox has ended.
    """

    def close(self) -> None:
        """The sandbox has ended, or is closed."""
        ...


class Taker(Closing, Protocol):
    """The receiver of one start: it takes the objects that init hands over."""

    def receive(self, fds: list[int], session: Launched) -> Closing | None:
        """As ``receive`` of :class:`Handing`."""
        ...


class Handing:
    """A resource of each start: descriptors made inside come to ``receive``, called by whoever starts the sandbox.

    ``receive(fds, session)`` owns the descriptors. What it raises takes the sandbox down; what it returns, if anything,
    is closed when the start's session is. ``count`` is how many there are.

    ``prepare()`` may stand in its place: it is called before the launcher starts, to refuse what cannot be, and what it
    returns receives the descriptors, and is closed with the session.
    """

    def __init__(
        self,
        receive: Callable[[list[int], Launched], Closing | None] | None = None,
        count: int = 1,
        *,
        prepare: Callable[[], Taker] | None = None,
        part: str | None = None,
        hold: bool = False,
    ) -> None:
        """``hold``: whoever handed over waits until :meth:`go` of what :meth:`of` finds."""
        if (receive is None) == (prepare is None):
            raise TypeError("Handing: one of receive and prepare must be given")
        self.receive = receive
        self.count = count
        self.prepare = prepare
        self.part = part
        self.hold = hold

    def of(self, session: Session) -> Handed:
        """The object that this has given to the start of a session."""
        return next(held for held in session.held if isinstance(held, Handed) and held.handing is self)

    def slot(self, context: Context) -> Slot:
        """The slot of the socket by which they are handed over."""
        (slot,) = context.resource(self, 1)
        return slot

    def take(self) -> Handed:
        """A socket pair for one start."""
        return Handed(self)

    def hand(self, slot: Slot, fds: Sequence[Register]) -> list[Op]:
        """Ops: hand these descriptors over, and close them here."""
        if len(fds) != self.count:
            raise ValueError(f"{self.count} descriptors are to be handed over, not {len(fds)}")
        return [*give(slot, fds), *(call("close", fd) for fd in fds)]

    def wait(self, slot: Slot) -> list[Op]:
        """Ops: wait until they have been received. EIO: it was given up."""
        return [call("recvfrom", slot, Buffer(8, "a byte"), 1, 0, 0, 0, expect=1), call("close", slot)]


class Handed:
    """One start's socket pair; a :class:`~isolate.engine.resources.Held`."""

    def __init__(self, handing: Handing) -> None:
        self.handing = handing
        self._kept: list[Closing] = []
        self._ours: socket.socket | None = None
        self._theirs: socket.socket | None = None
        receive = handing.receive
        if handing.prepare is not None:
            taker = handing.prepare()
            self._kept.append(taker)
            receive = taker.receive
        assert receive is not None
        self._receive = receive
        try:
            self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError):
                raise
            step = "make the way of the descriptors that init hands over"
            raise SetupError(error.errno or 0, step, part=handing.part, syscall="socketpair") from None
        self.fds: list[int] = [self._theirs.fileno()]

    @property
    def kept(self) -> tuple[Closing, ...]:
        """The objects that stay until the sandbox ends."""
        return tuple(self._kept)

    def ready(self) -> int:
        """A descriptor that is readable once there is something to take, or the start has failed."""
        assert self._theirs is not None
        assert self._ours is not None
        self._theirs.close()  # the launcher has its own: when all of those are gone, ours ends
        return self._ours.fileno()

    def started(self, session: Launched) -> None:
        """Take what init hands over, then let it go on."""
        self.ready()
        ours = self._ours
        assert ours is not None
        fds = self._received(ours, session)
        if fds is None:
            return  # the start has failed before: its record says how
        kept = self._receive(fds, session)
        if kept is not None:
            self._kept.append(kept)
        if not self.handing.hold:
            self.go()

    def go(self) -> None:
        """Let whoever handed over go on."""
        if self._ours is not None:
            with contextlib.suppress(OSError):  # where it has ended meanwhile its record says why
                self._ours.send(b"1", socket.MSG_NOSIGNAL)
            self._ours.close()

    def _received(self, ours: socket.socket, session: Launched) -> list[int] | None:
        deadline = time.monotonic() + PATIENCE
        poll = select.poll()
        poll.register(ours, select.POLLIN)
        while not poll.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            if time.monotonic() >= deadline:
                raise SetupError(
                    errno.ETIMEDOUT,
                    "wait for what init makes inside",
                    part=self.handing.part,
                    cause=f"init has not come so far within {PATIENCE:.0f} s: it is stopped, or its cgroup is frozen",
                    remedy="continue or thaw it: kill -CONT, Cgroup.thaw()",
                )
        size = array.array("i").itemsize * self.handing.count
        try:
            data, ancillary, flags, _ = ours.recvmsg(16, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return None
        fds = array.array("i")
        for level, kind, content in ancillary:
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        if data == b"1" and len(fds) == self.handing.count and not flags & socket.MSG_CTRUNC:
            return list(fds)
        for fd in fds:
            os.close(fd)
        if not data:
            return None
        raise SetupError(
            errno.EMFILE,
            "take what init made inside",
            part=self.handing.part,
            syscall="recvmsg",
            cause="this process has no descriptor left for it",
            remedy="close some, or raise RLIMIT_NOFILE: ulimit -n",
        )

    def ended(self) -> None:
        """The sandbox has ended; its caller may still hold it."""
        for each in self._kept:
            ended = getattr(each, "ended", None)
            if ended is not None:
                with contextlib.suppress(OSError):  # close() tries again, and tells
                    ended()

    def close(self) -> None:
        """Close the sockets, and what was kept."""
        for end in (self._ours, self._theirs):
            if end is not None:
                end.close()
        while self._kept:
            self._kept.pop().close()


def give(slot: Slot, fds: Sequence[Register]) -> list[Op]:
    """Ops: a message with these descriptors on a unix socket (SCM_RIGHTS, unix(7))."""
    size = 16 + 4 * len(fds)
    control = Buffer(struct.pack("<Qii", size, SOL_SOCKET, SCM_RIGHTS) + bytes(4 * len(fds) + 4), "descriptors")
    data, parts, message = Buffer(b"1", "a byte"), Buffer(struct.pack("<QQ", 0, 1), "iovec"), Buffer(56, "msghdr")
    return [
        *(Store(control, 16 + 4 * i, fd, 4) for i, fd in enumerate(fds)),
        Store(parts, 0, data, 8),
        Store(message, 16, parts, 8),
        Store(message, 24, 1, 8),
        Store(message, 32, control, 8),
        Store(message, 40, size, 8),
        call("sendmsg", slot, message, MSG_NOSIGNAL, expect=1),
    ]


def bind_and_listen(fd: Register, host: str, port: int, *, backlog: int = 1024) -> list[Op]:
    """Ops: a TCP socket that listens at an IPv4 or IPv6 address of the network that runs them (tcp(7))."""
    import ipaddress

    address = ipaddress.ip_address(host)
    if address.version == 4:
        family, name = Constant(2, "AF_INET"), struct.pack("=H2s4s8x", 2, port.to_bytes(2, "big"), address.packed)
    else:
        family, name = (
            Constant(10, "AF_INET6"),
            struct.pack("=H2sI16sI", 10, port.to_bytes(2, "big"), 0, address.packed, 0),
        )
    flags = Constant(0x80801, "SOCK_STREAM|SOCK_CLOEXEC|SOCK_NONBLOCK")
    one = Buffer(struct.pack("=i", 1), "on")
    return [
        call("socket", family, flags, 0, out=fd),
        call("setsockopt", fd, Constant(1, "SOL_SOCKET"), Constant(2, "SO_REUSEADDR"), one, 4),
        call("bind", fd, Buffer(name, "address"), len(name)),
        call("listen", fd, backlog),
    ]
