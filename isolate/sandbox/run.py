"""``run``: feed a program, collect what it writes, hold its limits, tell how it ended.

One state machine, :class:`Run`, says which descriptors it waits for and until when; it is driven by poll(2) here and by
an event loop in :mod:`isolate.sandbox.arun`.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

from isolate.engine import waiting
from isolate.kernel.sizes import size
from isolate.sandbox import outcome, streams
from isolate.sandbox.result import Result, Verdict
from isolate.sandbox.streams import DEVNULL, PIPE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from isolate.engine.session import Record, Session
    from isolate.sandbox.verbs import Box

_CHUNK = 65536


def seconds(value: float | None, what: str) -> float | None:
    """A limit in seconds; None is none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be seconds, not {value!r}")
    if not 0 < value < 1e9:
        raise ValueError(f"{what} must be more than 0 and less than 1e9 seconds, not {value!r}")
    return float(value)


def _write(fd: int, data: memoryview) -> int:
    """Write to a pipe. Whoever closes its other end must not end a program that has SIGPIPE at its default."""
    if signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN:  # as Python starts
        return os.write(fd, data)
    pipe = {signal.SIGPIPE}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, pipe)
    pending = signal.SIGPIPE in signal.sigpending()
    try:
        return os.write(fd, data)
    except BrokenPipeError:
        # It goes to the thread that writes, so here it is; one that was there before is the program's own.
        if not pending:
            signal.sigtimedwait(pipe, 0)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Run:
    """A program that runs: what it waits for, and what came."""

    def __init__(
        self,
        box: Box,
        args: Any,
        *,
        input: str | bytes | None,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        timeout: float | None,
        cpu_time: float | None,
        max_output: int | str | None,
        pass_fds: Iterable[int] | Mapping[int, int],
        env: Mapping[Any, Any] | None,
        cwd: Any,
        text: bool,
    ) -> None:
        if input is not None and stdin is not None:
            raise ValueError("input and stdin both say what the program reads")
        if isinstance(input, str) and not text:
            raise TypeError("input must be bytes unless text=True")
        self.timeout: float | None = seconds(timeout, "timeout")
        self.cpu_time: float | None = seconds(cpu_time, "cpu_time")
        self.max_output: int | None = None if max_output is None else size(max_output, "max_output")
        self.text: bool = text
        data = input.encode() if isinstance(input, str) else b"" if input is None else bytes(input)
        self._input = memoryview(data)
        if stdin is None:
            stdin = DEVNULL if input is None else PIPE
        tape = box.compile()
        self.args: tuple[bytes, ...]
        run, slots, self.args = streams.block(
            tape, args, env=env, cwd=cwd, pass_fds=pass_fds, started=False, tty=False, timeout=self.timeout,
            cpu_time=self.cpu_time,
        )  # fmt: skip
        self.truncated: set[str] = set()
        self.killed: Verdict | None = None
        self.reaped: bool = False
        self.usage: tuple[float, int] = (0.0, 0)
        stdio = [streams.stream(n, wanted) for n, wanted in enumerate((stdin, stdout, stderr))]
        self.chunks: dict[int, bytearray] = {n: bytearray() for n in (1, 2) if stdio[n] == PIPE}
        if self.cpu_time is not None:
            outcome.check_countable(tape)
        self.start: float = time.monotonic()
        self.session: Session = box.launch(tape, run, stdio, slots, nonblocking=True)
        #: Our ends of the pipes, -1 where there is none (any more).
        self.ours: Any = self.session.stdio
        self.deadline: float | None = None if self.timeout is None else self.start + self.timeout
        self._sample_at = None if self.cpu_time is None else self.start + outcome.next_sample(self.cpu_time)
        if self.ours[0] >= 0 and not self._input:
            self._shut(0)

    # ---- what a driver needs -----------------------------------------------------------------------------------

    def waits(self) -> list[tuple[int, int]]:
        """(descriptor, poll mask) to wait for."""
        # Both: a forked child may hold a copy of the socket after the launcher is lost.
        wanted = (
            [] if self.reaped else [(self.session.fileno(), waiting.READABLE), (self.session.pidfd, waiting.READABLE)]
        )
        for number, fd in enumerate(self.ours):
            if fd >= 0:
                wanted.append((fd, waiting.READABLE if number else waiting.WRITABLE))
        return wanted

    def until(self) -> float | None:
        """Seconds until :meth:`tick` wants to be called, None for never."""
        if self.killed is not None:
            return None if self.reaped else 0.1
        times = [t for t in (self.deadline, self._sample_at) if t is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def tick(self) -> None:
        """Hold the limits of time."""
        if self.session.end is not None:
            return
        if self.killed is not None:
            self.session.kill()  # once more: it may have been stopped again
            return
        now = time.monotonic()
        if self.deadline is not None and now >= self.deadline:
            self.kill(Verdict.TIMEOUT)
        elif self._sample_at is not None and self.cpu_time is not None and now >= self._sample_at:
            used, _ = outcome.usage(self.session)
            if used >= self.cpu_time:
                self.kill(Verdict.CPU_TIME)
            else:
                self._sample_at = now + outcome.next_sample(self.cpu_time - used)

    def ready(self, fd: int) -> None:
        """A descriptor is ready."""
        if fd in (self.session.fileno(), self.session.pidfd):
            self._record()
        elif fd == self.ours[0]:
            self._feed()
        else:
            for number in self.chunks:
                if fd == self.ours[number]:
                    self._collect(number)
                    break

    @property
    def done(self) -> bool:
        """Whether everything inside is dead and all that it wrote has been read."""
        return self.reaped

    def kill(self, reason: Verdict) -> None:
        """Take the tree down; ``reason`` becomes the verdict if the program has not ended by itself."""
        if self.killed is None:
            self.killed = reason
            self.usage = outcome.usage(self.session)
        self.session.kill()

    # ---- inside ------------------------------------------------------------------------------------------------

    def _record(self) -> None:
        if self.reaped:
            return  # both descriptors were ready
        try:
            self.session.take()
        except EOFError:
            self._end()
            return
        if self.session.end is not None:
            self._end()

    def _end(self) -> None:
        # Everything inside is dead: what is still in the pipes is all there will ever be. Whoever else holds a write
        # end (a descriptor passed on to the host) is not waited for.
        for number in self.chunks:
            while self.ours[number] >= 0 and self._collect(number):
                pass
        self.reaped = True

    def _shut(self, number: int) -> None:
        self.session.close_stream(number)

    def _feed(self) -> None:
        try:
            self._input = self._input[_write(self.ours[0], self._input[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._input = self._input[len(self._input) :]  # it does not want more: no error, as in subprocess
        if not self._input:
            self._shut(0)

    def _collect(self, number: int) -> bool:
        """Read once; whether there may be more."""
        try:
            data = os.read(self.ours[number], _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._shut(number)
            return False
        kept = self.chunks[number]
        kept += data
        if self.max_output is not None and len(kept) > self.max_output:
            del kept[self.max_output :]
            self.truncated.add("stdout" if number == 1 else "stderr")
            self._shut(number)
            self.kill(Verdict.OUTPUT)
            return False
        return True

    def close(self) -> None:
        """Release everything; kills what still runs."""
        self.session.close()

    def result(self) -> Result[str] | Result[bytes]:
        """The result.

        :raises SetupError: the program never started.
        """
        record: Record = outcome.ended(self.session, self.args)
        returncode, verdict = outcome.judge(record, self.killed, self.session.tape, self.timeout, self.cpu_time)
        if "stdout" in self.truncated or "stderr" in self.truncated:
            verdict = Verdict.OUTPUT
        captured: list[Any] = [None, None]
        for number, data in self.chunks.items():
            captured[number - 1] = data.decode("utf-8", "replace") if self.text else bytes(data)
        return outcome.make_result(
            record, self.session.tape, self.args, returncode, verdict, captured, frozenset(self.truncated), self.usage,
            self.session.program_pid,
        )  # fmt: skip


def drive(run: Run) -> None:
    """Wait until the run is done."""
    while not run.done:
        for fd in waiting.wait(run.waits(), run.until()):
            run.ready(fd)
        run.tick()


def run(box: Box, args: Any, *, check: bool, **options: Any) -> Result[str] | Result[bytes]:
    """See :meth:`isolate.Sandbox.run`."""
    state = Run(box, args, **options)
    try:
        drive(state)
        try:
            result = state.result()  # while the launcher is on its way out
        finally:
            state.session.wait_gone(1.0)
    finally:
        state.close()
    return result.check() if check else result
