"""Connections that the kernel tracks, to forget those of a published port that leads elsewhere now (ctnetlink).

UDP has no end: packets of a client that goes on would be sent to where the first one was, for minutes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from isolate.network.netlink import DUMP, Message, attribute, attributes

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolate.network.netlink import Socket

__all__ = ["forget"]

_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK
_ORIGINAL, _REPLY, _ID = 1, 2, 12
_IP, _PROTOCOL, _FROM, _TO, _NUMBER, _PORT = 1, 2, 1, 2, 1, 3
_NESTED = 0x8000
_FRAME = struct.pack(">BBH", 2, 0, 0)  # struct nfgenmsg: IPv4


def forget(sock: Socket, protocol: int, wanted: Callable[[bytes, int, bytes], bool]) -> int:
    """Forget connections of a protocol; how many there were.

    ``wanted`` is asked of each: the address and the port that it was opened to, and the address that answers it.
    """
    found = []
    for answer in sock.ask(Message(_GET, DUMP, _FRAME, "look at tracked connections")):
        parts = attributes(answer.body[4:])
        original = parts.get(_ORIGINAL, b"")
        there = attributes(original)
        transport = attributes(there.get(_PROTOCOL, b""))
        to = attributes(there.get(_IP, b"")).get(_TO, b"")
        port = int.from_bytes(transport.get(_PORT, b"\0\0"), "big")
        answering = attributes(attributes(parts.get(_REPLY, b"")).get(_IP, b"")).get(_FROM, b"")
        if transport.get(_NUMBER) == bytes([protocol]) and wanted(to, port, answering):
            body = _FRAME + attribute(_ORIGINAL | _NESTED, original) + attribute(_ID, parts.get(_ID, bytes(4)))
            found.append(Message(_DELETE, 0, body, "forget a connection"))
    failed = sock.tried(found)  # ENOENT: it has ended meanwhile
    return len(found) - len(failed)
