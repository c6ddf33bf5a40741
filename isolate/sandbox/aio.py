"""The functions of an event loop that waiting needs, for asyncio and trio.

Both are asked by their own public functions, so neither has to be installed for the other, and no third package stands
between (anyio would bring its own cancellation into programs that use neither it nor trio).
"""

from __future__ import annotations

import contextlib
import select
import sys
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from isolate.engine import waiting
from isolate.thread.blocks import standing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Waiter", "in_worker"]

T = TypeVar("T")


class _Loop(Protocol):
    """One of the two."""

    async def readable(self, fd: int, timeout: float | None) -> None:
        """Wait until a descriptor is readable, or so many seconds have passed."""
        ...

    async def in_thread(self, function: Callable[[], T], undo: Callable[[T], object]) -> T:
        """Call it in a thread; ``undo`` what it returns if the caller has been cancelled meanwhile."""
        ...


class _Asyncio:
    async def readable(self, fd: int, timeout: float | None) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        loop.add_reader(fd, wake)
        timer = None if timeout is None else loop.call_later(timeout, wake)
        try:
            await ready
        finally:
            loop.remove_reader(fd)
            if timer is not None:
                timer.cancel()

    async def in_thread(self, function: Callable[[], T], undo: Callable[[T], object]) -> T:
        import asyncio

        future = asyncio.get_running_loop().run_in_executor(None, function)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:

            def ended(done: asyncio.Future[T]) -> None:
                if not done.cancelled() and done.exception() is None:
                    undo(done.result())

            future.add_done_callback(ended)
            raise


class _Trio:
    async def readable(self, fd: int, timeout: float | None) -> None:
        import trio

        with contextlib.ExitStack() as stack:
            if timeout is not None:
                stack.enter_context(trio.move_on_after(timeout))
            await trio.lowlevel.wait_readable(fd)

    async def in_thread(self, function: Callable[[], T], undo: Callable[[T], object]) -> T:
        import trio

        result: T = await trio.to_thread.run_sync(function)
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            undo(result)
            raise
        return result


def _loop() -> _Loop:
    trio: Any = sys.modules.get("trio")
    if trio is not None:
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            pass
        else:
            return _Trio()
    return _Asyncio()


async def in_worker(function: Callable[[], T], undo: Callable[[T], object]) -> T:
    """Call what takes a while in a thread; here, where parts are in force on this thread that are not on others."""
    here = standing()

    def elsewhere() -> tuple[bool, T | None]:
        return (True, function()) if standing() == here else (False, None)

    def undone(found: tuple[bool, T | None]) -> None:
        if found[0]:
            undo(found[1])  # type: ignore[arg-type]

    done, result = await _loop().in_thread(elsewhere, undone)
    return result if done else function()  # type: ignore[return-value]


class Waiter:
    """Waits for several descriptors at once: they are in an epoll, which is one descriptor itself."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._loop = _loop()

    async def wait(self, wanted: Sequence[tuple[int, int]], timeout: float | None = None) -> list[int]:
        """As :func:`isolate.engine.waiting.wait`."""
        masks: dict[int, int] = {}
        for fd, mask in wanted:
            masks[fd] = masks.get(fd, 0) | mask
        registered = []
        try:
            for fd, mask in masks.items():
                self._epoll.register(fd, mask)
                registered.append(fd)
            found = self._epoll.poll(0)
            if not found:
                await self._loop.readable(self._epoll.fileno(), timeout)
                found = self._epoll.poll(0)
            return [fd for fd, _ in found]
        finally:
            for fd in registered:
                with contextlib.suppress(OSError):  # closed meanwhile
                    self._epoll.unregister(fd)

    def close(self) -> None:
        """Let go of the epoll."""
        self._epoll.close()


async def gone(waiter: Waiter, pidfd: int, timeout: float = 1.0) -> None:
    """Wait until a launcher itself has gone, so that nothing is left when a call returns."""
    if pidfd >= 0 and not waiting.ready(pidfd):
        await waiter.wait([(pidfd, waiting.READABLE)], timeout)
