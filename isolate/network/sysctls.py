"""Settings of a network namespace of our own that netlink has no words for. The host's are never written."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from isolate.engine.ops import Label, Op, Register, call
from isolate.engine.plan import Step
from isolate.kernel.constants import AT_FDCWD, O_CLOEXEC, O_WRONLY

if TYPE_CHECKING:
    from isolate.engine.plan import Phase

__all__ = ["write"]

#: If /proc is read-only or missing (in a container), a setting keeps its value.
_GONE = (errno.ENOENT, errno.EROFS, errno.EACCES)


def write(phase: Phase, text: str, values: dict[str, bytes]) -> Step:
    """Write settings below ``/proc/sys/net``, in the network that the process is in. Those that cannot be, stay."""
    ops: list[Op] = []
    for name, value in values.items():
        fd, end = Register("file"), Label()
        path = b"/proc/sys/net/" + name.encode()
        ops += [
            call("openat", AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0, out=fd, errors=_GONE, policy="jump", label=end),
            call("write", fd, value, len(value), expect=len(value)),
            call("close", fd),
            end,
        ]
    return Step(phase, text, tuple(ops), path=b"/proc/sys/net/" + next(iter(values)).encode())
