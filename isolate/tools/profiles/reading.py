"""From the data of a profile to a sandbox. What cannot be honoured is an error with the path of its key."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from isolate.tools.profiles.errors import ProfileError
from isolate.tools.profiles.extending import extended
from isolate.tools.profiles.making import make
from isolate.tools.profiles.words import PARTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolate.sandbox.box import Sandbox

__all__ = ["from_data"]


def from_data(data: Mapping[str, Any], *, directory: str | os.PathLike[str] | None = None) -> Sandbox:
    """The sandbox of a profile's data, which :func:`to_data` writes and a TOML or JSON parser reads.

    ``directory`` is where the profile stands: paths of the host that begin with ``./`` or ``../``, the profiles that it
    ``extends`` and a seccomp ``file`` are seen from there. Without it they are refused, or seen from the working
    directory.

    :raises ProfileError: a key that is unknown, a value that its part refuses: its ``path`` says where.
    """
    from isolate.sandbox.box import Sandbox

    place = None if directory is None else os.path.abspath(os.fspath(directory))
    whole = extended(data, place)
    tables = {kind: given if isinstance(given, list) else [given] for kind, given in whole.items() if kind in PARTS}
    made: dict[str, list[Any]] = {}
    # Capabilities first: a profile as Docker has them decides by them which calls are allowed.
    for kind in sorted(tables, key=lambda kind: kind == "Seccomp"):
        many = isinstance(whole[kind], list)
        held = [cap.name for part in made.get("Capabilities", ()) for cap in part.effective]
        made[kind] = [
            make(kind, table, f"{kind}[{at}]" if many else kind, place, held) for at, table in enumerate(tables[kind])
        ]
    template = whole.get("template", True)
    if not isinstance(template, bool):
        raise ProfileError("template", f"must be true or false, not {template!r}")
    parts = _ordered(whole, {kind: made[kind] for kind in tables})
    try:
        return Sandbox(*parts, template=template)
    except (TypeError, ValueError) as error:
        raise ProfileError("", error) from error


def _ordered(whole: Mapping[str, Any], made: dict[str, list[Any]]) -> list[Any]:
    order = whole.get("order")
    if order is None:
        return [part for kind in made for part in made[kind]]
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(kind for kind in made for _ in made[kind]):
        raise ProfileError("order", "each part has to be named once for each table of it")
    left = {kind: iter(parts) for kind, parts in made.items()}
    return [next(left[kind]) for kind in order]
