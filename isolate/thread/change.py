"""``Change``: what a reversible part does to the calling thread."""

from __future__ import annotations

__all__ = ["Change"]


class Change:
    """The change that a reversible part makes to this thread. It is made anew for every ``with``, and used once.

    A subclass says ``text`` (in words, for errors) and overrides :meth:`apply` and :meth:`undo`. ``undo`` is called
    also after an ``apply`` that failed or was interrupted half-way, and again if it was interrupted itself: it takes
    back what was done so far and nothing else, and may run twice. It raises OSError if the kernel gives no way back.

    >>> issubclass(type(Rlimits().here()), Change)
    True
    """

    text: str = "a change of this thread"
    #: Its position in the kernel's order among the parts of a ``Sandbox``; lower goes first.
    order: int = 50

    def check(self) -> None:
        """Refuse beforehand what could not be undone. Nothing has been changed yet."""

    def apply(self) -> None:
        """Put it in force on the calling thread."""
        raise NotImplementedError

    def undo(self) -> None:
        """Take it back, on the same thread."""
        raise NotImplementedError

    def release(self) -> None:
        """Let go of descriptors, on any thread, without undoing."""

    def now(self) -> str:
        """The state of this subject on this thread now, in words; for :class:`~isolate.errors.RestoreError`."""
        return self.text
