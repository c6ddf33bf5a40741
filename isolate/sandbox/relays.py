"""Which of a program's streams would be the caller's terminal, and so get a relay."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from isolate.sandbox.relay import Relay
from isolate.sandbox.terminal import is_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["relays"]


def relays(stdio: list[int], uid: Callable[[], int]) -> list[Relay]:
    """A relay for each terminal of the caller's among three streams, whose numbers become those of the program's end.

    A terminal is the caller's if it controls this program or is one of its own standard streams. Another one, such as
    the end of a pty that the caller has made, is handed on: the caller has said so.
    """
    found: dict[int, dict[int, int]] = {}
    for number, fd in enumerate(stdio):
        if is_terminal(fd) and _is_callers(fd):
            found.setdefault(os.fstat(fd).st_rdev, {})[number] = fd
    if not found:
        return []
    made: list[Relay] = []
    try:
        for fds in found.values():
            made.append(Relay(fds, uid(), raw=not _in_a_pipeline(stdio)))
            for number in fds:
                stdio[number] = made[-1].theirs
    except BaseException:
        for relay in made:
            relay.close()
        raise
    return made


def _is_callers(fd: int) -> bool:
    with contextlib.suppress(OSError):
        os.tcgetpgrp(fd)  # ENOTTY unless it controls this program
        return True
    device = os.fstat(fd).st_rdev
    return any(is_terminal(own) and os.fstat(own).st_rdev == device for own in (0, 1, 2))


def _in_a_pipeline(stdio: Sequence[int]) -> bool:
    """Whether what the program writes goes to another program of the same job, whose keys are its own affair."""
    import stat

    return any(fd >= 0 and stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in stdio[1:])
