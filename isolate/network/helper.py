"""A program of the host that works for a network, such as pasta: a launcher starts it, and ends it with its owner."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.diagnosis.setup import launcher_lost, setup_error
from isolate.diagnosis.start import launch
from isolate.engine.native import lib
from isolate.engine.ops import CWD, Engine, call
from isolate.engine.plan import Phase, Plan, Step
from isolate.engine.run_block import run_block
from isolate.engine.tape import compile_plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from isolate.engine.plan import Context
    from isolate.engine.session import Session

__all__ = ["Helper", "find", "output"]

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT = 1 << 16  # bytes of what it says


@dataclass(frozen=True)
class _Program:
    """A start with nothing around it: the program is outside of every sandbox, as its owner is."""

    def steps(self, context: Context) -> Iterator[Step]:
        """A session of its own, the descriptors, exec."""
        yield Step(Phase.SYNC, "wait until the supervisor is ready", (Engine("sync"),))
        yield Step(Phase.SESSION, "a session of its own", (Engine("session"),))
        yield Step(Phase.DIRECTORY, "enter the root directory", (call("chdir", CWD),))
        yield Step(Phase.PROGRAM, "find the program", (Engine("find"),))
        yield Step(Phase.DESCRIPTORS, "close every descriptor but those passed", (Engine("fds"),))
        yield Step(Phase.EXEC, "execute the program", (Engine("exec"),))


class Helper:
    """A program that runs until :meth:`close`. What it says on its two streams is kept, up to a limit."""

    def __init__(self, args: Sequence[str], fds: Sequence[int] = ()) -> None:
        """Start it. The ``fds`` are its descriptors from 10 on.

        :raises SetupError: it cannot be executed.
        """
        plan = Plan([_Program()], euid=os.geteuid(), egid=os.getegid())
        tape = compile_plan(plan, init=False, pid_namespace=False, share=True)
        self._argv = [os.fsencode(word) for word in args]
        pairs = [(0, 0), (1, 1), (2, 2), *((6 + i, 10 + i) for i in range(len(fds)))]
        block = run_block(
            self._argv,
            [b"PATH=" + _PATH.encode(), b"LC_ALL=C"],
            program=self._argv[0],
            path=_PATH.encode(),
            cwd=b"/",
            fds=pairs,
            slots=6 + len(fds),
            started=True,
            tty=False,
        )
        self._said = b""
        self.session: Session = launch(tape, block, [-3, -1, -2], list(fds), nonblocking=True)
        try:
            self._started()
        except BaseException:
            self.close()
            raise

    def _started(self) -> None:
        poll = select.poll()
        poll.register(self.session.fileno(), select.POLLIN)
        while not self.session.started and self.session.end is None:
            if not poll.poll(10_000):
                raise launcher_lost(self.session)
            try:
                self.session.receive()
            except EOFError:
                break
        if not self.session.started:
            end = self.session.end
            if end is None or end.kind != lib.ISO_RECORD_FAILED:
                raise launcher_lost(self.session)
            raise setup_error(self.session.tape, end, self._argv, self.session.run)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        fd = self.session.payload_fd
        if fd < 0:
            return False
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return not poll.poll(0)

    def said(self) -> str:
        """Its output so far."""
        fd = self.session.stdio[1]
        with contextlib.suppress(BlockingIOError, OSError):
            while fd >= 0 and len(self._said) < _KEPT:
                data = os.read(fd, 4096)
                if not data:
                    break
                self._said += data
        return self._said.decode("utf-8", "backslashreplace")

    def wait(self, seconds: float) -> bool:
        """Wait for its end; whether it came."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            self.said()
            time.sleep(0.002)
        return not self.running

    def close(self) -> None:
        """End it, and whatever it has started."""
        self.session.dismiss()


def find(*names: str) -> str | None:
    """The path of the first of these programs that is installed."""
    return next((path for name in names if (path := shutil.which(name, path=_PATH)) is not None), None)


def output(*args: str) -> str:
    """The output of a program that ends by itself, within five seconds."""
    helper = Helper(args)
    try:
        helper.wait(5.0)
        return helper.said()
    finally:
        helper.close()
