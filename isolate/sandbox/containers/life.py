"""The life of a session without a program: whether it runs, waiting for its end, ending it."""

from __future__ import annotations

import threading
import time
import warnings
from typing import TYPE_CHECKING

from isolate.errors import SetupError
from isolate.sandbox import outcome
from isolate.sandbox.expired import TimeoutExpired

if TYPE_CHECKING:
    from isolate.engine.session import Session

__all__ = ["Life"]

_WHO = (b"init",)


class Life:
    """A launcher and its init."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._lock = threading.RLock()  # a signal handler may call while its own thread is inside

    @property
    def pid(self) -> int:
        """Init's process id, as ours are numbered."""
        return self.session.program_pid

    @property
    def pidfd(self) -> int:
        """Init's pidfd; -1 once closed."""
        return self.session.payload_fd

    def fileno(self) -> int:
        """Readable once everything inside has ended."""
        return self.session.fileno()

    @property
    def ours(self) -> bool:
        """Whether this process, and not one that it was forked from, has made it."""
        return self.session.ours

    def ended(self) -> bool:
        """Whether it has ended, as far as can be known without waiting."""
        session = self.session
        if session.fileno() < 0 or session.end is not None:
            return True
        return self.wait(0)

    def wait(self, timeout: float | None) -> bool:
        """Wait until everything inside has ended; whether it has.

        :raises ForkedError: in a process forked from the one that made it.
        """
        session = self.session
        deadline = None if timeout is None else time.monotonic() + timeout
        while session.end is None and session.fileno() >= 0:
            session.check_owner()
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            # As Process does: another thread may close, and a launcher that was stopped is to be woken.
            tick = 0.1 if session.let_go else 1.0
            ready = session.readable(tick if left is None else min(tick, left))
            with self._lock:
                if session.end is None and ready:
                    try:
                        session.take()
                    except EOFError:
                        outcome.remove_group(session)
                        return True  # the launcher was killed, and init with it
                elif session.let_go:
                    session.kill()
            if not ready and left is not None and left <= 0:
                return session.end is not None
        with self._lock:
            session.wait_gone(1.0)
        return True

    def kill(self) -> None:
        """Kill everything inside; returns at once."""
        self.session.check_owner()
        self.session.kill()

    def close(self) -> None:
        """Kill what runs, wait for the end, release every descriptor."""
        session = self.session
        try:
            if session.fileno() >= 0 and session.ours:
                session.kill()
                self.wait(None)
        except SetupError:
            pass  # the launcher is gone, and init with it
        finally:
            with self._lock:
                session.close()

    def expired(self, timeout: float | None) -> TimeoutExpired:
        """The error of a wait that ran out."""
        return TimeoutExpired(_WHO, timeout or 0.0)

    def __del__(self) -> None:
        session = getattr(self, "session", None)
        if session is None or session.fileno() < 0 or not session.ours:
            return
        if session.end is None:
            warnings.warn("a Container was never closed: killed", ResourceWarning, stacklevel=2, source=self)
        session.kill()
