"""The verbs: a :class:`Sandbox` is parts put together; it runs programs, starts them, or explains itself."""

from __future__ import annotations

import os
import threading
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias, overload

from isolate.defaults import defaults
from isolate.here.entering import Change, Reversible
from isolate.kernel import CLONE_NEWPID, CLONE_NEWTIME
from isolate.namespaces import PidNamespace
from isolate.plan import Part, Phase, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from isolate.process import Process
    from isolate.result import Result
    from isolate.tape import Tape

    StrOrBytesPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
    Args: TypeAlias = "StrOrBytesPath | Sequence[StrOrBytesPath]"
    Stream: TypeAlias = "int | IO[bytes] | IO[str] | None"

__all__ = ["Sandbox"]

PIPE = -1  # as in subprocess

DEFAULT_MAX_OUTPUT = 64 << 20


_running: Callable[..., Result[Any]] | None = None


def _load() -> Callable[..., Result[Any]]:
    """:func:`isolate.running.run`, looked up once: that costs more than all else that :meth:`Sandbox.run` does."""
    global _running
    from isolate.running import run

    _running = run
    return run


class Sandbox(Reversible):
    """Parts that hold together in a child: namespaces, a root, limits, credentials, filters.

    Immutable. The order of the parts does not matter; :class:`isolate.Root` alone has an order inside. ``+`` adds
    parts. What is not said is at its safe default: see :mod:`isolate.defaults`.

    :raises ConflictError: for the same part twice, or parts that contradict one another.
    """

    __slots__ = ("_lock", "_plans", "_tapes", "parts")

    def __init__(self, *parts: Part) -> None:
        self.parts: tuple[Part, ...] = parts
        self._plans: dict[tuple[int, int], Plan] = {}
        self._tapes: dict[tuple[int, int], Tape] = {}
        self._lock = threading.Lock()
        self._plan()  # refuses what can be refused without running anything

    def __add__(self, other: Part | Sandbox | Iterable[Part]) -> Sandbox:
        if isinstance(other, Sandbox):
            return Sandbox(*self.parts, *other.parts)
        if isinstance(other, Part):
            return Sandbox(*self.parts, other)
        return Sandbox(*self.parts, *other)

    def __repr__(self) -> str:
        return f"Sandbox({', '.join(map(repr, self.parts))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sandbox) and set(self.parts) == set(other.parts)

    def __hash__(self) -> int:
        return hash(frozenset(self.parts))

    def __reduce__(self) -> tuple[object, ...]:
        return Sandbox, self.parts

    def _plan(self) -> Plan:
        """The plan for the caller's ids; it depends on nothing else that may change."""
        key = (os.geteuid(), os.getegid())
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = Plan(defaults(self.parts), euid=key[0], egid=key[1])
        return plan

    def compile(self) -> Tape:
        """The tape, made once for the caller's ids and then reused from any thread."""
        key = (os.geteuid(), os.getegid())
        tape = self._tapes.get(key)
        if tape is None:
            from isolate.tape import compile_plan

            with self._lock:
                tape = self._tapes.get(key)
                if tape is None:
                    plan = self._plan()
                    pid = plan.context.find(PidNamespace)
                    flags = int(plan.clone_flags)
                    time = any(step.phase is Phase.TIME for step in plan.steps)
                    tape = compile_plan(
                        plan,
                        init=pid is None or pid.init,
                        pid_namespace=bool(flags & CLONE_NEWPID),
                        # A process in another time namespace may not share memory with its parent (clone(2), EINVAL).
                        share=not time and not flags & CLONE_NEWTIME,
                    )
                    self._tapes[key] = tape
        return tape

    def explain(self) -> str:
        """The ordered steps with the kernel calls behind them. Needs no privileges and runs nothing."""
        return self._plan().explain()

    def check(self) -> None:
        """Start a program that ends at once (one that isolate brings along): whether this host can do all of it.

        :raises SetupError: what cannot be done, with cause and remedy.
        """
        from isolate.probe import check

        check(self)

    # ---- on this thread ----------------------------------------------------------------------------------------

    def here(self) -> Change:
        """What ``with`` does: the parts (not the defaults) on the calling thread, in the kernel's order, and back.

        :raises IrreversibleError: a part has no way back. Nothing has been changed then.
        """
        from isolate.here.together import together

        return together(self.parts)

    def enter(self) -> None:
        """Put the parts (not the defaults) in force on the calling thread for good, in the kernel's order.

        :raises SetupError: a step failed; what came before it stays in force.
        """
        from isolate.here.program import enter

        enter(self.parts)

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
        from isolate.process import spawn

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
    ) -> Result[str] | Result[bytes]:
        """:meth:`run` for asyncio. Cancelling the task kills everything inside."""
        from isolate.aio import arun

        return await arun(
            self, args, input=input, stdin=stdin, stdout=stdout, stderr=stderr, timeout=timeout, cpu_time=cpu_time,
            max_output=max_output, pass_fds=pass_fds, env=env, cwd=cwd, check=check, text=text,
        )  # fmt: skip
