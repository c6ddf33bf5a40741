"""From a sandbox to the data of a profile. What is written reads back as equal, or it is an error."""

from __future__ import annotations

import base64
import enum
import os
from typing import TYPE_CHECKING, Any

from isolate.tools.profiles.errors import ProfileError
from isolate.tools.profiles.making import make
from isolate.tools.profiles.policy import policy_data
from isolate.tools.profiles.words import ENTRIES, PARTS, VERSION, keys_of, mapping, pairs

if TYPE_CHECKING:
    import inspect
    from collections.abc import Mapping

    from isolate.sandbox.box import Sandbox

__all__ = ["to_data"]


def to_data(box: Sandbox) -> dict[str, Any]:
    """A sandbox as dicts, lists and plain values, for TOML, JSON and the like. Defaults are left out.

    :raises ProfileError: a part has no words in a profile: one of your own, a handle, a handler in Python.
    """
    tables: dict[str, list[Any]] = {}
    kinds: list[str] = []
    for part in box.parts:
        kind = type(part).__name__
        if kind not in PARTS or not type(part).__module__.startswith("isolate."):
            raise ProfileError(kind, f"a profile has no words for this part: {part!r}")
        kinds.append(kind)
        tables.setdefault(kind, []).append(_checked(kind, part, _part(kind, part, kind)))
    found: dict[str, Any] = {"version": VERSION}
    if not box.template:
        found["template"] = False
    if kinds != [kind for kind in tables for _ in tables[kind]]:
        found["order"] = kinds
    found.update({kind: made if len(made) > 1 else made[0] for kind, made in tables.items()})
    return found


def _part(kind: str, part: Any, where: str) -> dict[str, Any]:
    if kind == "Seccomp":
        return policy_data(part, where)
    return _shortest(kind, part, _fields(part, keys_of(kind), where), where)


def _checked(kind: str, part: Any, table: dict[str, Any]) -> dict[str, Any]:
    """The table, which reads back as the part."""
    after = make(kind, table, kind, None)
    if after != part:
        raise ProfileError(kind, f"reads back as another value: {part!r} as {after!r}")
    return table


def _fields(value: Any, keys: Mapping[str, inspect.Parameter], where: str) -> dict[str, Any]:
    found = {}
    for name, key in keys.items():
        if hasattr(value, name):
            given, at = getattr(value, name), f"{where}.{name}"
            found[name] = _named(given, at) if mapping(key) and pairs(given) else _value(given, at)
    return found


def _shortest(kind: str, value: Any, table: dict[str, Any], where: str) -> dict[str, Any]:
    """Without the keys that change nothing."""
    for key in list(table):
        less = {name: given for name, given in table.items() if name != key}
        try:
            if make(kind, less, where, None) == value:
                table = less
        except (TypeError, ValueError):
            continue
    return table


def _named(given: Any, where: str) -> dict[str, Any]:
    """A mapping, which parts keep as pairs."""
    found = {}
    for name, value in given:
        at = f"{where}.{name}"
        found[str(name)] = "max" if value is None else _named(value, at) if pairs(value) else _value(value, at)
    return found


def _value(value: Any, where: str) -> Any:
    from isolate.capabilities.caps import Cap
    from isolate.cgroups.devices import Device
    from isolate.landlock.part import FsAccess, LandlockScope, PathRule
    from isolate.namespaces.ids import IdMap, IdRange

    if value is None:
        return {"none": True}
    if isinstance(value, Cap):
        return value.name.lower()
    if isinstance(value, (FsAccess, LandlockScope)):
        return [str(member.name).lower() for member in type(value) if member & value == member]
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        number = int(value)
        return number if -(1 << 63) <= number < 1 << 63 else {"int": str(number)}
    if isinstance(value, enum.Enum) or (isinstance(value, float) and value != value):
        raise ProfileError(where, f"a profile has no words for {value!r}")
    if isinstance(value, float):
        return value
    if isinstance(value, (str, bytes, os.PathLike)):
        return _text(value)
    if isinstance(value, Device):
        return str(value)
    if isinstance(value, IdRange):
        return [value.inside, value.outside, value.count]
    if isinstance(value, (IdMap, PathRule)):
        names = ("uids", "gids", "helpers") if isinstance(value, IdMap) else ("path", "access", "optional", "beneath")
        found = {name: _value(getattr(value, name), f"{where}.{name}") for name in names}
        return {name: each for name, each in found.items() if each is not False and each != {"none": True}}
    if isinstance(value, frozenset):
        return [_value(each, where) for each in sorted(value)]
    if isinstance(value, (tuple, list)):
        return [_value(each, f"{where}[{at}]") for at, each in enumerate(value)]
    kind = type(value).__name__
    if kind in ENTRIES and type(value).__module__.startswith("isolate."):
        return {"kind": kind, **_part(kind, value, where)}
    raise ProfileError(where, f"a profile has no words for {value!r}")


def _text(value: Any) -> Any:
    """Text; what is no text in UTF-8 as base64."""
    plain = os.fspath(value)
    data = plain if isinstance(plain, bytes) else plain.encode("utf-8", "surrogateescape")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return {"bytes" if isinstance(plain, bytes) else "text": base64.b64encode(data).decode()}
    return text if isinstance(value, (str, bytes)) else {"path": text}
