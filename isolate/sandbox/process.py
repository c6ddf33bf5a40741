"""``spawn``: a program that runs beside us, as an object."""

from __future__ import annotations

import signal as signals
import threading
import time
import warnings
from errno import ESRCH
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Final

from isolate.engine.native import lib
from isolate.engine.proc import kill_session, namespace_of
from isolate.errors import SetupError
from isolate.kernel.checks import is_number
from isolate.kernel.closing import Closing
from isolate.sandbox import outcome
from isolate.sandbox.awaiting import await_start
from isolate.sandbox.communicate import Communication
from isolate.sandbox.expired import TimeoutExpired
from isolate.sandbox.grouped import Grouped
from isolate.sandbox.pump import Pump
from isolate.sandbox.result import Result, Verdict
from isolate.sandbox.starting import Start, settle
from isolate.sandbox.streams import Stream, check_bufsize, file
from isolate.sandbox.terminal import Terminal, program_uid, set_window, wanted_window

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Unpack

    from isolate.engine.record import Record
    from isolate.engine.session import Session
    from isolate.sandbox.capture import Capture
    from isolate.sandbox.words import Args, Box, SpawnOptions

__all__ = ["Process", "spawn"]


_FLUSH = 5.0  # seconds for a callback to take what came last
_PATIENCE = 10.0  # seconds for a further program's start: nothing has to be made for it


class Process(Grouped, Closing):
    """A program in a sandbox. Made by :meth:`isolate.Sandbox.spawn`; a context manager that takes it down on leaving.

    Waiting is on descriptors: ``pidfd`` (readable when the program has ended) and :meth:`fileno` (readable when
    everything inside has), so threads, select and event loops all work. Methods may be called from any thread.

    :param session: of the launcher, which tells about it.
    :param args: of the program.
    :param pty: whether it has a terminal of its own.

    >>> with Sandbox().spawn(["cat"], stdin=PIPE, stdout=PIPE) as process:
    ...     out, _ = process.communicate(b"hello")
    >>> out
    b'hello'
    """

    def __init__(self, session: Session, what: Start, pty: Terminal | None, bufsize: int = -1) -> None:
        self._session = session
        self._what = what
        self._lock = threading.RLock()  # a signal handler may call while its own thread is inside
        self._args = what.args
        # Never 0, which kill(2) takes for the caller's own process group.
        self._pid = session.program_pid or session.pid
        # Without a reference to this: a stream that somebody keeps is not to keep the program.
        self._exceeded = partial(_exceed, session, what)
        self._talk: Communication | None = None
        self._collected: dict[int, Capture] = {}
        self.args: tuple[bytes, ...] = what.args
        self._raw: list[Stream | None] = [
            Stream(session, n) if session.stdio[n] >= 0 and n not in what.captures else None for n in range(3)
        ]
        if what.max_output is not None and what.keep is None:
            for raw in self._raw[1:]:
                if raw is not None:
                    raw.bound(what.max_output, self._exceeded)
        #: Our ends of the pipes, as :class:`subprocess.Popen` has them: buffered, and text with ``text=True``; None
        #: where there is no pipe.
        self.stdin: IO[Any] | None
        self.stdout: IO[Any] | None
        self.stderr: IO[Any] | None
        self.stdin, self.stdout, self.stderr = (
            None if raw is None else file(raw, n == 0, bufsize, what.text) for n, raw in enumerate(self._raw)
        )
        #: Our end of the terminal, unbuffered; None without. Reading says end of file when no program has it any more.
        self.pty: Terminal | None = pty
        self._pump: Pump | None = Pump(session, what.captures, self._exceeded) if what.captures else None
        if pty is None and not what.relays and all(session.stdio[n] < 0 for n in range(3)):
            session.rest()

    def __repr__(self) -> str:
        state = "runs" if self._session.end is None else f"ended with {self.returncode}"
        return f"<Process {self._args[0]!r} {state}>"

    # ---- identity ----------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The program's process id in the caller's pid namespace, from the start and after the end.

        Once the program has ended the number may be another's; ``pidfd`` is not. Where ``timeout`` or ``cpu_time``
        has ended it before it was executed, and its number was never told, this is its launcher's.
        """
        return self._pid

    @property
    def pidfd(self) -> int:
        """A pidfd of the program, readable once it has ended; open until :meth:`close`. -1 where a limit of time has
        ended it before it was executed.

        It is opened when it is asked for first, where the program has no pipes (Linux 6.9).

        :raises OSError: EMFILE: no descriptor is left for it.
        """
        return self._session.payload_fd

    def fileno(self) -> int:
        """A descriptor that is readable once everything inside has ended."""
        return self._session.fileno()

    @property
    def returncode(self) -> int | None:
        """As in :mod:`subprocess`; None while it runs (see :meth:`poll`)."""
        end = self._session.end
        return None if end is None else self._judge(end)[0]

    def _judge(self, end: Record) -> tuple[int, Verdict]:
        return outcome.judge(end, self._what.killed, self._session.tape, self._what.timeout, self._what.cpu_time)

    # ---- ends --------------------------------------------------------------------------------------------------

    def poll(self) -> int | None:
        """The return code if everything inside has ended, else None.

        :raises ForkedError: in a process forked from the one that started it.
        """
        self._take(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until everything inside has ended; the return code.

        :raises TimeoutExpired: the program still runs.
        """
        if not self._take(timeout):
            raise TimeoutExpired(self._args, timeout or 0.0)
        returncode = self.returncode
        assert returncode is not None
        return returncode

    def result(self, timeout: float | None = None) -> Result[Any]:
        """Wait, and tell the whole of it. ``stdout`` and ``stderr`` are what was collected here (by ``on_stdout=``,
        ``on_stderr=`` or :meth:`communicate`); None where they were the caller's to read.

        :raises TimeoutExpired: the program still runs.
        """
        self.wait(timeout)
        record = outcome.ended(self._session, self._args)
        returncode, verdict = self._judge(record)
        captured = [self._what.captured(n) for n in (1, 2)]
        truncated = self._what.truncated()
        for number, capture in self._collected.items():
            data = capture.data()
            captured[number - 1] = data if self._what.text is None else self._what.text.decode(data)
            if capture.truncated:
                truncated |= {"stdout" if number == 1 else "stderr"}
        if self._what.killed is Verdict.OUTPUT:
            verdict = Verdict.OUTPUT
        return outcome.make_result(
            record,
            self._session.tape,
            self._args,
            returncode,
            verdict,
            captured,
            truncated,
            pid=self._session.program_pid,
            changes=outcome.changes_of(self._session),
            asked=self._session.told(),
        )

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Write ``input``, read stdout and stderr to their ends, wait; (stdout, stderr), as in
        ``subprocess.Popen.communicate``. None stands for what is no pipe.

        At most ``max_output`` bytes of each are kept; more ends the program, unless ``keep`` says otherwise. After
        TimeoutExpired it may be called again: nothing is lost.
        """
        if self._talk is None:
            self._talk = Communication(self, input)
        elif input is not None:
            raise ValueError("Cannot send input after starting communication")
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._talk.drive(deadline):
            raise self._talk.late(timeout)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            self.wait(left)
        except TimeoutExpired:
            raise self._talk.late(timeout) from None
        return self._talk.came()

    def _take(self, timeout: float | None) -> bool:
        """Wait for the final record; whether it is there."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._session.end is None:
            self._session.check_owner()
            if self._session.fileno() < 0:
                raise ValueError("the process is closed")
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            # A second at most: another thread may close, and the number be another file's, just before this waits.
            # Less, once it has been killed: whoever may stop the launcher may have done so.
            tick = 0.1 if self._session.let_go else 1.0
            ready = self._session.readable(tick if left is None else min(tick, left))
            with self._lock:
                if self._session.end is None and ready:
                    try:
                        self._session.take()
                    except EOFError:
                        outcome.ended(self._session, self._args)  # raises: the launcher was lost
                elif self._session.let_go:
                    self._session.kill()
            if not ready and left is not None and left <= 0:
                return self._session.end is not None
        with self._lock:
            self._session.wait_gone(1.0)
            self._gather()
        for relay in self._what.relays:
            relay.close()
        if self._pump is not None and self._pump.join(_FLUSH) and self._pump.error is not None:
            error, self._pump.error = self._pump.error, None
            raise error
        return True

    def _gather(self) -> None:
        """Kill what a further program's init has left to another PID 1, where it was killed before the program's end.

        What has left the program's session is not found; it ends with the sandbox.
        """
        joined, self._session.joined = self._session.joined, None
        end = self._session.end
        if joined is None or end is None or end.complete & lib.ISO_COMPLETE_STATUS:
            return
        deadline = time.monotonic() + 1.0
        while kill_session(self._pid, joined) and time.monotonic() < deadline:
            time.sleep(0.002)

    # ---- signals -----------------------------------------------------------------------------------------------

    def send_signal(self, signal: int) -> None:
        """Send a signal to the program, by its pidfd. No error if it has ended.

        :raises ForkedError: in a process forked from the one that started it.
        """
        self._session.check_owner()
        self._session.send(signal)

    def terminate(self, grace: float | None = None) -> int | None:
        """SIGTERM to the program, which may ignore it; with ``grace``, what is still there so many seconds later is
        killed. Then the return code is told; without it the call returns None at once.

        When the program ends, everything that it started ends too.
        """
        if grace is not None and (not is_number(grace) or not grace >= 0):
            raise ValueError(f"grace must be seconds, 0 or more, not {grace!r}")
        self.send_signal(signals.SIGTERM)
        if grace is None:
            return None
        self.send_signal(signals.SIGCONT)  # one that is stopped would never know
        try:
            return self.wait(grace)
        except TimeoutExpired:
            self.kill()
            return self.wait()

    def kill(self) -> None:
        """Kill everything inside, whatever it does, frozen or not; returns at once (then :meth:`wait`).

        :raises ForkedError: in a process forked from the one that started it.
        """
        self._session.check_owner()
        self._session.kill()

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the program's terminal; it gets SIGWINCH."""
        if self.pty is None:
            raise ValueError("the process has no pty")
        set_window(self.pty.fileno(), rows, columns)

    def interact(self, escape: bytes | None = b"\x1d", *, stdin: Any = 0, stdout: Any = 1) -> int | None:
        """Connect the caller's terminal with the program's until the program ends; its return code.

        Every key goes to the program, Ctrl-C too; its window has the size of the caller's and follows it; Ctrl-Z stops
        both where no shell inside does. The terminal's settings are restored whatever happens, also when this program
        is killed. The key ``escape`` (Ctrl-]) ends the call and not the program, and None is returned; what was typed
        before it is the program's, and what was typed behind it stays for whoever reads ``stdin`` next. ``escape=None``
        is for a program that has every key.

        Needs ``spawn(pty=True)``. ``stdin`` and ``stdout`` are descriptors or files, which may be no terminals.
        """
        from isolate.sandbox.interacting import interact  # loaded late: only for a terminal

        if self.pty is None:
            raise ValueError("the process has no pty: spawn(args, pty=True)")
        ended = interact(self._session, self.pty, self._take, escape, (stdin, stdout))
        return self.returncode if ended else None

    def exec(self, args: Args, **options: Unpack[SpawnOptions]) -> Process:
        """Start a further program inside: the same namespaces, root, cgroup, ids, capabilities, rlimits and filters.

        Arguments are as for :meth:`Sandbox.spawn`. The program and everything that it started end when the program
        ends, when the returned Process is closed, and with the sandbox if that has a pid namespace. This includes
        processes with a session of their own, because the program's own init inherits them. If a process inside with
        the same uid has killed that init first, the sandbox's PID 1 inherits them. Then the program's session is ended,
        and processes that have left the session end with the sandbox.

        :raises SetupError: ESRCH: the first program has ended; or the new one cannot be executed.
        """
        from isolate.sandbox.exec import FurtherBox

        if self.fileno() < 0:
            raise ValueError("the process is closed: no further program can be started beside it")
        if self.pidfd < 0:
            raise SetupError(ESRCH, "execute a further program", part="Process.exec", cause="the program has ended")
        box = FurtherBox(self, self._session.tape.plan)
        joined = namespace_of(self.pid)
        further = spawn(box, args, options, patience=_PATIENCE)
        further._session.joined = joined
        return further

    # ---- life --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Kill what still runs, wait for the end, release every descriptor."""
        session = self._session
        try:
            if session.fileno() >= 0 and session.ours:
                session.kill()
                self._take(None)
        except SetupError:
            pass  # the launcher is gone, and init with it
        finally:
            if self._pump is not None:
                self._pump.join(_FLUSH)
            # Data that was not flushed is lost, because no reader is left.
            for raw in (*self._raw, self.pty):
                if raw is not None:
                    raw.close()
            self._what.abandon()
            with self._lock:
                session.close()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Process cannot be copied or pickled: the end of the copy would be the end of the program")

    def __del__(self) -> None:
        session = getattr(self, "_session", None)
        if session is None or session.fileno() < 0 or not session.ours:
            return
        if session.end is None:
            warnings.warn(f"{self!r} was never closed: killed", ResourceWarning, stacklevel=2, source=self)
        # No wait here: the launcher needs nobody to finish. A stream that somebody still holds stays readable.
        session.kill()


def _exceed(session: Session, what: Start) -> None:
    """The program has written more than ``max_output``."""
    if what.killed is None:
        what.killed = Verdict.OUTPUT
    session.kill()


#: The keywords of ``spawn`` that ``run`` does not have.
OWN: Final[Mapping[str, Any]] = {"pty": False, "bufsize": -1}


def spawn(box: Box, args: Any, options: Mapping[str, Any], patience: float | None = None) -> Process:
    """See :meth:`isolate.Sandbox.spawn`; ``patience`` is as for :func:`await_start`."""
    settled = settle("spawn", options, OWN)
    pty, bufsize = settled.pop("pty"), settled.pop("bufsize")
    check_bufsize(bufsize, settled)
    window = wanted_window(pty)
    if not pty:
        return _start(Start(box, args, collect=False, started=True, **settled), None, bufsize, patience)
    if any(settled[name] is not None for name in ("stdin", "stdout", "stderr", "on_stdout", "on_stderr")):
        raise ValueError("pty is all three streams; stdin, stdout and stderr cannot be given as well")
    terminal = Terminal(program_uid(box.compile().plan.context))
    try:
        if window is not None:
            set_window(terminal.fileno(), *window)
        what = Start(box, args, collect=False, started=True, terminal=terminal, **settled)
        return _start(what, terminal, bufsize, patience)
    except BaseException:
        terminal.close()
        raise


def _start(what: Start, pty: Terminal | None, bufsize: int, patience: float | None = None) -> Process:
    session = what.launch(nonblocking=False)
    if pty is not None:
        pty.hand_over()
    try:
        await_start(session, what.args, patience)
        what.adopt(session)
        if pty is not None:
            pty.take(session)
        return Process(session, what, pty, bufsize)
    except BaseException:
        session.close()
        what.abandon()
        raise
