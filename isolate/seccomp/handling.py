"""Handlers of system calls run in threads: each call gets the first answer that comes, whatever a handler does."""

from __future__ import annotations

import errno as _errno
import os
import sys
import threading
from collections import deque
from collections.abc import Awaitable
from types import SimpleNamespace
from typing import Any

from .notify import Call, Handler, Reply, StaleCall, send, send_quietly

__all__ = ["MOST_THREADS", "Pending", "Pool", "report"]

#: Threads, with those of handlers whose time is up and that still run.
MOST_THREADS = 256
_IDLE = 5.0  # seconds that a thread waits for more to do


class Pool:
    """Threads that run handlers. Bounded; a handler whose time is up keeps its thread, and no longer counts."""

    def __init__(self, freed: Any) -> None:
        self._freed = freed
        self._lock = threading.Condition()
        self._work: deque[tuple[Pending, Handler]] = deque()
        self._idle = 0
        self._threads = 0
        self.running = 0

    def start(self, entry: Pending, handler: Handler) -> bool:
        """Have a thread run it; False if there can be none now."""
        with self._lock:
            if self._idle > len(self._work):
                self._work.append((entry, handler))
                self._lock.notify()
                return True
            if self._threads >= MOST_THREADS:
                return False
            self._threads += 1
        worker = threading.Thread(target=self._run, args=(entry, handler), name="isolate-seccomp-handler", daemon=True)
        try:
            worker.start()
        except RuntimeError:  # no thread can be started: a limit of this program's
            with self._lock:
                self._threads -= 1
            return False
        return True

    def end(self) -> None:
        """Let the idle ones go."""
        with self._lock:
            self._freed = None
            self._lock.notify_all()

    def _run(self, entry: Pending, handler: Handler) -> None:
        while True:
            entry.run(handler)
            del entry, handler
            with self._lock:
                freed = self._freed
            if freed is None:
                return
            freed()
            with self._lock:
                self._idle += 1
                if not self._work:
                    self._lock.wait(_IDLE)
                self._idle -= 1
                if not self._work:
                    self._threads -= 1
                    return
                entry, handler = self._work.popleft()


class Pending:
    """A call with its answer: the first that comes is sent."""

    def __init__(self, call: Call, deadline: float, handler: Handler) -> None:
        self.call, self.deadline, self.handler = call, deadline, handler
        self.started = False
        self.done = False
        self._lock = threading.Lock()

    def run(self, handler: Handler) -> None:
        """Answer with what the handler says; what it raises is told once the program has its answer."""
        raised: BaseException | None = None
        try:
            reply = _reply(handler, self.call)
        except StaleCall:
            reply = Reply("errno", _errno.ESRCH)
        except BaseException as error:
            reply, raised = Reply("errno", _errno.EIO), error
        self.answer(reply)
        if raised is not None:
            report(raised, f"in the handler of {self.call!r}, which fails with EIO", handler)

    def forget(self) -> None:
        """Its listener is about to be closed: nobody is left to be answered."""
        with self._lock:
            self.done = True

    def answer(self, reply: Reply) -> None:
        """Send it, unless there was one."""
        with self._lock:
            try:
                if not self.done:
                    send(self.call._listener, self.call.id, reply)
            except Exception as error:
                # ENOENT: it no longer waits. Anything else is a reply that cannot be given: the handler's mistake.
                number = error.errno if isinstance(error, OSError) else None
                if number != _errno.ENOENT:
                    send_quietly(self.call._listener, self.call.id, Reply("errno", number or _errno.EIO))
            finally:
                self.done = True
                if reply.fd >= 0:
                    os.close(reply.fd)


def _reply(handler: Handler, call: Call) -> Reply:
    reply = handler(call)
    if isinstance(reply, Awaitable):
        import asyncio

        reply = asyncio.run(_awaited(reply))
    if not isinstance(reply, Reply):
        raise TypeError(f"a handler returns a Reply, not {reply!r}")
    return reply


async def _awaited(reply: Awaitable[Reply]) -> Reply:
    return await reply


def report(error: BaseException, message: str, what: object) -> None:
    """Tell of an error that nobody can catch, and raise nothing.

    The interpreter's own hook takes only what the interpreter has made: where nobody has put another in its place, the
    message is written as it would write it.
    """
    hook: Any = sys.unraisablehook
    try:
        if hook is not sys.__unraisablehook__:
            hook(
                SimpleNamespace(
                    exc_type=type(error),
                    exc_value=error,
                    exc_traceback=error.__traceback__,
                    err_msg=message,
                    object=what,
                )
            )
            return
    except BaseException:
        pass  # it hands on to the interpreter's own
    try:
        import traceback

        lines = traceback.format_exception(type(error), error, error.__traceback__)
        if sys.stderr is not None:
            sys.stderr.write(f"Exception ignored {message}:\n{''.join(lines)}")
    except BaseException:
        return
