"""The verbs by which programs are started: ``run``, ``arun``, ``spawn``, ``aspawn``; and what all of them take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Unpack

    from isolate.engine.session import Session
    from isolate.engine.tape import Tape
    from isolate.sandbox.aprocess import AsyncProcess
    from isolate.sandbox.process import Process
    from isolate.sandbox.result import Result
    from isolate.sandbox.words import Args, RunOptions, SpawnOptions, StartOptions

__all__ = ["Verbs"]

_running: Callable[..., Result[Any]] | None = None


def _load() -> Callable[..., Result[Any]]:
    """:func:`isolate.sandbox.run.run`, looked up once: that costs more than all else that :meth:`Verbs.run` does."""
    global _running
    from isolate.sandbox.run import run

    _running = run
    return run


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

    def spawn(self, args: Args, **options: Unpack[SpawnOptions]) -> Process:
        """Start a program and return a :class:`~isolate.Process` once it has been executed.

        :param stdin: as in :class:`subprocess.Popen`, and so are ``stdout`` and ``stderr``: None inherits, PIPE,
            DEVNULL, STDOUT (for stderr), a descriptor or a file. A terminal of the caller's is never handed over: the
            program has one of its own, and a relay stands between the two.
        :param text: with ``encoding``, ``errors`` and ``bufsize`` as in :class:`subprocess.Popen`: pipes are buffered,
            and of bytes unless one of the first three is given.
        :param pty: a terminal of its own, of (rows, columns); our end is ``Process.pty``.
        :param timeout: seconds until everything inside is killed. (limit, extra) lets it go on for some more; the
            verdict is still by the limit. ``cpu_time`` is for user and system time of all processes inside together.
            Both count from this call: where one ends before the program is executed, that is its verdict, too.
        :param max_output: of each stream that is read here, bytes or ``"64M"``, None for no limit. A
            program that writes more is killed, with the verdict OUTPUT. With ``keep`` it goes on, and ``"head"``,
            ``"tail"`` or ``"both"`` of the bytes that ``on_stdout=`` or :meth:`Process.communicate` collects is kept.
            Given explicitly, it also limits a file: the program then writes to a pipe, and the file has the first
            ``max_output`` bytes.
        :param on_stdout: called in a thread with the bytes as they come, with ``text`` with each line; ``on_stderr``
            likewise. An exception that it raises ends the program, and the call that waits raises it.
        :param pass_fds: descriptors it gets under the same number, or {number inside: descriptor}.
        :param env: the whole environment; None is PATH alone.
        :param cwd: a path inside; None is ``/`` in a root of its own.
        :param executable: the program, where ``args[0]`` is another name; without a slash it is looked up in PATH.

        :raises SetupError: a part is not in force, or the program cannot be executed; nothing is left of it.
        """
        from isolate.sandbox.process import spawn

        return spawn(self, args, options)

    async def aspawn(self, args: Args, **options: Unpack[StartOptions]) -> AsyncProcess:
        """:meth:`spawn` for asyncio and trio: an :class:`~isolate.AsyncProcess`, whose pipes are streams to await.

        The start is made in a thread, so the event loop is never blocked by it, unless parts are in force on this
        thread, which the program is to be under. Cancelling kills everything inside.
        """
        from isolate.sandbox.aprocess import aspawn

        return await aspawn(self, args, options)

    # ---- run ---------------------------------------------------------------------------------------------------

    @overload
    def run(
        self,
        args: Args,
        *,
        input: bytes | None = ...,
        text: Literal[False] = ...,
        encoding: None = ...,
        **options: Unpack[RunOptions],
    ) -> Result[bytes]: ...
    @overload
    def run(
        self,
        args: Args,
        *,
        input: str | bytes | None = ...,
        text: Literal[True],
        encoding: str | None = ...,
        **options: Unpack[RunOptions],
    ) -> Result[str]: ...
    @overload
    def run(
        self,
        args: Args,
        *,
        input: str | bytes | None = ...,
        text: bool = ...,
        encoding: str,
        **options: Unpack[RunOptions],
    ) -> Result[str]: ...
    def run(self, args: Args, **options: Any) -> Result[str] | Result[bytes]:
        """Run a program to its end and tell how it ended.

        The program reads nothing unless ``input`` or ``stdin`` is given. Its output is captured unless ``stdout`` or
        ``stderr`` say otherwise (as in :meth:`spawn`; None inherits). When the call returns everything inside is dead.

        :param input: the data that it reads: bytes, or str with ``text``.
        :param timeout: seconds of the wall clock. ``(2.0, 0.5)`` lets the program go on half a second past the limit;
            the verdict is still by the limit. ``cpu_time`` is user and system time of all processes inside together. A
            program that exceeds a limit is killed, with everything inside, and the verdict says which limit it was.
        :param max_output: for each stream, bytes or ``"64M"`` (the default for captured streams), None for no limit. A
            program that writes more is killed, with the verdict OUTPUT. With ``keep="head"``, ``"tail"`` or ``"both"``
            it goes on, and that part is kept (``"both"``: half of each). Given explicitly, it also limits
            ``stdout=file``.
        :param on_stdout: called with the bytes as they come, with ``text`` with each line; ``on_stderr`` likewise. An
            exception that it raises ends the program, and the call raises it.
        :param text: decode UTF-8, and replace invalid bytes; ``encoding`` and ``errors`` say otherwise.
        :param check: raise ProgramError unless the verdict is OK.

        The rest is as for :meth:`spawn`.

        :raises SetupError: a part is not in force, or the program cannot be executed.
        :raises ProgramError: with ``check``, the verdict is not OK.
        """
        return (_running or _load())(self, args, options)

    @overload
    async def arun(
        self,
        args: Args,
        *,
        input: bytes | None = ...,
        text: Literal[False] = ...,
        encoding: None = ...,
        **options: Unpack[RunOptions],
    ) -> Result[bytes]: ...
    @overload
    async def arun(
        self,
        args: Args,
        *,
        input: str | bytes | None = ...,
        text: Literal[True],
        encoding: str | None = ...,
        **options: Unpack[RunOptions],
    ) -> Result[str]: ...
    @overload
    async def arun(
        self,
        args: Args,
        *,
        input: str | bytes | None = ...,
        text: bool = ...,
        encoding: str,
        **options: Unpack[RunOptions],
    ) -> Result[str]: ...
    async def arun(self, args: Args, **options: Any) -> Result[str] | Result[bytes]:
        """:meth:`run` for asyncio and trio. Cancelling the task kills everything inside.

        The start is made in a thread, so the event loop is never blocked by it, unless parts are in force on this
        thread, which the program is to be under.
        """
        from isolate.sandbox.arun import arun

        return await arun(self, args, options)
