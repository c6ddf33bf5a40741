"""A shell's job and its terminal: stopping with it, and setting it from the background."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import time
from typing import Any

__all__ = ["set_settings", "stop_job"]


def stop_job() -> None:
    """SIGTSTP to this program's process group; it returns when that was continued, or if it is not to be stopped."""
    # Another thread takes the signal, and the kernel then stops all of them. Here it is blocked, so that this one sees
    # that it was taken; a second signal, to this thread, might find the program continued, and stop it once more.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
    try:
        os.killpg(0, signal.SIGTSTP)
        for _ in range(200):
            if signal.SIGTSTP not in signal.sigpending():
                break
            time.sleep(0.001)
        time.sleep(0.005)  # between taking it and stopping everybody it lets go of a lock for a moment
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def set_settings(fd: int, settings: list[Any]) -> None:
    """Change a terminal's settings also from the background: a thread that blocks SIGTTOU may."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, settings)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
