"""One description of a start: the keywords of ``run``, ``spawn`` and their kin, checked once and made a launch."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, Final

from isolate.kernel import checks, log
from isolate.kernel.checks import is_number
from isolate.sandbox import outcome, streams
from isolate.sandbox.capture import Capture, Text, keeping
from isolate.sandbox.streams import DEVNULL, PIPE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from isolate.engine.session import Session
    from isolate.engine.tape import Tape
    from isolate.sandbox.relay import Relay
    from isolate.sandbox.result import Verdict
    from isolate.sandbox.terminal import Terminal
    from isolate.sandbox.words import Box

__all__ = ["DEFAULT_MAX_OUTPUT", "Start", "seconds", "settle"]

DEFAULT_MAX_OUTPUT: Final = 64 << 20
_NOTHING: Final[frozenset[str]] = frozenset()
#: The keywords of every verb, with their defaults.
_DEFAULTS: Final[Mapping[str, Any]] = {
    "stdin": None,
    "stdout": None,
    "stderr": None,
    "timeout": None,
    "cpu_time": None,
    "max_output": DEFAULT_MAX_OUTPUT,
    "keep": None,
    "on_stdout": None,
    "on_stderr": None,
    "text": False,
    "encoding": None,
    "errors": None,
    "pass_fds": (),
    "env": None,
    "cwd": None,
    "executable": None,
}
#: Keywords of subprocess that have another form here.
_OTHERWISE: Final[Mapping[str, str]] = {
    "capture_output": "stdout and stderr are captured by run() unless they are given",
    "shell": 'give ["sh", "-c", command]',
    "universal_newlines": "text=True is it",
    "preexec_fn": "nothing of Python runs between fork and exec; there are parts for what it is used for",
    "user": "Credentials(uid=) says it",
    "group": "Credentials(gid=) says it",
    "extra_groups": "Credentials(groups=) says it",
    "umask": "Credentials(umask=) says it",
    "close_fds": "all are closed but those in pass_fds",
    "start_new_session": "every program has a session of its own",
}


def seconds(value: float | None, what: str) -> float | None:
    """A limit in seconds; None is none."""
    if value is None:
        return None
    if not is_number(value):
        raise TypeError(f"{what} must be seconds, not {value!r}")
    if not 0 < value < 1e9:
        raise ValueError(f"{what} must be more than 0 and less than 1e9 seconds, not {value!r}")
    return float(value)


def _timeout(value: Any) -> tuple[float | None, float | None]:
    """The limit that is judged by, and when all is killed."""
    if not isinstance(value, (tuple, list)):
        limit = seconds(value, "timeout")
        return limit, limit
    if len(value) != 2:
        raise ValueError(f"timeout must be seconds, or (seconds, extra seconds), not {value!r}")
    limit, extra = seconds(value[0], "timeout"), seconds(value[1], "timeout: the extra time")
    if limit is None or extra is None:
        raise TypeError(f"timeout must be seconds, or (seconds, extra seconds), not {value!r}")
    return limit, limit + extra


def _no_keyword(verb: str, unknown: str, more: Mapping[str, Any]) -> TypeError:
    from isolate.kernel.checks import nearest  # loaded late: only an error needs it

    known = tuple(dict.fromkeys((*more, *_DEFAULTS)))
    hint = f"; {_OTHERWISE[unknown]}" if unknown in _OTHERWISE else nearest(unknown, known)
    return TypeError(f"{verb}: there is no keyword {unknown!r}{hint or '; it takes ' + ', '.join(known)}")


def settle(verb: str, options: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """All the keywords of a verb: what was said, and the defaults. ``more`` are those of this verb alone.

    :raises TypeError: there is no such keyword.
    """
    settled = {**_DEFAULTS, **more, **options}
    for name in options:
        if name not in _DEFAULTS and name not in more:
            raise _no_keyword(verb, name, more)
    if "max_output" not in options:
        settled["said"] = False
    return settled


class Start:
    """A checked start; :meth:`launch` executes it. ``collect``: streams that are PIPE are read here."""

    __slots__ = (
        "_block",
        "_box",
        "args",
        "captures",
        "cpu_time",
        "ends_at",
        "keep",
        "killed",
        "max_output",
        "relays",
        "stdio",
        "tape",
        "text",
        "timeout",
    )

    def __init__(
        self,
        box: Box,
        args: Any,
        *,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        timeout: Any,
        cpu_time: float | None,
        max_output: int | str | None,
        keep: str | None,
        on_stdout: Callable[[Any], object] | None,
        on_stderr: Callable[[Any], object] | None,
        text: bool,
        encoding: str | None,
        errors: str | None,
        pass_fds: Any,
        env: Any,
        cwd: Any,
        executable: Any,
        collect: bool,
        started: bool,
        said: bool = True,
        terminal: Terminal | None = None,
        early: bool = False,
    ) -> None:
        self._box = box
        #: Why it was killed from here, if it was.
        self.killed: Verdict | None = None
        self.timeout: float | None
        self.ends_at: float | None
        # Defaults are not checked: the checks are a large part of a start's cost for its caller.
        self.timeout, self.ends_at = (None, None) if timeout is None else _timeout(timeout)
        self.cpu_time: float | None = None if cpu_time is None else seconds(cpu_time, "cpu_time")
        if max_output is None or max_output is DEFAULT_MAX_OUTPUT:
            self.max_output: int | None = max_output
        else:
            self.max_output = checks.size("max_output", max_output)
        self.keep: str | None = None if keep is None else keeping(keep)
        self.text: Text | None = Text(encoding, errors) if text or encoding is not None or errors is not None else None
        wanted = [stdin, stdout, stderr]
        calls = ((1, on_stdout), (2, on_stderr))
        for number, call in calls:
            if call is None:
                continue
            if not callable(call):
                raise TypeError(f"on_{'stdout' if number == 1 else 'stderr'} must be callable, not {call!r}")
            if wanted[number] not in (None, PIPE):
                raise ValueError(f"on_{'stdout' if number == 1 else 'stderr'}: the stream goes elsewhere already")
            wanted[number] = PIPE
        self.tape: Tape = box.compile()
        if terminal is None:
            self.stdio: list[int] = [
                stream if stream is PIPE or stream is DEVNULL else streams.stream(n, stream)
                for n, stream in enumerate(wanted)
            ]
        else:
            self.stdio = [terminal.theirs] * 3
        self.captures: dict[int, Capture] = {}
        for number, call in calls:
            if self.stdio[number] == PIPE and (collect or call is not None):
                self.captures[number] = Capture(self.max_output, self.keep, call, self.text)
            elif said and self.max_output is not None and wanted[number] is not None and _is_file(self.stdio[number]):
                self._bound(number)
        self.relays: list[Relay] = []
        if terminal is None and max(self.stdio) >= 0 and any(fd >= 0 and os.isatty(fd) for fd in self.stdio):
            from isolate.sandbox.relays import relays  # loaded late: only where there is a terminal
            from isolate.sandbox.terminal import program_uid

            self.relays = relays(self.stdio, lambda: program_uid(self.tape.plan.context))
        reads = bool(self.relays) and any(0 in relay.numbers for relay in self.relays)
        mask = 7 if terminal is not None else sum(1 << n for n in self.relays[0].numbers) if self.relays else 0
        try:
            self._block = streams.block(
                self.tape,
                args,
                env=env,
                cwd=cwd,
                pass_fds=pass_fds,
                started=started or reads,
                tty=reads or terminal is not None,
                timeout=self.ends_at,
                cpu_time=self.cpu_time,
                terminal=(mask, _owner(self.tape) if mask else -1),
                executable=executable,
                early=early and self.tape.cleans and not self.tape.plan.context.resources,
            )
            if self.cpu_time is not None:
                outcome.check_countable(self.tape)
        except BaseException:
            self.abandon()
            raise
        self.args: tuple[bytes, ...] = self._block[2]

    @classmethod
    def begun(cls, tape: Tape, args: tuple[bytes, ...]) -> Start:
        """That of what was started by other means, without streams and limits."""
        start = cls.__new__(cls)
        start.tape, start.args, start.stdio, start.relays, start.captures = tape, args, [-1] * 3, [], {}
        start.timeout = start.ends_at = start.cpu_time = start.max_output = start.keep = start.text = start.killed = (
            None
        )
        return start

    def _bound(self, number: int) -> None:
        """A file takes no more than it may: the program writes to a pipe, and what comes is written here."""
        if self.keep in ("tail", "both"):
            raise ValueError(f"keep={self.keep!r} is for what is collected in memory; of a file the head is kept")
        self.captures[number] = Capture(self.max_output, self.keep, file=self.stdio[number])
        self.stdio[number] = PIPE

    def launch(self, *, nonblocking: bool) -> Session:
        """Start it."""
        run, slots, _ = self._block
        log.debug(__name__, "start %r", self.args)
        try:
            session = self._box.launch(self.tape, run, self.stdio, slots, nonblocking=nonblocking)
        except BaseException:
            self.abandon()
            raise
        try:
            for relay in self.relays:
                relay.begin(session)
        except BaseException:
            session.close()
            self.abandon()
            raise
        return session

    def adopt(self, session: Session) -> None:
        """Take the terminal of the sandbox's own, if the program has made one, in the place of the one made here."""
        if self.relays and (fd := session.take_terminal()) >= 0:
            self.relays[0].adopt(fd)
        if session.started or session.end is not None:
            for relay in self.relays:
                relay.settle()

    def abandon(self) -> None:
        """Let go of what it holds: nothing was started, or all has ended."""
        for relay in self.relays:
            relay.close()
        for capture in self.captures.values():
            capture.close()

    def captured(self, number: int) -> Any:
        """The kept part of a stream, for the result; None if the stream went elsewhere."""
        found = self.captures.get(number)
        if found is None or found.elsewhere:
            return None
        data = found.data()
        return data if self.text is None else self.text.decode(data)

    def truncated(self) -> frozenset[str]:
        """The streams of which not everything was kept."""
        cut = [number for number, found in self.captures.items() if found.truncated]
        return frozenset("stdout" if number == 1 else "stderr" for number in cut) if cut else _NOTHING


def _owner(tape: Tape) -> int:
    from isolate.sandbox.terminal import uid_inside  # loaded late: only where there is a terminal

    return uid_inside(tape.plan.context)


def _is_file(fd: int) -> bool:
    return fd >= 0 and stat.S_ISREG(os.fstat(fd).st_mode)
