"""Verbs that wait for disks and networks, beside an asyncio event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["aside"]

T = TypeVar("T")


async def aside(do: Callable[[], T], stop: threading.Event) -> T:
    """Run it in a thread of its own. A cancelled task sets ``stop`` and waits for the thread: nothing is left."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(value: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(value)  # type: ignore[arg-type]

    def work() -> None:
        try:
            value = do()
        except BaseException as error:
            report = (None, error)
        else:
            report = (value, None)  # type: ignore[assignment]
        try:
            loop.call_soon_threadsafe(tell, *report)
        except RuntimeError:
            pass  # the loop was closed without waiting for its tasks

    thread = threading.Thread(target=work, name="isolate-images", daemon=True)
    thread.start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        stop.set()
        while not done.done():
            try:
                await asyncio.shield(done)
            except asyncio.CancelledError:
                continue  # cancelled once more: the thread ends soon
            except BaseException:
                break
        if not done.cancelled():
            done.exception()  # it is looked at: asyncio would complain of one that nobody saw
        raise
