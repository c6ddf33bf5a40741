"""The life of a container that a keeper holds."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from isolate.cgroups.ending import freeze_groups
from isolate.engine.waiting import READABLE, wait
from isolate.kernel.proc import fields
from isolate.sandbox.expired import TimeoutExpired

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolate.engine.descriptors import OwnedDescriptor


__all__ = ["Kept"]

_PATIENCE = 10.0  # seconds for a keeper that writes the last of the output and its record


class Kept:
    """The life of a container that a keeper holds, by pidfds of its init and of the keeper."""

    def __init__(self, pidfd: OwnedDescriptor, keeper: OwnedDescriptor, directories: Mapping[str, str]) -> None:
        self.pidfd = pidfd
        self._keeper = keeper
        self._directories = dict(directories)

    @property
    def pid(self) -> int:
        """Its process id; 0 once it has gone."""
        if self.pidfd.closed:
            return 0
        with open(f"/proc/self/fdinfo/{self.pidfd}", "rb") as file:
            return max(int(fields(file.read()).get("Pid", "0")), 0)

    def fileno(self) -> int:
        """Readable once all inside has ended."""
        return int(self.pidfd)

    def ended(self) -> bool:
        """Whether it has ended, or this handle was closed."""
        return self.pidfd.closed or bool(wait([(self.pidfd, READABLE)], 0))

    def wait(self, timeout: float | None) -> bool:
        """Wait for its end; whether it has come.

        The keeper has gone as well then, so that the record tells the end and the name is free, unless the keeper does
        not end within ten seconds or what is left of ``timeout``.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.ended():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            wait([(self.pidfd, READABLE)], left)
        if not self._keeper.closed:
            left = _PATIENCE if deadline is None else min(_PATIENCE, max(0.0, deadline - time.monotonic()))
            wait([(self._keeper, READABLE)], left)
        return True

    def kill(self) -> None:
        """Kill all inside, frozen or not."""
        if self.ended():
            return
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        if any("freezer" in key.split(",") for key in self._directories):
            try:  # what is frozen by v1 takes its signals when it is thawed
                freeze_groups(self._directories, False, 1.0)
            except (OSError, TimeoutError):
                pass  # the group has gone with what was in it

    def close(self) -> None:
        """Let go. The container goes on."""
        self.pidfd.close()
        self._keeper.close()

    @property
    def ours(self) -> bool:
        """Any process that has the descriptor may use it."""
        return True

    def expired(self, timeout: float | None) -> TimeoutExpired:
        """The error of a wait that ran out."""
        return TimeoutExpired((b"init",), timeout or 0.0)
