"""The proxy: on a thread with an event loop of its own, behind listeners that are inside the sandbox's network."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import resource
import socket
import threading
import weakref
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from isolate.network.proxy import heads, hello
from isolate.network.proxy.rules import why_private
from isolate.network.proxy.streams import CHUNK, Deadline, both_ways, closed, one_way, pass_body, say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolate.network.proxy.events import Log
    from isolate.network.proxy.rules import Rules
    from isolate.network.proxy.streams import Reader, Writer
    from isolate.network.proxy.stub import Stub

    Resolve: TypeAlias = Callable[[str, int], Sequence[str]]

__all__ = ["Door", "Server", "resolve"]

_CONNECTIONS, _RESOLVING = 256, 32
#: Seconds: for what a client has to say first; for a name, and for a connection.
_FIRST, _OUT = 10.0, 10.0


class Door(NamedTuple):
    """A listener inside, and what comes to it."""

    sock: socket.socket
    #: ``proxy``; ``direct`` for clients that know no proxy; ``relay`` for one fixed target; ``dns`` for questions.
    kind: str
    port: int
    target: tuple[str, int] | None = None


class _Taken:
    """Connections of all proxies of this process: together they leave it half of its descriptors (each needs two)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def take(self) -> str:
        """Count one more; why not, if there are too many."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        with self._lock:
            if most != resource.RLIM_INFINITY and self._count >= most // 4:
                return f"more than {most // 4} connections at a time of all sandboxes, by this process's RLIMIT_NOFILE"
            self._count += 1
        return ""

    def give(self) -> None:
        """Count one less."""
        with self._lock:
            self._count -= 1


_TAKEN: Final = _Taken()
os.register_at_fork(after_in_child=_TAKEN.__init__)  # type: ignore[misc]  # a child has none of the proxies


class _Refused(Exception):
    """Not let through: why, and what it was."""

    def __init__(self, why: str, name: str = "", port: int = 0) -> None:
        super().__init__(why)
        self.why, self.name, self.port = why, name, port


def resolve(name: str, port: int) -> list[str]:
    """The addresses of a name, as this host knows them."""
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(row[4][0]) for row in found))


class Server:
    """Serves until it is closed. ``close`` may be called from any thread; connections end with it."""

    def __init__(self, doors: Sequence[Door], rules: Rules, log: Log, stub: Stub, resolver: Resolve = resolve) -> None:
        self._doors, self._rules, self._log, self._stub, self._resolve = doors, rules, log, stub, resolver
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: weakref.WeakSet[asyncio.WriteTransport] = weakref.WeakSet()
        self._resolving = 0
        self._stop: asyncio.Event | None = None
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="isolate-proxy", daemon=True)
        self._thread.start()
        self._ready.wait(_OUT)

    def close(self) -> None:
        """End every connection, the listeners and the thread."""
        stop = self._stop
        if stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended already
                self._loop.call_soon_threadsafe(stop.set)
        if self._thread is not threading.current_thread():
            self._thread.join(5)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._ready.set()
            for door in self._doors:
                door.sock.close()
            self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        accepting = [
            asyncio.ensure_future(self._questions(door) if door.kind == "dns" else self._accept(door))
            for door in self._doors
        ]
        self._ready.set()
        await self._stop.wait()
        ending = [*accepting, *self._tasks]
        for task in ending:
            task.cancel()
        for transport in list(self._transports):
            transport.abort()  # nobody waits for the other side any more
        await asyncio.gather(*ending, return_exceptions=True)
        await asyncio.sleep(0)  # what was aborted is closed in the loop's next round

    async def _accept(self, door: Door) -> None:
        door.sock.setblocking(False)
        while True:
            try:
                connection, _ = await self._loop.sock_accept(door.sock)
            except OSError:  # short of descriptors, or a client that is gone again
                await asyncio.sleep(0.05)
                continue
            why = (
                f"more than {_CONNECTIONS} connections at a time" if len(self._tasks) >= _CONNECTIONS else _TAKEN.take()
            )
            if why:
                connection.close()
                self._log.add(door.kind, "", door.port, why)
                continue
            task = asyncio.ensure_future(self._client(door, connection))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        _TAKEN.give()

    async def _questions(self, door: Door) -> None:
        door.sock.setblocking(False)
        while True:
            with contextlib.suppress(OSError):
                readable = self._loop.create_future()
                self._loop.add_reader(door.sock, lambda f=readable: f.done() or f.set_result(None))  # type: ignore[misc]
                try:
                    await readable
                finally:
                    self._loop.remove_reader(door.sock)
                for _ in range(64):
                    try:
                        message, peer = door.sock.recvfrom(4097)
                    except BlockingIOError:
                        break
                    reply = self._stub.reply(message)
                    if reply is not None:
                        door.sock.sendto(reply, peer)

    # ---- one client ------------------------------------------------------------------------------------------------

    async def _client(self, door: Door, connection: socket.socket) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=connection, limit=CHUNK)
        except BaseException:
            connection.close()
            raise
        self._transports.add(writer.transport)
        try:
            if door.kind == "relay":
                await self._relay(door, reader, writer)
            elif door.kind == "direct":
                await self._direct(door, connection, reader, writer)
            else:
                await self._proxy(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, TimeoutError):
            pass
        finally:
            await closed(writer)

    async def _relay(self, door: Door, reader: Reader, writer: Writer) -> None:
        assert door.target is not None
        name, port = door.target
        try:
            upstream, address = await self._connect(name, port, checked=False)
        except _Refused as refused:
            self._log.add("relay", name, port, refused.why)
            return
        self._log.add("relay", name, port, address=address)
        await both_ways(reader, writer, *upstream)

    async def _direct(self, door: Door, connection: socket.socket, reader: Reader, writer: Writer) -> None:
        """A client that knows no proxy: the address that it connected to stands for a name."""
        own = connection.getsockname()[0]
        name = self._stub.name_of(own)
        if name is None:
            self._log.add("direct", str(own), door.port, "an address that stands for no name")
            return
        try:
            if door.port == 80:
                await self._http("direct", b"", reader, writer, name)
            else:
                await self._tunnel("direct", name, door.port, b"", reader, writer, None)
        except _Refused as refused:
            self._log.add("direct", refused.name or name, refused.port or door.port, refused.why)

    async def _proxy(self, reader: Reader, writer: Writer) -> None:
        async with Deadline(_FIRST):
            first = await reader.read(CHUNK)
        if not first:
            return
        try:
            if first[0] == 5:
                await self._socks(first, reader, writer)
            elif first[0] == 4:
                raise _Refused("SOCKS4 names addresses: it is not offered")
            else:
                await self._http("http", first, reader, writer, None)
        except _Refused as refused:
            self._log.add("socks" if first[0] in (4, 5) else "http", refused.name, refused.port, refused.why)

    # ---- HTTP ------------------------------------------------------------------------------------------------------

    async def _http(self, via: str, data: bytes, reader: Reader, writer: Writer, name: str | None) -> None:
        """One request: CONNECT, or a plain one. With ``name`` the client believes it speaks to that host."""
        try:
            async with Deadline(_FIRST):
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
            say(writer, 400, str(bad))
            raise _Refused(f"a request that is refused: {bad}") from None

    async def _connected(self, head: heads.Head, rest: bytes, reader: Reader, writer: Writer) -> None:
        name, port = heads.authority(head.target)
        hosts = head.values("host")
        if len(hosts) > 1 or (hosts and heads.authority(hosts[0], port) != (name, port)):
            say(writer, 400, "Host is not what CONNECT names")
            raise _Refused("Host is not what CONNECT names", name, port)
        why = self._rules.why_not(name, port)
        if why:
            say(writer, 403, why)
            raise _Refused(why, name, port)
        try:
            await self._tunnel(
                "connect", name, port, rest, reader, writer, b"HTTP/1.1 200 Connection established\r\n\r\n"
            )
        except _Refused as refused:
            self._log.add("connect", refused.name or name, refused.port or port, refused.why)

    async def _plain(
        self, via: str, head: heads.Head, rest: bytes, reader: Reader, writer: Writer, known: str | None
    ) -> None:
        port = 80
        target = head.target
        hosts = head.values("host")
        if len(hosts) != 1:
            raise heads.BadHead("exactly one Host is wanted")
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
                raise heads.BadHead("a path is wanted")
        if heads.authority(hosts[0], port) != (name, port):
            say(writer, 403, "Host is not what is asked for")
            raise _Refused("Host is not what is asked for", name, port)
        why = self._rules.why_not(name, port)
        if not why and self._rules.tls and port != 80:
            why = "plain HTTP goes to port 80 alone"
        if not why and self._rules.methods and head.method not in self._rules.methods:
            why = f"the method {head.method} is not allowed"
        if not why and head.method in ("CONNECT", "TRACE"):
            why = f"the method {head.method} is not passed on"
        if why:
            say(writer, 403, why)
            raise _Refused(why, name, port)
        length = head.length
        message = head.forwarded(target)
        try:
            (up_reader, up_writer), address = await self._connect(name, port)
        except _Refused as refused:
            say(writer, 502, refused.why)
            raise
        self._log.add(via, name, port, address=address)
        try:
            up_writer.write(message)
            sending = asyncio.ensure_future(pass_body(length, rest, reader, up_writer))
            try:
                # Whatever else the client sends is not passed on: one request a connection.
                await one_way(up_reader, writer)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        finally:
            await closed(up_writer)

    # ---- SOCKS -----------------------------------------------------------------------------------------------------

    async def _socks(self, data: bytes, reader: Reader, writer: Writer) -> None:
        """SOCKS5 with names (RFC 1928); nobody has to log in: only what is inside can come here."""

        async def need(count: int) -> None:
            nonlocal data
            while len(data) < count:
                more = await reader.read(CHUNK)
                if not more:
                    raise _Refused("SOCKS: the client ended too early")
                data += more

        async with Deadline(_FIRST):
            await need(2)
            methods = 2 + data[1]
            await need(methods)
            if 0 not in data[2:methods]:
                writer.write(b"\5\xff")
                raise _Refused("SOCKS: no method but logging in")
            data = data[methods:]
            writer.write(b"\5\0")
            await need(5)
            kind = data[3]
            size = {1: 10, 4: 22}.get(kind, 7 + data[4])
            await need(size)
        port = int.from_bytes(data[size - 2 : size], "big")
        if data[0] != 5 or data[1] != 1:
            writer.write(b"\5\7\0\1" + bytes(6))
            raise _Refused("SOCKS: CONNECT alone is offered", port=port)
        if kind == 3:
            raw = data[5 : size - 2].decode("latin-1")
            try:
                name, port = heads.authority(raw, port) if ":" not in raw else ("", port)
            except heads.BadHead:
                name = ""
        else:
            raw = str(ipaddress.ip_address(data[4 : size - 2])) if kind in (1, 4) else ""
            name = self._stub.name_of(raw) or ""
        why = self._rules.why_not(name, port) if name else "no host name: addresses are not allowed"
        if why:
            writer.write(b"\5\2\0\1" + bytes(6))
            raise _Refused(why, raw, port)
        try:
            await self._tunnel("socks", name, port, data[size:], reader, writer, b"\5\0\0\1" + bytes(6))
        except _Refused as refused:
            raise _Refused(refused.why, refused.name or name, refused.port or port) from None

    # ---- outside ---------------------------------------------------------------------------------------------------

    async def _tunnel(
        self, via: str, name: str, port: int, data: bytes, reader: Reader, writer: Writer, granted: bytes | None
    ) -> None:
        """Connect, say so, look at what the client begins with, and only then pass anything on."""
        try:
            (up_reader, up_writer), address = await self._connect(name, port)
        except _Refused as refused:
            if via == "connect":
                say(writer, 502, refused.why)
            elif via == "socks":
                writer.write(b"\5\4\0\1" + bytes(6))
            raise
        try:
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
        """What the client has sent, which begins with a client hello for this very name."""
        reading = hello.Reading()
        try:
            async with Deadline(_FIRST):
                while (found := reading.more(data)) is None:
                    data = await reader.read(CHUNK)
                    if not data:
                        raise _Refused("it ended before it had sent a client hello", name, port)
        except hello.NoHello as error:
            raise _Refused(f"not TLS as it must be: {error}", name, port) from None
        except (asyncio.TimeoutError, TimeoutError):
            raise _Refused(f"no client hello within {_FIRST:.0f} s", name, port) from None
        if found.name is None:
            raise _Refused("the client hello names no server (SNI)", name, port)
        if found.name != name:
            raise _Refused(f"the client hello names {found.name!r}", name, port)
        if found.ech and not self._rules.ech:
            raise _Refused("the client hello has an encrypted part (ECH), where another name may stand", name, port)
        return bytes(reading.data)

    async def _connect(self, name: str, port: int, *, checked: bool = True) -> tuple[tuple[Reader, Writer], str]:
        """A connection to one of the name's addresses: resolved once, checked, and used as it was checked."""
        if self._resolving >= _RESOLVING:
            raise _Refused("too many names are being resolved", name, port)
        try:
            async with Deadline(_OUT):
                found = await self._in_thread(lambda: self._resolve(name, port))
        except (asyncio.TimeoutError, TimeoutError):
            raise _Refused(f"the name was not resolved within {_OUT:.0f} s", name, port) from None
        except (OSError, ValueError) as error:
            raise _Refused(f"the name cannot be resolved: {error}", name, port) from None
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
                async with Deadline(_OUT):
                    streams = await asyncio.open_connection(str(address), port, limit=CHUNK)
                self._transports.add(streams[1].transport)
                return streams, str(address)
            except (OSError, asyncio.TimeoutError, TimeoutError) as error:
                number = getattr(error, "errno", None) or errno.ETIMEDOUT
                why = f"{address}: {errno.errorcode.get(number, number)}"
        raise _Refused(why, name, port)

    async def _in_thread(self, function: Callable[[], Sequence[str]]) -> Sequence[str]:
        """Call what blocks on a thread that nobody waits for at the program's end."""
        done: asyncio.Future[Sequence[str]] = self._loop.create_future()

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
                self._loop.call_soon_threadsafe(settle, value, raised)

        try:
            threading.Thread(target=body, name="isolate-resolve", daemon=True).start()
        except RuntimeError as error:
            raise ValueError(str(error)) from None  # no thread more: as if the name could not be resolved
        self._resolving += 1
        return await done
