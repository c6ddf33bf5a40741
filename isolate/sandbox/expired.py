"""The error of a wait that ran out."""

from __future__ import annotations

import os
import subprocess

from isolate.errors import printable

__all__ = ["TimeoutExpired"]


class TimeoutExpired(TimeoutError, subprocess.TimeoutExpired):
    """``wait(timeout)`` ran out; the program still runs. It is also a :class:`subprocess.TimeoutExpired`, with ``cmd``
    and ``timeout``.

    :param cmd: the program.
    :param timeout: in seconds.

    >>> with Sandbox().spawn(["sleep", "9"]) as process:
    ...     process.wait(0.01)
    Traceback (most recent call last):
    isolate.sandbox.expired.TimeoutExpired: ...
    """

    def __init__(self, cmd: tuple[bytes, ...], timeout: float) -> None:
        program = printable(os.fsdecode(cmd[0])) if cmd else "the program"
        OSError.__init__(self, f"{program} still runs after {timeout} s")
        self.cmd: tuple[bytes, ...] = cmd
        self.timeout: float = timeout
        self.output: bytes | None = None
        self.stderr: bytes | None = None

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.cmd, self.timeout)
