"""The caller's terminal and a program's, connected until the program ends or a key is pressed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from isolate.sandbox.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolate.engine.session import Session
    from isolate.sandbox.terminal import Terminal

__all__ = ["interact"]


def interact(
    session: Session, terminal: Terminal, take: Callable[[float], bool], escape: bytes | None, files: tuple[Any, Any]
) -> bool:
    """See :meth:`isolate.Process.interact`; ``take`` waits for the program's end. Whether it has ended."""
    if escape is not None and (not isinstance(escape, bytes) or len(escape) != 1):
        raise ValueError(f"escape must be one byte or None, not {escape!r}")
    fds = {n: each if isinstance(each, int) else each.fileno() for n, each in enumerate(files)}
    relay = Relay(fds, terminal=terminal)
    left = threading.Event()
    if escape is not None:
        relay.escape = escape[0], left.set
    try:
        relay.begin(session)
        while not left.is_set() and not take(0.1):
            pass
    finally:
        relay.close()
    return not left.is_set()
