"""Several parts as one block: what ``with Sandbox(...)`` does on the calling thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isolate.engine.plan import complete
from isolate.errors import IrreversibleError
from isolate.thread.change import Change
from isolate.thread.entering import Reversible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Together", "together"]


class Together(Change):
    """Changes in the kernel's order; undone in reverse, the rest also when one of them fails."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self._changes = sorted(changes, key=lambda change: change.order)
        self.text: str = ", ".join(change.text for change in self._changes) or "nothing"
        self.order: int = self._changes[0].order if self._changes else 50

    def check(self) -> None:
        """All of them, before the first is applied."""
        for change in self._changes:
            change.check()

    def apply(self) -> None:
        """One after the other."""
        for change in self._changes:
            change.apply()

    def undo(self) -> None:
        """In reverse. One that was never applied has nothing to undo."""
        failed: OSError | None = None
        for change in reversed(self._changes):
            try:
                change.undo()
            except OSError as error:
                error.args = (*error.args[:1], f"{change.text}: {error.args[1] if len(error.args) > 1 else error}")
                failed = failed or error
        if failed is not None:
            raise failed

    def release(self) -> None:
        """All of them."""
        for change in self._changes:
            change.release()

    def now(self) -> str:
        """The state of each."""
        return "; ".join(change.now() for change in self._changes)


def together(parts: Iterable[Any]) -> Together:
    """The change that parts are together.

    :raises IrreversibleError: one of them has no way back.
    """
    changes: list[Change] = []
    for part in complete(parts):
        if not isinstance(part, Reversible):
            remedy = getattr(part, "remedy", "use Sandbox(...).run or .spawn, or isolate.in_thread(function, *parts)")
            raise IrreversibleError(f"with Sandbox: {type(part).__name__} has no way back on this thread; {remedy}")
        changes.append(part.here())
    return Together(changes)
