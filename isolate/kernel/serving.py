"""Threads of this library's own, which serve somebody: they must not be the end of the program that they are in."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["serving"]


def serving(target: Callable[..., object], name: str, *args: object) -> threading.Thread:
    """A thread, not started yet, that writes to sockets and pipes which others close when they like.

    The kernel sends SIGPIPE to the thread that writes to one that was closed. It is blocked there: many programs have
    that signal at its default, and it would end them.
    """

    def body() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
        target(*args)

    return threading.Thread(target=body, name=name, daemon=True)
