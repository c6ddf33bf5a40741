"""The ``with`` blocks that a thread is in: what is in force, what it takes to leave.

Parts are frozen and shared, so nothing of this is kept in them. Each thread has a stack of its own.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from isolate.errors import RestoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolate.here.entering import Change

__all__ = ["depth", "enter", "leave"]


class _Blocks(threading.local):
    def __init__(self) -> None:
        self.stack: list[Block] = []


_here = _Blocks()


class Block:
    """One ``with`` that was entered and not yet left."""

    __slots__ = ("awaited", "change", "left", "loop", "part", "pid")

    def __init__(self, part: object, change: Change) -> None:
        self.part = part
        self.change = change
        self.pid = os.getpid()
        self.left = False  # left out of order: undone as soon as it stands on top
        self.awaited = False
        self.loop: Any = _watch(self)

    def __del__(self) -> None:
        self.change.release()  # the thread ended inside: nobody is left to go back

    def interrupted(self) -> None:
        """The event loop has run: the block was left alone at an ``await``."""
        self.awaited = True


def children_get_another_pid_namespace() -> bool:
    """Whether the first process that this thread starts will be PID 1, on whose life those after it depend."""
    if "isolate.here.namespaces" not in sys.modules and "isolate.here.program" not in sys.modules:
        return False  # nothing was ever entered
    try:
        own, theirs = (os.readlink(f"/proc/thread-self/ns/{kind}") for kind in ("pid", "pid_for_children"))
    except FileNotFoundError:  # a new one without a process has no identity yet
        return True
    return own != theirs


def depth() -> int:
    """How many blocks the calling thread is in."""
    return len(_here.stack)


def enter(part: object, make: Callable[[], Change]) -> None:
    """Put a part in force on this thread. Whatever interrupts it, the thread is then as before."""
    change = make()
    change.check()
    block = Block(part, change)
    stack = _here.stack
    try:
        stack.append(block)
        change.apply()
    except BaseException as error:
        try:
            _settle(block, change.undo)
        except OSError as failed:
            raise _failed(block, failed) from error
        finally:
            _forget(block)
        raise


def leave(part: object) -> None:
    """Take the part back that this thread entered last.

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
    errors: list[RestoreError] = []
    while stack and (stack[-1] is block or stack[-1].left):
        top = stack[-1]
        try:
            _settle(top, top.change.undo)
        except OSError as failed:
            errors.append(_failed(top, failed))
        finally:
            _forget(top)
    if errors:
        raise errors[0]
    if block.awaited:
        raise RestoreError(
            f"inside of `with {_name(part)}` there was an await at which other tasks could run, and they ran inside"
            " too: keep await out of the block, or use Sandbox(...).arun. It is undone now"
        )


def _forget(block: Block) -> None:
    stack = _here.stack
    if block in stack:
        stack.remove(block)
    if block.loop is not None:
        block.loop.cancel()
        block.loop = None
    block.change.release()


def _settle(block: Block, undo: Callable[[], None]) -> None:
    """Undo, whatever Control-C has to say; it is raised afterwards."""
    interruption: KeyboardInterrupt | None = None
    while True:
        try:
            undo()
            break
        except KeyboardInterrupt as error:
            interruption = error
    if interruption is not None:
        raise interruption


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

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    return loop.call_soon(block.interrupted)
