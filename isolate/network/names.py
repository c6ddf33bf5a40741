"""Names among the members: a resolver that answers at the switch's own addresses (RFC 1035).

It knows the members, and asks the host's resolvers about everything else where the network has a way out. What comes
from members is not trusted: every length is bounded, every question stands by itself, and a member whose egress is
limited gets no answer from outside, since questions could carry its words out.
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolate.network.address import Address

__all__ = ["Names", "Query", "answer", "nameservers", "parse"]

_A, _PTR, _AAAA, _ANY, _IN = 1, 12, 28, 255, 1
_NOERROR, _FORMAT, _FAILURE, _UNKNOWN, _REFUSED = 0, 1, 2, 3, 5
_TTL = 5  # seconds: members come and go
_PENDING, _CONNECTIONS, _PATIENCE = 256, 64, 5.0
#: Seconds for one of several resolvers: who asks gives up after five, and wants the answer of the last one, too.
_TURN = 1.0
_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


@dataclass(frozen=True)
class Query:
    """A question: its number, its name in lower case, the type that is asked for, and the bytes of the question."""

    number: int
    name: str
    kind: int
    question: bytes
    recursive: bool


def parse(message: bytes) -> Query | None:
    """A standard query with one question of the Internet's class, or None."""
    if not 17 <= len(message) <= 4096:
        return None
    number, flags, questions, answers, authorities, _ = struct.unpack_from(">6H", message)
    if flags & 0xF800 or questions != 1 or answers or authorities:  # a response, or another operation
        return None
    at, labels = 12, []
    while True:
        if at >= len(message):
            return None
        size = message[at]
        if size == 0:
            break
        if size > 63 or at + 1 + size >= len(message) or at - 12 > 254:
            return None
        labels.append(message[at + 1 : at + 1 + size])
        at += 1 + size
    if at + 5 > len(message):
        return None
    kind, group = struct.unpack_from(">HH", message, at + 1)
    if group != _IN:
        return None
    name = b".".join(labels).decode("latin-1").lower()
    return Query(number, name, kind, message[12 : at + 5], bool(flags & 0x100))


def answer(query: Query, found: Sequence[Address | str] | None, code: int = _NOERROR) -> bytes:
    """The answer: addresses of the type asked for, or names; None for a name that nobody has."""
    records = b""
    count = 0
    for each in found or ():
        if isinstance(each, str):
            kind, data = _PTR, _encoded(each)
        else:
            kind, data = (_A if each.version == 4 else _AAAA), each.packed
        if kind == query.kind or query.kind == _ANY:
            records += struct.pack(">HHHIH", 0xC00C, kind, _IN, _TTL, len(data)) + data
            count += 1
    if found is None and code == _NOERROR:
        code = _UNKNOWN
    flags = 0x8480 | (0x100 if query.recursive else 0) | code  # a response, with authority, recursion offered
    return struct.pack(">6H", query.number, flags, 1, count, 0, 0) + query.question + records


def _encoded(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def reverse(name: str) -> Address | None:
    """The address of a name such as ``2.0.88.10.in-addr.arpa``."""
    with contextlib.suppress(ValueError):
        if name.endswith(".in-addr.arpa"):
            return ipaddress.IPv4Address(".".join(reversed(name.split(".")[:-2])))
        if name.endswith(".ip6.arpa"):
            digits = "".join(reversed(name.split(".")[:-2]))
            if len(digits) == 32:
                return ipaddress.IPv6Address(bytes.fromhex(digits))
    return None


def nameservers(path: str = "/etc/resolv.conf") -> list[str]:
    """The host's resolvers, at most three (resolv.conf(5))."""
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
    return found[:3]


class _Asked:
    """A question that was passed on, and the resolvers that are still to be asked."""

    def __init__(
        self, query: Query, message: bytes, reply: Callable[[bytes], None], number: int, left: Sequence[str]
    ) -> None:
        self.query, self.message, self.reply, self.number, self.left = query, message, reply, number, left
        self.until = time.monotonic() + (_TURN if left else _PATIENCE)


class _Connection:
    """A client that asks by TCP: messages with their length before them."""

    def __init__(self, sock: socket.socket, peer: Address) -> None:
        self.sock, self.peer, self.data = sock, peer, b""
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
        self._thread = threading.Thread(target=self._run, name="isolate-names", daemon=True)
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
            sock.close()

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
        self._asked.pop(sock, None)
        self._connections.pop(sock, None)
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

            def reply(data: bytes, sock: socket.socket = sock, peer: tuple[str, int] = peer) -> None:
                if len(data) > 1232:
                    data = data[:2] + struct.pack(">H", struct.unpack_from(">H", data, 2)[0] | 0x200) + data[4:12]
                sock.sendto(data, peer)

            with contextlib.suppress(OSError):
                self._question(message, ipaddress.ip_address(peer[0].partition("%")[0]), reply)

    def _tcp(self, sock: socket.socket) -> None:
        connection, peer = sock.accept()
        if len(self._connections) >= _CONNECTIONS:
            connection.close()
            return
        connection.setblocking(False)
        self._connections[connection] = _Connection(connection, ipaddress.ip_address(peer[0].partition("%")[0]))
        self._selector.register(connection, selectors.EVENT_READ, self._more)

    def _more(self, sock: socket.socket) -> None:
        connection = self._connections[sock]
        try:
            data = sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        connection.data += data
        if not data or len(connection.data) > 16384:
            self._drop(sock)
            return
        while len(connection.data) >= 2:
            size = int.from_bytes(connection.data[:2], "big")
            if len(connection.data) < 2 + size:
                return
            message, connection.data = connection.data[2 : 2 + size], connection.data[2 + size :]

            def reply(data: bytes) -> None:
                # A client that does not read its answers gets no more of them.
                whole = len(data).to_bytes(2, "big") + data
                if sock.send(whole) < len(whole):
                    self._drop(sock)

            self._question(message, connection.peer, reply)

    def _question(self, message: bytes, peer: Address, reply: Callable[[bytes], None]) -> None:
        query = parse(message)
        if query is None:
            if len(message) >= 12:
                reply(message[:2] + struct.pack(">5H", 0x8000 | _FORMAT, 0, 0, 0, 0))
            return
        turned = reverse(query.name)
        known = self._known(turned) if turned is not None else None
        found = self._find(query.name) if turned is None else [known] if known else None
        if found is not None:
            reply(answer(query, found))
        elif self._servers and query.recursive and self._may_ask(peer):
            self._pass_on(message, query, reply)
        else:
            reply(answer(query, None))

    def _pass_on(self, message: bytes, query: Query, reply: Callable[[bytes], None]) -> None:
        if len(self._asked) >= _PENDING:
            reply(answer(query, (), _FAILURE))
            return
        self._ask(message, query, reply, self._servers)

    def _ask(self, message: bytes, query: Query, reply: Callable[[bytes], None], servers: Sequence[str]) -> None:
        """Ask the first of some resolvers that can be asked at all."""
        for n, server in enumerate(servers, 1):
            sock = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
            number = secrets.randbelow(1 << 16)
            try:
                sock.setblocking(False)
                # Answers from nobody else are taken; the port is a fresh one.
                sock.connect(socket.getaddrinfo(server, 53, type=socket.SOCK_DGRAM, flags=_NUMERIC)[0][4])
                sock.send(number.to_bytes(2, "big") + message[2:])
            except OSError:
                sock.close()
                continue
            self._asked[sock] = _Asked(query, message, reply, number, servers[n:])
            self._selector.register(sock, selectors.EVENT_READ, self._answered)
            return
        reply(answer(query, (), _FAILURE))

    def _next(self, asked: _Asked) -> None:
        """A resolver said nothing: the next one is asked the same, and first from now on."""
        if asked.left:
            if asked.left[0] in self._servers:
                at = self._servers.index(asked.left[0])
                self._servers = self._servers[at:] + self._servers[:at]
            self._ask(asked.message, asked.query, asked.reply, asked.left)
        else:
            asked.reply(answer(asked.query, (), _FAILURE))

    def _answered(self, sock: socket.socket) -> None:
        asked = self._asked[sock]
        try:
            data = sock.recv(65535)
        except OSError:
            data = b""
        whole = len(data) >= 12 + len(asked.query.question) and int.from_bytes(data[:2], "big") == asked.number
        if data and not (whole and data[2] & 0x80):
            return  # not the answer to what was asked
        self._drop(sock)
        if data:
            asked.reply(asked.query.number.to_bytes(2, "big") + data[2:])
        else:
            self._next(asked)


def _is_udp(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_DGRAM
