"""``aspawn``: a program beside us whose pipes are awaited, on asyncio and on trio."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from isolate.engine import waiting
from isolate.sandbox import streams
from isolate.sandbox.aio import Waiter, gone, in_worker
from isolate.sandbox.expired import TimeoutExpired
from isolate.sandbox.process import Process, spawn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

    from isolate.sandbox.result import Result
    from isolate.sandbox.words import Box

__all__ = ["AsyncProcess", "AsyncReader", "AsyncWriter", "aspawn"]

_CHUNK = 65536
_ATOMIC = 4096  # PIPE_BUF: a pipe that is writable takes so much at once
#: Bytes of a line at most; a longer one comes in pieces.
LINE = 1 << 20


class AsyncReader:
    """The output of a program. ``async for`` gives lines; nothing is read ahead."""

    def __init__(self, process: Process, number: int) -> None:
        self._process = process
        self._number = number
        self._buffer = bytearray()
        self._eof = False
        limit = process._what.max_output if process._what.keep is None else None
        self._left: float = float("inf") if limit is None else limit

    async def _fill(self) -> bool:
        """Read once; whether there was anything."""
        if self._eof:
            return False
        session, waiter = self._process._session, Waiter()
        fd = session.stdio[self._number]
        try:
            while fd >= 0:
                ready = await waiter.wait([(fd, waiting.READABLE), (session.pidfd, waiting.READABLE)])
                # Only when all is read that there is: whoever else may hold the pipe is not waited for.
                if fd in ready or session.pidfd in ready:
                    break
        finally:
            waiter.close()
        data = os.read(fd, _CHUNK) if fd >= 0 and waiting.ready(fd) else b""
        if len(data) > self._left:
            data = data[: int(self._left)]
            self._process._exceeded()
            self._eof = True
        self._left -= len(data)
        self._buffer += data
        if not data:
            self._eof = True
        return bool(data)

    def _take(self, count: int) -> bytes:
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def at_eof(self) -> bool:
        """Whether all has been read."""
        return self._eof and not self._buffer

    async def read(self, size: int = -1) -> bytes:
        """At most so many bytes, as soon as there are any; with -1 everything up to the end of file."""
        if size < 0:
            while await self._fill():
                pass
            return self._take(len(self._buffer))
        if not self._buffer and size:
            await self._fill()
        return self._take(size)

    async def readexactly(self, size: int) -> bytes:
        """Read exactly this many bytes.

        :raises EOFError: there are not so many; those that came stay to be read.
        """
        while len(self._buffer) < size:
            if not await self._fill():
                raise EOFError(f"{len(self._buffer)} bytes came, not {size}")
        return self._take(size)

    async def readline(self) -> bytes:
        """A line with its end; less at the end of file, or where it is longer than a mebibyte."""
        begun = 0
        while True:
            end = self._buffer.find(b"\n", begun) + 1
            if end or len(self._buffer) >= LINE:
                return self._take(min(end or LINE, LINE))
            begun = len(self._buffer)
            if not await self._fill():
                return self._take(len(self._buffer))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line


class AsyncWriter:
    """The input of a program. :meth:`write` only buffers the data; :meth:`drain` writes it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._buffer = bytearray()

    def write(self, data: bytes) -> None:
        """Keep it to be written."""
        self._buffer += data

    async def drain(self) -> None:
        """Write what was kept.

        :raises BrokenPipeError: the program does not read it any more.
        """
        session, waiter = self._process._session, Waiter()
        try:
            while self._buffer:
                fd = session.stdio[0]
                if fd < 0:
                    raise BrokenPipeError(32, "the pipe is closed")
                ready = await waiter.wait([(fd, waiting.WRITABLE), (session.pidfd, waiting.READABLE)])
                if fd not in ready and session.pidfd in ready:
                    raise BrokenPipeError(32, "the program has ended")
                if fd in ready:
                    try:
                        written = streams.write(fd, memoryview(bytes(self._buffer[:_ATOMIC])))
                    except BrokenPipeError:
                        self._buffer.clear()
                        raise
                    del self._buffer[:written]
        finally:
            waiter.close()

    async def send(self, data: bytes) -> None:
        """:meth:`write` and :meth:`drain`."""
        self.write(data)
        await self.drain()

    def close(self) -> None:
        """Close the pipe: the program reads an end of file. What was not drained is lost."""
        self._buffer.clear()
        self._process._session.close_stream(0)


class AsyncProcess:
    """A program in a sandbox, awaited. Made by :meth:`isolate.Sandbox.aspawn`; ``async with`` ends it.

    :param process: that is awaited.

    >>> async def hello():
    ...     async with await Sandbox().aspawn(["true"]) as process:
    ...         return await process.wait()
    >>> asyncio.run(hello())
    0
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        #: Streams to await where a pipe was asked for, else None.
        self.stdin: AsyncWriter | None = AsyncWriter(process) if process._raw[0] is not None else None
        self.stdout: AsyncReader | None = AsyncReader(process, 1) if process._raw[1] is not None else None
        self.stderr: AsyncReader | None = AsyncReader(process, 2) if process._raw[2] is not None else None

    def __repr__(self) -> str:
        return f"<Async{repr(self._process)[1:]}"

    @property
    def pid(self) -> int:
        """As :attr:`Process.pid`."""
        return self._process.pid

    @property
    def pidfd(self) -> int:
        """As :attr:`Process.pidfd`."""
        return self._process.pidfd

    @property
    def returncode(self) -> int | None:
        """As :attr:`Process.returncode`."""
        return self._process.returncode

    def send_signal(self, signal: int) -> None:
        """As :meth:`Process.send_signal`."""
        self._process.send_signal(signal)

    def kill(self) -> None:
        """As :meth:`Process.kill`."""
        self._process.kill()

    async def terminate(self, grace: float | None = None) -> int | None:
        """As :meth:`Process.terminate`."""
        self._process.terminate()
        if grace is None:
            return None
        self._process.send_signal(18)
        try:
            return await self.wait(grace)
        except TimeoutExpired:
            self.kill()
            return await self.wait()

    async def wait(self, timeout: float | None = None) -> int:
        """Wait until everything inside has ended; the return code.

        :raises TimeoutExpired: the program still runs.
        """
        process, session = self._process, self._process._session
        deadline = None if timeout is None else time.monotonic() + timeout
        waiter = Waiter()
        try:
            while process.poll() is None:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutExpired(process._args, timeout or 0.0)
                tick = 0.1 if session.let_go else None
                if session.let_go:
                    session.kill()  # somebody may have stopped the launcher again
                wanted = [(fd, waiting.READABLE) for fd in session.tells()]
                await waiter.wait(wanted, left if tick is None else min(tick, left or tick))
            if not session.wait_gone(0):
                await gone(waiter, session.tells()[-1])
        finally:
            waiter.close()
        return process.wait()

    async def result(self, timeout: float | None = None) -> Result[Any]:
        """As :meth:`Process.result`."""
        await self.wait(timeout)
        if not self._process._session.held:
            return self._process.result()
        # Read the program's changes in a thread, because there may be many.
        return await in_worker(self._process.result, lambda _: None)

    async def aclose(self) -> None:
        """Kill what still runs, wait for the end, release every descriptor; also when cancelled."""
        try:
            if self._process._session.fileno() >= 0 and self._process._session.ours:
                self._process.kill()
                if self._process._session.end is None:
                    await self.wait()
        finally:
            self._process.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def aspawn(box: Box, args: Any, options: Mapping[str, Any]) -> AsyncProcess:
    """See :meth:`isolate.Sandbox.aspawn`."""
    for word in ("text", "encoding", "errors", "bufsize", "pty"):
        if options.get(word):
            raise TypeError(f"aspawn: {word!r} is of spawn(): here streams are of bytes, and unbuffered")
    return AsyncProcess(await in_worker(lambda: spawn(box, args, options), Process.close))
