"""``run``: feed a program, collect what it writes, hold its limits, tell how it ended.

One state machine, :class:`Run`, says which descriptors it waits for and until when; it is driven by poll(2) here and by
an event loop in :mod:`isolate.sandbox.arun`.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from isolate.engine import waiting
from isolate.sandbox import outcome, streams
from isolate.sandbox.result import Result, Verdict
from isolate.sandbox.starting import Start, settle
from isolate.sandbox.streams import DEVNULL, PIPE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolate.engine.record import Record
    from isolate.engine.session import Session
    from isolate.sandbox.capture import Capture
    from isolate.sandbox.words import Box

_CHUNK = 65536


class Run:
    """A program that runs: what it waits for, and what came."""

    def __init__(
        self, box: Box, args: Any, *, input: str | bytes | None, stdin: Any, stdout: Any, stderr: Any, **more: Any
    ) -> None:
        if input is not None and stdin is not None:
            raise ValueError("input and stdin both say what the program reads")
        if stdin is None:
            stdin = DEVNULL if input is None else PIPE
        start = Start(box, args, stdin=stdin, stdout=stdout, stderr=stderr, collect=True, started=False, **more)
        self.what: Start = start
        if isinstance(input, str):
            if start.text is None:
                start.abandon()
                raise TypeError("input must be bytes unless text=True")
            input = start.text.encode(input)
        elif input is not None:
            try:
                memoryview(input)  # bytes(5) would be five NUL bytes
            except TypeError:
                start.abandon()
                raise TypeError(f"input must be bytes, or a str with text=True, not {input!r}") from None
        self._input = memoryview(b"" if input is None else bytes(input))
        self.timeout: float | None = start.timeout
        self.cpu_time: float | None = start.cpu_time
        self.captures: dict[int, Capture] = start.captures
        self.args: tuple[bytes, ...] = start.args
        self.killed: Verdict | None = None
        self.reaped: bool = False
        self.usage: tuple[float, int] = (0.0, 0)
        self.session: Session = start.launch(nonblocking=True)
        self.start: float = self.session.began
        #: Our ends of the pipes, -1 where there is none (any more).
        self.ours: Any = self.session.stdio
        self.deadline: float | None = None if start.ends_at is None else self.start + start.ends_at
        self._sample_at = None if self.cpu_time is None else self.start + outcome.next_sample(self.cpu_time)
        if self.ours[0] >= 0 and not self._input:
            self._shut(0)

    # ---- what a driver needs -----------------------------------------------------------------------------------

    def waits(self) -> list[tuple[int, int]]:
        """(descriptor, poll mask) to wait for."""
        wanted = [] if self.reaped else [(fd, waiting.READABLE) for fd in self._tells()]
        for number, fd in enumerate(self.ours):
            if fd >= 0:
                wanted.append((fd, waiting.READABLE if number else waiting.WRITABLE))
        return wanted

    def until(self) -> float | None:
        """Seconds until :meth:`tick` wants to be called, None for never."""
        if self.reaped:
            return 0.02  # the caller's terminal takes the last output
        if self.killed is not None:
            return 0.1
        if self.deadline is None and self._sample_at is None:
            return None
        times = [t for t in (self.deadline, self._sample_at) if t is not None]
        return max(0.0, min(times) - time.monotonic())

    def tick(self) -> None:
        """Hold the limits of time."""
        if self.session.end is not None:
            return
        if self.killed is not None:
            self.session.kill()  # once more: it may have been stopped again
            return
        if self.deadline is None and self._sample_at is None:
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
        if fd in self._tells():
            self._record()
        elif fd == self.ours[0]:
            self._feed()
        else:
            for number in self.captures:
                if fd == self.ours[number]:
                    self._collect(number)
                    break

    def step(self) -> None:
        """Wait once, and do what there is to be done."""
        ready = self.session.wait(self.until(), records=not self.reaped)
        if ready & 8:
            self._record()
        if ready & 7:
            if ready & 1 and self.ours[0] >= 0:
                self._feed()
            for number in self.captures:
                if ready >> number & 1 and self.ours[number] >= 0:
                    self._collect(number)
        self.tick()

    @property
    def done(self) -> bool:
        """Whether everything inside is dead and all that it wrote has been read."""
        return self.reaped and not (self.what.relays and any(relay.alive for relay in self.what.relays))

    def kill(self, reason: Verdict) -> None:
        """Take the tree down; ``reason`` becomes the verdict if the program has not ended by itself."""
        if self.killed is None:
            self.killed = reason
            self.usage = outcome.usage(self.session)
        self.session.kill()

    # ---- inside ------------------------------------------------------------------------------------------------

    def _tells(self) -> tuple[int, int]:
        # Both: a forked child may hold a copy of the socket after the launcher is lost.
        return self.session.fileno(), self.session.pidfd

    def _record(self) -> None:
        if self.reaped:
            return  # both descriptors were ready
        try:
            self.session.take()
        except EOFError:
            self._end()
            return
        if self.what.relays:
            self.what.adopt(self.session)
        if self.session.end is not None:
            self._end()

    def _end(self) -> None:
        # Everything inside is dead: what is still in the pipes is all there will ever be. Whoever else holds a write
        # end (a descriptor passed on to the host) is not waited for.
        for number, capture in self.captures.items():
            while self.ours[number] >= 0 and self._collect(number):
                pass
            capture.end()
        for relay in self.what.relays:
            relay.finish()
        self.reaped = True

    def _shut(self, number: int) -> None:
        self.session.close_stream(number)

    def _feed(self) -> None:
        try:
            self._input = self._input[streams.write(self.ours[0], self._input[:_CHUNK]) :]
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
        if not self.captures[number].feed(data):
            self._shut(number)
            self.kill(Verdict.OUTPUT)
            return False
        return True

    def close(self) -> None:
        """Release everything; kills what still runs."""
        self.session.close()
        self.what.abandon()

    def result(self) -> Result[str] | Result[bytes]:
        """The result.

        :raises SetupError: the program never started.
        """
        record: Record = outcome.ended(self.session, self.args)
        returncode, verdict = outcome.judge(record, self.killed, self.session.tape, self.timeout, self.cpu_time)
        captured, truncated = [self.what.captured(number) for number in (1, 2)], self.what.truncated()
        if truncated and self.what.keep is None:
            verdict = Verdict.OUTPUT
        return outcome.make_result(
            record,
            self.session.tape,
            self.args,
            returncode,
            verdict,
            captured,
            truncated,
            self.usage,
            self.session.program_pid,
            outcome.changes_of(self.session),
            asked=self.session.told(),
        )


def drive(run: Run) -> None:
    """Wait until the run is done."""
    while not run.done:
        run.step()


#: The keywords that only ``run`` and ``arun`` have.
OWN: Final[Mapping[str, Any]] = {"input": None, "check": False, "stdout": PIPE, "stderr": PIPE}


def run(box: Box, args: Any, options: Mapping[str, Any]) -> Result[str] | Result[bytes]:
    """See :meth:`isolate.Sandbox.run`."""
    settled = settle("run", options, OWN)
    check = settled.pop("check")
    state = Run(box, args, early=True, **settled)
    try:
        drive(state)
        try:
            result = state.result()  # while the launcher is on its way out
        finally:
            outcome.finish(state.session)
    finally:
        state.close()
    return result.check() if check else result
