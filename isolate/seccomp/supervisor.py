"""Answering the calls that a policy hands to Python: a thread that receives them, and a pool that runs handlers.

Everything that comes here was caused by a program that nobody vouches for. So: a call is answered first and mistakes
are told afterwards; the number of threads and of calls taken in is bounded, and one program cannot use up what others
need; and the thread that receives survives every error but its own end, at which the listeners are closed, so that
waiting calls fail with ENOSYS.
"""

from __future__ import annotations

import errno as _errno
import fcntl
import os
import select
import selectors
import socket
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, cast

from .handling import Pending, Pool, report
from .notify import NOTIF, NOTIF_RECV, Call, Handler, Reply, send_quietly

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Supervisor"]

#: Handlers that run at once, in all and for one program.
MOST_RUNNING = 64
MOST_RUNNING_FOR_ONE = 16
#: Calls of one program that are taken in and wait for a handler. Further ones wait in the kernel.
MOST_WAITING = 64


class Supervisor:
    """Receives the listeners of a policy's filters and answers their calls, from a thread that ends with the policy.

    One policy in any number of sandboxes and runs has one supervisor. A handler that raises, or that returns no
    :class:`~isolate.seccomp.notify.Reply`, makes the call fail with EIO, and the error goes to
    ``sys.unraisablehook``; one that takes longer than ``timeout`` seconds makes it fail with ETIMEDOUT, and what it
    returns later is dropped. At most 64 handlers run at once, and 16 for one program: further calls wait their turn,
    and fail with ETIMEDOUT if it does not come in time. When this program ends, waiting calls and later ones fail with
    ENOSYS: nothing hangs.
    """

    def __init__(self, handlers: Mapping[str, Handler], timeout: float, *, direct: bool = False) -> None:
        self.outside: socket.socket
        self.inside: socket.socket
        self.outside, self.inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # The thread must not keep the supervisor alive: it holds what it needs and stops when the pipe closes.
        state = _State(dict(handlers), timeout, direct, self.outside, self.inside, wake_read, os.dup(wake_write))
        thread = threading.Thread(target=_serve, args=(state,), name="isolate-seccomp", daemon=True)
        self._finalizer = weakref.finalize(self, _stop, state, wake_write)
        thread.start()
        self._thread = thread

    def close(self) -> None:
        """Stop. Calls that wait, and later ones, fail with ENOSYS."""
        self._finalizer()
        self._thread.join()


def _stop(state: _State, wake: int) -> None:
    state.running = False
    _wake(wake)
    os.close(wake)


def _wake(wake: int) -> None:
    try:
        os.write(wake, b"!")
    except OSError:
        return  # full: it will wake; closed: it has ended


class _Program:
    """One listener: the calls of a program and its descendants."""

    def __init__(self, listener: int) -> None:
        self.listener = listener
        self.waiting: deque[Pending] = deque()
        #: Those that have been handed to a thread, or wait to be, and have no answer yet.
        self.pending: set[Pending] = set()
        self.running = 0
        self.open = True


class _State:
    """The state of a supervisor's thread."""

    def __init__(
        self,
        handlers: dict[str, Handler],
        timeout: float,
        direct: bool,
        outside: socket.socket,
        inside: socket.socket,
        wake: int,
        waker: int,
    ) -> None:
        self.handlers, self.timeout, self.direct = handlers, timeout, direct
        self.outside, self.inside, self.wake, self.waker = outside, inside, wake, waker
        self.running = True
        self.programs: dict[int, _Program] = {}
        self.pool = Pool(lambda: _wake(waker))


def _serve(state: _State) -> None:
    selector = selectors.DefaultSelector()
    selector.register(state.wake, selectors.EVENT_READ)
    selector.register(state.outside, selectors.EVENT_READ)
    try:
        while state.running:
            try:
                _turn(state, selector)
            except Exception as error:  # whatever it is: the calls of all programs wait for this thread
                report(error, "in the supervisor of a policy, which goes on", None)
                time.sleep(0.01)  # should it come again at once
    finally:
        # Closed, a listener answers ENOSYS to whoever waits or comes.
        for program in list(state.programs.values()):
            _drop(state, selector, program)
        selector.close()
        state.pool.end()
        for end in (state.outside, state.inside):
            end.close()
        for fd in (state.wake, state.waker):
            os.close(fd)


def _turn(state: _State, selector: selectors.BaseSelector) -> None:
    """Wait for something, and deal with it."""
    for key, _ in selector.select(_until(state)):
        if key.fileobj == state.wake:
            _drain(state.wake)
        elif key.fileobj == state.outside:
            for fd in socket.recv_fds(state.outside, 1, 4)[1]:
                state.programs[fd] = _Program(fd)
                selector.register(fd, selectors.EVENT_READ)
        else:
            program = state.programs.get(cast("int", key.fileobj))
            if program is None:
                continue  # dropped in this turn
            try:
                _receive(state, selector, program)
            except Exception as error:
                _drop(state, selector, program)
                report(error, "in the supervisor of a policy: the calls of one program fail with ENOSYS", None)
    _time_out(state)
    _dispatch(state)
    for program in state.programs.values():
        _attend(selector, program)


def _until(state: _State) -> float | None:
    ends = [entry.deadline for program in state.programs.values() for entry in program.pending]
    return max(0.0, min(ends) - time.monotonic()) if ends else None


def _drain(fd: int) -> None:
    try:
        while len(os.read(fd, 4096)) == 4096:
            pass
    except BlockingIOError:
        return


def _time_out(state: _State) -> None:
    now = time.monotonic()
    for program in state.programs.values():
        for entry in [entry for entry in program.pending if entry.done or entry.deadline <= now]:
            if not entry.done:
                entry.answer(Reply("errno", _errno.ETIMEDOUT))
            program.pending.discard(entry)
            if entry.started:
                # Also where its handler still runs: that is a thread lost, and not a turn.
                program.running -= 1
                state.pool.running -= 1
            else:
                program.waiting.remove(entry)


def _dispatch(state: _State) -> None:
    """Give calls to threads, by turns: one of each program that has some."""
    progress = True
    while progress and state.pool.running < MOST_RUNNING:
        progress = False
        for program in list(state.programs.values()):
            if not program.waiting or program.running >= MOST_RUNNING_FOR_ONE or state.pool.running >= MOST_RUNNING:
                continue
            entry = program.waiting[0]
            if not state.pool.start(entry, entry.handler):
                return  # it waits, at most until its time is up
            program.waiting.popleft()
            entry.started = True
            program.running += 1
            state.pool.running += 1
            progress = True


def _attend(selector: selectors.BaseSelector, program: _Program) -> None:
    """Listen to a program only while there is room for its calls."""
    listening = program.listener in selector.get_map()
    if listening and len(program.waiting) >= MOST_WAITING:
        selector.unregister(program.listener)
    elif not listening and len(program.waiting) < MOST_WAITING:
        selector.register(program.listener, selectors.EVENT_READ)


def _drop(state: _State, selector: selectors.BaseSelector, program: _Program) -> None:
    """Close a listener: its program has ended, or fares better with ENOSYS than without an answer."""
    if program.listener in selector.get_map():
        selector.unregister(program.listener)
    state.programs.pop(program.listener, None)
    for entry in program.pending:
        entry.forget()
        if entry.started:
            state.pool.running -= 1
    program.pending.clear()
    program.waiting.clear()
    os.close(program.listener)


def _receive(state: _State, selector: selectors.BaseSelector, program: _Program) -> None:
    # The kernel says "readable" also when the last program under the filter has ended.
    ready = select.poll()
    ready.register(program.listener, select.POLLIN)
    events = ready.poll(0)
    if not events:
        return  # told of another listener that had the number; to ask would be to wait
    if not events[0][1] & select.POLLIN:
        _drop(state, selector, program)
        return
    buffer = bytearray(NOTIF.size)
    try:
        fcntl.ioctl(program.listener, NOTIF_RECV, buffer)
    except OSError as error:
        if error.errno in (_errno.ENOENT, _errno.EINTR):
            return  # a signal took the program out of the call before we saw it
        raise
    try:
        call = Call(program.listener, bytes(buffer))
    except Exception:  # of an ABI that the tables do not have
        send_quietly(program.listener, NOTIF.unpack(buffer)[0], Reply("errno", _errno.ENOSYS))
        return
    handler = state.handlers.get(call.name or "") or state.handlers.get("")
    entry = Pending(call, time.monotonic() + state.timeout, handler or _nobody)
    if state.direct or handler is None:
        entry.run(entry.handler)
        return
    program.pending.add(entry)
    program.waiting.append(entry)


def _nobody(call: Call) -> Reply:
    return Reply("errno", _errno.ENOSYS)
