"""The first message of a TLS client (RFC 8446, section 4.1.2): which name it asks for, before anything is passed on."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Hello", "NoHello", "Reading", "read"]

#: Post-quantum key shares make one of 2 KiB; nobody needs more than this.
LARGEST = 1 << 15
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _ECH = 0, 0xFE0D


class NoHello(ValueError):
    """The bytes are no client hello, or one that could be read in two ways."""


class Hello(NamedTuple):
    """The content of a client hello."""

    #: The server's name, in lower case; None where it names none.
    name: str | None
    #: It has an encrypted part, in which another name may stand.
    ech: bool


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            raise NoHello("a client hello that ends inside of itself")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> _Reader:
        return _Reader(self.take(self.number(size)))

    @property
    def left(self) -> int:
        return len(self._data) - self._at


def read(data: bytes) -> Hello | None:
    """Read what a client has sent so far; None while more is needed.

    :raises NoHello: see :meth:`Reading.more`.
    """
    return Reading().more(data)


class Reading:
    """A client hello that comes piece by piece, in any number of records. No byte is looked at twice: a client that
    sends each alone would else have the proxy read some millions."""

    def __init__(self) -> None:
        self.data: bytearray = bytearray()  #: all that has come
        self._at = 0
        self._message = bytearray()

    def more(self, data: bytes) -> Hello | None:
        """Go on with what has come; None while more is needed.

        :raises NoHello: it is not TLS, it is malformed, or it is larger than 32 KiB.
        """
        self.data += data
        message = self._message
        while True:
            wanted = 4 + int.from_bytes(message[1:4], "big") if len(message) >= 4 else 4
            if wanted > LARGEST:
                raise NoHello(f"a client hello of more than {LARGEST} bytes")
            if message[:1] and message[0] != _CLIENT_HELLO:
                raise NoHello("the first message is no client hello")
            if len(message) > wanted > 4:
                raise NoHello("bytes behind the client hello in its record")
            if len(message) == wanted > 4:
                return _parse(bytes(message[4:wanted]))
            header = self.data[self._at : self._at + 5]
            if header[:1] and header[0] != _HANDSHAKE:
                raise NoHello("what came first is not TLS")
            if header[1:2] and header[1] != 3:
                raise NoHello("a version of TLS that nobody speaks")
            if len(header) < 5:
                return None
            size = int.from_bytes(header[3:5], "big")
            if not 0 < size <= 1 << 14:
                raise NoHello("a record of a size that is not allowed")
            body = self.data[self._at + 5 : self._at + 5 + size]
            # A part of a record is enough to see that it is no client hello, but not to read one.
            if len(body) < size:
                if not message and body[:1] and body[0] != _CLIENT_HELLO:
                    raise NoHello("the first message is no client hello")
                return None
            message += body
            self._at += 5 + size


def _parse(body: bytes) -> Hello:
    reader = _Reader(body)
    reader.take(2 + 32)  # version, random
    reader.vector(1)  # session
    reader.vector(2)  # cipher suites
    reader.vector(1)  # compression
    if not reader.left:
        return Hello(None, False)
    extensions = reader.vector(2)
    if reader.left:
        raise NoHello("bytes behind the client hello's extensions")
    name: str | None = None
    seen: set[int] = set()
    while extensions.left:
        kind = extensions.number(2)
        content = extensions.vector(2)
        if kind in seen:
            raise NoHello(f"the extension {kind} stands there twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _server_name(content)
    return Hello(name, _ECH in seen)


def _server_name(content: _Reader) -> str:
    names = content.vector(2)
    if content.left or names.number(1) != 0:
        raise NoHello("a server name of a kind that is not known")
    raw = names.vector(2)
    if names.left:
        raise NoHello("more than one server name")
    try:
        text = raw.take(raw.left).decode("ascii")
    except UnicodeDecodeError:
        raise NoHello("a server name that is not ASCII") from None
    return text.lower()
