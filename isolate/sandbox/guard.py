"""A process that gives the caller's terminal its settings back when the caller has ended without doing so.

It is the launcher with a tape of its own: wait until the owner ends or lets go, then restore the settings, but only
if they are still the ones that we have made. It holds the terminal, and nothing else of the owner's but a pidfd; no
sandbox is below it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.diagnosis.start import keep
from isolate.engine.keeper import until_owner_ends
from isolate.engine.plan import Buffer, Label, Load, Phase, Step, Test, call
from isolate.kernel.constants import Constant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Context, Op
    from isolate.engine.session import Session

__all__ = ["settings", "watch"]

TCGETS, TCSETS = Constant(0x5401, "TCGETS"), Constant(0x5402, "TCSETS")
SIZE = 36  # struct termios of the kernel, on x86-64 and AArch64


def settings(fd: int) -> bytes:
    """A terminal's settings as the kernel has them (struct termios, ioctl_tty(2))."""
    import fcntl

    return fcntl.ioctl(fd, int(TCGETS), bytes(SIZE))


@dataclass(frozen=True)
class TerminalGuard:
    """The only part of the guard's plan."""

    fd: int
    before: bytes
    changed: bytes

    def steps(self, context: Context) -> Iterator[Step]:
        """Wait; what fails then is meant to: no child is made, and the clean-up runs."""
        yield until_owner_ends()
        terminal = context.descriptor(self.fd)
        # Eight more than there are: the last comparison is of eight bytes, too.
        now, end = Buffer(SIZE + 4, "settings"), Label()
        ops: list[Op] = [call("ioctl", terminal, TCGETS, now)]
        wanted = self.changed.ljust(SIZE + 4, b"\0")
        for at in range(0, SIZE + 4, 8):
            (value,) = struct.unpack_from("<q", wanted, at)
            ops.append(Test(Load(now, at), value, label=end))
        ops += [call("ioctl", terminal, TCSETS, Buffer(self.before, "settings")), end]
        yield Step(Phase.CLEANUP, "restore the terminal's settings, if they are still the ones made here", tuple(ops))


def watch(fd: int, before: bytes, changed: bytes) -> Session:
    """Start a guard for a terminal whose settings were ``changed``. Closing the session restores them, too."""
    return keep(TerminalGuard(fd, before, changed))
