"""``communicate``: feed a program and read what it writes, all at once, with a timeout after which one may go on."""

from __future__ import annotations

import contextlib
import os
import time
from typing import IO, TYPE_CHECKING, Any, Protocol

from isolate.engine import waiting
from isolate.sandbox.capture import Capture
from isolate.sandbox.expired import TimeoutExpired
from isolate.sandbox.streams import write

if TYPE_CHECKING:
    from isolate.engine.session import Session
    from isolate.sandbox.starting import Start

__all__ = ["Communication"]

_CHUNK = 65536
_ATOMIC = 4096  # PIPE_BUF: a pipe that poll(2) calls writable takes so much at once


class Communicating(Protocol):
    """The program: a :class:`~isolate.Process`."""

    args: tuple[bytes, ...]
    stdin: IO[Any] | None
    stdout: IO[Any] | None
    stderr: IO[Any] | None
    _session: Session
    _what: Start
    _collected: dict[int, Capture]

    def _exceeded(self) -> None: ...


class Communication:
    """The data that is left to write, and the data that came."""

    def __init__(self, process: Communicating, input: Any) -> None:
        self._process = process
        text = process._what.text
        if isinstance(input, str):
            if text is None:
                raise TypeError("input must be bytes unless text=True")
            input = text.encode(input)
        self._input = memoryview(b"" if input is None else input).cast("B")
        if process.stdin is not None and not process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):  # it does not want more: no error, as in subprocess
                process.stdin.flush()
            if not self._input:
                self._shut(0)
        for number, file in ((1, process.stdout), (2, process.stderr)):
            if file is not None:
                process._collected[number] = Capture(process._what.max_output, process._what.keep)

    def _shut(self, number: int) -> None:
        file = (self._process.stdin, self._process.stdout, self._process.stderr)[number]
        if file is not None:
            with contextlib.suppress(BrokenPipeError):
                file.close()

    def drive(self, deadline: float | None) -> bool:
        """Go on until all that can be written and read has been, or the deadline; whether all has been."""
        session, over = self._process._session, False
        while True:
            fds = {session.stdio[n]: n for n in range(3) if self._open(n)}
            if not fds:
                return True
            wanted = [(fd, waiting.READABLE if n else waiting.WRITABLE) for fd, n in fds.items()]
            # Everything inside is dead: what is in the pipes is all, whoever else may hold one.
            over = over or session.gone or session.end is not None
            if not over:
                wanted.append((session.pidfd, waiting.READABLE))
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = waiting.wait(wanted, 0 if over else left)
            over = over or session.pidfd in ready
            busy = [fd for fd in ready if fd in fds]
            if over and not any(fds[fd] for fd in busy):
                for number in fds.values():
                    self._shut(number)
                return True
            for fd in busy:
                self._step(fd, fds[fd])
            if not ready and left == 0.0:
                return False

    def came(self) -> tuple[Any, Any]:
        """The data from stdout and stderr; None without a pipe. Text has universal newlines, as in subprocess."""
        text, collected = self._process._what.text, self._process._collected
        found: list[Any] = [collected[n].data() if n in collected else None for n in (1, 2)]
        if text is not None:
            found = [
                None if data is None else text.decode(data).replace("\r\n", "\n").replace("\r", "\n") for data in found
            ]
        return found[0], found[1]

    def late(self, timeout: float | None) -> TimeoutExpired:
        """The error, with what has come so far, as in subprocess: bytes, also with text."""
        error = TimeoutExpired(self._process.args, timeout or 0.0)
        came = {number: found.data() or None for number, found in self._process._collected.items()}
        error.output, error.stderr = came.get(1), came.get(2)
        return error

    def _open(self, number: int) -> bool:
        if number == 0:
            return self._process.stdin is not None and not self._process.stdin.closed
        file = self._process.stdout if number == 1 else self._process.stderr
        return file is not None and not file.closed

    def _step(self, fd: int, number: int) -> None:
        if number == 0:
            try:
                self._input = self._input[write(fd, self._input[:_ATOMIC]) :]
            except BrokenPipeError:
                self._input = self._input[len(self._input) :]
            if not self._input:
                self._shut(0)
            return
        data = os.read(fd, _CHUNK)
        if not data:
            self._shut(number)
        elif not self._process._collected[number].feed(data):
            self._process._exceeded()
            self._shut(number)
