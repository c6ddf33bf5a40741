"""``Sandbox.prepare``: a program that is set up, whose pid is known, and that has not been executed yet."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from isolate.engine.handing import Handing
from isolate.engine.plan import SELF, Phase, Plan, Register, Step, call
from isolate.kernel.closing import Closing
from isolate.kernel.proc import fields
from isolate.sandbox.awaiting import await_start
from isolate.sandbox.defaults import defaults
from isolate.sandbox.planned import Planned

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from isolate.engine.handing import Handed
    from isolate.engine.plan import Context, Launched, Part
    from isolate.engine.session import Session
    from isolate.engine.tape import Tape
    from isolate.sandbox.process import Process

__all__ = ["Prepared", "prepare"]


@dataclass(frozen=True)
class _Hold:
    """The program's process hands a pidfd of itself over when all holds but the filter, and waits."""

    handing: Handing
    required: ClassVar[bool] = True

    def steps(self, context: Context) -> Iterator[Step]:
        """One step of the payload."""
        slot, pidfd = self.handing.slot(context), Register("pidfd")
        ops = (call("pidfd_open", SELF, 0, out=pidfd), *self.handing.hand(slot, [pidfd]), *self.handing.wait(slot))
        hints = {5: "it was closed before it was started"}
        yield Step(Phase.VERIFY, "tell the pid, and wait until it is to start", ops, hints=hints)


class PreparedBox(Planned):
    """A sandbox whose programs wait before they are executed."""

    __slots__ = ("handing", "last")

    def __init__(self, *parts: Part) -> None:
        self.handing: Handing = Handing(self._receive, part="Sandbox", hold=True)
        super().__init__(*parts)

    def _receive(self, fds: list[int], session: Launched) -> None:
        session.adopt(fds[0], _pid_of(fds[0]))

    def _plan(self) -> Plan:
        key = (os.geteuid(), os.getegid())
        plan = self._plans.get(key)
        if plan is None:
            parts = (*defaults(self.parts), _Hold(self.handing))
            plan = self._plans[key] = Plan(parts, euid=key[0], egid=key[1])
        return plan

    def launch(
        self, tape: Tape, run: bytes, stdio: Sequence[int], slots: Sequence[int], *, nonblocking: bool = False
    ) -> Session:
        """A launcher whose program is as good as started for whoever waits for that."""
        session = super().launch(tape, run, stdio, slots, nonblocking=nonblocking)
        # Not where the set-up has failed before: its record says so.
        session.started = session.payload_fd >= 0
        return session


def _pid_of(pidfd: int) -> int:
    """The process that a pidfd stands for, as this program's /proc numbers it; 0 where that does not tell."""
    try:
        with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
            found = int(fields(file.read()).get("Pid", "0"))
    except (OSError, ValueError):
        return 0
    return max(found, 0)


class Prepared(Closing):
    """A program that waits to be executed; made by :meth:`isolate.Sandbox.prepare`.

    Everything holds but the filter of system calls, which comes with the execution: namespaces, mounts, the cgroup,
    credentials; and the program has been found. A context manager: what was not started when the block ends is taken
    down.

    :param process: that waits.
    :param handed: what it was handed.

    >>> with Sandbox().prepare(["echo", "hello"]) as ready:
    ...     ready.pid > 0
    True
    """

    def __init__(self, process: Process, handed: Handed) -> None:
        self._process = process
        self._handed = handed
        self._started = False

    def __repr__(self) -> str:
        return f"<Prepared {self.args[0]!r}{' (started)' if self._started else ''}>"

    @property
    def args(self) -> tuple[bytes, ...]:
        """The program and its arguments."""
        return self._process.args

    @property
    def pid(self) -> int:
        """The process id that the program will have, in the caller's pid namespace."""
        return self._process.pid

    @property
    def pidfd(self) -> int:
        """A pidfd of it."""
        return self._process.pidfd

    def start(self) -> Process:
        """Execute the program; its :class:`~isolate.Process`, whose pid is the same.

        :raises ValueError: it has been started, or closed.
        :raises SetupError: it cannot be executed, or was killed while it waited.
        """
        session = self._process._session
        if self._started or session.fileno() < 0:
            raise ValueError(f"{self!r} has been {'started' if self._started else 'closed'} already")
        self._started = True
        session.started = False
        self._handed.go()
        try:
            await_start(session, self.args)
        except BaseException:
            self._process.close()
            raise
        return self._process

    def close(self) -> None:
        """Take it down, unless it was started: then it is the :class:`~isolate.Process` that closes."""
        if not self._started:
            self._process.close()


def prepare(box: Planned, args: Any, options: dict[str, Any]) -> Prepared:
    """See :meth:`isolate.Sandbox.prepare`."""
    held = PreparedBox(*box.parts)
    process = held.spawn(args, **options)
    return Prepared(process, held.handing.of(process._session))
