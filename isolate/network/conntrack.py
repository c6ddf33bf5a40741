"""Connections that the kernel tracks, to forget those of a published port that leads elsewhere now (ctnetlink).

UDP has no end: packets of a client that goes on would be sent to where the first one was, for minutes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from isolate.network.netlink import DUMP, Message, attribute, attributes

if TYPE_CHECKING:
    from collections.abc import Container

    from isolate.network.netlink import Socket

__all__ = ["forget"]

_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK
_ORIGINAL, _ID = 1, 12
_IP, _PROTOCOL, _DESTINATION, _NUMBER, _PORT = 1, 2, 2, 1, 3
_NESTED = 0x8000
_FRAME = struct.pack(">BBH", 2, 0, 0)  # struct nfgenmsg: IPv4


def forget(sock: Socket, protocol: int, ports: Container[int]) -> int:
    """Forget connections of a protocol to these destination ports; how many there were."""
    wanted = []
    for answer in sock.ask(Message(_GET, DUMP, _FRAME, "look at tracked connections")):
        parts = attributes(answer.body[4:])
        original = parts.get(_ORIGINAL, b"")
        transport = attributes(attributes(original).get(_PROTOCOL, b""))
        port = int.from_bytes(transport.get(_PORT, b"\0\0"), "big")
        if transport.get(_NUMBER) == bytes([protocol]) and port in ports:
            body = _FRAME + attribute(_ORIGINAL | _NESTED, original) + attribute(_ID, parts.get(_ID, bytes(4)))
            wanted.append(Message(_DELETE, 0, body, "forget a connection"))
    failed = sock.tried(wanted)  # ENOENT: it has ended meanwhile
    return len(wanted) - len(failed)
