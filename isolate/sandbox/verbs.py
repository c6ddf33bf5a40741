"""The verbs by which programs are started: ``run``, ``arun``, ``spawn``."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, overload

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from isolate.engine.session import Session
    from isolate.engine.tape import Tape
    from isolate.sandbox.process import Process
    from isolate.sandbox.result import Result

    StrOrBytesPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
    Args: TypeAlias = "StrOrBytesPath | Sequence[StrOrBytesPath]"
    Stream: TypeAlias = "int | IO[bytes] | IO[str] | None"

__all__ = ["Box", "Verbs"]

PIPE = -1  # as in subprocess
DEFAULT_MAX_OUTPUT = 64 << 20

_running: Callable[..., Result[Any]] | None = None


def _load() -> Callable[..., Result[Any]]:
    """:func:`isolate.sandbox.run.run`, looked up once: that costs more than all else that :meth:`Verbs.run` does."""
    global _running
    from isolate.sandbox.run import run

    _running = run
    return run


#: What subprocess has a keyword for, and is said otherwise here.
_OTHERWISE = {
    "capture_output": "stdout and stderr are captured unless they are given",
    "shell": 'give ["sh", "-c", command]',
    "universal_newlines": "text=True is it",
    "encoding": "text=True decodes UTF-8; or decode what was captured",
    "errors": "text=True replaces what is not UTF-8; or decode what was captured",
    "preexec_fn": "nothing of Python runs between fork and exec; there are parts for what it is used for",
    "user": "Credentials(uid=) says it",
    "group": "Credentials(gid=) says it",
    "extra_groups": "Credentials(groups=) says it",
    "umask": "Credentials(umask=) says it",
    "close_fds": "all are closed but those in pass_fds",
    "start_new_session": "every program has a session of its own",
}


def _no_keyword(verb: str, unknown: Mapping[str, object]) -> TypeError:
    from isolate.kernel.checks import nearest  # loaded late: only an error needs it

    name = next(iter(unknown))
    known = (
        "input", "stdin", "stdout", "stderr", "timeout", "cpu_time", "max_output", "pass_fds", "env", "cwd", "check",
        "text",
    )  # fmt: skip
    hint = f"; {_OTHERWISE[name]}" if name in _OTHERWISE else nearest(name, known)
    return TypeError(f"{verb}: there is no keyword {name!r}{hint or '; it takes ' + ', '.join(known)}")


class Box(Protocol):
    """What a start asks of whatever is started in."""

    def compile(self) -> Tape:
        """The tape to start."""
        ...

    def launch(
        self, tape: Tape, run: bytes, stdio: Sequence[int], slots: Sequence[int], *, nonblocking: bool = False
    ) -> Session:
        """A launcher that starts the program of a run block (see :class:`isolate.engine.session.Session`)."""
        ...


class Verbs:
    """How a :class:`~isolate.Sandbox` or a :class:`~isolate.Pool` of them starts programs."""

    __slots__ = ()

    def compile(self) -> Tape:
        """The tape to start."""
        raise NotImplementedError

    def launch(
        self, tape: Tape, run: bytes, stdio: Sequence[int], slots: Sequence[int], *, nonblocking: bool = False
    ) -> Session:
        """A launcher that starts the program of a run block."""
        raise NotImplementedError

    # ---- spawn -------------------------------------------------------------------------------------------------

    def spawn(
        self,
        args: Args,
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        pty: bool | tuple[int, int] = False,
        pass_fds: Iterable[int] | Mapping[int, int] = (),
        env: Mapping[str, str] | Mapping[bytes, bytes] | None = None,
        cwd: StrOrBytesPath | None = None,
    ) -> Process:
        """Start a program and return a :class:`~isolate.Process` once it has been executed.

        ``stdin``, ``stdout`` and ``stderr`` are as in :class:`subprocess.Popen`: None inherits, PIPE, DEVNULL, STDOUT
        (for stderr), a descriptor or a file. ``pty`` gives it a terminal of its own, of (rows, columns), whose end is
        ``Process.pty``. ``pass_fds`` are descriptors it gets under the same number, or {number inside: descriptor}.
        ``env`` is the whole environment; None is PATH alone. ``cwd`` is a path inside; None is ``/`` in a root of its
        own.

        :raises SetupError: a part is not in force, or the program cannot be executed; nothing is left of it.
        """
        from isolate.sandbox.process import spawn

        return spawn(
            self, args, stdin=stdin, stdout=stdout, stderr=stderr, pty=pty, pass_fds=pass_fds, env=env, cwd=cwd
        )  # fmt: skip

    # ---- run ---------------------------------------------------------------------------------------------------

    @overload
    def run(
        self,
        args: Args,
        *,
        input: bytes | None = ...,
        stdin: Stream = ...,
        stdout: Stream = ...,
        stderr: Stream = ...,
        timeout: float | None = ...,
        cpu_time: float | None = ...,
        max_output: int | str | None = ...,
        pass_fds: Iterable[int] | Mapping[int, int] = ...,
        env: Mapping[str, str] | Mapping[bytes, bytes] | None = ...,
        cwd: StrOrBytesPath | None = ...,
        check: bool = ...,
        text: Literal[False] = ...,
    ) -> Result[bytes]: ...
    @overload
    def run(
        self,
        args: Args,
        *,
        input: str | bytes | None = ...,
        stdin: Stream = ...,
        stdout: Stream = ...,
        stderr: Stream = ...,
        timeout: float | None = ...,
        cpu_time: float | None = ...,
        max_output: int | str | None = ...,
        pass_fds: Iterable[int] | Mapping[int, int] = ...,
        env: Mapping[str, str] | Mapping[bytes, bytes] | None = ...,
        cwd: StrOrBytesPath | None = ...,
        check: bool = ...,
        text: Literal[True],
    ) -> Result[str]: ...
    def run(
        self,
        args: Args,
        *,
        input: str | bytes | None = None,
        stdin: Stream = None,
        stdout: Stream = PIPE,
        stderr: Stream = PIPE,
        timeout: float | None = None,
        cpu_time: float | None = None,
        max_output: int | str | None = DEFAULT_MAX_OUTPUT,
        pass_fds: Iterable[int] | Mapping[int, int] = (),
        env: Mapping[str, str] | Mapping[bytes, bytes] | None = None,
        cwd: StrOrBytesPath | None = None,
        check: bool = False,
        text: bool = False,
        **unknown: object,
    ) -> Result[str] | Result[bytes]:
        """Run a program to its end and tell how it ended.

        Reads nothing unless ``input`` or ``stdin`` says so; what it writes is captured unless ``stdout`` or ``stderr``
        say otherwise (as in :meth:`spawn`; None inherits). When the call returns everything inside is dead.

        ``timeout`` is for the wall clock, ``cpu_time`` for user and system time of all processes inside together, both
        in seconds; ``max_output`` is for each captured stream, bytes or ``"64M"``, None for no limit. Whoever passes
        one is killed, with all inside, and the verdict says which. ``text`` decodes as UTF-8, replacing what is not.

        :raises SetupError: a part is not in force, or the program cannot be executed.
        :raises ProgramError: with ``check``, the verdict is not OK.
        """
        if unknown:
            raise _no_keyword("run", unknown)
        run = _running or _load()
        return run(
            self, args, input=input, stdin=stdin, stdout=stdout, stderr=stderr, timeout=timeout, cpu_time=cpu_time,
            max_output=max_output, pass_fds=pass_fds, env=env, cwd=cwd, check=check, text=text,
        )  # fmt: skip

    @overload
    async def arun(
        self,
        args: Args,
        *,
        input: bytes | None = ...,
        stdin: Stream = ...,
        stdout: Stream = ...,
        stderr: Stream = ...,
        timeout: float | None = ...,
        cpu_time: float | None = ...,
        max_output: int | str | None = ...,
        pass_fds: Iterable[int] | Mapping[int, int] = ...,
        env: Mapping[str, str] | Mapping[bytes, bytes] | None = ...,
        cwd: StrOrBytesPath | None = ...,
        check: bool = ...,
        text: Literal[False] = ...,
    ) -> Result[bytes]: ...
    @overload
    async def arun(
        self,
        args: Args,
        *,
        input: str | bytes | None = ...,
        stdin: Stream = ...,
        stdout: Stream = ...,
        stderr: Stream = ...,
        timeout: float | None = ...,
        cpu_time: float | None = ...,
        max_output: int | str | None = ...,
        pass_fds: Iterable[int] | Mapping[int, int] = ...,
        env: Mapping[str, str] | Mapping[bytes, bytes] | None = ...,
        cwd: StrOrBytesPath | None = ...,
        check: bool = ...,
        text: Literal[True],
    ) -> Result[str]: ...
    async def arun(
        self,
        args: Args,
        *,
        input: str | bytes | None = None,
        stdin: Stream = None,
        stdout: Stream = PIPE,
        stderr: Stream = PIPE,
        timeout: float | None = None,
        cpu_time: float | None = None,
        max_output: int | str | None = DEFAULT_MAX_OUTPUT,
        pass_fds: Iterable[int] | Mapping[int, int] = (),
        env: Mapping[str, str] | Mapping[bytes, bytes] | None = None,
        cwd: StrOrBytesPath | None = None,
        check: bool = False,
        text: bool = False,
        **unknown: object,
    ) -> Result[str] | Result[bytes]:
        """:meth:`run` for asyncio. Cancelling the task kills everything inside."""
        if unknown:
            raise _no_keyword("arun", unknown)
        from isolate.sandbox.arun import arun

        return await arun(
            self, args, input=input, stdin=stdin, stdout=stdout, stderr=stderr, timeout=timeout, cpu_time=cpu_time,
            max_output=max_output, pass_fds=pass_fds, env=env, cwd=cwd, check=check, text=text,
        )  # fmt: skip
