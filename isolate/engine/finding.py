"""``Finding``: what an errno means for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Finding"]


class Finding(NamedTuple):
    """Why, what to do, and whether the host cannot do it at all.

    It stands with the step that it is about, in the module of the part. One that has a cause alone gets the remedy that
    is known for such a failure, and whether the host cannot do it, from the diagnosis.

    ``ask`` is for what only the host can tell: a function that is called when an error is being made, with a
    :class:`isolate.diagnosis.host.Failure`. What it returns takes the place of the rest; None leaves the rest as it is.
    """

    cause: str
    remedy: str | None = None
    unsupported: bool = False
    ask: Callable[[Any], Finding | None] | None = None
