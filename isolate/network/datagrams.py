"""Datagrams of published ports, relayed: each client has a socket of its own in the network that members are in.

A client takes answers only from the address that it asked. A port of all addresses would answer from the one by which
the route leads, so the kernel is asked for the address, and told it again (IP_PKTINFO, ip(7); ipv6(7)).
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolate.network.sockets import Supply

__all__ = ["IDLE", "Datagrams", "Targets"]

#: Control messages, as ``sendmsg`` takes them.
_Control: TypeAlias = "tuple[tuple[int, int, bytes], ...]"
_IP, _IPV6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6
_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 8, 49, 50
_IN, _IN6 = struct.Struct("=I4s4s"), struct.Struct("=16sI")  # struct in_pktinfo, struct in6_pktinfo
#: Addresses and ports, of which the next is tried where the one before refuses.
Targets: TypeAlias = "tuple[tuple[str, int], ...]"
#: Clients at a time, of all ports; seconds without a datagram after which one is forgotten.
_MOST, IDLE = 256, 60.0
#: Seconds for which the others begin with the next target, too, where a client's first one has refused.
_REFUSED = 10.0


class _Client:
    """A client of a port: the socket to the member, and where else its datagrams may go."""

    def __init__(self, port: socket.socket, place: Any, own: _Control, left: Targets) -> None:
        self.port, self.place, self.own, self.left = port, place, own, left
        self.key = (port, place, own)
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
        self._clients: OrderedDict[tuple[socket.socket, object, _Control], _Client] = OrderedDict()
        #: Ports whose first target has refused, and until when it is passed over.
        self._refused: dict[socket.socket, float] = {}

    def __bool__(self) -> bool:
        return bool(self._clients)

    @staticmethod
    def attend(port: socket.socket) -> None:
        """Have the kernel tell with each datagram to which address it was sent."""
        level, option = (_IPV6, _IPV6_RECVPKTINFO) if port.family == socket.AF_INET6 else (_IP, _IP_PKTINFO)
        port.setsockopt(level, option, 1)

    def take(self, port: socket.socket, to: Targets) -> None:
        """Send on what has come to a port."""
        for _ in range(64):
            try:
                data, control, _, place = port.recvmsg(65535, socket.CMSG_SPACE(_IN6.size))
            except BlockingIOError:
                return
            now = time.monotonic()
            own = tuple(map(_answering, control))
            key = (port, place, own)
            client = self._clients.get(key)
            if client is None:
                if len(self._clients) >= _MOST:
                    self._forget(next(iter(self._clients.values())))
                passed = len(to) > 1 and self._refused.get(port, 0.0) > now
                client = self._clients[key] = _Client(port, place, own, to[1:] if passed else to)
                client.last = data
                client.used = now
                try:
                    self._open(client)
                except BaseException:  # no descriptor is left
                    self._forget(client)
                    raise
                continue
            client.last = data
            self._use(client)
            self._send(client)

    def _use(self, client: _Client) -> None:
        """Something has moved, either way."""
        if client.key in self._clients:
            self._clients.move_to_end(client.key)
        client.used = time.monotonic()

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
        """Pass on to the client what the member sends. If nobody listens there, the next target gets the datagrams."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                try:
                    data = inner.recv(65535)
                except ConnectionRefusedError:
                    self._elsewhere(client)
                    return
                client.left = ()  # somebody is there
                self._use(client)
                with contextlib.suppress(OSError):
                    client.port.sendmsg([data], client.own, 0, client.place)

    def _elsewhere(self, client: _Client) -> None:
        if client.left and client.inner is not None:
            self._refused[client.port] = time.monotonic() + _REFUSED
            self._close(client.inner)
            client.inner = None
            self._open(client)

    def _forget(self, client: _Client) -> None:
        self._clients.pop(client.key, None)
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


def _answering(control: tuple[int, int, bytes]) -> tuple[int, int, bytes]:
    """The control message by which an answer leaves from the address that a datagram was sent to."""
    level, kind, data = control
    if (level, kind) == (_IP, _IP_PKTINFO):
        _, own, _ = _IN.unpack(data)
        return level, kind, _IN.pack(0, own, bytes(4))
    own, index = _IN6.unpack(data)
    group = own[0] == 0xFF  # the kernel knows which address of the device is right
    device = index if group or own[:2] == b"\xfe\x80" else 0
    return level, kind, _IN6.pack(bytes(16) if group else own, device)
