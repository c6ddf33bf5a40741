"""Names among the members: a resolver that answers at the switch's own addresses (RFC 1035).

It knows the members, and asks the host's resolvers about everything else where the network has a way out: by UDP, and
what it was asked by TCP, by TCP (RFC 7766). What comes from members is not trusted: every length is bounded, every
question stands by itself, and a member whose egress is limited gets no answer from outside, since questions could carry
its words out.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import secrets
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING, TypeAlias

from isolate.kernel.serving import serving
from isolate.network.dns import FAILURE, Query, answer, malformed, parse, reverse, shortened
from isolate.network.taken import Taken

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolate.network.address import Address

__all__ = ["Names", "nameservers"]

#: Questions that wait for the host's resolvers, of all members and of one; connections; bytes that one does not read.
_PENDING, _OF_ONE, _CONNECTIONS, _UNREAD = 256, 64, 64, 1 << 18
#: Seconds for an answer.
_PATIENCE = 5.0
#: Seconds for one of several resolvers: who asks gives up after five, and wants the answer of the last one, too.
_TURN = 1.0
#: Answers of a resolver that cannot tell (RFC 1035: failure, not implemented, refused): another may.
_UNABLE = (2, 4, 5)
_LOCAL = "127.0.0.1"
#: Sockets of all resolvers of this process, so that members leave their caller descriptors.
_TAKEN = Taken()
#: A resolver, and whether it is asked by TCP.
_Way: TypeAlias = "tuple[str, bool]"
_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


def nameservers(path: str = "/etc/resolv.conf") -> list[str]:
    """The host's resolvers, at most three; the one on the local machine where none is named (resolv.conf(5))."""
    found = []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                words = line.split()
                if len(words) >= 2 and words[0] == "nameserver":
                    with contextlib.suppress(ValueError):
                        # With its zone: a link-local address means nothing without.
                        found.append(str(ipaddress.ip_address(words[1])))
    except OSError:
        pass
    return found[:3] or [_LOCAL]


class _Asked:
    """A question that was passed on, and the ways to ask that are left: a resolver, and whether by TCP."""

    def __init__(
        self, query: Query, message: bytes, peer: Address, reply: Callable[[bytes], None], left: Sequence[_Way]
    ) -> None:
        self.query, self.message, self.peer, self.reply, self.left = query, message, peer, reply, left
        self.number = 0
        self.server = ""
        self.until = 0.0
        #: The data that has come by TCP.
        self.data = b""
        #: The answer of a resolver that cannot tell, should no other say more.
        self.failure = b""

    @property
    def patience(self) -> float:
        """Seconds for this resolver."""
        return _TURN if any(server != self.server for server, _ in self.left) else _PATIENCE

    def is_answer(self, data: bytes) -> bool:
        """Whether it is the answer to what was asked."""
        whole = len(data) >= 12 + len(self.query.question)
        return whole and int.from_bytes(data[:2], "big") == self.number and bool(data[2] & 0x80)

    def ask_another(self) -> bool:
        """Leave the ways to this resolver; whether there is one to another."""
        self.left = [way for way in self.left if way[0] != self.server]
        return bool(self.left)

    def question(self) -> bytes:
        """The message to a resolver, with a number that nobody else knows."""
        return self.number.to_bytes(2, "big") + self.message[2:]


class _Connection:
    """A client that asks by TCP: messages with their length before them."""

    def __init__(self, sock: socket.socket, peer: Address) -> None:
        self.sock, self.peer, self.data, self.out = sock, peer, b"", b""
        self.until = time.monotonic() + 2 * _PATIENCE


class Names:
    """The resolver, on a thread of its own.

    ``find(name)`` gives a member's addresses or None, ``known(address)`` a member's name, ``may_ask(address)`` whether
    who has that address may ask for names outside.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        find: Callable[[str], Sequence[Address] | None],
        known: Callable[[Address], str | None],
        may_ask: Callable[[Address], bool],
        servers: Sequence[str] = (),
    ) -> None:
        self._find, self._known, self._may_ask, self._servers = find, known, may_ask, list(servers)
        self._selector = selectors.DefaultSelector()
        self._asked: dict[socket.socket, _Asked] = {}
        self._connections: dict[socket.socket, _Connection] = {}
        self._wake, waker = socket.socketpair()
        self._waker = waker
        self._selector.register(waker, selectors.EVENT_READ)
        for sock in sockets:
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, self._udp if _is_udp(sock) else self._tcp)
        self._thread = serving(self._run, "isolate-names")
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        with contextlib.suppress(OSError):
            self._wake.shutdown(socket.SHUT_RDWR)  # more than a close: a forked child may have a copy
        self._wake.close()
        if self._thread is not threading.current_thread():
            self._thread.join(5)

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with contextlib.closing(self._selector):
            while True:
                for key, _ in self._selector.select(0.5 if self._asked or self._connections else None):
                    if key.fileobj is self._waker:
                        self._end()
                        return
                    # One question must never end the answers to all others.
                    with contextlib.suppress(Exception):
                        key.data(key.fileobj)
                self._expire()

    def _end(self) -> None:
        self._waker.close()
        for sock in [*self._asked, *self._connections]:
            self._drop(sock)

    def _expire(self) -> None:
        now = time.monotonic()
        for sock, asked in list(self._asked.items()):
            if asked.until < now:
                self._drop(sock)
                with contextlib.suppress(OSError):
                    self._next(asked)
        for sock, connection in list(self._connections.items()):
            if connection.until < now:
                self._drop(sock)

    def _drop(self, sock: socket.socket) -> None:
        if self._asked.pop(sock, None) is not None or self._connections.pop(sock, None) is not None:
            _TAKEN.give()
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)
        sock.close()

    # ---- questions -----------------------------------------------------------------------------------------------

    def _udp(self, sock: socket.socket) -> None:
        for _ in range(64):
            try:
                message, peer = sock.recvfrom(4097)
            except BlockingIOError:
                return

            def send(data: bytes, sock: socket.socket = sock, peer: tuple[str, int] = peer) -> None:
                sock.sendto(data, peer)

            with contextlib.suppress(OSError):
                self._question(message, ipaddress.ip_address(peer[0].partition("%")[0]), send)

    def _tcp(self, sock: socket.socket) -> None:
        connection, peer = sock.accept()
        if len(self._connections) >= _CONNECTIONS or _TAKEN.take():
            connection.close()
            return
        connection.setblocking(False)
        self._connections[connection] = _Connection(connection, ipaddress.ip_address(peer[0].partition("%")[0]))
        self._selector.register(connection, selectors.EVENT_READ, self._more)

    def _more(self, sock: socket.socket) -> None:
        connection = self._connections[sock]
        try:
            self._flush(connection)
            data = _received(sock, 4096)
        except OSError:
            data = b""
        if data is None:
            return
        connection.data += data
        if not data or len(connection.data) > 16384:
            self._drop(sock)
            return
        while len(connection.data) >= 2 and sock in self._connections:
            size = int.from_bytes(connection.data[:2], "big")
            if len(connection.data) < 2 + size:
                return
            message, connection.data = connection.data[2 : 2 + size], connection.data[2 + size :]

            def send(data: bytes) -> None:
                connection.out += len(data).to_bytes(2, "big") + data
                self._flush(connection)

            self._question(message, connection.peer, send, stream=True)

    def _flush(self, connection: _Connection) -> None:
        """Send what the client takes. One that does not read its answers gets no more of them."""
        if connection.sock not in self._connections:
            return  # it has gone before its answer came
        with contextlib.suppress(BlockingIOError):
            while connection.out:
                connection.out = connection.out[connection.sock.send(connection.out) :]
        if len(connection.out) > _UNREAD:
            self._drop(connection.sock)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.out else 0)
        self._selector.modify(connection.sock, events, self._more)

    def _question(self, message: bytes, peer: Address, send: Callable[[bytes], None], *, stream: bool = False) -> None:
        query = parse(message)
        if query is None:
            data = malformed(message)
            if data is not None:
                send(data)
            return

        def reply(data: bytes) -> None:
            send(data if stream or len(data) <= query.room else shortened(query, data))

        turned = reverse(query.name)
        known = self._known(turned) if turned is not None else None
        found = self._find(query.name) if turned is None else [known] if known else None
        if found is not None:
            reply(answer(query, found))
        elif self._servers and query.recursive and self._may_ask(peer):
            self._pass_on(message, query, peer, reply, stream)
        else:
            reply(answer(query, None))

    # ---- questions to others -------------------------------------------------------------------------------------

    def _pass_on(
        self, message: bytes, query: Query, peer: Address, reply: Callable[[bytes], None], stream: bool
    ) -> None:
        of_one = sum(1 for asked in self._asked.values() if asked.peer == peer)
        if len(self._asked) >= _PENDING or of_one >= _OF_ONE:
            reply(answer(query, (), FAILURE))
            return
        # Some resolvers answer by UDP alone.
        ways = [(server, way) for server in self._servers for way in ((True, False) if stream else (False,))]
        self._ask(_Asked(query, message, peer, reply, ways))

    def _ask(self, asked: _Asked) -> None:
        """Ask by the first way that can be tried at all."""
        while asked.left:
            if _TAKEN.take():
                break
            (asked.server, stream), asked.left = asked.left[0], asked.left[1:]
            family = socket.AF_INET6 if ":" in asked.server else socket.AF_INET
            kind = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
            try:
                sock = socket.socket(family, kind)
            except OSError:
                _TAKEN.give()
                raise
            asked.number, asked.data = secrets.randbelow(1 << 16), b""
            try:
                sock.setblocking(False)
                # Answers from nobody else are taken; the port is a fresh one.
                place = socket.getaddrinfo(asked.server, 53, type=kind, flags=_NUMERIC)[0][4]
                error = sock.connect_ex(place)
                if error not in (0, errno.EINPROGRESS):
                    raise OSError(error, "the resolver cannot be reached")
                if not stream:
                    sock.send(asked.question())
            except OSError:
                sock.close()
                _TAKEN.give()
                continue
            asked.until = time.monotonic() + (_TURN if stream else asked.patience)
            self._asked[sock] = asked
            if stream:
                self._selector.register(sock, selectors.EVENT_WRITE, self._connected)
            else:
                self._selector.register(sock, selectors.EVENT_READ, self._answered)
            return
        if asked.failure:
            asked.reply(asked.query.number.to_bytes(2, "big") + asked.failure[2:])
        else:
            asked.reply(answer(asked.query, (), FAILURE))

    def _next(self, asked: _Asked) -> None:
        """A resolver said nothing: the next one is asked the same, and first from now on."""
        if asked.left and asked.left[0][0] != asked.server and asked.left[0][0] in self._servers:
            at = self._servers.index(asked.left[0][0])
            self._servers = self._servers[at:] + self._servers[:at]
        self._ask(asked)

    def _answered(self, sock: socket.socket) -> None:
        """A datagram of a resolver's."""
        asked = self._asked[sock]
        try:
            data = sock.recv(65535)
        except OSError:
            data = b""
        if not data or asked.is_answer(data):
            self._done(sock, data)

    def _connected(self, sock: socket.socket) -> None:
        """A resolver takes the question by TCP."""
        asked = self._asked[sock]
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._done(sock, b"")
            return
        message = asked.question()
        asked.until = time.monotonic() + asked.patience
        # At most 4098 bytes, for which a new connection has room.
        sock.send(len(message).to_bytes(2, "big") + message)
        self._selector.modify(sock, selectors.EVENT_READ, self._streamed)

    def _streamed(self, sock: socket.socket) -> None:
        """Some of a resolver's answer by TCP."""
        asked = self._asked[sock]
        data = _received(sock, 65535)
        if data is None:
            return
        asked.data += data
        size = 2 + int.from_bytes(asked.data[:2], "big")
        if data and (len(asked.data) < 2 or len(asked.data) < size):
            return
        found = asked.data[2:size]
        self._done(sock, found if len(asked.data) >= size and asked.is_answer(found) else b"")

    def _done(self, sock: socket.socket, data: bytes) -> None:
        """There is an answer, or none from this resolver."""
        asked = self._asked[sock]
        self._drop(sock)
        if data and data[3] & 0xF in _UNABLE and asked.ask_another():
            asked.failure = data
            self._ask(asked)
        elif data:
            asked.reply(asked.query.number.to_bytes(2, "big") + data[2:])
        else:
            self._next(asked)


def _received(sock: socket.socket, most: int) -> bytes | None:
    """What has come by a connection: b"" at its end, also where it was cut, and None if there is nothing yet."""
    try:
        return sock.recv(most)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _is_udp(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_DGRAM
