"""Heads of HTTP/1.1 requests, read strictly (RFC 9112): what two programs could read in two ways is refused."""

from __future__ import annotations

import re
from typing import NamedTuple

from isolate.network.words import host_name

__all__ = ["BadHead", "Head", "authority", "read"]

LARGEST = 1 << 14
NO_NAME = "no host name: an address, or characters that host names do not have"
_MOST_FIELDS = 100
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_LINE = re.compile(rf"({_TOKEN}) ([\x21-\x7e]+) HTTP/1\.([01])\Z")
_FIELD = re.compile(rf"({_TOKEN}):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*\Z")
#: Headers that concern only one connection.
_ONE = "connection proxy-connection keep-alive te trailer upgrade proxy-authorization proxy-authenticate"
_HOP = frozenset(_ONE.split())


class BadHead(ValueError):
    """A head that is refused."""


class Head(NamedTuple):
    """The head of a request."""

    method: str
    target: str
    version: int
    fields: tuple[tuple[str, str], ...]

    def values(self, name: str) -> list[str]:
        """The values of a field, in order."""
        return [value for key, value in self.fields if key.lower() == name]

    @property
    def length(self) -> int | None:
        """How many bytes of a body follow; None where it comes in chunks.

        :raises BadHead: it is said in two ways, or in one that is not known.
        """
        lengths, codings = self.values("content-length"), self.values("transfer-encoding")
        if codings:
            if lengths or len(codings) > 1 or codings[0].lower() != "chunked" or self.version == 0:
                raise BadHead("the length of the body is said in two ways, or in one that is not known")
            return None
        if len(lengths) > 1 or (lengths and not re.fullmatch(r"[0-9]{1,15}", lengths[0])):
            raise BadHead("a Content-Length that is no number, or two")
        return int(lengths[0]) if lengths else 0

    def forwarded(self, target: str) -> bytes:
        """The head as it is passed on: for one request, with what concerned the proxy taken out."""
        named = {token.strip().lower() for value in self.values("connection") for token in value.split(",")}
        if named & {"content-length", "transfer-encoding", "host"}:
            raise BadHead("Connection names a field that is the message's own")
        kept = [(k, v) for k, v in self.fields if k.lower() not in _HOP and k.lower() not in named]
        lines = [
            f"{self.method} {target} HTTP/1.{self.version}",
            *(f"{k}: {v}" for k, v in kept),
            "Connection: close",
            "",
            "",
        ]
        return "\r\n".join(lines).encode("latin-1")


def read(data: bytes) -> tuple[Head, bytes] | None:
    """The head at the beginning, and what stands behind it; None while more is needed.

    :raises BadHead: it is malformed, or larger than 16 KiB.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > LARGEST:
            raise BadHead("a head of more than 16 KiB")
        return None
    if end > LARGEST:
        raise BadHead("a head of more than 16 KiB")
    first, *rest = data[:end].decode("latin-1").split("\r\n")
    line = _LINE.match(first)
    if line is None or len(rest) > _MOST_FIELDS:
        raise BadHead("no request line of HTTP/1.1, or more than 100 fields")
    fields: list[tuple[str, str]] = []
    for text in rest:
        match = _FIELD.match(text)  # also refuses a bare line break, NUL, a blank before the colon, a folded line
        if match is None:
            raise BadHead("a field that is malformed")
        fields.append((match[1], match[2]))
    return Head(line[1], line[2], int(line[3]), tuple(fields)), data[end + 4 :]


def authority(text: str, default: int | None = None) -> tuple[str, int]:
    """``name:port`` as a name in lower case and a number.

    :raises BadHead: it is none: an address, a user before it, a port that is missing or no number.
    """
    name, colon, port = text.rpartition(":")
    if not colon and default is not None:
        name, port = text, str(default)
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise BadHead("no name:port")
    try:
        return host_name(name, underscores=True), int(port)
    except ValueError:
        raise BadHead(NO_NAME) from None
