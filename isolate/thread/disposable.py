"""A thread that parts are in force on, and that ends with them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["in_thread", "on_a_thread"]

T = TypeVar("T")


def on_a_thread(function: Callable[[], T], *, wait: bool = True) -> T:
    """Call a function on a new thread and wait, with ``wait`` also over Control-C; its result, or what it raised."""
    results: list[T] = []
    raised: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=body, name="isolate-in-thread", daemon=True)
    thread.start()
    try:
        thread.join()
    finally:
        if wait:
            thread.join()
    if raised:
        error = raised.pop()
        try:
            raise error
        finally:
            del error  # or frame and traceback hold each other
    return results[0]


def in_thread(function: Callable[[], T], *parts: object) -> T:
    """Call ``function()`` on a new thread on which the parts are in force, and wait for its result.

    For parts without a way back (:class:`~isolate.Seccomp`, :class:`~isolate.Landlock`,
    :class:`~isolate.NoNewPrivs`, whole :class:`~isolate.Credentials`): the thread ends with them. Parts are put in
    force in the kernel's order, as by ``.enter()``; processes that the function starts inherit them.

    A guard against accidents, not a boundary: the thread shares the program's memory and descriptors, so code that
    wants to can act through another thread. For code that is not trusted use a :class:`~isolate.Sandbox`.

    Settings of the process (:class:`~isolate.Rlimits`, ``umask``, ``oom_score_adj``) stay changed. A user or time
    namespace cannot be entered here (ThreadedError). Control-C in the waiting thread does not end the function.

    :raises SetupError: a part is not in force; the function was not called.

    :param function: is called without arguments on the thread.
    :param parts: what is put in force there.

    >>> in_thread(os.getpid, NoNewPrivs()) == os.getpid()
    True
    """
    from isolate.thread.program import enter

    def body() -> T:
        enter(parts)
        return function()

    return on_a_thread(body, wait=False)
