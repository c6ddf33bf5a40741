"""``arun``: the same run, driven by an asyncio event loop. No thread, no signal handler, no child watcher."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from isolate.engine import waiting
from isolate.sandbox.run import Run

if TYPE_CHECKING:
    from isolate.sandbox.result import Result
    from isolate.sandbox.verbs import Box


async def arun(box: Box, args: Any, *, check: bool, **options: Any) -> Result[str] | Result[bytes]:
    """See :meth:`isolate.Sandbox.arun`. Cancelling the task takes the sandbox down before the task ends."""
    run = Run(box, args, **options)
    try:
        await _drive(run)
        result = run.result()
    finally:
        # On cancellation too: what is left ends by itself once the launcher has been let go.
        run.close()
    return result.check() if check else result


async def _drive(run: Run) -> None:
    loop = asyncio.get_running_loop()
    watched: dict[int, bool] = {}  # descriptor: whether for writing
    timer: asyncio.TimerHandle | None = None
    finished: asyncio.Future[None] = loop.create_future()

    def forget(fd: int) -> None:
        remove = loop.remove_writer if watched.pop(fd) else loop.remove_reader
        remove(fd)

    def update() -> None:
        nonlocal timer
        wanted = {fd: mask == waiting.WRITABLE for fd, mask in run.waits()}
        for fd in [fd for fd in watched if fd not in wanted]:
            forget(fd)
        for fd, writing in wanted.items():
            if fd not in watched:
                (loop.add_writer if writing else loop.add_reader)(fd, ready, fd)
                watched[fd] = writing
        if timer is not None:
            timer.cancel()
            timer = None
        if run.done:
            if not finished.done():
                finished.set_result(None)
            return
        left = run.until()
        if left is not None:
            timer = loop.call_later(left, tick)

    def guarded(step: Any, *args: Any) -> None:
        # A descriptor that the step closes must leave the selector first: its number may be somebody else's at once.
        try:
            before = dict(watched)
            step(*args)
            still = {fd for fd, _ in run.waits()}
            for fd in before:
                if fd not in still and fd in watched:
                    forget(fd)
            update()
        except BaseException as error:
            if not finished.done():
                finished.set_exception(error)

    def ready(fd: int) -> None:
        if fd in watched:
            guarded(run.ready, fd)

    def tick() -> None:
        guarded(run.tick)

    try:
        update()
        await finished
        await _gone(loop, run)
    finally:
        for fd in list(watched):
            forget(fd)
        if timer is not None:
            timer.cancel()


async def _gone(loop: asyncio.AbstractEventLoop, run: Run) -> None:
    """Wait (for a second at most) until the launcher itself has gone, so that nothing is left when the call returns."""
    if run.session.wait_gone(0):
        return
    gone: asyncio.Future[None] = loop.create_future()
    fd = run.session.pidfd

    def ended() -> None:
        if not gone.done():
            gone.set_result(None)

    loop.add_reader(fd, ended)
    try:
        await asyncio.wait_for(gone, 1.0)
    except asyncio.TimeoutError:
        return
    finally:
        loop.remove_reader(fd)
    run.session.reap()
