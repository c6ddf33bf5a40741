"""The family of errors. Every one pickles, and says part, step, errno, likely cause and remedy where there are any."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

__all__ = [
    "ConflictError",
    "ForkedError",
    "IrreversibleError",
    "IsolateError",
    "ProgramError",
    "RestoreError",
    "SetupError",
    "ThreadedError",
    "UnsupportedError",
]


class IsolateError(Exception):
    """The base of all errors of this library. Its text never holds what cannot be printed.

    >>> issubclass(SetupError, IsolateError)
    True
    """

    def __str__(self) -> str:
        return printable_lines(super().__str__())


class ConflictError(IsolateError, ValueError):
    """Parts that contradict one another, or the same part twice. Raised before anything starts.

    >>> Sandbox(PidNamespace(), PidNamespace())
    Traceback (most recent call last):
    isolate.errors.ConflictError: ...
    """


class SetupError(IsolateError, OSError):
    """A part could not be put in force; the program never started.

    ``part`` (class name), ``step`` (in words), ``syscall``, ``path``, ``errno``, ``cause`` and ``remedy`` tell what and
    why; those that do not apply are None. In the texts, and in the whole message, what cannot be printed is escaped:
    a sandbox's program may have chosen the names in them. ``path`` stays as it is.

    As any ``OSError`` it is also the subclass of its errno: ``except FileNotFoundError`` catches one with ENOENT.

    :param errno: of the call.
    :param step: what was being done.
    :param path: that it was about.

    >>> try:
    ...     Sandbox().run(["no-such-program"])
    ... except SetupError as error:
    ...     error.errno, error.syscall
    (2, 'execve')
    """

    def __new__(cls, errno: int, step: str, *, path: str | None = None, **rest: object) -> Self:
        """An instance that is also what ``OSError`` itself would be for this errno."""
        also = type(OSError(errno, ""))
        kind = cls if issubclass(cls, also) else _both(cls, also)
        # A class with a __new__ of its own has OSError take its arguments here.
        return super().__new__(kind, errno, os.strerror(errno), *(() if path is None else (path,)))

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
        self.step: str = printable(step)
        self.part: str | None = part
        self.syscall: str | None = syscall
        self.path: str | None = path
        self.cause: str | None = None if cause is None else printable(cause)
        self.remedy: str | None = None if remedy is None else printable(remedy)
        #: Whether all was set up, and it is the program itself that could not be found or executed.
        self.program: bool = False

    def __str__(self) -> str:
        where = f"{self.part}: " if self.part else ""
        what = f" ({self.syscall})" if self.syscall else ""
        shown = printable(self.path) if self.path else None
        on = f" [{shown}]" if shown and shown not in self.step else ""
        text = f"{where}{self.step}{what}{on}: {self.strerror} (errno {self.errno})"
        return text + advice(self.cause, self.remedy)

    def __reduce__(self) -> tuple[object, ...]:
        kind = next(cls for cls in type(self).__mro__ if cls not in _kinds.values())
        return _rebuild, (kind, self.errno, self.step, self.path, self.__dict__)


_kinds: dict[tuple[type[SetupError], type[OSError]], type[SetupError]] = {}
_Kind = TypeVar("_Kind", bound=SetupError)


def _both(cls: type[_Kind], also: type[OSError]) -> type[_Kind]:
    found = _kinds.get((cls, also))
    if found is None:
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        found = _kinds[cls, also] = type(cls.__name__, (cls, also), names)
    return found  # type: ignore[return-value]  # it was kept for this class


def _rebuild(kind: type[SetupError], errno: int, step: str, path: str | None, state: dict[str, object]) -> SetupError:
    error = kind(errno, step, path=path)
    error.__dict__.update(state)
    return error


class UnsupportedError(SetupError):
    """This host cannot do it: the kernel is too old, lacks the feature, or an administrator has forbidden it.

    :param errno: of the call.
    :param step: what was being done.
    :param path: that it was about.

    >>> issubclass(UnsupportedError, SetupError)
    True
    """


class IrreversibleError(IsolateError, TypeError):
    """``with`` on a part that the kernel gives no way back from. The message names the remedy.

    >>> with Seccomp.default():
    ...     pass
    Traceback (most recent call last):
    isolate.errors.IrreversibleError: ...
    """


class ThreadedError(IsolateError, RuntimeError):
    """The kernel does this only for a process with one thread, and there are more.

    >>> issubclass(ThreadedError, IsolateError)
    True
    """


class ForkedError(IsolateError, RuntimeError):
    """A forked process asks something of what its parent started: that is the parent's to wait for and to end."""


class RestoreError(IsolateError, RuntimeError):
    """Leaving a ``with`` block failed; the message says what this thread is now.

    >>> issubclass(RestoreError, IsolateError)
    True
    """


class Ended(Protocol):
    """How a program ended, for :class:`ProgramError`. A :class:`~isolate.Result` is one, and tells the same."""

    @property
    def args(self) -> tuple[str | bytes, ...]: ...
    @property
    def returncode(self) -> int: ...
    @property
    def verdict(self) -> str: ...
    @property
    def stdout(self) -> str | bytes | None: ...
    @property
    def stderr(self) -> str | bytes | None: ...
    @property
    def wall_time(self) -> float: ...
    @property
    def hints(self) -> tuple[str, ...]: ...
    @property
    def cpu_time(self) -> float: ...
    @property
    def peak_memory(self) -> int: ...
    @property
    def peak_charged(self) -> int | None: ...
    @property
    def truncated(self) -> frozenset[str]: ...
    @property
    def applied(self) -> Mapping[str, bool]: ...
    @property
    def left_out(self) -> tuple[str, ...]: ...
    @property
    def stats(self) -> Any: ...
    @property
    def syscall(self) -> str | None: ...
    @property
    def ok(self) -> bool: ...
    def json(self) -> str: ...


class ProgramError(IsolateError):
    """``check=True`` and the verdict is not OK. ``result``, a :class:`~isolate.Result`, has the rest.

    :param result: the whole :class:`Result`.

    >>> Sandbox().run(["false"], check=True)
    Traceback (most recent call last):
    isolate.errors.ProgramError: ...
    """

    def __init__(self, result: Ended) -> None:
        super().__init__(result)
        self.result: Ended = result

    def __str__(self) -> str:
        r = self.result
        program = printable(os.fsdecode(r.args[0])) if r.args else "?"
        text = f"{program} ended with {r.verdict} (returncode {r.returncode}) after {r.wall_time:.3f} s"
        text = "; ".join((text, *r.hints))
        said = last_lines(r.stderr)
        return f"{text}; the end of what it wrote to stderr:\n{said}" if said else text


def advice(cause: str | None, remedy: str | None) -> str:
    """The lines of an error behind its first."""
    return (f"\n  cause: {cause}" if cause else "") + (f"\n  remedy: {remedy}" if remedy else "")


def printable(text: str) -> str:
    """Text with all that cannot be printed escaped: control characters, line ends, direction marks, stray bytes.

    Names that a sandbox's program has chosen (files, ``#!`` lines, processes) end up in messages, and messages on
    terminals. This is the one place that makes them harmless.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as os.fsdecode has it
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def printable_lines(text: str) -> str:
    """:func:`printable` for a text of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def last_lines(output: str | bytes | None, lines: int = 5, characters: int = 500) -> str:
    """The end of what a program wrote, for a message: some lines, indented, each printable."""
    if not output:
        return ""
    end = output[-characters:]
    text = end.decode("utf-8", "replace") if isinstance(end, bytes) else end
    shown = text.expandtabs().rstrip().replace("\r\n", "\n").split("\n")[-lines:]
    return "\n".join(f"  {printable(line)}" for line in shown if line)
