"""Waiting for descriptors: poll(2) with limits that the interpreter's own has not."""

from __future__ import annotations

import errno
import select
import struct
from types import BuiltinFunctionType
from typing import TYPE_CHECKING

from isolate.engine import native
from isolate.engine.native import ffi
from isolate.kernel.syscalls import number

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from isolate.engine.plan import Held

__all__ = ["READABLE", "WRITABLE", "first_ready", "milliseconds", "ready", "replaced", "wait"]

#: For :func:`wait`: there is something to read, or the other side is gone; there is room to write, or it is gone.
READABLE, WRITABLE = 0x1 | 0x8 | 0x10, 0x4 | 0x8  # POLLIN, POLLOUT, POLLERR, POLLHUP: the same numbers on every Linux
#: Seconds to wait for the first of several things that init hands over; each has a limit of its own.
_PATIENCE = 30.0
_LONGEST = 86400.0  # poll(2) takes an int of milliseconds, which ends after 24.8 days
_POLLFD = struct.Struct("=ihh")
_KERNELS = (BuiltinFunctionType, type(None))  # of eventlet there is none


def wait(wanted: Iterable[tuple[int, int]], timeout: float | None = None) -> list[int]:
    """Wait until one of the descriptors is ready, for ``timeout`` seconds at most (None: for ever); those that are.

    ``wanted`` are (descriptor, mask) pairs. After a day at most it returns although nothing is ready, so a caller waits
    again. Rounded up to a millisecond: a deadline is never found a fraction of it early, again and again.
    """
    poll = getattr(select, "poll", None)
    if poll is None:  # eventlet's monkey patching takes it away
        return _raw(list(wanted), milliseconds(timeout))
    poller = poll()
    for fd, mask in wanted:
        poller.register(fd, mask)
    return [fd for fd, _ in poller.poll(milliseconds(timeout))]


def milliseconds(timeout: float | None) -> int:
    """As poll(2) takes them, a day of them at most; -1 for ever."""
    return -1 if timeout is None else int(min(timeout, _LONGEST) * 1000 + 0.999) if timeout > 0 else 0


def replaced() -> bool:
    """Whether gevent's monkey patching has put a poll of its own in the place of poll(2): others run while it waits."""
    return type(getattr(select, "poll", None)) not in _KERNELS


def _raw(wanted: list[tuple[int, int]], milliseconds: int) -> list[int]:
    fds = ffi.new("uint8_t[]", b"".join(_POLLFD.pack(fd, mask, 0) for fd, mask in wanted))
    limit = ffi.NULL
    if milliseconds >= 0:
        limit = ffi.new("int64_t[2]", [milliseconds // 1000, milliseconds % 1000 * 1_000_000])
    result = native.call(number("ppoll"), fds, len(wanted), limit, 0, 0)
    if result == -errno.EINTR:
        return []  # the interpreter runs the signal's handler; the caller waits again
    if result < 0:
        raise OSError(-result, "ppoll")
    found = bytes(ffi.buffer(fds))
    return [fd for fd, _, events in _POLLFD.iter_unpack(found[: 8 * len(wanted)]) if events]


def ready(*fds: int) -> bool:
    """Whether one of the descriptors is readable now."""
    return bool(wait([(fd, READABLE) for fd in fds], 0))


def first_ready(pending: Sequence[Held]) -> Held:
    """That which comes first: init waits for one to be taken before it makes what another is for."""
    found: dict[int, Held] = {}
    for held in pending:
        waits = getattr(held, "ready", None)
        if waits is None:
            return held
        found[waits()] = held
    came = wait([(fd, READABLE) for fd in found], _PATIENCE) if len(pending) > 1 else []
    return found[came[0]] if came else pending[0]
