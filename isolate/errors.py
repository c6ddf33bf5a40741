"""The family of errors. Every one pickles, and says part, step, errno, likely cause and remedy where there are any."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isolate.sandbox.result import Result

__all__ = [
    "ConflictError",
    "IrreversibleError",
    "IsolateError",
    "ProgramError",
    "RestoreError",
    "SetupError",
    "ThreadedError",
    "UnsupportedError",
]


class IsolateError(Exception):
    """The base of all errors of this library."""


class ConflictError(IsolateError, ValueError):
    """Parts that contradict one another, or the same part twice. Raised before anything starts."""


class SetupError(IsolateError, OSError):
    """A part could not be put in force; the program never started.

    ``part`` (class name), ``step`` (in words), ``syscall``, ``path``, ``errno``, ``cause`` and ``remedy`` tell what and
    why; those that do not apply are None.
    """

    def __init__(
        self,
        errno: int,
        step: str,
        *,
        part: str | None = None,
        syscall: str | None = None,
        path: str | None = None,
        cause: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(errno, os.strerror(errno), *(() if path is None else (path,)))
        self.step = step
        self.part = part
        self.syscall = syscall
        self.path = path
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        where = f"{self.part}: " if self.part else ""
        what = f" ({self.syscall})" if self.syscall else ""
        on = f" [{self.path}]" if self.path and self.path not in self.step else ""
        text = f"{where}{self.step}{what}{on}: {self.strerror} (errno {self.errno})"
        if self.cause:
            text += f"\n  cause: {self.cause}"
        if self.remedy:
            text += f"\n  remedy: {self.remedy}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.errno, self.step, self.path, self.__dict__)


def _rebuild(kind: type[SetupError], errno: int, step: str, path: str | None, state: dict[str, object]) -> SetupError:
    error = kind(errno, step, path=path)
    error.__dict__.update(state)
    return error


class UnsupportedError(SetupError):
    """This host cannot do it: the kernel is too old, lacks the feature, or an administrator has forbidden it."""


class IrreversibleError(IsolateError, TypeError):
    """``with`` on a part that the kernel gives no way back from. The message names the remedy."""


class ThreadedError(IsolateError, RuntimeError):
    """The kernel does this only for a process with one thread, and there are more."""


class RestoreError(IsolateError, RuntimeError):
    """Leaving a ``with`` block failed; the message says what this thread is now."""


class ProgramError(IsolateError):
    """``check=True`` and the verdict is not OK. ``result`` has the rest."""

    def __init__(self, result: Result[str] | Result[bytes]) -> None:
        super().__init__(result)
        self.result: Result[str] | Result[bytes] = result

    def __str__(self) -> str:
        r = self.result
        program = os.fsdecode(r.args[0]) if r.args else "?"
        return f"{program} ended with {r.verdict} (returncode {r.returncode}) after {r.wall_time:.3f} s"
