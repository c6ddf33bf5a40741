"""A count of connections in the whole process, so that sandboxes leave their caller descriptors of its own."""

from __future__ import annotations

import os
import resource
import threading
import weakref

__all__ = ["Taken"]

_all: weakref.WeakSet[Taken] = weakref.WeakSet()


class Taken:
    """Connections of all sandboxes, at most one for every four descriptors that this process may open."""

    def __init__(self) -> None:
        _all.add(self)
        self.forget()

    def forget(self) -> None:
        """Begin anew: a forked child has none of them."""
        self._lock = threading.Lock()
        self._count = 0

    def take(self) -> str:
        """Count one more; why not, if there are too many."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        with self._lock:
            if most != resource.RLIM_INFINITY and self._count >= most // 4:
                return f"more than {most // 4} connections at a time of all sandboxes, by this process's RLIMIT_NOFILE"
            self._count += 1
        return ""

    def give(self) -> None:
        """Count one less."""
        with self._lock:
            self._count -= 1


def _forget() -> None:
    for each in list(_all):
        each.forget()


os.register_at_fork(after_in_child=_forget)
