"""Starting a compiled tape, and what comes back on the control socket.

A :class:`Session` is one launcher (:mod:`isolate.engine.launcher`), the tape that it runs, the records that it sends,
and the resources of the plan that this start holds. Nothing here knows a part or a pipe.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any

from isolate.engine import native, proc, waiting
from isolate.engine.launcher import Launcher
from isolate.engine.native import ffi, lib
from isolate.engine.reaping import reaping
from isolate.engine.record import KIND, RECORD, Record, decode
from isolate.engine.run_block import block_without_program
from isolate.kernel.syscalls import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.engine.plan import Held
    from isolate.engine.tape import Tape

_MSG_NOSIGNAL = 0x4000  # no SIGPIPE for a host program that has the default action for it
_PATH = os.fsencode(native.LAUNCHER_PATH)
_DEVNULL = -3
#: The largest number of descriptors that can be handed over to a sandbox that waits.
MOST_PASSED: int = lib.ISO_MAX_PASSED


class StartFailure(Exception):
    """The launcher could not be started: at which stage (``ISO_SPAWN_*`` and ``ISO_START_*``), and with what errno.

    :mod:`isolate.diagnosis.start` makes of it the :class:`~isolate.SetupError` that a person reads.
    """

    def __init__(self, stage: int, error: int) -> None:
        super().__init__(stage, error)
        self.stage: int = stage
        self.error: int = error


class Session(Launcher):
    """A launcher that runs, owned by this process."""

    def __init__(
        self,
        tape: Tape,
        run: bytes,
        stdio: Sequence[int],
        slots: Sequence[int],
        *,
        nonblocking: bool = False,
        direct: bool = False,
        later: bool = False,
    ) -> None:
        """Start it.

        ``stdio`` are three descriptors or PIPE, DEVNULL, STDOUT; ``slots`` what stands behind the fixed descriptors.
        With ``later`` all is set up but the program (see :meth:`waiting`), and :meth:`hand_over` says which. With
        ``direct`` the launcher is a child of this process: children of this thread get another pid namespace, of which
        a middle process that ends at once must not be the PID 1.

        :raises StartFailure: the launcher could not be started; nothing is left of it.
        """
        self._bind(tape, run, direct=direct or reaping.direct)
        if tape.needs_proc:
            proc.check()
        if tape.plan.context.resources:
            given = self._take(tape)
            slots = [fd if fd >= 0 else given[-1 - fd] for fd in slots]
        if reaping.left:
            reaping.collect()
        # One call with all in it: bytes and list are lent to it for as long as it takes.
        result = lib.iso_start(
            self._start,
            tape.data,
            len(tape.data),
            run,
            len(run),
            slots,
            len(slots),
            *stdio,
            nonblocking,
            self._launcher(),
            _PATH,
            self.direct,
            later,
        )
        if result < 0:
            raise StartFailure(self._start.stage, -result)
        self.elsewhere = direct or bool(self._start.direct and not self.direct)
        self.direct = bool(self._start.direct)
        pending = list(self.held)
        try:
            while pending:
                held = waiting.first_ready(pending)
                pending.remove(held)
                held.started(self)
        except BaseException:
            self.close()
            raise

    def _bind(self, tape: Tape, run: bytes, *, direct: bool = True) -> None:
        """Say what is started. Nothing is open yet."""
        self._begin(direct=direct)
        self.tape: Tape = tape
        #: The sandbox's own tape. In a start from a tree, ``tape`` is a part of it.
        self.of: Tape = tape
        #: The end is told before the clean-up (ISO_RUN_EARLY), of which :meth:`cleaned` tells.
        self.early: bool = bool(run[8] & lib.ISO_RUN_EARLY)
        self.run: bytes = run  # for the diagnosis of an error
        #: The launcher is in another pid namespace than this process.
        self.elsewhere = False
        #: The pid namespace (its inode) that a further program has joined: its PID 1 inherits what init leaves.
        self.joined: int | None = None
        self.started: bool = False
        #: The objects that the plan's resources gave to this start alone, in their order.
        self.held: list[Held] = []
        self._told: tuple[object, ...] = ()

    @classmethod
    def from_template(
        cls,
        parked: Session,
        starts: int,
        compared: Any,
        tape: Tape,
        run: bytes,
        stdio: Sequence[int],
        slots: Sequence[int],
        *,
        nonblocking: bool,
        later: bool = False,
    ) -> Session | None:
        """A start by a launcher that is parked, by its socket ``starts``; None: it has gone, or something is not as it
        is in ``compared`` (``struct iso_compared``), and nothing was started.

        :raises StartFailure: EMFILE and the like: a stream could not be opened.
        """
        self = cls.__new__(cls)
        self._bind(tape, run)
        result = lib.iso_start_parked(
            self._start, parked._start, starts, compared, run, len(run), slots, len(slots), *stdio, nonblocking, later
        )
        if result == -errno.ESTALE:
            return None
        if result < 0:
            raise StartFailure(self._start.stage, -result)
        return self

    def _take(self, tape: Tape) -> list[int]:
        """Take the resources of this start: descriptors, in the order of their slots."""
        try:
            for resource in tape.plan.context.resources:
                self.held.append(resource.take())
        except BaseException:
            self.close()
            raise
        return [fd for held in self.held for fd in held.fds]

    def given_by(self, resource: object) -> Held | None:
        """The object that a resource of the plan has given to this start; None once it is closed."""
        pairs = zip(self.tape.plan.context.resources, self.held, strict=False)
        return next((held for each, held in pairs if each is resource), None)

    def go(self) -> None:
        """Send the byte that a step waits for on the socket. Where the launcher has ended its record says why."""
        native.call(number("sendto"), self.fileno(), b"1", 1, _MSG_NOSIGNAL, 0, 0)

    @classmethod
    def waiting(cls, tape: Tape, *, direct: bool = False) -> Session:
        """A sandbox that is set up, or soon will be, and waits for its program.

        :raises StartFailure: the launcher could not be started.
        """
        return cls._without_program(tape, direct=direct, later=True)

    @classmethod
    def alone(cls, tape: Tape, *, direct: bool = False) -> Session:
        """A sandbox without a program: its init stays until it is killed, and is what is told as the program.

        :raises StartFailure: the launcher could not be started.
        """
        return cls._without_program(tape, direct=direct, later=False)

    @classmethod
    def _without_program(cls, tape: Tape, *, direct: bool, later: bool) -> Session:
        slots = tape.plan.context.slots
        run = block_without_program(len(slots), later=later)
        return cls(tape, run, [_DEVNULL] * 3, slots, direct=direct, later=later)

    def hand_over(self, run: bytes, stdio: Sequence[int], slots: Sequence[int], *, nonblocking: bool = False) -> bool:
        """Say what program it is; False if it has gone, and nothing has happened.

        :raises StartFailure: EMFILE and the like: a stream could not be opened.
        """
        passed = slots[len(self.tape.plan.context.slots) :]
        result = lib.iso_run_later(self._start, run, len(run), passed, len(passed), *stdio, nonblocking)
        # EBADF: our end is closed; or else a descriptor that was passed is, which no other sandbox will change.
        gone = result in (-errno.EPIPE, -errno.ECONNRESET) or (result == -errno.EBADF and self._start.later < 0)
        if gone and self._start.stage == lib.ISO_START_CONTROL:
            return False
        if result < 0:
            raise StartFailure(self._start.stage, -result)
        self.run = run
        return True

    @staticmethod
    def _launcher() -> int:
        try:
            return native.launcher_fd()
        except OSError as error:
            raise StartFailure(lib.ISO_SPAWN_EXEC, error.errno or errno.EIO) from None

    def readable(self, timeout: float | None) -> bool:
        """Wait for a record for so long; whether there is one, or the launcher has gone.

        The launcher's end is seen by its pidfd, too: a forked child may hold a copy of the socket for ever.
        """
        if self._start.rests[0] and not waiting.replaced():
            return self.wait(timeout) != 0  # without pipes, and in one call: what it opens for the wait is closed again
        told_by = self.tells()
        if min(told_by) < 0:
            raise ValueError("the process is closed")  # by another thread, since the caller has looked
        return bool(waiting.wait([(fd, waiting.READABLE) for fd in told_by], timeout))

    def await_record(self, timeout: float | None) -> Record | None:
        """Wait for a record for so long, and take it; None if none has come. It may return earlier.

        :raises EOFError: the launcher is gone without having told an end.
        """
        if self.readable(timeout):
            return self.take()
        if self.let_go:
            self.kill()  # somebody may have stopped it again
        return None

    def take(self) -> Record | None:
        """Take one record without waiting; None if there is none yet.

        :raises EOFError: the launcher is gone without having told an end.
        """
        record = self.receive()
        # Everything that a launcher sent before it ended is in the socket by now.
        if record is None and self.end is None and self.wait_gone(0) and not waiting.ready(self.fileno()):
            raise EOFError
        return record

    def receive(self) -> Record | None:
        """Take one record without waiting; None if there is none yet. After the last one ``end`` is set.

        :raises EOFError: the launcher is gone without having told an end.
        :raises OSError: it could not be received: EMFILE, no descriptor is left for the program's pidfd.
        :raises ForkedError: it is the parent's to receive.
        """
        if not native.owns(self.owner):
            self.check_owner()
        size = self.tape.record_size
        buffer = ffi.new("uint8_t[]", size)
        received = KIND.size
        while received == KIND.size:  # ISO_RECORD_PROGRAM: the pid beside it has been kept
            received = lib.iso_receive(self._start, buffer, size)
        if received == -errno.ECONNRESET:
            # Told once, where it ended without reading what a guide's step waits for. What it sent is behind that.
            received = lib.iso_receive(self._start, buffer, size)
        if received == -errno.EAGAIN:
            return None
        if received in (0, -errno.EBADF):  # EBADF: closed behind our back
            raise EOFError
        if received < 0:
            raise OSError(-received, os.strerror(-received), "record of the launcher")
        record = decode(bytes(ffi.buffer(buffer, received)))
        if record.kind == lib.ISO_RECORD_STARTED:
            self.started = True
            if record.status > 0 and not self._start.sender:
                self._start.sender = record.status
        else:
            self.end = record
            for each in self.held:
                ended = getattr(each, "ended", None)
                if ended is not None:
                    ended()
        return record

    def cleaned(self, patience: float = 10.0) -> Record | None:
        """The launcher's word on its clean-up, where it has told the end before; None if it was lost meanwhile."""
        size = RECORD.size
        buffer = ffi.new("uint8_t[]", size)
        received = lib.iso_receive(self._start, buffer, size)
        if received == -errno.EAGAIN and self.readable(patience):
            received = lib.iso_receive(self._start, buffer, size)
        return decode(bytes(ffi.buffer(buffer, size))) if received == size else None

    def dismiss(self, patience: float = 5.0) -> None:
        """End it, wait until it has gone for so many seconds at most, and release the descriptors."""
        self.kill()
        self.wait_gone(patience)
        self.close()

    def told(self) -> tuple[object, ...]:
        """The events that the resources of this start report, also after its end: a proxy's requests, in order."""
        if not self.held:
            return self._told
        kept = [each for held in self.held for each in getattr(held, "kept", ())]
        return (*self._told, *(event for each in kept for event in getattr(each, "told", ())))

    def close(self) -> None:
        """Let go and release the descriptors."""
        if not self.gone and self._known and self.ours:
            self.kill()
            with contextlib.suppress(OSError):
                reaping.leave(self.pidfd)
        lib.iso_release(self._start)
        if not self.held:
            return
        self._told = self.told()
        held, self.held = self.held, []
        if self.ours:
            for each in held:
                each.close()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a sandbox that runs cannot be copied: the copy's end would be the sandbox's")

    def __del__(self) -> None:
        if hasattr(self, "_start"):
            self.close()
