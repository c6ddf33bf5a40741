"""SOCKS5 through the proxy (RFC 1928): CONNECT to a name, or to an address that the stub resolver gave out for one."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from isolate.network.proxy import heads
from isolate.network.proxy.outside import FIRST, Refused
from isolate.network.proxy.streams import CHUNK, Deadline

if TYPE_CHECKING:
    from isolate.network.proxy.outside import Outside
    from isolate.network.proxy.rules import Rules
    from isolate.network.proxy.streams import Reader, Writer
    from isolate.network.proxy.stub import Stub

__all__ = ["Socks"]

#: The commands that are offered: CONNECT. BIND and UDP ASSOCIATE would have the proxy take what others send.
_COMMANDS: Final = (1,)


class Socks:
    """Serves one request of each client."""

    def __init__(self, rules: Rules, stub: Stub, outside: Outside) -> None:
        self._rules, self._stub, self._outside = rules, stub, outside

    async def version4(self, data: bytes, reader: Reader, writer: Writer) -> None:
        """SOCKS4 is refused."""
        raise Refused("SOCKS4 names addresses: it is not offered")

    async def request(self, data: bytes, reader: Reader, writer: Writer) -> None:
        """SOCKS5 with names (RFC 1928); nobody has to log in: only what is inside can come here."""

        async def need(count: int) -> None:
            nonlocal data
            while len(data) < count:
                more = await reader.read(CHUNK)
                if not more:
                    raise Refused("SOCKS: the client ended too early")
                data += more

        async with Deadline(FIRST):
            await need(2)
            methods = 2 + data[1]
            await need(methods)
            if 0 not in data[2:methods]:
                raise Refused("SOCKS: no method but logging in", reply=b"\5\xff")
            data = data[methods:]
            writer.write(b"\5\0")
            await need(5)
            kind = data[3]
            size = {1: 10, 4: 22}.get(kind, 7 + data[4])
            await need(size)
        port = int.from_bytes(data[size - 2 : size], "big")
        if data[0] != 5 or data[1] not in _COMMANDS:
            raise Refused("SOCKS: CONNECT alone is offered", port=port, reply=b"\5\7\0\1" + bytes(6))
        if kind == 3:
            raw = data[5 : size - 2].decode("latin-1")
            try:
                name, port = heads.authority(raw, port) if ":" not in raw else ("", port)
            except heads.BadHead:
                name = ""
        else:
            raw = str(ipaddress.ip_address(data[4 : size - 2])) if kind in (1, 4) else ""
            name = self._stub.name_of(raw) or ""
        why = self._rules.why_not(name, port) if name else heads.NO_NAME
        if why:
            raise Refused(why, raw, port, reply=b"\5\2\0\1" + bytes(6))
        try:
            await self._outside.tunnel("socks", name, port, data[size:], reader, writer, b"\5\0\0\1" + bytes(6))
        except Refused as refused:
            at = refused.name or name, refused.port or port
            raise Refused(refused.why, *at, reply=refused.reply) from None
