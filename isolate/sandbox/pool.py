"""``Pool``: sandboxes that are set up already and wait for their program."""

from __future__ import annotations

import threading
import warnings
from collections import deque
from typing import TYPE_CHECKING

from isolate.diagnosis import start
from isolate.engine import native
from isolate.engine.session import MOST_PASSED, Session
from isolate.engine.waiting import ready
from isolate.errors import ConflictError
from isolate.kernel.checks import is_int, keywords
from isolate.kernel.closing import Closing
from isolate.namespaces.part import PidNamespace
from isolate.sandbox.box import Sandbox
from isolate.sandbox.outcome import remove_group
from isolate.sandbox.verbs import Verbs
from isolate.thread.blocks import standing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

    from isolate.engine.tape import Tape

__all__ = ["Pool"]

_MOST = 1024


@keywords
class Pool(Verbs, Closing):
    """``size`` sandboxes of one kind, each set up but for its program, so that a start takes a fraction of the time.

    .. code-block:: python

        with isolate.Pool(box, size=2) as pool:
            for job in jobs:
                result = pool.run(["python3", "-c", job], timeout=2)

    ``run``, ``arun`` and ``spawn`` are those of :class:`~isolate.Sandbox`. Each takes one that waits, and
    has another set up in its place while the program runs; each sandbox is used once. A start that finds none waiting
    sets one up for itself.

    A waiting sandbox is set up as by :meth:`Sandbox.spawn <isolate.Sandbox.spawn>`, except for the last steps:
    credentials, capabilities, Landlock, filters, the look-up of the program and the verification come with the program.
    So it has the state of the caller, its thread and the host's files at the time when it was set up. A mount that the
    host makes later is not seen inside, nor a resource limit that the caller changes later. If other parts are in force
    on a thread than where the pool was made (inside of a ``with`` block, after ``enter``, in
    :func:`~isolate.in_thread`), the thread gets no waiting sandbox: its sandbox is set up on its own, under those
    parts. ``Result.wall_time`` and ``timeout`` count from the start of the program.

    Each waiting sandbox takes two processes, its namespaces, mounts and cgroup, and three descriptors of this program.
    All of it goes with :meth:`close`, with this program, however that ends, and when the pool is collected (with a
    ResourceWarning). A process forked from this one does not inherit it, it has a pool of its own.

    :raises ConflictError: a sandbox without an init of isolate's (``PidNamespace(init=False)``): its program would have
        to be the process that waits.
    :raises ValueError: ``size`` is not from 1 to 1024.

    :param box: the sandbox, as it shall be each time.
    :param size: how many wait, at least 1.

    >>> with Pool(Sandbox(UserNamespace(), PidNamespace()), size=1) as pool:
    ...     pool.run(["echo", "hello"]).stdout
    b'hello\\n'
    """

    def __init__(self, box: Sandbox, size: int = 1) -> None:
        if not isinstance(box, Sandbox):
            raise TypeError(f"a pool is of a Sandbox, not of {box!r}")
        if not is_int(size) or not 1 <= size <= _MOST:
            raise ValueError(f"size must be from 1 to {_MOST}, not {size!r}")
        pid = next((part for part in box.parts if isinstance(part, PidNamespace)), None)
        if pid is not None and not pid.init:
            raise ConflictError("Pool: PidNamespace(init=False) leaves nobody who could wait for the program")
        self.box: Sandbox = box
        self.size: int = size
        self._waiting: deque[Session] = deque()
        self._lock = threading.RLock()  # a signal handler may start something while its own thread is inside
        self._beginning = 0  # how many are being set up
        self._standing = standing()
        self._owner = native.owner()
        self._open = True

    def __repr__(self) -> str:
        return f"Pool({self.box!r}, size={self.size})"

    def __len__(self) -> int:
        """How many wait, or are being set up."""
        return len(self._mine())

    def compile(self) -> Tape:
        """The tape of the sandbox."""
        return self.box.compile()

    def launch(
        self, tape: Tape, run: bytes, stdio: Sequence[int], slots: Sequence[int], *, nonblocking: bool = False
    ) -> Session:
        """One that waits is told its program, and another begins in its place."""
        if not self._open:
            raise ValueError("the pool is closed")
        if standing() != self._standing:
            # Other parts are in force on this thread: what waits is not under them, and others are not to be.
            return self.box.launch(tape, run, stdio, slots, nonblocking=nonblocking)
        passed = len(slots) - len(tape.plan.context.slots)
        session = self._hand_over(tape, run, stdio, slots, nonblocking=nonblocking) if passed <= MOST_PASSED else None
        if session is None:
            session = self.box.launch(tape, run, stdio, slots, nonblocking=nonblocking)
        try:
            self._begin(tape)
        except Exception:  # of a part's lender or guide, too
            pass  # this program runs; the next one finds none waiting, and is told why
        except BaseException:
            session.close()
            raise
        return session

    def _hand_over(
        self, tape: Tape, run: bytes, stdio: Sequence[int], slots: Sequence[int], *, nonblocking: bool
    ) -> Session | None:
        waiting = self._mine()
        while True:
            try:
                session = waiting.popleft()
            except IndexError:
                return None
            try:
                # One that has something to say has failed, and one whose launcher is gone is ending. Other ids of the
                # caller's make another tape.
                usable = session.of is tape and not ready(session.fileno(), session.pidfd)
                if usable and start.hand_over(session, run, stdio, slots, nonblocking=nonblocking):
                    return session
            except BaseException:
                session.close()
                raise
            _end(session)

    def _mine(self) -> deque[Session]:
        """Those that wait; what a parent process has is not ours."""
        if not native.owns(self._owner):
            self._owner = native.owner()
            self._waiting = deque()
            self._lock, self._beginning = threading.RLock(), 0
        return self._waiting

    def _begin(self, tape: Tape) -> None:
        waiting = self._mine()
        while self._open and self._one_more(waiting):
            try:
                waiting.append(self.box.waiting(tape))
            finally:
                with self._lock:
                    self._beginning -= 1
        if not self._open:
            self.close()  # another thread did that meanwhile, and has not seen what we have begun

    def _one_more(self, waiting: deque[Session]) -> bool:
        """Whether this thread is to set one up: those that others set up count, too."""
        with self._lock:
            if len(waiting) + self._beginning >= self.size:
                return False
            self._beginning += 1
            return True

    def close(self) -> None:
        """End the waiting sandboxes, and return when nothing of them is left. Running programs go on."""
        self._open = False
        ending: list[Session] = []
        waiting = self._mine()
        try:
            while waiting:
                session = waiting.popleft()
                ending.append(session)
                session.kill()
            for session in ending:
                _end(session)
        finally:
            for session in (*ending, *waiting):  # an interrupt: nothing is waited for any more
                session.close()
            waiting.clear()

    def __enter__(self) -> Self:
        if not self._open:
            raise ValueError("the pool is closed")
        self._standing = standing()
        try:
            self._begin(self.compile())
        except BaseException:
            self.close()
            raise
        return self

    def __del__(self) -> None:
        waiting = getattr(self, "_waiting", None)
        if not waiting or not native.owns(self._owner):
            return
        warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)
        while waiting:
            waiting.popleft().close()


def _end(session: Session) -> None:
    """Let go of one that waits, and of what it has."""
    try:
        session.kill()
        if session.wait_gone(10.0):
            remove_group(session)
    finally:
        session.close()
