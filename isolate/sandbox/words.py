"""The words of the verbs: what they take, and what a start asks of whatever is started in."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from isolate.engine.session import Session
    from isolate.engine.tape import Tape

__all__ = ["Args", "Box", "RunOptions", "SpawnOptions", "StartOptions", "Stream", "StrOrBytesPath"]

StrOrBytesPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
Args: TypeAlias = "StrOrBytesPath | Sequence[StrOrBytesPath]"
Stream: TypeAlias = "int | IO[bytes] | IO[str] | None"


class StartOptions(TypedDict, total=False):
    """The keywords of every verb."""

    stdin: Stream
    stdout: Stream
    stderr: Stream
    timeout: float | tuple[float, float] | None
    cpu_time: float | None
    max_output: int | str | None
    keep: Literal["head", "tail", "both"] | None
    on_stdout: Callable[[Any], object] | None
    on_stderr: Callable[[Any], object] | None
    errors: str | None
    pass_fds: Iterable[int] | Mapping[int, int]
    env: Mapping[str, str] | Mapping[bytes, bytes] | None
    cwd: StrOrBytesPath | None
    executable: StrOrBytesPath | None


class RunOptions(StartOptions, total=False):
    """The keywords of ``run`` and ``arun``; ``text`` and ``encoding`` are in their signatures."""

    check: bool


class SpawnOptions(StartOptions, total=False):
    """The keywords of ``spawn`` and ``exec``."""

    text: bool
    encoding: str | None
    bufsize: int
    pty: bool | tuple[int, int]


class Box(Protocol):
    """The requests of a start to the place in which it starts."""

    def compile(self) -> Tape:
        """The tape to start."""
        ...

    def launch(
        self, tape: Tape, run: bytes, stdio: Sequence[int], slots: Sequence[int], *, nonblocking: bool = False
    ) -> Session:
        """A launcher that starts the program of a run block (see ``isolate.engine.session.Session``)."""
        ...
