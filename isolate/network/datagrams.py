"""Datagrams of published ports, relayed: each client has a socket of its own in the network that members are in."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolate.network.sockets import Supply

__all__ = ["IDLE", "Datagrams", "Targets"]

#: Addresses and ports, of which the next is tried where the one before refuses.
Targets: TypeAlias = "tuple[tuple[str, int], ...]"
#: Clients at a time, of all ports; seconds without a datagram after which one is forgotten.
_MOST, IDLE = 256, 60.0
#: Seconds for which the others begin with the next target, too, where a client's first one has refused.
_REFUSED = 10.0


class _Client:
    """A client of a port: the socket to the member, and where else its datagrams may go."""

    def __init__(self, port: socket.socket, place: Any, left: Targets) -> None:
        self.port, self.place, self.left = port, place, left
        self.inner: socket.socket | None = None
        self.last = b""
        self.used = 0.0


class Datagrams:
    """The clients of all ports. For the relay's thread alone, which waits for the sockets that it ``registers``."""

    def __init__(
        self,
        supply: Supply,
        register: Callable[[socket.socket, int, Callable[[socket.socket], None]], None],
        close: Callable[[socket.socket], None],
    ) -> None:
        self._supply, self._register, self._close = supply, register, close
        #: The least recently used first.
        self._clients: OrderedDict[tuple[socket.socket, object], _Client] = OrderedDict()
        #: Ports whose first target has refused, and until when it is passed over.
        self._refused: dict[socket.socket, float] = {}

    def __bool__(self) -> bool:
        return bool(self._clients)

    def take(self, port: socket.socket, to: Targets) -> None:
        """Send on what has come to a port."""
        for _ in range(64):
            try:
                data, place = port.recvfrom(65535)
            except BlockingIOError:
                return
            now = time.monotonic()
            client = self._clients.get((port, place))
            if client is None:
                if len(self._clients) >= _MOST:
                    self._forget(next(iter(self._clients.values())))
                passed = len(to) > 1 and self._refused.get(port, 0.0) > now
                client = self._clients[port, place] = _Client(port, place, to[1:] if passed else to)
                client.last = data
                self._clients.move_to_end((port, place))
                client.used = now
                try:
                    self._open(client)
                except BaseException:  # no descriptor is left
                    self._forget(client)
                    raise
                continue
            self._clients.move_to_end((port, place))
            client.used, client.last = now, data
            self._send(client)

    def _open(self, client: _Client) -> None:
        """Send the last datagram to the next target that can be tried."""
        while client.left:
            (address, number), client.left = client.left[0], client.left[1:]
            inner = self._supply.take(socket.SOCK_DGRAM, socket.AF_INET6 if ":" in address else socket.AF_INET)
            try:
                inner.connect((address, number))
                self._register(inner, selectors.EVENT_READ, lambda sock: self._answers(sock, client))
            except OSError:
                inner.close()
                continue
            client.inner = inner
            self._send(client)
            return
        self._forget(client)

    def _send(self, client: _Client) -> None:
        assert client.inner is not None
        try:
            client.inner.send(client.last)
        except ConnectionRefusedError:  # of an earlier datagram
            self._elsewhere(client)
        except OSError:
            pass

    def _answers(self, inner: socket.socket, client: _Client) -> None:
        """What the member sends goes to the client; that nobody listens there, to the next target."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                try:
                    data = inner.recv(65535)
                except ConnectionRefusedError:
                    self._elsewhere(client)
                    return
                client.left = ()  # somebody is there
                with contextlib.suppress(OSError):
                    client.port.sendto(data, client.place)

    def _elsewhere(self, client: _Client) -> None:
        if client.left and client.inner is not None:
            self._refused[client.port] = time.monotonic() + _REFUSED
            self._close(client.inner)
            client.inner = None
            self._open(client)

    def _forget(self, client: _Client) -> None:
        self._clients.pop((client.port, client.place), None)
        if client.inner is not None:
            self._close(client.inner)
            client.inner = None

    def forget(self, port: socket.socket) -> None:
        """The clients of a port, which is closed."""
        self._refused.pop(port, None)
        for client in [each for each in self._clients.values() if each.port is port]:
            self._forget(client)

    def expire(self) -> None:
        """Those that have been idle for long."""
        limit = time.monotonic() - IDLE
        for client in list(self._clients.values()):
            if client.used > limit:
                break
            self._forget(client)
