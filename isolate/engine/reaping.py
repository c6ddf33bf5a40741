"""Reaping the launchers of this process: by PID 1, or by this process itself."""

from __future__ import annotations

import contextlib
import os

__all__ = ["reaping"]

_PATIENCE = 5.0  # seconds: some PID 1 reaps by polling, every two seconds or so


class Reaping:
    """Whether orphans get reaped here.

    A launcher is made an orphan so that nothing of it shows in this program. Someone must reap it: PID 1. Where PID 1
    does not (a container whose PID 1 is ``sleep``), zombies would pile up; that is noticed, and from then on
    launchers are children of this process, reaped by it.
    """

    def __init__(self) -> None:
        self.direct = False
        self._trusted = False
        self._suspect: tuple[int, str, float] | None = None  # pid, start time, when seen
        #: Pidfds of launchers that were children of ours and still ran when they were closed.
        self.left: list[int] = []

    def leave(self, pidfd: int) -> None:
        """A session is closed: if its launcher is a child of ours and runs, it is reaped later."""
        try:
            if os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG) is None:
                self.left.append(os.dup(pidfd))
        except OSError:
            return  # nobody of ours

    def collect(self) -> None:
        """Reap those that have ended since."""
        for fd in list(self.left):
            try:
                ended = os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG) is not None
            except OSError:
                ended = True  # the program has reaped it itself, or closed the descriptor
            if ended and fd in self.left:
                self.left.remove(fd)
                with contextlib.suppress(OSError):
                    os.close(fd)

    def observe(self, launcher: int, *, direct: bool) -> None:
        """An orphaned launcher has ended: once it is known that somebody reaps them, nothing more is done."""
        if self._trusted or self.direct or direct:
            return
        import time

        if self._suspect is None:
            state = _state(launcher)
            if state is not None:
                self._suspect = (launcher, state[1], time.monotonic())
            else:
                self._trusted = True
            return
        pid, start, seen = self._suspect
        state = _state(pid)
        if state is None or state[1] != start:
            self._trusted = True
        elif time.monotonic() - seen > _PATIENCE:
            self.direct = True


def _state(pid: int) -> tuple[str, str] | None:
    """State letter and start time of a process, None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields[0].decode(), fields[19].decode()


#: The one of this process.
reaping = Reaping()
