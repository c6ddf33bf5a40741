"""HTTP through the proxy: CONNECT, and plain requests, one a connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from isolate.network.proxy import heads
from isolate.network.proxy.outside import FIRST, Refused
from isolate.network.proxy.streams import CHUNK, Deadline, Moved, answer, closed, one_way, pass_body

if TYPE_CHECKING:
    from isolate.network.proxy.events import Log
    from isolate.network.proxy.outside import Outside
    from isolate.network.proxy.rules import Rules
    from isolate.network.proxy.streams import Reader, Writer

__all__ = ["Http"]


class Http:
    """Serves one request at a time of any number of clients."""

    def __init__(self, rules: Rules, log: Log, outside: Outside) -> None:
        self._rules, self._log, self._outside = rules, log, outside

    async def request(self, via: str, data: bytes, reader: Reader, writer: Writer, name: str | None) -> None:
        """One request: CONNECT, or a plain one. With ``name`` the client believes it speaks to that host."""
        try:
            async with Deadline(FIRST):
                while (found := heads.read(data)) is None:
                    more = await reader.read(CHUNK)
                    if not more:
                        raise heads.BadHead("the head ends inside of itself")
                    data += more
            head, rest = found
            if head.method == "CONNECT" and name is None:
                await self._connected(head, rest, reader, writer)
            else:
                await self._plain(via, head, rest, reader, writer, name)
        except heads.BadHead as bad:
            raise Refused(f"a request that is refused: {bad}", reply=answer(400, str(bad))) from None

    async def _connected(self, head: heads.Head, rest: bytes, reader: Reader, writer: Writer) -> None:
        name, port = heads.authority(head.target)
        hosts = head.values("host")
        if len(hosts) > 1 or (hosts and heads.authority(hosts[0], port) != (name, port)):
            why = "Host is not what CONNECT names"
            raise Refused(why, name, port, reply=answer(400, why))
        why = self._rules.why_not(name, port)
        if why:
            raise Refused(why, name, port, reply=answer(403, why))
        try:
            await self._outside.tunnel(
                "connect", name, port, rest, reader, writer, b"HTTP/1.1 200 Connection established\r\n\r\n"
            )
        except Refused as refused:
            self._log.add("connect", refused.name or name, refused.port or port, refused.why)
            writer.write(refused.reply)

    async def _plain(
        self, via: str, head: heads.Head, rest: bytes, reader: Reader, writer: Writer, known: str | None
    ) -> None:
        port = 80
        target = head.target
        hosts = head.values("host")
        if len(hosts) != 1:
            raise heads.BadHead("there must be exactly one Host")
        if known is None:
            scheme, separator, after = target.partition("://")
            if scheme.lower() != "http" or not separator:
                raise heads.BadHead("a proxy is asked for http://name/…, or by CONNECT")
            place, slash, path = after.partition("/")
            name, port = heads.authority(place, 80)
            target = "/" + path if slash else "/"
        else:
            name = known
            if not target.startswith("/"):
                raise heads.BadHead("the target must be a path")
        if heads.authority(hosts[0], port) != (name, port):
            why = "Host is not what is asked for"
            raise Refused(why, name, port, reply=answer(403, why))
        why = self._rules.why_not(name, port)
        if not why and self._rules.tls and port != 80:
            why = "plain HTTP goes to port 80 alone"
        if not why and self._rules.methods and head.method not in self._rules.methods:
            why = f"the method {head.method} is not allowed"
        if not why and head.method in ("CONNECT", "TRACE"):
            why = f"the method {head.method} is not passed on"
        if why:
            raise Refused(why, name, port, reply=answer(403, why))
        length = head.length
        message = head.forwarded(target)
        try:
            (up_reader, up_writer), address = await self._outside.connect(name, port)
        except Refused as refused:
            refused.reply = answer(502, refused.why)
            raise
        self._log.add(via, name, port, address=address)
        try:
            up_writer.write(message)
            moved = Moved()
            sending = asyncio.ensure_future(pass_body(length, rest, reader, up_writer, moved))
            try:
                # Do not pass on more data of the client: one request a connection.
                await one_way(up_reader, writer, moved)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        finally:
            await closed(up_writer)
