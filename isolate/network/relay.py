"""A relay for published ports, where this program may not change the host's nftables: as an ordinary user.

It listens at the host's address, and connects from the switch by sockets that were made there. One thread moves bytes
both ways, and waits on descriptors alone.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import selectors
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from isolate.errors import SetupError
from isolate.kernel.serving import serving
from isolate.network.datagrams import Datagrams, Targets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.network.address import Address
    from isolate.network.sockets import Supply
    from isolate.network.words import Publish

__all__ = ["Pump", "Relay", "Relayed"]

_CHUNK = 1 << 16
#: The most connections at a time by one port.
_MOST = 512
#: Seconds without a byte before which a connection does not go for a new one, and those of a pause in listening.
_SPARED, _PAUSE = 5.0, 1.0
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
Ready = Callable[[socket.socket], None]


class Pump:
    """One way of a connection: what was read and is not yet written, at most a chunk."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source: socket.socket = source
        self.target: socket.socket = target
        self.waiting: bytes = b""
        self.ended: bool = False  # the source sends no more
        self.done: bool = False  # and the target has been told

    def read(self) -> None:
        """Take what is there. An error is an end."""
        try:
            self.waiting = self.source.recv(_CHUNK)
        except BlockingIOError:
            return
        self.ended = not self.waiting

    def write(self) -> None:
        """Give as much as the target takes."""
        with contextlib.suppress(BlockingIOError):
            while self.waiting:
                self.waiting = self.waiting[self.target.send(self.waiting) :]
        if self.ended and not self.waiting and not self.done:
            self.done = True
            with contextlib.suppress(OSError):
                self.target.shutdown(socket.SHUT_WR)

    def give_up(self) -> None:
        """The target takes no more."""
        self.waiting, self.ended, self.done = b"", True, True


class _Connection:
    """A client's connection by a port, both ways."""

    def __init__(self, port: socket.socket, outer: socket.socket, inner: socket.socket) -> None:
        self.port: socket.socket = port
        self.pumps: tuple[Pump, Pump] = (Pump(outer, inner), Pump(inner, outer))
        self.ends: tuple[socket.socket, socket.socket] = (outer, inner)
        self.used: float = time.monotonic()  # when something moved last


class Relay:
    """The thread, and what it waits for. ``supply`` makes sockets of the network that members are in.

    ``idle``: a TCP connection by which nothing moved for so many seconds ends. A port that has its most connections
    gives up the one that has been idle longest; if all were used just now, new clients wait until one ends.
    """

    def __init__(self, supply: Supply, *, idle: float | None = None) -> None:
        self._supply = supply
        self._idle = float("inf") if idle is None else idle
        self._tick = min(5.0, self._idle / 4)  # between two looks for what is idle
        self._look_at = 0.0
        self._selector = selectors.DefaultSelector()
        self._todo: list[Callable[[], None]] = []
        self._connections: dict[socket.socket, _Connection] = {}  # by either end
        #: Those of each port, the least recently used first.
        self._by_port: dict[socket.socket, OrderedDict[_Connection, None]] = {}
        self._paused: dict[socket.socket, Targets] = {}
        self._resume_at = 0.0
        self._datagrams = Datagrams(supply, self._register, self._close)
        self._wake, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._selector.register(self._waker, selectors.EVENT_READ, self._awake)
        self._closing = False
        self._thread = serving(self._run, "isolate-relay")
        self._thread.start()

    # ---- for other threads ---------------------------------------------------------------------------------------

    def listen(self, sock: socket.socket, to: Targets) -> None:
        """Relay what comes to this socket, which is closed by :meth:`forget`."""
        sock.setblocking(False)
        if not _is_stream(sock):
            Datagrams.attend(sock)
        self._soon(lambda: self._attend(sock, to))

    def forget(self, sock: socket.socket) -> None:
        """Close it, with every connection that it led to."""
        done = threading.Event()

        def body() -> None:
            self._paused.pop(sock, None)
            self._close(sock)
            self._datagrams.forget(sock)
            for one in list(self._by_port.get(sock, ())):
                self._end(one)
            done.set()

        self._soon(body)
        done.wait(5)

    def close(self) -> None:
        """End the thread, and every connection."""
        self._closing = True
        self._soon(lambda: None)
        self._thread.join(5)

    def _soon(self, function: Callable[[], None]) -> None:
        self._todo.append(function)
        with contextlib.suppress(OSError):
            self._wake.send(b"1")

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select(self._patience()):
                with contextlib.suppress(Exception):  # one connection must never end the others
                    key.data(key.fileobj)
            self._expire()
            self._resume()
        for sock in [key.fileobj for key in list(self._selector.get_map().values())]:
            self._close(sock)  # type: ignore[arg-type]
        for sock in (*self._connections, *self._paused):  # a client's whose other end was not there yet
            self._close(sock)
        self._selector.close()
        self._wake.close()
        self._supply.close()

    def _patience(self) -> float | None:
        """How long it may wait for the next event, in seconds."""
        if self._paused:
            return max(0.0, self._resume_at - time.monotonic())
        if self._datagrams:
            return self._tick
        return self._tick if self._connections and self._idle < float("inf") else None

    def _awake(self, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            sock.recv(4096)
        while self._todo:
            self._todo.pop(0)()

    def _register(self, sock: socket.socket, events: int, ready: Ready) -> None:
        try:
            self._selector.modify(sock, events, ready)
        except KeyError:
            self._selector.register(sock, events, ready)

    def _close(self, sock: socket.socket) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)
        sock.close()

    def _attend(self, sock: socket.socket, to: Targets) -> None:
        stream = _is_stream(sock)
        ready: Ready = (lambda s: self._accept(s, to)) if stream else (lambda s: self._datagrams.take(s, to))
        self._register(sock, selectors.EVENT_READ, ready)

    def _pause(self, port: socket.socket, to: Targets) -> None:
        """Accept nobody by this port for a moment, or until a connection ends; clients wait in its queue."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(port)
        if not self._paused:
            self._resume_at = time.monotonic() + _PAUSE
        self._paused[port] = to

    def _resume(self) -> None:
        if self._paused and time.monotonic() >= self._resume_at:
            self._resume_at = time.monotonic() + _PAUSE  # for those that cannot be registered now
            for port, to in list(self._paused.items()):
                with contextlib.suppress(OSError):
                    self._attend(port, to)
                    del self._paused[port]

    def _expire(self) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + self._tick
        for connections in list(self._by_port.values()):
            for one in list(connections):
                if one.used > now - self._idle:
                    break
                self._end(one)
        self._datagrams.expire()

    # ---- TCP -----------------------------------------------------------------------------------------------------

    def _accept(self, port: socket.socket, to: Targets) -> None:
        if not self._has_room(port):
            self._pause(port, to)
            return
        try:
            outer, _ = port.accept()
        except OSError as error:
            if error.errno in _SHORT:  # the client stays in the queue, so the port would be ready again at once
                self._pause(port, to)
            return
        try:
            outer.setblocking(False)
            self._open(outer, port, to)
        except Exception as error:
            outer.close()
            if isinstance(error, OSError) and error.errno in _SHORT:
                self._pause(port, to)
            raise

    def _has_room(self, port: socket.socket) -> bool:
        """Whether there may be one more by this port; what has been idle longest goes for it.

        All ports together take three quarters of the descriptors that this program may open, two for each connection,
        and one port at most half of those, so that it cannot keep the others from theirs.
        """
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = max(2, soft * 3 // 8) if soft != resource.RLIM_INFINITY else 1 << 20
        if len(self._by_port.get(port, ())) >= min(_MOST, most // 2):
            return self._make_room(self._by_port[port])
        if len(self._connections) >= 2 * most:
            return self._make_room(max(self._by_port.values(), key=len))
        return True

    def _make_room(self, connections: OrderedDict[_Connection, None]) -> bool:
        first = next(iter(connections))
        if first.used > time.monotonic() - _SPARED:
            return False
        self._end(first)
        return True

    def _open(self, outer: socket.socket, port: socket.socket, to: Targets) -> None:
        """Connect to the first that can be tried.

        :raises OSError: there is none.
        """
        (address, number), rest = to[0], to[1:]
        inner = self._supply.take(socket.SOCK_STREAM, socket.AF_INET6 if ":" in address else socket.AF_INET)
        found = inner.connect_ex((address, number))
        if found not in (0, errno.EINPROGRESS):
            inner.close()
            if not rest:
                raise OSError(found, "nothing can be reached")
            self._open(outer, port, rest)
            return
        for each in (outer, inner):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._register(inner, selectors.EVENT_WRITE, lambda sock: self._connected(sock, rest))
        made = _Connection(port, outer, inner)
        self._connections[outer] = self._connections[inner] = made
        self._by_port.setdefault(port, OrderedDict())[made] = None

    def _connected(self, inner: socket.socket, rest: Targets) -> None:
        connection = self._connections[inner]
        if inner.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            if not rest:
                self._end(connection)  # nobody listens there: the client's connection ends as well
                return
            outer = connection.ends[0]
            self._drop(connection)
            self._close(inner)
            try:
                self._open(outer, connection.port, rest)
            except Exception:
                self._close(outer)
                raise
        else:
            self._move(inner)

    def _move(self, sock: socket.socket) -> None:
        connection = self._connections[sock]
        connection.used = time.monotonic()
        self._by_port[connection.port].move_to_end(connection)
        pumps = connection.pumps
        try:
            for pump in pumps:
                if not pump.waiting and not pump.ended:
                    pump.read()
                try:
                    pump.write()
                except OSError:
                    if pump is not pumps[0]:
                        raise
                    pump.give_up()  # the member takes no more; it may have answered all the same, and closed
        except OSError:
            self._end(connection)
            return
        if all(pump.done for pump in pumps):
            self._end(connection)
            return
        for end in connection.ends:
            events = 0
            for pump in pumps:
                if pump.source is end and not pump.waiting and not pump.ended:
                    events |= selectors.EVENT_READ
                if pump.target is end and pump.waiting:
                    events |= selectors.EVENT_WRITE
            if events:
                self._register(end, events, self._move)
            else:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(end)

    def _end(self, connection: _Connection) -> None:
        self._drop(connection)
        for end in connection.ends:
            self._close(end)
        self._resume_at = 0.0  # a port that pauses has room now

    def _drop(self, connection: _Connection) -> None:
        for end in connection.ends:
            self._connections.pop(end, None)
        mine = self._by_port.get(connection.port)
        if mine is not None:
            mine.pop(connection, None)
            if not mine:
                del self._by_port[connection.port]


def _is_stream(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM


class Relayed:
    """A member's published ports, by the relay."""

    def __init__(self, relay: Relay, publish: tuple[Publish, ...], reserve: Callable[[Publish, int], socket.socket]):
        self._relay = relay
        self._ports: list[tuple[socket.socket, int]] = []
        self._to: Sequence[Address] = ()
        try:
            for each in publish:
                for outside, inside in each.pairs:
                    self._ports.append((reserve(each, outside), inside))
        except BaseException:
            self.close()
            raise

    def lead(self, to: Sequence[Address]) -> None:
        """Have them lead to a member's addresses: those of IPv6 to IPv6's first, or to IPv4's where that refuses."""
        self._to = to
        for sock, port in self._ports:
            if _is_stream(sock):
                try:
                    # Inherited by its connections: once they have ended, the port can be published again at once.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.listen(1024)
                except OSError as error:  # another socket listens there since
                    raise SetupError(error.errno or errno.EADDRINUSE, "publish a port", part="Interface") from None
            self._relay.listen(sock, self._targets(sock, port))

    def _targets(self, sock: socket.socket, port: int) -> Targets:
        order = reversed(self._to) if sock.family == socket.AF_INET6 else self._to[:1]
        return tuple((str(address), port) for address in order)

    def close(self) -> None:
        """Withdraw its published ports."""
        while self._ports:
            sock, _ = self._ports.pop()
            if self._to:
                self._relay.forget(sock)
            else:
                sock.close()
