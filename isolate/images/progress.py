"""How far a long verb has come."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import ThreadPoolExecutor

    ProgressCall: TypeAlias = "Callable[[Progress], object]"

__all__ = ["Cancelled", "Progress", "Reporter"]


@dataclass(frozen=True)
class Progress:
    """One report of a long verb's.

    ``what`` is the step: ``"download"``, ``"extract"``, ``"upload"``, ``"compress"``, ``"exists"`` (nothing to do),
    ``"mounted"`` (taken from another repository), ``"check"``, ``"delete"``. ``digest`` is of what it is about,
    ``done`` and ``total`` are bytes (``total`` None where nobody knows). The last report of a step has ``done ==
    total``.
    """

    what: str
    digest: str
    done: int
    total: int | None


class Cancelled(BaseException):
    """Raised inside a verb whose asynchronous twin was cancelled. It never leaves the library."""


class Reporter:
    """Hands reports to the caller's function, one at a time, also from several threads; stops a verb on request."""

    def __init__(self, call: ProgressCall | None, stop: threading.Event | None = None) -> None:
        self._call = call
        self._stop = threading.Event() if stop is None else stop
        self._lock = threading.Lock()

    def __call__(self, what: str, digest: str, done: int, total: int | None) -> None:
        self.check()
        if self._call is not None:
            with self._lock:
                self._call(Progress(what, digest, done, total))

    def check(self) -> None:
        """Raise where the verb is to stop."""
        if self._stop.is_set():
            raise Cancelled

    def stop(self) -> None:
        """Let what still runs in other threads end soon."""
        self._stop.set()

    @contextmanager
    def workers(self, count: int, name: str) -> Iterator[ThreadPoolExecutor]:
        """Threads for the pieces of a verb. An error ends the others' pieces soon; at the end all threads are gone."""
        from concurrent.futures import ThreadPoolExecutor  # loaded late: opening a store needs no threads

        pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        try:
            yield pool
        except BaseException:
            self.stop()  # nobody waits for what another thread still does
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
