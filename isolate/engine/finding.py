"""``Finding``: what an errno means for a person."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Finding"]


class Finding(NamedTuple):
    """Why, what to do, and whether the host cannot do it at all."""

    cause: str
    remedy: str | None = None
    unsupported: bool = False
