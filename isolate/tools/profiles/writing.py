"""From a sandbox to the data of a profile. What is written reads back as equal, or it is an error."""

from __future__ import annotations

import base64
import enum
import ipaddress
import os
from typing import TYPE_CHECKING, Any

from isolate.tools.profiles import handles
from isolate.tools.profiles.errors import ProfileError
from isolate.tools.profiles.making import make
from isolate.tools.profiles.policy import policy_data
from isolate.tools.profiles.words import ENTRIES, PARTS, REFUSED, VERSION, keys_of, mapping, pairs

if TYPE_CHECKING:
    from collections.abc import Callable

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
    table = _usual(kind, _fields(kind, part, where))
    return table if kind in _HANDLES else _shortest(kind, part, table, where)


def _checked(kind: str, part: Any, table: dict[str, Any]) -> dict[str, Any]:
    """The table, which reads back as the part.

    A network and a store are objects of one process: what is made from their names is another object, and is the same
    part if it is written the same.
    """
    after = make(kind, table, kind, None)
    if after != part and _part(kind, after, kind) != table:
        raise ProfileError(kind, f"reads back as another value: {part!r} as {after!r}")
    return table


#: Parts and entries that hold an object of this process, such as a network.
_HANDLES = ("Interface", "ImageRoot")

#: Values that a part keeps in another form than its constructor takes.
_GIVEN: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("Domains", "port"): lambda part: part.ports,
    ("Connect", "target"): lambda part: (
        f"[{part.host}]:{part.port}" if ":" in part.host else f"{part.host}:{part.port}"
    ),
    ("Interface", "egress"): lambda part: None if part.egress is None else part.egress.to,
    ("Interface", "ingress"): lambda part: None if part.ingress is None else part.ingress.source,
    ("ImageRoot", "image"): lambda part: part.image.digest,
}


def _fields(kind: str, value: Any, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, key in keys_of(kind).items():
        at = f"{where}.{name}"
        if (kind, name) in REFUSED:
            if getattr(value, name) is not None:
                raise ProfileError(at, REFUSED[kind, name])
        elif (kind, name) == ("Interface", "network"):
            found[name] = handles.network_word(value.network, at)
        elif (kind, name) == ("ImageRoot", "store"):
            words = {word: _value(each, f"{at}.{word}") for word, each in handles.store_word(value.store).items()}
            found[name] = words if len(words) > 1 else words["path"]
        elif (kind, name) in _GIVEN:
            found[name] = _value(_GIVEN[kind, name](value), at)
        elif hasattr(value, name):
            given = getattr(value, name)
            named = mapping(key) and (pairs(given) or isinstance(given, dict))
            found[name] = _named(given, at, limits=kind == "Limits") if named else _value(given, at)
    return found


def _usual(kind: str, table: dict[str, Any]) -> dict[str, Any]:
    """Without the keys whose argument is the usual one."""
    found = {}
    for name, given in table.items():
        usual = keys_of(kind)[name].default
        # An Interface without routes has none given: it is not made anew to find that out.
        if given == _word(usual) or (kind in _HANDLES and usual is None and given == {}):
            continue
        found[name] = given
    return found


def _word(usual: Any) -> Any:
    try:
        return _value(usual, "")
    except ProfileError:
        return usual


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


def _named(given: Any, where: str, *, limits: bool = True) -> dict[str, Any]:
    """A mapping, which parts keep as pairs. Among limits, none is ``"max"``."""
    found = {}
    for name, value in given.items() if isinstance(given, dict) else given:
        at = f"{where}.{name}"
        none = limits and value is None
        found[str(name)] = "max" if none else _named(value, at) if pairs(value) else _value(value, at)
    return found


_NETWORKS = (ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network)


def _value(value: Any, where: str) -> Any:
    from isolate.capabilities.caps import Cap
    from isolate.cgroups.devices import Device
    from isolate.landlock.part import FsAccess, LandlockScope, PathRule
    from isolate.namespaces.ids import IdMap, IdRange
    from isolate.network.words import Publish

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
    if isinstance(value, (Device, *_NETWORKS)):
        return str(value)
    if isinstance(value, IdRange):
        return [value.inside, value.outside, value.count]
    if isinstance(value, (IdMap, PathRule)):
        names = ("uids", "gids", "helpers") if isinstance(value, IdMap) else ("path", "access", "optional", "beneath")
        found = {name: _value(getattr(value, name), f"{where}.{name}") for name in names}
        return {name: each for name, each in found.items() if each is not False and each != {"none": True}}
    if isinstance(value, Publish):
        words = {name: getattr(value, name) for name in ("host", "port", "protocol", "address")}
        usual = {"protocol": "tcp", "address": "127.0.0.1"}
        return {name: each for name, each in words.items() if each != usual.get(name)}
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
