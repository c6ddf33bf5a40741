"""The proxy: on a thread with an event loop of its own, behind listeners that are inside the sandbox's network."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from typing import TYPE_CHECKING, Final, NamedTuple

from isolate.kernel.serving import serving
from isolate.network.proxy.outside import FIRST, OUT, Outside, Refused, resolve
from isolate.network.proxy.requests import Http
from isolate.network.proxy.socks import Socks
from isolate.network.proxy.streams import CHUNK, Deadline, both_ways, closed
from isolate.network.taken import Taken

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from isolate.network.proxy.events import Log
    from isolate.network.proxy.outside import Resolve
    from isolate.network.proxy.rules import Rules
    from isolate.network.proxy.streams import Reader, Writer
    from isolate.network.proxy.stub import Stub

__all__ = ["Door", "Server", "resolve"]

_CONNECTIONS: Final = 256


class Door(NamedTuple):
    """A listener inside, and what comes to it."""

    sock: socket.socket
    #: ``proxy``; ``direct`` for clients that know no proxy; ``relay`` for one fixed target; ``dns`` for questions.
    kind: str
    port: int
    target: tuple[str, int] | None = None


#: Of all proxies of this process; each connection needs two descriptors.
_TAKEN: Final = Taken()


class Server:
    """Serves until it is closed. ``close`` may be called from any thread; connections end with it."""

    def __init__(self, doors: Sequence[Door], rules: Rules, log: Log, stub: Stub, resolver: Resolve = resolve) -> None:
        self._doors, self._log, self._stub = doors, log, stub
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: weakref.WeakSet[asyncio.WriteTransport] = weakref.WeakSet()
        self._outside = Outside(rules, log, resolver, self._transports)
        self._http, self._socks = Http(rules, log, self._outside), Socks(rules, stub, self._outside)
        self._stop: asyncio.Event | None = None
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = serving(self._run, "isolate-proxy")
        self._thread.start()
        self._ready.wait(OUT)

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
            upstream, address = await self._outside.connect(name, port, checked=False)
        except Refused as refused:
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
                await self._http.request("direct", b"", reader, writer, name)
            else:
                await self._outside.tunnel("direct", name, door.port, b"", reader, writer, None)
        except Refused as refused:
            self._log.add("direct", refused.name or name, refused.port or door.port, refused.why)
            writer.write(refused.reply)

    async def _proxy(self, reader: Reader, writer: Writer) -> None:
        async with Deadline(FIRST):
            first = await reader.read(CHUNK)
        if not first:
            return
        try:
            if first[0] == 5:
                await self._socks.request(first, reader, writer)
            elif first[0] == 4:
                await self._socks.version4(first, reader, writer)
            else:
                await self._http.request("http", first, reader, writer, None)
        except Refused as refused:
            self._log.add("socks" if first[0] in (4, 5) else "http", refused.name, refused.port, refused.why)
            writer.write(refused.reply)
