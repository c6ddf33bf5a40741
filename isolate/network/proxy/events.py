"""Requests to the proxy, and their outcome."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Asked", "Log"]

_KEPT = 10_000


class Asked(NamedTuple):
    """One thing that a program asked for."""

    #: ``connect`` (HTTP CONNECT), ``http``, ``socks``, ``direct`` (a client that knows no proxy), ``dns`` or ``relay``.
    via: str
    #: What was asked for, as far as it could be read. It comes from the program: print it by ``repr``.
    name: str
    port: int
    #: Why it was refused; "" where it was allowed.
    refused: str
    #: The address that was connected to; "" where none was.
    address: str
    #: time.time()
    when: float

    @property
    def allowed(self) -> bool:
        """Whether it was let through."""
        return not self.refused


class Log:
    """The last 10,000 events of a sandbox, and how many there were."""

    def __init__(self, tell: Callable[[Asked], object] | None = None) -> None:
        self._events: deque[Asked] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()
        self._tell = tell
        self.allowed: int = 0
        self.refused: int = 0

    def add(self, via: str, name: str, port: int, refused: str = "", address: str = "") -> None:
        """Note one. What the callback raises is reported and changes nothing."""
        event = Asked(via, name[:300], port, refused, address, time.time())
        with self._lock:
            self._events.append(event)
            self.refused += bool(refused)
            self.allowed += not refused
        if self._tell is not None:
            try:
                self._tell(event)
            except Exception as error:
                import sys

                sys.unraisablehook(_Report(error))  # type: ignore[arg-type]

    @property
    def events(self) -> tuple[Asked, ...]:
        """Those that are kept, oldest first."""
        with self._lock:
            return tuple(self._events)


class _Report:
    """The argument of ``sys.unraisablehook`` (sys.UnraisableHookArgs cannot be made)."""

    def __init__(self, error: BaseException) -> None:
        self.exc_type = type(error)
        self.exc_value = error
        self.exc_traceback = error.__traceback__
        self.err_msg = "isolate.network.Domains: the log's callback raised"
        self.object = None
