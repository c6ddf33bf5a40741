"""Questions about names and their answers, as the messages of RFC 1035. What comes in is not trusted."""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.network.address import Address

__all__ = ["FAILURE", "Query", "answer", "malformed", "parse", "reverse", "shortened"]

_A, _PTR, _AAAA, _OPT, _ANY, _IN = 1, 12, 28, 41, 255, 1
_NOERROR, _FORMAT, FAILURE, _UNKNOWN = 0, 1, 2, 3
_TTL = 5  # seconds: members come and go
#: Bytes of an answer by UDP: of the first clients, and at most, so that no network cuts it into pieces.
_SMALLEST, _LARGEST = 512, 1232


@dataclass(frozen=True)
class Query:
    """A question: its number, its name in lower case, the type that is asked for, and the bytes of the question.

    ``room`` are the bytes that an answer by UDP may have (RFC 6891).
    """

    number: int
    name: str
    kind: int
    question: bytes
    recursive: bool
    room: int = _SMALLEST


def parse(message: bytes) -> Query | None:
    """A standard query with one question of the Internet's class, or None."""
    if not 17 <= len(message) <= 4096:
        return None
    number, flags, questions, answers, authorities, additional = struct.unpack_from(">6H", message)
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
    room = _SMALLEST
    option = message[at + 5 : at + 10]
    if additional and len(option) == 5 and option[:3] == struct.pack(">BH", 0, _OPT):
        room = min(max(room, int.from_bytes(option[3:], "big")), _LARGEST)
    return Query(number, name, kind, message[12 : at + 5], bool(flags & 0x100), room)


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


def shortened(query: Query, data: bytes) -> bytes:
    """The truncated form of an answer that has no room: the client asks for it again by TCP."""
    flags = int.from_bytes(data[2:4], "big") | 0x200
    return struct.pack(">6H", query.number, flags, 1, 0, 0, 0) + query.question


def malformed(message: bytes) -> bytes | None:
    """The answer to what is no question."""
    return message[:2] + struct.pack(">5H", 0x8000 | _FORMAT, 0, 0, 0, 0) if len(message) >= 12 else None


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
