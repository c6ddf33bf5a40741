"""Base classes that give a part its verbs on the calling thread. A user's own part may have them as well."""

from __future__ import annotations

from isolate.errors import IrreversibleError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import ClassVar

    from typing_extensions import Self

    from isolate.thread.change import Change

__all__ = ["Enterable", "Irreversible", "Reversible"]


class Enterable:
    """A part that can be put in force on the calling thread for good."""

    __slots__ = ()

    def enter(self) -> None:
        """Put it in force on the calling thread from now on; there is no way back.

        Threads and processes that this thread starts later inherit it; threads that run already are not touched.

        :raises SetupError: a step failed. The steps before it stay in force: end the thread, or the program.
        :raises ThreadedError: the kernel does this only for a process with one thread.
        """
        from isolate.thread.program import enter

        enter((self,))


class Reversible(Enterable):
    """A part that the kernel gives a way back from: ``with part:`` holds on this thread inside the block, then no more.

    Blocks nest, also of the same part (twice entered is entered twice). They end on the thread that entered them, in
    reverse order. Anything else is a RestoreError that says what this thread is now: leaving on another thread or in a
    forked child, leaving out of order, or an ``await`` inside at which other tasks could run.

    >>> before = os.umask(0o022)
    >>> with Credentials(umask=0o077):
    ...     inside = os.umask(0o077)
    >>> inside == 0o077
    True
    """

    __slots__ = ()

    def here(self) -> Change:
        """The change that it is to this thread; not yet made."""
        raise NotImplementedError(f"{type(self).__name__}.here")

    def __enter__(self) -> Self:
        begun: list[object] = []
        try:
            from isolate.thread import blocks

            return blocks.enter(self, self.here, begun)
        except KeyboardInterrupt:
            from isolate.thread import blocks

            blocks.abandon(begun)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        done: list[object] = []
        # Control-C may come at any point: what was begun is ended first. (Not if it comes before the first line: then
        # Python itself has not called this yet, which no context manager written in Python can help.)
        try:
            from isolate.thread import blocks

            blocks.leave(self, done)
        except KeyboardInterrupt:
            from isolate.thread import blocks

            blocks.finish_leaving(self, done)
            raise


class Irreversible(Enterable):
    """A part that the kernel gives no way back from: ``with`` is refused, by type checkers too.

    >>> with NoNewPrivs():
    ...     pass
    Traceback (most recent call last):
    isolate.errors.IrreversibleError: ...
    """

    __slots__ = ()
    #: The alternative to ``with`` that the error names.
    remedy: ClassVar[str] = (
        "put it in force for good by .enter(), on a thread that ends with it by isolate.in_thread(function, part),"
        " or in a child by Sandbox(part).run(...)"
    )

    if not TYPE_CHECKING:
        # Not for the checkers: to them the class has no way of being a context manager, as to the kernel.
        def __enter__(self):
            raise IrreversibleError(f"with {type(self).__name__}: the kernel gives no way back; {self.remedy}")

        def __exit__(self, *exception):
            raise IrreversibleError(f"with {type(self).__name__}: the kernel gives no way back; {self.remedy}")
