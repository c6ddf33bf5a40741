"""Streams of the proxy: deadlines, passing on, answers of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING, TypeAlias

from isolate.network.proxy.heads import BadHead

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = [
    "CHUNK",
    "IDLE",
    "Deadline",
    "Moved",
    "Reader",
    "Writer",
    "answer",
    "both_ways",
    "closed",
    "one_way",
    "pass_body",
]

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter

CHUNK = 1 << 16
#: Seconds that a connection may be silent.
IDLE = 300.0


class Deadline:
    """``async with``: what takes longer is a TimeoutError (asyncio.timeout came with Python 3.11)."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._late = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None

        def end() -> None:
            self._late = True
            task.cancel()

        self._handle = asyncio.get_running_loop().call_later(self._seconds, end)

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: object) -> None:
        self._handle.cancel()
        if self._late and kind is asyncio.CancelledError:
            raise TimeoutError from value


async def closed(writer: Writer) -> None:
    """Close, and wait a little until what was written has gone. What nobody reads by then is dropped: a transport that
    waits for its reader would keep its descriptor, and nobody would count it any more."""
    writer.close()
    try:
        async with Deadline(2):
            await writer.wait_closed()
    except (OSError, asyncio.TimeoutError, TimeoutError):
        pass
    finally:
        writer.transport.abort()


class Moved:
    """When something moved by a connection, either way: who downloads says nothing for as long as that takes."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    async def read(self, reader: Reader) -> bytes:
        """Read the next bytes; a TimeoutError where nothing has moved either way for too long."""
        while True:
            at = self._at
            try:
                async with Deadline(max(0.0, at + IDLE - time.monotonic())):
                    data = await reader.read(CHUNK)
            except (asyncio.TimeoutError, TimeoutError):
                if self._at == at:
                    raise
                continue
            self._at = time.monotonic()
            return data


async def push(writer: Writer, data: bytes) -> None:
    """Write, and leave what has come the other way to be read if that fails: a server may answer early and close. A
    transport that finds this out by writing closes at once, and drops what the kernel still has.

    :raises OSError: the other side takes nothing any more.
    """
    transport = writer.transport
    if transport.is_closing():
        raise ConnectionResetError
    if not transport.get_write_buffer_size():
        with contextlib.suppress(BlockingIOError):
            data = data[os.write(writer.get_extra_info("socket").fileno(), data) :]
    if data:
        writer.write(data)
    await writer.drain()


async def one_way(reader: Reader, writer: Writer, moved: Moved) -> None:
    """Pass on what comes until it ends, or until nothing more of it is taken."""
    while True:
        data = await moved.read(reader)
        if not data:
            break
        try:
            async with Deadline(IDLE):
                await push(writer, data)
        except TimeoutError:  # an OSError, too
            raise
        except OSError:
            return
    with contextlib.suppress(OSError):
        if writer.can_write_eof():
            writer.write_eof()


async def both_ways(reader: Reader, writer: Writer, up_reader: Reader, up_writer: Writer) -> None:
    """Pass on what comes from either until both have ended."""
    moved = Moved()
    ways: list[Coroutine[None, None, None]] = [one_way(reader, up_writer, moved), one_way(up_reader, writer, moved)]
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await closed(up_writer)


async def pass_body(length: int | None, data: bytes, reader: Reader, writer: Writer, moved: Moved) -> None:
    """Pass on the body of a request, and not one byte more. ``length`` is None where it comes in chunks."""
    source = _Source(data, reader, moved)
    try:
        if length is not None:
            await source.copy(length, writer)
            return
        while True:
            line = await source.line(10)
            if not line or any(c not in b"0123456789abcdefABCDEF" for c in line):
                raise BadHead("a chunk without a length, or with an extension")
            size = int(line, 16)
            await _give(writer, b"%x\r\n" % size)
            await source.copy(size, writer)
            if await source.line(2):  # after the last chunk: a trailer would stand here
                raise BadHead("a chunk that is longer than it says, or a trailer")
            await _give(writer, b"\r\n")
            if size == 0:
                return
    except (BadHead, OSError, TimeoutError):
        writer.close()  # half a request must not look like a whole one
    except _NotTaken:
        pass  # there may be an answer, which is read to its end


class _NotTaken(Exception):
    """The server takes no more of a body."""


async def _give(writer: Writer, data: bytes) -> None:
    try:
        await push(writer, data)
    except OSError:
        raise _NotTaken from None


class _Source:
    """A body: the part that has come, and the part that still comes."""

    def __init__(self, data: bytes, reader: Reader, moved: Moved) -> None:
        self._data, self._reader, self._moved = data, reader, moved

    async def _more(self) -> None:
        found = await self._moved.read(self._reader)
        if not found:
            raise ConnectionResetError
        self._data += found

    async def copy(self, length: int, writer: Writer) -> None:
        while length > 0:
            if not self._data:
                await self._more()
            piece, self._data = self._data[:length], self._data[length:]
            length -= len(piece)
            await _give(writer, piece)

    async def line(self, longest: int) -> bytes:
        while (end := self._data.find(b"\r\n")) < 0:
            if len(self._data) > longest:
                raise BadHead("a line of a chunk that does not end")
            await self._more()
        found, self._data = self._data[:end], self._data[end + 2 :]
        if len(found) > longest:
            raise BadHead("a line of a chunk that is too long")
        return found


def answer(status: int, why: str) -> bytes:
    """An answer of the proxy's own."""
    reason = {400: "Bad Request", 403: "Forbidden", 502: "Bad Gateway"}[status]
    text = f"isolate: {why}\n".encode("ascii", "backslashreplace")
    fields = f"Content-Type: text/plain\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    return f"HTTP/1.1 {status} {reason}\r\n{fields}".encode() + text
