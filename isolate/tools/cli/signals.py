"""The signals of ``isolate run``: they are passed on, and the program has time to act on them."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from typing_extensions import Self

    from isolate.sandbox.process import Process

__all__ = ["Forwarding"]

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


class Forwarding:
    """Inside the block SIGTERM, SIGHUP, SIGINT and SIGQUIT go to the program, which may catch them and end by itself.

    What is still there ``grace`` seconds after the first, or at the second one of SIGTERM, SIGINT and SIGQUIT, is
    killed. A signal that was ignored before (``nohup``, a background job of a script) stays ignored.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._process: Process | None = None
        self._early: list[int] = []
        self._seen: set[int] = set()
        self._before: dict[int, Any] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        for number in _FORWARDED:
            before = signal.getsignal(number)
            if before != signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._got)
        return self

    def started(self, process: Process) -> None:
        """The program runs: signals that came before go to it now."""
        self._process = process
        for number in self._early:
            self._forward(number)

    def _got(self, number: int, frame: FrameType | None) -> None:
        if self._process is None:
            self._early.append(number)
        else:
            self._forward(number)

    def _forward(self, number: int) -> None:
        process = self._process
        assert process is not None
        if number in self._seen and number != signal.SIGHUP:
            process.kill()
            return
        self._seen.add(number)
        with contextlib.suppress(OSError):
            process.send_signal(number)
        if self._timer is None:
            self._timer = threading.Timer(self._grace, process.kill)
            self._timer.daemon = True
            self._timer.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, before in self._before.items():
            signal.signal(number, before)
