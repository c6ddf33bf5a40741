"""A sandbox is edited like a value: parts added, put in the place of others, left out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from isolate.engine.plan import Part
from isolate.errors import ConflictError
from isolate.mounts.building import Entry
from isolate.mounts.root import Root

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["added", "left", "replaced"]


def added(parts: Sequence[Part], other: object) -> list[Part]:
    """The parts with more of them, or with entries at the end of their root.

    :raises ConflictError: a part of a kind that is there and cannot be there twice.
    """
    more: Any = getattr(other, "parts", other)
    if isinstance(other, (Part, Entry, type)) or not isinstance(more, Iterable):
        more = (other,)  # what is no part is refused by the sandbox that is made of them, in its words
    found = list(parts)
    for each in more:
        part: Any = each
        if isinstance(part, Entry) and not isinstance(part, (Part, type)):
            found = _with_entry(found, part)
            continue
        present = next((there for there in found if type(there) is type(part)), None)
        if present is not None and not getattr(part, "repeatable", False):
            kind = type(part).__name__
            raise ConflictError(f"{kind} is there already: .replace({kind}(…)) puts another in its place")
        found.append(cast("Part", part))
    return found


def _with_entry(parts: list[Part], entry: Entry) -> list[Part]:
    at = next((i for i, part in enumerate(parts) if isinstance(part, Root)), None)
    if at is None:
        raise ConflictError(f"{entry!r} goes into a Root, and there is none: + Root({type(entry).__name__}(…))")
    root = parts[at]
    assert isinstance(root, Root)
    return [*parts[:at], root + entry, *parts[at + 1 :]]


def replaced(parts: Sequence[Part], new: Iterable[Part]) -> list[Part]:
    """The parts with others in their place."""
    given = list(new)
    kinds = {type(part) for part in given}
    found = list(parts)
    for kind in kinds:
        mine = [part for part in given if type(part) is kind]
        at = next((i for i, part in enumerate(found) if type(part) is kind), len(found))
        found = (
            [part for part in found[:at] if type(part) is not kind]
            + mine
            + [part for part in found[at:] if type(part) is not kind]
        )
    return found


def left(parts: Sequence[Part], kinds: Iterable[type[Any]]) -> list[Part]:
    """The parts without some kinds of them, or without some kinds of their root's entries.

    :raises ValueError: there is nothing of that kind.
    """
    found = list(parts)
    for kind in kinds:
        if not isinstance(kind, type):
            raise TypeError(f"without: kind must be a class of parts such as Limits, not {kind!r}")
        kept = [part for part in found if not isinstance(part, kind)]
        if len(kept) == len(found):
            kept = [part.without(kind) if _has(part, kind) else part for part in found]  # type: ignore[attr-defined]
            if kept == found:
                raise ValueError(f"without: there is no {kind.__name__} here")
        found = kept
    return found


def _has(part: Part, kind: type[Any]) -> bool:
    return isinstance(part, Root) and any(isinstance(entry, kind) for entry in part.entries)
