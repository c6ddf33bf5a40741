"""The ``with`` blocks that a thread is in: what is in force, what it takes to leave.

Parts are frozen and shared, so nothing of this is kept in them. Each thread has a stack of its own.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from isolate.errors import RestoreError
from isolate.kernel.namespaces import children_elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolate.thread.change import Change

__all__ = [
    "abandon",
    "children_get_another_pid_namespace",
    "depth",
    "enter",
    "entered",
    "finish_leaving",
    "leave",
    "standing",
]

P = TypeVar("P")


_numbers = itertools.count(1)
_of_main = 0
_ever = False  # whether any thread of this program was ever in a block, or entered something for good


class _Blocks(threading.local):
    def __init__(self) -> None:
        self.stack: list[Block] = []
        #: Which was the last that was entered for good; a new thread has what the main thread has.
        self.entered: int = _of_main


_here = _Blocks()


class Block:
    """One ``with`` that was entered and not yet left."""

    __slots__ = ("awaited", "change", "left", "loop", "number", "part", "pid")

    def __init__(self, part: object, change: Change) -> None:
        self.number: int = next(_numbers)
        self.part: object = part
        self.change: Change = change
        self.pid: int = os.getpid()
        self.left: bool = False  # left out of order: undone as soon as it stands on top
        self.awaited: bool = False
        self.loop: Any = _watch(self)

    def __del__(self) -> None:
        # The thread ended inside: nobody is left to go back. At the program's end the kernel closes.
        if hasattr(self, "change") and sys is not None and not sys.is_finalizing():
            self.change.release()

    def interrupted(self) -> None:
        """The event loop has run: the block was left alone at an ``await``."""
        self.awaited = True


def children_get_another_pid_namespace() -> bool:
    """Whether a block has given this thread's children another pid namespace. The first process that it starts there is
    PID 1, on whose life those after it depend. (What unshare(2) has done is seen by the process in the middle.)"""
    return _ever and children_elsewhere()


def standing() -> tuple[int, ...]:
    """Identifies the parts in force on this thread: processes that two threads with equal tuples start are confined
    identically."""
    return _here.entered, *(block.number for block in _here.stack)


def entered() -> None:
    """Something is put in force on this thread for good."""
    global _of_main, _ever
    _ever = True
    _here.entered = next(_numbers)
    if threading.current_thread() is threading.main_thread():
        _of_main = _here.entered


def depth() -> int:
    """How many blocks the calling thread is in."""
    return len(_here.stack)


def enter(part: P, make: Callable[[], Change], begun: list[object]) -> P:
    """Put a part in force on this thread. Whatever interrupts it, the thread is then as before."""
    global _ever
    _ever = True
    change = make()
    change.check()
    block = Block(part, change)
    stack = _here.stack
    try:
        begun.append(block)
        stack.append(block)
        change.apply()
        return part
    except BaseException as error:
        failed = _end(block) if block in stack else None
        if failed is not None:
            raise failed from error
        raise


def abandon(begun: list[object]) -> None:
    """Go on where an interruption stopped :func:`enter`: undo what it did."""
    for block in begun:
        if isinstance(block, Block) and block in _here.stack:
            failed = _end(block)
            if failed is not None:
                raise failed


def leave(part: object, begun: list[object]) -> None:
    """Take the part back that this thread entered last. ``begun`` gets the block, as soon as it is known.

    :raises RestoreError: it was not this one, not this thread, or the kernel gives no way back.
    """
    stack = _here.stack
    block = next((b for b in reversed(stack) if b.part is part and not b.left), None)
    if block is None:
        raise RestoreError(
            f"{_name(part)} was not entered by this thread, so it cannot be left here: the thread that entered it is"
            f" still inside. This thread is {_where()}"
        )
    if block.pid != os.getpid():
        raise RestoreError(
            f"{_name(part)} was entered by process {block.pid}, of which this one is a fork: a child stays inside what"
            f" its parent was in. This thread is {_where()}"
        )
    if block is not stack[-1]:
        block.left = True
        inner = ", ".join(_name(b.part) for b in stack[stack.index(block) + 1 :])
        raise RestoreError(
            f"{_name(part)} was left before {inner}, entered after it: blocks end in reverse order. It is undone when"
            f" those are left. This thread is {_where()}"
        )
    begun.append(block)
    block.left = True
    failed = _end_those_left()
    if failed is not None:
        raise failed
    if block.awaited:
        raise RestoreError(
            f"inside of `with {_name(part)}` there was an await at which other tasks could run, and they ran inside"
            " too: keep await out of the block, or use Sandbox(...).arun. It is undone now"
        )


def finish_leaving(part: object, begun: list[object]) -> None:
    """Go on where an interruption stopped :func:`leave`."""
    if not begun:
        leave(part, begun)
        return
    for block in begun:
        if isinstance(block, Block):
            block.left = True
    failed = _end_those_left()
    if failed is not None:
        raise failed


def _end_those_left() -> RestoreError | None:
    stack = _here.stack
    failed: RestoreError | None = None
    while stack and stack[-1].left:
        failed = _end(stack[-1]) or failed
    return failed


def _end(block: Block) -> RestoreError | None:
    """Undo a block and forget it, whatever Control-C has to say: it is raised afterwards."""
    interruption: KeyboardInterrupt | None = None
    failed: RestoreError | None = None
    while True:
        try:
            try:
                block.change.undo()
            except OSError as error:
                failed = _failed(block, error)
            _forget(block)
            break
        except KeyboardInterrupt as error:
            interruption = error
    if interruption is not None:
        raise interruption
    return failed


def _forget(block: Block) -> None:
    block.change.release()
    if block.loop is not None:
        block.loop.cancel()
    if block in _here.stack:
        _here.stack.remove(block)


def _failed(block: Block, error: OSError) -> RestoreError:
    return RestoreError(
        f"leaving {_name(block.part)} failed: {error}. Of {block.change.text} this thread is now: {block.change.now()}."
        f" It is {_where(block)}; end it if that is not where it should go on"
    )


def _where(without: Block | None = None) -> str:
    names = [_name(b.part) for b in _here.stack if b is not without]
    return f"inside of {', '.join(names)}" if names else "inside of no other block"


def _name(part: object) -> str:
    text = repr(part)
    return text if len(text) <= 200 else type(part).__name__


def _watch(block: Block) -> Any:
    """Have the running event loop, if there is one, tell as soon as it gets control while the block is open."""
    if "asyncio" not in sys.modules:
        return None
    import asyncio

    loop = asyncio._get_running_loop()  # the one that does not raise where there is none
    return None if loop is None else loop.call_soon(block.interrupted)
