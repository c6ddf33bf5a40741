"""flock(2) with a deadline: the call has none of its own, and whoever may open a file may hold its lock for ever."""

from __future__ import annotations

import fcntl
import time

__all__ = ["lock_within", "try_lock"]

_STEP = 0.02  # seconds between two looks


def try_lock(fd: int, *, exclusive: bool) -> bool:
    """Lock what a descriptor stands for, if that can be at once."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_within(fd: int, seconds: float, *, exclusive: bool) -> bool:
    """Lock what a descriptor stands for, waiting for others ``seconds`` at most; whether it is locked."""
    end = time.monotonic() + seconds
    while not try_lock(fd, exclusive=exclusive):
        if time.monotonic() >= end:
            return False
        time.sleep(_STEP)
    return True
