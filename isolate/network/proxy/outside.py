"""The proxy's way out: a name resolved once and checked, and nothing passed on before it is TLS for that name."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
import threading
from typing import TYPE_CHECKING, Final, TypeAlias

from isolate.network.proxy import hello
from isolate.network.proxy.rules import why_private
from isolate.network.proxy.streams import CHUNK, Deadline, answer, both_ways, closed

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Sequence

    from isolate.network.proxy.events import Log
    from isolate.network.proxy.rules import Rules
    from isolate.network.proxy.streams import Reader, Writer

    Resolve: TypeAlias = Callable[[str, int], Sequence[str]]

__all__ = ["FIRST", "OUT", "Outside", "Refused", "resolve"]

_RESOLVING: Final = 32
#: Seconds: for what a client has to say first; for a name, and for a connection.
FIRST: Final = 10.0
OUT: Final = 10.0


class Refused(Exception):
    """Not let through: why, what it was, and the answer to the client, who gets it when the refusal has been noted."""

    def __init__(self, why: str, name: str = "", port: int = 0, *, reply: bytes = b"") -> None:
        super().__init__(why)
        self.why: str = why
        self.name: str = name
        self.port: int = port
        self.reply: bytes = reply


def resolve(name: str, port: int) -> list[str]:
    """The addresses of a name, as this host knows them."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(row[4][0]) for row in found))


class Outside:
    """The hosts that a proxy may reach. Connections are noted in ``transports``, which end with it."""

    def __init__(
        self, rules: Rules, log: Log, resolver: Resolve, transports: weakref.WeakSet[asyncio.WriteTransport]
    ) -> None:
        self._rules, self._log, self._resolve, self._transports = rules, log, resolver, transports
        self._resolving = 0

    async def tunnel(
        self, via: str, name: str, port: int, data: bytes, reader: Reader, writer: Writer, granted: bytes | None
    ) -> None:
        """Connect, say so, look at what the client begins with, and only then pass anything on."""
        try:
            (up_reader, up_writer), address = await self.connect(name, port)
        except Refused as refused:
            if via == "connect":
                refused.reply = answer(502, refused.why)
            elif via == "socks":
                refused.reply = b"\5\4\0\1" + bytes(6)
            raise
        try:
            if not self._rules.tls:
                self._log.add(via, name, port, address=address)
            if granted is not None:
                writer.write(granted)
                await writer.drain()
            if self._rules.tls:
                data = await self._greeted(name, port, data, reader)
                self._log.add(via, name, port, address=address)
            up_writer.write(data)
            await both_ways(reader, writer, up_reader, up_writer)
        finally:
            await closed(up_writer)

    async def _greeted(self, name: str, port: int, data: bytes, reader: Reader) -> bytes:
        """The bytes that the client has sent, which begin with a client hello for this very name."""
        reading = hello.Reading()
        try:
            async with Deadline(FIRST):
                while (found := reading.more(data)) is None:
                    data = await reader.read(CHUNK)
                    if not data:
                        raise Refused("it ended before it had sent a client hello", name, port)
        except hello.NoHello as error:
            raise Refused(f"not TLS as it must be: {error}", name, port) from None
        except (asyncio.TimeoutError, TimeoutError):
            raise Refused(f"no client hello within {FIRST:.0f} s", name, port) from None
        if found.name is None:
            raise Refused("the client hello names no server (SNI)", name, port)
        if found.name != name:
            raise Refused(f"the client hello names {found.name!r}", name, port)
        if found.ech and not self._rules.ech:
            raise Refused("the client hello has an encrypted part (ECH), where another name may stand", name, port)
        return bytes(reading.data)

    async def connect(self, name: str, port: int, *, checked: bool = True) -> tuple[tuple[Reader, Writer], str]:
        """A connection to one of the name's addresses: resolved once, checked, and used as it was checked."""
        if self._resolving >= _RESOLVING:
            raise Refused("too many names are being resolved", name, port)
        try:
            async with Deadline(OUT):
                found = await self._in_thread(lambda: self._resolve(name, port))
        except (asyncio.TimeoutError, TimeoutError):
            raise Refused(f"the name was not resolved within {OUT:.0f} s", name, port) from None
        except (OSError, ValueError) as error:
            raise Refused(f"the name cannot be resolved: {error}", name, port) from None
        why = "the name has no address"
        for text in list(found)[:16]:
            try:
                address = ipaddress.ip_address(text)
            except ValueError:
                continue
            private = why_private(address, self._rules.private) if checked else ""
            if private:
                why = f"the name leads to {address}, which is {private}"
                continue
            try:
                async with Deadline(OUT):
                    streams = await asyncio.open_connection(str(address), port, limit=CHUNK)
                self._transports.add(streams[1].transport)
                return streams, str(address)
            except (OSError, asyncio.TimeoutError, TimeoutError) as error:
                number = getattr(error, "errno", None) or errno.ETIMEDOUT
                why = f"{address}: {errno.errorcode.get(number, number)}"
        raise Refused(why, name, port)

    async def _in_thread(self, function: Callable[[], Sequence[str]]) -> Sequence[str]:
        """Call what blocks on a thread that nobody waits for at the program's end."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Sequence[str]] = loop.create_future()

        def settle(value: Sequence[str] | None, error: BaseException | None) -> None:
            self._resolving -= 1  # a thread counts for as long as it is there, whether or not somebody still waits
            if not done.done():
                if error is None:
                    done.set_result(value or ())
                else:
                    done.set_exception(error)

        def body() -> None:
            value: Sequence[str] | None = None
            raised: BaseException | None = None
            try:
                value = list(function())
            except (OSError, ValueError, UnicodeError) as error:
                raised = error
            except Exception as error:
                raised = ValueError(f"{type(error).__name__}: {error}")
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, value, raised)

        try:
            threading.Thread(target=body, name="isolate-resolve", daemon=True).start()
        except RuntimeError as error:
            raise ValueError(str(error)) from None  # no thread more: as if the name could not be resolved
        self._resolving += 1
        return await done
