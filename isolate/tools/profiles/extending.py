"""A profile on top of others: ``extends`` and ``without``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from isolate.kernel.checks import nearest
from isolate.tools.profiles.errors import ProfileError
from isolate.tools.profiles.making import check_top
from isolate.tools.profiles.text import parsed
from isolate.tools.profiles.words import HOST, PARTS
from isolate.tools.profiles.writing import to_data

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["extended"]

_DEEPEST = 16


def extended(data: Mapping[str, Any], directory: str | None, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The profile with what it extends put beneath it.

    A table adds its keys to those of the table beneath it and wins where both have one; the entries of a Root stand
    after those beneath. A list of tables takes the place of what is beneath. ``without`` leaves out parts beneath.
    """
    check_top(data)
    own = {name: value for name, value in data.items() if name not in ("extends", "without")}
    base: dict[str, Any] = {}
    if "extends" in data:
        base = _base(data["extends"], directory, seen)
    for at, kind in enumerate(_words(data, "without")):
        if kind not in base or kind not in PARTS:
            hint = nearest(kind, [name for name in base if name in PARTS])
            raise ProfileError(f"without[{at}]", f"what is extended has no part {kind!r}{hint}")
        del base[kind]
        base.pop("order", None)
    if any(name in own for name in base if name in PARTS) or any(name not in base for name in own if name in PARTS):
        base.pop("order", None)
    found = dict(base)
    for name, value in own.items():
        found[name] = _merged(name, base[name], value) if name in PARTS and name in base else value
    return found


def _words(data: Mapping[str, Any], key: str) -> list[str]:
    value = data.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ProfileError(key, f"must be a list of names, not {value!r}")
    return value


def _merged(kind: str, beneath: Any, above: Any) -> Any:
    if not isinstance(beneath, dict) or not isinstance(above, dict):
        return above
    found = {**beneath, **above}
    if kind == "Seccomp" and any(key in above for key in ("policy", "file", "bpf")):
        return above  # another policy, not a change of the one beneath
    for key in ("entries", "rules"):
        if isinstance(beneath.get(key), list) and isinstance(above.get(key), list):
            found[key] = [*beneath[key], *above[key]]
    return found


def _base(name: Any, directory: str | None, seen: tuple[str, ...]) -> dict[str, Any]:
    if name == "untrusted":
        from isolate import presets

        return to_data(presets.untrusted())
    if not isinstance(name, str) or not name.endswith((".toml", ".json")):
        hint = nearest(name, ["untrusted"])
        raise ProfileError("extends", f"must be 'untrusted' or a file .toml or .json, not {name!r}{hint}")
    path = os.path.realpath(os.path.join(directory or "", name))
    if path in seen:
        raise ProfileError("extends", f"{name} extends itself")
    if len(seen) >= _DEEPEST:
        raise ProfileError("extends", f"more than {_DEEPEST} profiles extend one another")
    place = os.path.dirname(path)
    try:
        found = extended(parsed(path), place, (*seen, path))
    except OSError as error:
        raise ProfileError("extends", f"{name}: {error.strerror}") from error
    except ProfileError as error:
        raise ProfileError("extends", f"{name}: {str(error).removeprefix(f'{path}: ')}") from error
    return anchored(found, place)


def anchored(data: dict[str, Any], place: str) -> dict[str, Any]:
    """The data with paths that are seen from where its file stands made absolute."""

    def there(value: Any) -> Any:
        if isinstance(value, str) and value.split("/")[0] in (".", ".."):
            return os.path.normpath(os.path.join(place, value))
        if isinstance(value, dict) and "path" in value:  # a store
            return {**value, "path": there(value["path"])}
        return [there(each) for each in value] if isinstance(value, list) else value

    found = dict(data)
    root = found.get("Root")
    if isinstance(root, dict) and isinstance(root.get("entries"), list):
        entries = [
            {key: there(value) if (entry.get("kind"), key) in HOST else value for key, value in entry.items()}
            if isinstance(entry, dict)
            else entry
            for entry in root["entries"]
        ]
        found["Root"] = {**root, "entries": entries}
    policies = found.get("Seccomp")
    for policy in [policies] if isinstance(policies, dict) else []:
        if isinstance(policy.get("file"), str):
            found["Seccomp"] = {**policy, "file": os.path.join(place, policy["file"])}
    return found
