"""A relay for published ports, where this program may not change the host's nftables: as an ordinary user.

It listens at the host's address, and connects from the switch by sockets that were made there. One thread moves bytes
both ways, and waits on descriptors alone.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from isolate.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.network.address import Address
    from isolate.network.sockets import Supply
    from isolate.network.words import Publish

__all__ = ["Pump", "Relay", "Relayed"]

_CHUNK = 1 << 16
_PAIRS, _PEERS, _IDLE = 512, 256, 60.0
#: Addresses and ports, of which the next is tried where the one before refuses.
Targets: TypeAlias = "tuple[tuple[str, int], ...]"
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


class Relay:
    """The thread, and what it waits for. ``take(kind)`` makes sockets of the network that members are in."""

    def __init__(self, supply: Supply) -> None:
        self._supply = supply
        self._selector = selectors.DefaultSelector()
        self._todo: list[Callable[[], None]] = []
        self._pairs: dict[socket.socket, tuple[Pump, Pump]] = {}
        self._peers: dict[tuple[socket.socket, object], tuple[socket.socket, float]] = {}
        self._wake, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._selector.register(self._waker, selectors.EVENT_READ, self._awake)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="isolate-relay", daemon=True)
        self._thread.start()

    # ---- for other threads ---------------------------------------------------------------------------------------

    def listen(self, sock: socket.socket, to: Targets) -> None:
        """Relay what comes to this socket, which is closed by :meth:`forget`."""
        stream = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
        ready: Ready = (lambda s: self._accept(s, to)) if stream else (lambda s: self._datagrams(s, to[-1]))
        sock.setblocking(False)
        self._soon(lambda: self._register(sock, selectors.EVENT_READ, ready))

    def forget(self, sock: socket.socket, to: Targets) -> None:
        """Close it, with every connection that it led to."""
        done = threading.Event()

        def body() -> None:
            self._close(sock)
            for key, (peer, _) in list(self._peers.items()):
                if key[0] is sock:
                    del self._peers[key]
                    self._close(peer)
            for one in list(self._pairs):
                with contextlib.suppress(OSError):
                    if one.getpeername()[:2] in to:
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
            for key, _ in self._selector.select(5.0 if self._peers else None):
                with contextlib.suppress(Exception):  # one connection must never end the others
                    key.data(key.fileobj)
            self._expire()
        for sock in [key.fileobj for key in list(self._selector.get_map().values())]:
            self._close(sock)  # type: ignore[arg-type]
        for sock in list(self._pairs):  # a client's whose other end was not there yet
            self._close(sock)
        self._selector.close()
        self._wake.close()
        self._supply.close()

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

    def _expire(self) -> None:
        limit = time.monotonic() - _IDLE
        for key, (peer, used) in list(self._peers.items()):
            if used < limit:
                del self._peers[key]
                self._close(peer)

    # ---- TCP -----------------------------------------------------------------------------------------------------

    def _accept(self, sock: socket.socket, to: Targets) -> None:
        outer, _ = sock.accept()
        try:
            outer.setblocking(False)
            if len(self._pairs) >= 2 * _PAIRS:
                raise OSError(errno.EMFILE, "too many connections")
            self._open(outer, to)
        except Exception:
            outer.close()
            raise

    def _open(self, outer: socket.socket, to: Targets) -> None:
        """Connect to the first that can be tried.

        :raises OSError: there is none.
        """
        (address, port), rest = to[0], to[1:]
        inner = self._supply.take(socket.SOCK_STREAM, socket.AF_INET6 if ":" in address else socket.AF_INET)
        found = inner.connect_ex((address, port))
        if found not in (0, errno.EINPROGRESS):
            inner.close()
            if not rest:
                raise OSError(found, "nothing can be reached")
            self._open(outer, rest)
            return
        for each in (outer, inner):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        there, back = Pump(outer, inner), Pump(inner, outer)
        self._pairs[outer] = self._pairs[inner] = (there, back)
        self._register(inner, selectors.EVENT_WRITE, lambda sock: self._connected(sock, rest))

    def _connected(self, inner: socket.socket, rest: Targets) -> None:
        if inner.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            if not rest:
                self._end(inner)  # nobody listens there: the client's connection ends as well
                return
            outer = self._pairs.pop(inner)[0].source
            self._pairs.pop(outer)
            self._close(inner)
            try:
                self._open(outer, rest)
            except Exception:
                self._close(outer)
                raise
        else:
            self._move(inner)

    def _move(self, sock: socket.socket) -> None:
        pumps = self._pairs[sock]
        try:
            for pump in pumps:
                if not pump.waiting and not pump.ended:
                    pump.read()
                pump.write()
        except OSError:
            self._end(sock)
            return
        if all(pump.done for pump in pumps):
            self._end(sock)
            return
        for end in (pumps[0].source, pumps[1].source):
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

    def _end(self, sock: socket.socket) -> None:
        pumps = self._pairs.get(sock)
        for end in (pumps[0].source, pumps[1].source) if pumps else ():
            self._pairs.pop(end, None)
            self._close(end)

    # ---- UDP -----------------------------------------------------------------------------------------------------

    def _datagrams(self, sock: socket.socket, to: tuple[str, int]) -> None:
        for _ in range(64):
            try:
                data, client = sock.recvfrom(65535)
            except BlockingIOError:
                return
            found = self._peers.get((sock, client))
            if found is None:
                if len(self._peers) >= _PEERS:
                    continue
                inner = self._supply.take(socket.SOCK_DGRAM)
                inner.connect(to)

                def back(inner: socket.socket, sock: socket.socket = sock, client: tuple[str, int] = client) -> None:
                    self._answers(inner, sock, client)

                self._register(inner, selectors.EVENT_READ, back)
            else:
                inner = found[0]
            self._peers[sock, client] = (inner, time.monotonic())
            with contextlib.suppress(OSError):
                inner.send(data)

    def _answers(self, inner: socket.socket, sock: socket.socket, client: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):
            for _ in range(64):
                sock.sendto(inner.recv(65535), client)


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
        """Have them lead to a member's addresses: those of IPv6 to its IPv6 address first. Datagrams go to IPv4's."""
        self._to = to
        for sock, port in self._ports:
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM:
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
        """Nobody reaches the member by them any more."""
        while self._ports:
            sock, port = self._ports.pop()
            if self._to:
                self._relay.forget(sock, self._targets(sock, port))
            else:
                sock.close()
