"""Parts and entries from the tables of a profile."""

from __future__ import annotations

import base64
import binascii
import os
import pathlib
from typing import TYPE_CHECKING, Any

from isolate.kernel.checks import nearest
from isolate.tools.profiles import handles
from isolate.tools.profiles.errors import ProfileError
from isolate.tools.profiles.policy import KEYS, policy_from
from isolate.tools.profiles.words import ENTRIES, HOST, PARTS, REFUSED, TOP, VERSION, class_of, keys_of, listed, mapping

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["check_top", "make"]

_ESCAPES = ("none", "int", "bytes", "text", "path")


def make(kind: str, table: Any, where: str, directory: str | None, capabilities: Iterable[str] = ()) -> Any:
    """A part or an entry from its table."""
    if not isinstance(table, dict):
        raise ProfileError(where, f"must be a table, not {table!r}")
    if kind == "Seccomp":
        _known(table, KEYS, where)
        return policy_from(table, where, directory, capabilities)
    keys = keys_of(kind)
    _known(table, keys, where)
    given = {name: _argument(kind, keys[name], table[name], f"{where}.{name}", directory) for name in table}
    if kind == "ImageRoot" and "image" in given:
        given.setdefault("store", handles.store({}, f"{where}.store"))
        given["image"] = handles.image(given["image"], given["store"], f"{where}.image")
    try:
        return _made(kind, given)
    except (TypeError, ValueError) as error:
        missing = [name for name, key in keys.items() if key.default is key.empty and name not in given]
        if missing and listed(kind) is None:
            raise ProfileError(f"{where}.{missing[0]}", "has to be given") from None
        raise ProfileError(_blamed(kind, given, where), error) from error


def _made(kind: str, given: dict[str, Any]) -> Any:
    words = dict(given)
    return class_of(kind)(*words.pop(listed(kind) or "", ()), **words)


def _blamed(kind: str, given: dict[str, Any], where: str) -> str:
    """The path of the one key without which the rest would be accepted; the table's where there is none."""
    for name in given:
        try:
            _made(kind, {other: value for other, value in given.items() if other != name})
        except (TypeError, ValueError):
            continue
        return f"{where}.{name}"
    for name, key in keys_of(kind).items():  # a key that has to be there cannot be left out: the message says which
        if key.default is key.empty and len(given) == 1 and name in given:
            return f"{where}.{name}"
    return where


def _known(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    words = list(known)
    for key in table:
        if key not in words:
            path = f"{where}.{key}" if where else key
            hint = nearest(key, words) or f"; known are {', '.join(words)}"
            raise ProfileError(path, f"there is no such key{hint}")


def check_top(data: Any) -> None:
    """Whether it is a profile of this version, with keys that are known."""
    if not isinstance(data, dict):
        raise ProfileError("", f"a profile is a table, not {type(data).__name__}")
    if "version" not in data:
        raise ProfileError("version", f"has to be given: version = {VERSION}")
    if data["version"] != VERSION or isinstance(data["version"], bool):
        raise ProfileError("version", f"{data['version']!r} is not known here; this library reads {VERSION}")
    _known(data, (*TOP, *PARTS), "")


def _argument(kind: str, key: inspect.Parameter, value: Any, where: str, directory: str | None) -> Any:
    if (kind, key.name) in REFUSED:
        raise ProfileError(where, REFUSED[kind, key.name])
    if key.name == listed(kind):
        if not isinstance(value, list):
            raise ProfileError(where, f"must be a list, not {value!r}")
        if kind == "Root":
            return [_entry(each, f"{where}[{at}]", directory) for at, each in enumerate(value)]
    if (kind, key.name) in _SPECIAL:
        return _SPECIAL[kind, key.name](value, where, directory)
    if key.name == "publish":
        return _published(value, where)
    if isinstance(value, dict) and not _escaped(value):
        if mapping(key):
            return _names(value, where)
        if "IdMap" in str(key.annotation):
            return _id_map(value, where)
    if kind == "Landlock" and key.name == "rules":
        return _path_rules(value, where)
    if (kind, key.name) in HOST:
        _no_descriptor(value, where)
        found = [value] if isinstance(value, str) else value
        if isinstance(found, list):
            found = [_from_here(each, where, directory) for each in found]
            value = found[0] if isinstance(value, str) else found
    if key.name == "parent" and not isinstance(value, str):
        raise ProfileError(where, f"must be a path in the v2 hierarchy, not {value!r}")
    if key.name in ("fd", "idmap") and not isinstance(value, bool):
        _no_descriptor(value, where)
    return _plain(value, where)


def _no_descriptor(value: Any, where: str) -> None:
    """Refuse a number that would be a descriptor of whatever process reads the profile."""
    if isinstance(value, (int, float)) or (isinstance(value, dict) and "int" in value):
        raise ProfileError(where, f"a profile holds no descriptor of a process, such as {value!r}")
    for at, each in enumerate(value if isinstance(value, list) else ()):
        _no_descriptor(each, f"{where}[{at}]")


def _from_here(value: Any, where: str, directory: str | None) -> Any:
    """A path that is named from where the profile stands."""
    if not isinstance(value, str) or value.split("/")[0] not in (".", ".."):
        return value
    if directory is None:
        raise ProfileError(where, f"must be an absolute path, not {value!r}: this profile stands nowhere")
    return os.path.normpath(os.path.join(directory, value))


def _entry(value: Any, where: str, directory: str | None) -> Any:
    if not isinstance(value, dict) or "kind" not in value:
        raise ProfileError(where, f"an entry is a table with a 'kind', not {value!r}")
    kind = value["kind"]
    if kind not in ENTRIES:
        hint = nearest(kind, ENTRIES) or f"; known are {', '.join(ENTRIES)}"
        raise ProfileError(f"{where}.kind", f"there is no entry {kind!r}{hint}")
    return make(kind, {name: each for name, each in value.items() if name != "kind"}, where, directory)


def _escaped(value: dict[str, Any]) -> bool:
    return len(value) == 1 and next(iter(value)) in _ESCAPES


def _names(value: dict[str, Any], where: str) -> dict[str, Any]:
    return {
        name: _names(each, f"{where}.{name}")
        if isinstance(each, dict) and not _escaped(each)
        else _plain(each, f"{where}.{name}")
        for name, each in value.items()
    }


def _id_map(value: Any, where: str) -> Any:
    """An id map from its table."""
    from isolate.namespaces.ids import IdMap

    if not isinstance(value, dict):
        raise ProfileError(where, f"must be a table with 'uids' and 'gids', not {value!r}")
    _known(value, ("uids", "gids", "helpers"), where)
    try:
        return IdMap(**{name: _plain(each, f"{where}.{name}") for name, each in value.items()})
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, ProfileError) else ProfileError(where, error) from error


def _store(value: Any, where: str, directory: str | None) -> Any:
    """A store: a path that a profile may name from where it stands, or a table that has it."""
    if isinstance(value, dict) and _escaped(value) and "path" not in value:
        value = _plain(value, where)
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        value = {**value, "path": _from_here(value["path"], f"{where}.path", directory)}
    if isinstance(value, dict) and "map" in value:
        value = {**value, "map": _id_map(value["map"], f"{where}.map")}
    return handles.store(_from_here(value, where, directory), where)


def _limit(kind: str, value: Any, where: str) -> Any:
    from isolate import network

    try:
        return getattr(network, kind)(_plain(value, where))
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, ProfileError) else ProfileError(where, error) from error


#: Arguments whose objects have a form of their own in a profile.
_SPECIAL = {
    ("Interface", "network"): lambda value, where, directory: handles.network(value, where),
    ("Interface", "egress"): lambda value, where, directory: _limit("Egress", value, where),
    ("Interface", "ingress"): lambda value, where, directory: _limit("Ingress", value, where),
    ("ImageRoot", "store"): _store,
}


def _published(value: Any, where: str) -> Any:
    """Published ports: a table such as ``{ 8080 = 80 }``, or a list of tables, one for each."""
    from isolate.network import Publish

    if isinstance(value, dict):
        return value
    optional = ("protocol", "address")
    wanted = "a table such as { 8080 = 80 }, or a list of tables,"
    return _tables(value, where, wanted, ("host", "port"), optional, lambda table, path: Publish(**table))


def _path_rules(value: Any, where: str) -> Any:
    from isolate.landlock.part import PathRule

    def rule(table: dict[str, Any], path: str) -> PathRule:
        return PathRule(**{name: _plain(given, f"{path}.{name}") for name, given in table.items()})

    return _tables(value, where, "a list of rules", ("path", "access"), ("optional", "beneath"), rule)


def _tables(
    value: Any,
    where: str,
    wanted: str,
    needed: tuple[str, str],
    optional: tuple[str, ...],
    make: Callable[[dict[str, Any], str], Any],
) -> list[Any]:
    """A list of tables, each made into a value. An error names the table by its place in the list."""
    if not isinstance(value, list):
        raise ProfileError(where, f"must be {wanted}, not {value!r}")
    found = []
    for at, each in enumerate(value):
        path = f"{where}[{at}]"
        if not isinstance(each, dict):
            raise ProfileError(path, f"must be a table with {needed[0]!r} and {needed[1]!r}, not {each!r}")
        _known(each, (*needed, *optional), path)
        try:
            found.append(make(each, path))
        except (TypeError, ValueError) as error:
            raise error if isinstance(error, ProfileError) else ProfileError(path, error) from error
    return found


def _plain(value: Any, where: str) -> Any:
    """A value; a list becomes a tuple."""
    if isinstance(value, list):
        return tuple(_plain(each, f"{where}[{at}]") for at, each in enumerate(value))
    if isinstance(value, dict):
        if not _escaped(value):
            raise ProfileError(where, f"must not be a table: {value!r}")
        ((word, given),) = value.items()
        try:
            return _escape(word, given)
        except (TypeError, ValueError, binascii.Error) as error:
            raise ProfileError(f"{where}.{word}", error) from error
    if not isinstance(value, (str, int, float)):
        raise ProfileError(where, f"must be a str, a number, true, false, a list or a table, not {value!r}")
    return value


def _escape(word: str, given: Any) -> Any:
    if word == "none":
        if given is not True:
            raise ValueError(f"none must be true, not {given!r}")
        return None
    if not isinstance(given, str):
        raise TypeError(f"must be a str, not {given!r}")
    if word == "int":
        return int(given)
    if word == "path":
        return pathlib.Path(given)
    data = base64.b64decode(given, validate=True)
    return data if word == "bytes" else os.fsdecode(data)
