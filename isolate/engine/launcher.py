"""A launcher by what this process holds of it: its socket, two pidfds, and our ends of the program's streams.

The descriptors are members of ``struct iso_start``, which C opens and closes. Nothing here knows a plan or a record's
contents: those are :class:`isolate.engine.session.Session`'s.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING, Any

from isolate.engine import native, proc, waiting
from isolate.engine.native import ffi, lib
from isolate.engine.reaping import reaping
from isolate.errors import ForkedError

if TYPE_CHECKING:
    from isolate.engine.record import Record


class Launcher:
    """The process that prepares and supervises one sandbox, as the process that started it sees it."""

    def _begin(self, *, direct: bool = True) -> None:
        """Nothing is open yet."""
        #: The launcher is reaped by the process whose child it is known to be: this one, or a launcher that is parked.
        self.direct: bool = direct
        self.owner: int = native.owner()
        #: A kill has been asked for.
        self.let_go: bool = False
        #: The record of the sandbox's end; None until it has come.
        self.end: Record | None = None
        #: The launcher has ended and, where it was our child, been reaped.
        self.gone: bool = False
        # C owns every descriptor before any is opened, so that close() finds them after any interruption.
        # If close() itself is interrupted, the end of this memory closes them: in C, which nothing interrupts.
        start = ffi.new("struct iso_start *")
        lib.iso_begin(start)
        self._start = ffi.gc(start, lib.iso_release)
        self.stdio: Any = start.ours

    @property
    def pid(self) -> int:
        """The launcher's process id."""
        return int(self._start.pid)

    @property
    def pidfd(self) -> int:
        """The launcher's pidfd, -1 once closed.

        :raises OSError: it rests, and cannot be opened again.
        """
        return self._pidfd(False)

    @property
    def began(self) -> float:
        """When the program was asked for, by :func:`time.monotonic`: the launcher counts limits from there, too."""
        return float(self._start.began) / 1e9

    @property
    def payload_fd(self) -> int:
        """The program's pidfd, once it is known; -1 until then.

        :raises OSError: it rests, and cannot be opened again.
        """
        return self._pidfd(True)

    def _pidfd(self, program: bool) -> int:
        found = lib.iso_pidfd(self._start, program)
        if found < -1:
            raise OSError(-found, os.strerror(-found), "open a pidfd again")
        return found

    @property
    def _known(self) -> bool:
        """Whether there is a launcher, as far as we know."""
        return bool(self._start.pidfd >= 0 or self._start.rests[0])

    def rest(self) -> None:
        """Close both pidfds until somebody needs them, where they can be opened again for sure.

        Only before anybody else knows this object: another thread may be using their numbers later.
        """
        lib.iso_rest(self._start)

    def send(self, signal: int) -> None:
        """Send a signal to the program; nothing if it has ended.

        :raises OSError: the signal could not be sent.
        """
        result = lib.iso_send(self._start, True, signal)
        if result < 0 and result not in (-errno.ESRCH, -errno.EBADF):
            raise OSError(-result, os.strerror(-result))

    def take_terminal(self) -> int:
        """Our end of the program's terminal, where it is one of the sandbox's own; from then on the caller's to close.
        -1 where there is none, or none any more."""
        fd, self._start.terminal = int(self._start.terminal), -1
        return fd

    def exchange_terminal(self, ends: Any) -> bool:
        """Put our end of the program's terminal, where it is one of the sandbox's own, in the place of these ends.

        In one call of C, so that an interrupt loses no descriptor. False where there is none, or none any more.
        """
        return bool(lib.iso_take_terminal(self._start, ends))

    @property
    def program_pid(self) -> int:
        """The program's process id as the kernel translates it for us, also after its end.

        0 as long as it has not told: it tells for a start that is waited for, and where its filter can kill.
        """
        return int(self._start.sender)

    def adopt(self, pidfd: int, pid: int) -> None:
        """The program's pidfd and process id, known before it has been executed. The descriptor is the session's."""
        self._start.payload, self._start.sender = pidfd, pid

    def fileno(self) -> int:
        """The control socket: readable when a record has come, or the end."""
        return int(self._start.control)

    def close_stream(self, number: int) -> None:
        """Close our end of a pipe."""
        lib.iso_close(self._start.ours + number)

    @property
    def ours(self) -> bool:
        """Whether this process started it: a forked child has copies of the descriptors, and no say in anything."""
        return native.owns(self.owner)

    def check_owner(self) -> None:
        """Refuse what only the process that started it may do.

        :raises ForkedError: this one was forked from it.
        """
        if not self.ours:
            raise ForkedError(
                "this sandbox was started by the process that this one was forked from: only that one can wait for it, "
                "signal it or end it"
            )

    def tells(self) -> list[int]:
        """The descriptors that are readable once there is a record, or the launcher has gone."""
        try:
            return [self.fileno(), self.pidfd]
        except OSError:
            return [self.fileno()]  # no descriptor is left to see the launcher by

    def kill(self) -> None:
        """Let go: the launcher kills everything inside and tells the end. Also while a forked child holds copies.

        Nothing in a forked child.
        """
        if not self.ours:
            return
        again, self.let_go = self.let_go, True
        lib.iso_let_go(self._start)
        if self.fileno() >= 0 and not self.gone:
            # Without a pid namespace a program with our uid can have stopped the launcher, and go on doing so.
            if again and self.end is None:
                proc.silence(self.pid)
            lib.iso_send(self._start, False, signal.SIGCONT)

    def wait_gone(self, timeout: float | None = None) -> bool:
        """Wait until the launcher itself has gone, and reap it where it is ours."""
        if not self._known:
            return True
        # One call, as a rule: a signal's handler is run by the interpreter, in the other.
        result = -errno.EINTR if waiting.replaced() else lib.iso_gone(self._start, waiting.milliseconds(timeout))
        if result in (0, -errno.ECHILD):
            if result:
                reaping.observe(self.pid, direct=self.direct)
        elif result == -errno.EAGAIN:
            return False
        else:
            try:
                pidfd = self.pidfd
            except OSError:
                return False  # no descriptor is left to see it by
            if not waiting.wait([(pidfd, waiting.READABLE)], timeout):
                return False
            self.reap()
        self.gone = True
        return True

    def wait(self, timeout: float | None, *, records: bool = True) -> int:
        """Wait for the program's streams or, with ``records``, for a record or the launcher's end, for so long at most.

        Bits 0 to 2 stand for our ends of its streams, bit 3 for the rest. 0: nothing has come, maybe before the time is
        up. An output that has ended may be closed here without being told.
        """
        if waiting.replaced():
            return self._wait(timeout, records)
        ready = lib.iso_wait(self._start, records, waiting.milliseconds(timeout))
        if ready >= 0 or ready == -errno.EINTR:
            return max(ready, 0)
        raise OSError(-ready, os.strerror(-ready), "ppoll")

    def _wait(self, timeout: float | None, records: bool) -> int:
        bits = {fd: 1 << number for number, fd in enumerate(self.stdio) if fd >= 0}
        wanted = [(fd, waiting.WRITABLE if bit == 1 else waiting.READABLE) for fd, bit in bits.items()]
        if records:
            # Both: a forked child may hold a copy of the socket after the launcher is lost.
            bits.update(dict.fromkeys((self.fileno(), self.pidfd), 8))
            wanted += [(self.fileno(), waiting.READABLE), (self.pidfd, waiting.READABLE)]
        found = 0
        for fd in waiting.wait(wanted, timeout):
            found |= bits[fd]
        return found

    def reap(self) -> None:
        """Reap the launcher if it is our child: directly, or since this process adopts orphans (PID 1, a subreaper)."""
        if not self.ours:
            return
        # In C: an exception at the end of each run, which is what an orphan is, costs more than the call.
        if lib.iso_reap(self._start) == -errno.ECHILD:
            reaping.observe(self.pid, direct=self.direct)
