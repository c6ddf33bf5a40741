"""A program never gets the caller's terminal: it gets one of its own, and a relay stands between the two.

Whoever holds a terminal may read what is typed there after the program has ended, change its settings, and send it on.
So where a stream would be the caller's terminal the program has a pseudo-terminal, and a thread here copies what is
typed and what is written. It does so as a shell's job would: only while this program is in the foreground does it read
and change settings; Ctrl-C and Ctrl-Z are for the program inside, and Ctrl-Z stops both.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import termios
import threading
import time
from typing import TYPE_CHECKING, Any

from isolate.engine import waiting
from isolate.sandbox import guard
from isolate.sandbox.jobs import set_settings, stop_job
from isolate.sandbox.terminal import Terminal, is_terminal, set_window, window

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolate.engine.session import Session

__all__ = ["Relay"]

_CHUNK = 65536
_TICK = 0.2  # seconds: nobody tells a program that has no handler for SIGWINCH and SIGCONT
_PENDING = (
    4096  # bytes of input that wait for the program at most: what it does not read is not taken from the terminal
)
_PATIENCE = 1.0  # seconds for the caller's terminal to take the last output
_IFLAG, _OFLAG, _CFLAG, _LFLAG, _ISPEED, _OSPEED, _CC = range(7)


class Relay:
    """Between a terminal of the caller's and the one that a program has in its place.

    ``numbers`` are the streams that it stands for. With 0 among them it reads from the terminal. ``raw`` has every key
    go to the program, those for signals too.
    """

    def __init__(
        self, fds: dict[int, int], uid: int = -1, *, raw: bool = True, terminal: Terminal | None = None
    ) -> None:
        self.numbers: frozenset[int] = frozenset(fds)
        self._reads = 0 in fds
        self._raw = raw and self._reads and is_terminal(fds[0])
        self._owns = terminal is None
        self._in = self._out = -1
        self._wake = -1
        self._thread: threading.Thread | None = None
        self._session: Session | None = None
        self._guard: Session | None = None
        self._before: list[Any] | None = None
        self._changed: tuple[list[Any], bytes] = ([], b"")
        self._finishing = False
        self._adopted = -1
        self._settled = terminal is not None
        self._dropped = False
        self._left = False
        self._until: float | None = None
        self._pending = b""
        self._window = (0, 0)
        self._stopped = False
        #: The key that ends the relay and not the program, and what is called then (:meth:`isolate.Process.interact`).
        self.escape: tuple[int, Callable[[], object]] | None = None
        try:
            # Copies: the caller may close its own, and open something else in its place.
            if self._reads:
                self._in = os.dup(fds[0])
            self._out = os.dup(next(fds[n] for n in (1, 2, 0) if n in fds))
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.terminal: Terminal = Terminal(uid) if terminal is None else terminal
            if terminal is None:
                self._copy_settings()
        except BaseException:
            self._release()
            raise

    @property
    def theirs(self) -> int:
        """The program's end of its terminal."""
        return self.terminal.theirs

    # ---- life ------------------------------------------------------------------------------------------------------

    def begin(self, session: Session) -> None:
        """The program starts, or runs: copy, in a thread."""
        self._session = session
        if self._owns:
            self.terminal.hand_over()
        self._thread = threading.Thread(target=self._work, name="isolate-terminal", daemon=True)
        self._thread.start()

    def adopt(self, fd: int) -> None:
        """Our end of a terminal that the program has made of the sandbox's own, and which takes the place of ours."""
        if self._thread is None:
            os.close(fd)
            return
        self._adopted = fd
        self._stir()

    def settle(self) -> None:
        """The program runs: which terminal it has is known, and what was typed meanwhile goes there."""
        self._settled = True
        self._stir()

    @property
    def alive(self) -> bool:
        """Whether it still copies. It does not wait for ever for the caller's terminal to take the last output."""
        if self._thread is None or not self._thread.is_alive():
            return False
        return self._until is None or time.monotonic() < self._until

    def finish(self) -> None:
        """Everything inside is dead: copy what is left, restore the settings, and end. Returns at once."""
        if self._until is None:
            self._until = time.monotonic() + _PATIENCE
        self._finishing = True
        self._stir()

    def close(self) -> None:
        """End at last."""
        self.finish()
        if self._thread is not None and self._thread is not threading.current_thread():
            assert self._until is not None
            self._thread.join(max(0.0, self._until - time.monotonic()))
            if self._thread.is_alive():
                self._dropped = True  # it restores and releases everything once the terminal lets it
                self._restore()
                return
            self._thread = None
        self._restore()
        self._release()

    def _release(self) -> None:
        terminal = getattr(self, "terminal", None)
        if terminal is not None and self._owns:
            terminal.close()
        elif terminal is not None and not terminal.closed:
            os.set_blocking(terminal.fileno(), True)
        for name in ("_in", "_out", "_wake", "_adopted"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def _stir(self) -> None:
        if self._wake >= 0:
            with contextlib.suppress(OSError):
                os.write(self._wake, (1).to_bytes(8, "little"))

    # ---- settings --------------------------------------------------------------------------------------------------

    def _copy_settings(self) -> None:
        settings = termios.tcgetattr(self._out)
        if not self._raw:
            # The caller's terminal stays as it is: it echoes what is typed, and makes the line ends.
            settings[_OFLAG] &= ~termios.OPOST
            settings[_LFLAG] &= ~termios.ECHO
        termios.tcsetattr(self.terminal.theirs, termios.TCSANOW, settings)
        self._follow_window()

    def _follow_window(self) -> None:
        now = window(self._out) if is_terminal(self._out) else (0, 0)
        if now != self._window and min(now) > 0:
            self._window = now
            set_window(self.terminal.fileno(), *now)

    def _foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._in) == os.getpgrp()
        except OSError as error:
            # ENOTTY: it is not what controls this program, which is no job of a shell there. EIO: it was hung up.
            return error.errno == errno.ENOTTY

    def _make_raw(self) -> None:
        """Have every key come as it is; once more if somebody else has changed the settings while we were stopped."""
        if not self._raw:
            return
        if self._before is not None:
            if guard.settings(self._in) != self._changed[1]:
                termios.tcsetattr(self._in, termios.TCSADRAIN, self._changed[0])
            return
        settings = termios.tcgetattr(self._in)
        before, changed = guard.settings(self._in), list(settings)
        changed[_IFLAG] &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        changed[_OFLAG] &= ~termios.OPOST
        changed[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        changed[_CC] = list(settings[_CC])
        changed[_CC][termios.VMIN], changed[_CC][termios.VTIME] = 1, 0
        self._before = settings
        termios.tcsetattr(self._in, termios.TCSADRAIN, changed)
        self._changed = changed, guard.settings(self._in)
        with contextlib.suppress(OSError):  # without it a SIGKILL leaves them changed; it still works
            self._guard = guard.watch(self._in, before, self._changed[1])

    def _restore(self) -> None:
        before, self._before = self._before, None
        watching, self._guard = self._guard, None
        # In the background they are another job's by now.
        if before is not None and self._foreground():
            set_settings(self._in, before)
        if watching is not None:
            watching.kill()
            if not watching.wait_gone(_PATIENCE / 2):
                # On a busy machine it may not have looked yet. Late, it would take the settings of this program's next
                # relay for those of this one, which are the same, and restore them while somebody types.
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(watching.pidfd, signal.SIGKILL)
                watching.wait_gone(_PATIENCE / 2)
            watching.close()

    # ---- the thread ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._copy()
        except (OSError, termios.error):
            pass  # the caller's terminal has gone: there is nobody to tell, and the program's is hung up below
        finally:
            self._restore()
            if self._dropped:
                self._release()

    def _copy(self) -> None:
        os.set_blocking(self.terminal.fileno(), False)
        reading = self._reads
        foreground = False
        while True:
            if self._adopted >= 0:
                fd, self._adopted = self._adopted, -1
                self.terminal.become(fd)
                os.set_blocking(fd, False)
                self._window = (0, 0)
            ours = self.terminal.fileno()
            if reading:
                foreground = self._foreground()
                if foreground and self._settled:  # until then Ctrl-C is for whoever starts it
                    self._make_raw()
            self._follow_window()
            wanted = [(ours, waiting.READABLE | (waiting.WRITABLE if self._pending else 0))]
            if reading and foreground and self._settled and len(self._pending) < _PENDING and not self._finishing:
                wanted.append((self._in, waiting.READABLE))
            if self._wake >= 0:
                wanted.append((self._wake, waiting.READABLE))
            ready = waiting.wait(wanted, 0.02 if self._finishing else _TICK)
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 8)
            if ours in ready:
                self._feed()
                if not self._pass_on():
                    return
            elif self._finishing:
                return  # somebody outside holds a copy of the program's end, and all that is dead has written is out
            if self._in in ready and self._in >= 0:
                reading = self._type()
                if self._left:
                    # Leave the rest for the next reader: the program may never stop writing.
                    self._feed_all()
                    return

    def _pass_on(self) -> bool:
        """Copy what the program has written; whether there may be more."""
        try:
            data = os.read(self.terminal.fileno(), _CHUNK)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno == errno.EIO:
                # The program's end is not open in any process. A program that still runs can open it again by its name.
                if self._finishing or self._session is None or self._session.end is not None:
                    return False
                time.sleep(0.05)
                return True
            raise
        while data:
            try:
                data = data[os.write(self._out, data) :]
            except BlockingIOError:
                waiting.wait([(self._out, waiting.WRITABLE)], 1.0)
            except OSError as error:
                if error.errno != errno.EBADF:
                    raise
                return True  # open for reading only: what the program writes there goes nowhere
        return True

    def _feed(self) -> None:
        if self._pending:
            try:
                self._pending = self._pending[os.write(self.terminal.fileno(), self._pending[:1024]) :]
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                self._pending = b""

    def _feed_all(self) -> None:
        """Pass on what was typed before the end, as far as the program takes it."""
        deadline = time.monotonic() + _PATIENCE / 2
        while self._pending and (left := deadline - time.monotonic()) > 0:
            if waiting.wait([(self.terminal.fileno(), waiting.WRITABLE)], left):
                self._feed()

    def _type(self) -> bool:
        """Take what was typed; whether there may be more."""
        try:
            data = os.read(self._in, 1024) if self.escape is None else self._read_up_to(self.escape[0])
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno == errno.EIO:  # hung up, or in the background after all
                return False
            raise
        ended = not data and not is_terminal(self._in)
        if self.escape is not None and data[-1:] == bytes(self.escape[:1]):
            data, self._left = data[:-1], True
            self.escape[1]()
        elif not data:
            settings = termios.tcgetattr(self.terminal.fileno())
            data = settings[_CC][termios.VEOF]  # Ctrl-D at a terminal that makes lines itself
        suspends = self._suspending(data)
        if suspends >= 0:
            os.write(self.terminal.fileno(), data[:suspends])
            self._suspend()
            data = data[suspends + 1 :]
        self._pending += data
        self._feed()
        return not ended

    def _read_up_to(self, key: int) -> bytes:
        """Read what is there, and nothing behind a key: the rest is for whoever reads there next."""
        data = os.read(self._in, 1)
        while data and data[-1] != key and len(data) < 1024 and waiting.ready(self._in):
            try:
                more = os.read(self._in, 1)
            except OSError:
                break  # the next call is told
            if not more:
                break
            data += more
        return data

    # ---- job control -----------------------------------------------------------------------------------------------

    def _suspending(self, data: bytes) -> int:
        """Where in what was typed the key is that stops the program, if it is for us to stop it; or -1.

        A shell inside stops its jobs by itself. The program that was started stands alone in its session, and what is
        typed at its terminal cannot stop it: the kernel drops such signals to an orphaned process group.
        """
        session = self._session
        if not self._raw or session is None:
            return -1
        settings = termios.tcgetattr(self.terminal.fileno())
        key = settings[_CC][termios.VSUSP]
        if not settings[_LFLAG] & termios.ISIG or key == b"\0" or key not in data:
            return -1
        for _ in range(100):  # the program may show something before init has told who it is
            if session.program_pid > 0 or self._finishing:
                break
            time.sleep(0.01)
        try:
            in_front = os.tcgetpgrp(self.terminal.fileno())
        except OSError:
            return -1
        return data.index(key) if in_front == session.program_pid else -1

    def _suspend(self) -> None:
        """Stop the program and this one, as a shell's job; go on when the shell says so."""
        self._restore()
        self.signal(signal.SIGSTOP)
        try:
            stop_job()
        finally:
            self.signal(signal.SIGCONT)
            if self._foreground():
                self._make_raw()

    def signal(self, number: int) -> None:
        """A signal to the process group of the program, which is its leader as long as it lives."""
        session = self._session
        if session is None or session.program_pid <= 0 or session.payload_fd < 0 or waiting.ready(session.payload_fd):
            return
        with contextlib.suppress(OSError):
            os.killpg(session.program_pid, number)
