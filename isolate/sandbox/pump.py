"""Reading what a spawned program writes, in a thread: for ``on_stdout=`` and files that take no more than they may."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from isolate.engine import waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolate.engine.session import Session
    from isolate.sandbox.capture import Capture

__all__ = ["Pump"]

_CHUNK = 65536


class Pump:
    """Feeds captures from a program's pipes until all have ended; ``exceeded`` is called when that is too much."""

    def __init__(self, session: Session, captures: dict[int, Capture], exceeded: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self._session = session
        self._captures = captures
        self._exceeded = exceeded
        self._thread = threading.Thread(target=self._work, name="isolate-pump", daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until everything has been read and told; whether that is so. At once where a callback asks."""
        if self._thread is threading.current_thread():
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        open_ = {self._session.stdio[number]: number for number in self._captures if self._session.stdio[number] >= 0}
        over = False
        while open_:
            # Its end means that everything inside is dead: whoever else holds a pipe (a descriptor passed on to the
            # host) is not waited for.
            wanted = [(fd, waiting.READABLE) for fd in open_]
            if not over:
                wanted.append((self._session.pidfd, waiting.READABLE))
            ready = waiting.wait(wanted, 0 if over else None)
            over = over or self._session.pidfd in ready
            fds = [fd for fd in ready if fd in open_]
            if over and not fds:
                break
            for fd in fds:
                if not self._take(fd, open_[fd]):
                    self._session.close_stream(open_.pop(fd))
        for number in open_.values():
            self._session.close_stream(number)
        for capture in self._captures.values():
            self._guarded(capture.end)

    def _take(self, fd: int, number: int) -> bool:
        data = os.read(fd, _CHUNK)
        if not data or self.error is not None:
            return bool(data)
        within = True

        def feed() -> None:
            nonlocal within
            within = self._captures[number].feed(data)

        self._guarded(feed)
        if not within:
            self._exceeded()
        return within

    def _guarded(self, step: Callable[[], object]) -> None:
        try:
            step()
        except BaseException as error:  # told by whoever waits for the program
            if self.error is None:
                self.error = error
                self._session.kill()
