"""A seccomp policy in a profile: a ready-made one by name, rules as data, or a file as Docker and Podman have them."""

from __future__ import annotations

import base64
import binascii
import os
from typing import TYPE_CHECKING, Any

from isolate.tools.profiles.errors import ProfileError
from isolate.tools.profiles.text import content

if TYPE_CHECKING:
    from collections.abc import Iterable

    from isolate.seccomp import Seccomp
    from isolate.seccomp.actions import Action
    from isolate.seccomp.conditions import Condition
    from isolate.seccomp.rules import Rule

__all__ = ["KEYS", "policy_data", "policy_from"]

_NAMED = ("default", "strict", "none")
_VALUES = ("otherwise", "unknown", "foreign", "compat", "log", "spec_allow")
#: The keys of a table ``[Seccomp]``.
KEYS = ("policy", "file", "bpf", "rules", *_VALUES)
_ALL_BITS = 0xFFFFFFFFFFFFFFFF


# ---- written --------------------------------------------------------------------------------------------------------


def policy_data(policy: Seccomp, where: str) -> dict[str, Any]:
    """The table of a policy. What equals a ready-made one, or extends it, is written with its name."""
    from isolate.seccomp import Seccomp

    if policy.notify:
        raise ProfileError(where, "a policy with handlers in Python cannot be written")
    if not policy.restricts:
        return {"policy": "none"}
    if policy.ready is not None:
        found: dict[str, Any] = {"bpf": base64.b64encode(policy.ready).decode()}
        return {**found, **{name: True for name in ("log", "spec_allow") if getattr(policy, name)}}
    bases = {"default": Seccomp.default(), "strict": Seccomp.strict()}
    name = next((name for name, base in bases.items() if policy.rules[: len(base.rules)] == base.rules), None)
    base = bases[name] if name else Seccomp()
    found = {"policy": name} if name else {}
    for key in _VALUES:
        value = getattr(policy, key)
        if value != getattr(base, key):
            found[key] = _plain(value)
    rules = policy.rules[len(base.rules) :]
    if rules:
        found["rules"] = [_rule_data(rule) for rule in rules]
    return found


def _plain(value: Any) -> Any:
    from isolate.seccomp.actions import Action

    if isinstance(value, Action):
        return _action_data(value)
    return list(value) if isinstance(value, tuple) else value


def _action_data(action: Action) -> Any:
    from isolate.seccomp.actions import Action

    try:
        if Action.of(action.word) == action:
            return action.word
    except ValueError:
        pass
    return {"kind": action.kind, "data": action.data}


def _rule_data(rule: Rule) -> dict[str, Any]:
    found: dict[str, Any] = {"action": _action_data(rule.action), "calls": list(rule.names)}
    if rule.when is not None:
        found["when"] = _condition_data(rule.when)
    return found


def _condition_data(condition: Condition) -> dict[str, Any]:
    from isolate.seccomp.conditions import All, Any_, Compare

    if isinstance(condition, Compare):
        found: dict[str, Any] = {"arg": condition.index, "op": condition.op, "value": _number_data(condition.value)}
        if condition.mask != _ALL_BITS:
            found["mask"] = hex(condition.mask)
        return found
    if isinstance(condition, All):
        return {"all": [_condition_data(each) for each in condition.conditions]}
    assert isinstance(condition, Any_)
    return {"any": [_condition_data(each) for each in condition.conditions]}


def _number_data(value: int) -> Any:
    return value if value < 1 << 63 else hex(value)  # TOML has integers of 64 bits with a sign


# ---- read -----------------------------------------------------------------------------------------------------------


def policy_from(data: dict[str, Any], where: str, directory: str | None, capabilities: Iterable[str]) -> Seccomp:
    """The policy of a table. A ``file`` is seen from ``directory``; its rules are decided for ``capabilities``."""
    from isolate.seccomp import Seccomp

    ways = [key for key in ("policy", "file", "bpf") if key in data]
    if len(ways) > 1:
        raise ProfileError(f"{where}.{ways[1]}", f"stands beside {ways[0]!r}, which says the same another way")
    values = {key: _value_from(key, data[key], f"{where}.{key}") for key in _VALUES if key in data}
    if "bpf" in data:
        return _ready(data, values, where)
    base = _base(data, where, directory, capabilities)
    if not base.restricts:
        if len(data) > 1:
            raise ProfileError(where, "the policy 'none' is no filter: nothing stands beside it")
        return base
    extra = [_rule_from(each, f"{where}.rules[{at}]") for at, each in enumerate(_list(data, "rules", where))]
    kept = {key: getattr(base, key) for key in _VALUES}
    return Seccomp((*base.rules, *extra), **{**kept, **values})


def _base(data: dict[str, Any], where: str, directory: str | None, capabilities: Iterable[str]) -> Seccomp:
    from isolate.kernel.checks import choice
    from isolate.seccomp import Seccomp

    if "file" in data:
        path = data["file"]
        if not isinstance(path, str):
            raise ProfileError(f"{where}.file", f"must be a path, not {path!r}")
        try:
            return Seccomp.from_oci(content(os.path.join(directory or "", path)), capabilities=capabilities)
        except ProfileError as error:
            raise ProfileError(f"{where}.file", f"{path}: {error.why}") from error
        except (OSError, ValueError) as error:
            raise ProfileError(f"{where}.file", f"{path}: {error}") from error
    if "policy" not in data:
        return Seccomp()
    try:
        name = choice("policy", data["policy"], _NAMED)
    except (TypeError, ValueError) as error:
        raise ProfileError(f"{where}.policy", error) from None
    made: Seccomp = getattr(Seccomp, name)()
    return made


def _ready(data: dict[str, Any], values: dict[str, Any], where: str) -> Seccomp:
    from isolate.seccomp import Seccomp

    other = next((key for key in data if key not in ("bpf", "log", "spec_allow")), None)
    if other is not None:
        raise ProfileError(f"{where}.{other}", "a ready program has no rules to go with")
    try:
        return Seccomp.from_bpf(base64.b64decode(data["bpf"], validate=True), **values)
    except (TypeError, ValueError, binascii.Error) as error:
        raise ProfileError(f"{where}.bpf", error) from error


def _value_from(key: str, value: Any, where: str) -> Any:
    if key in ("log", "spec_allow"):
        if not isinstance(value, bool):
            raise ProfileError(where, f"must be true or false, not {value!r}")
        return value
    if key == "compat":
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise ProfileError(where, f"must be a list of names, not {value!r}")
        return tuple(value)
    return _action_from(value, where)


def _action_from(value: Any, where: str) -> Action:
    from isolate.seccomp.actions import Action

    try:
        if isinstance(value, dict):
            _only(value, ("kind", "data"), where)
            return Action(value["kind"], value.get("data", 0))
        return Action.of(value)
    except KeyError:
        raise ProfileError(where, "an action has a 'kind'") from None
    except (TypeError, ValueError) as error:
        raise _at(error, where) from error


def _rule_from(data: Any, where: str) -> Rule:
    from isolate.seccomp.rules import Rule

    _only(data, ("action", "calls", "when"), where)
    calls = _list(data, "calls", where)
    if "action" not in data:
        raise ProfileError(where, "a rule has an 'action'")
    action = _action_from(data["action"], f"{where}.action")
    when = _condition_from(data["when"], f"{where}.when") if "when" in data else None
    try:
        return Rule(action, tuple(calls), when)
    except (TypeError, ValueError, AttributeError) as error:
        raise ProfileError(f"{where}.calls", error) from error


def _condition_from(data: Any, where: str, depth: int = 0) -> Condition:
    from isolate.seccomp.conditions import Compare, any_of, every

    if depth > 32:
        raise ProfileError(where, "conditions are nested too deep")
    for word, join in (("all", every), ("any", any_of)):
        if isinstance(data, dict) and word in data:
            _only(data, (word,), where)
            given = _list(data, word, where)
            if not given:
                raise ProfileError(f"{where}.{word}", "must have a condition at least")
            at = f"{where}.{word}"
            return join(*(_condition_from(each, f"{at}[{n}]", depth + 1) for n, each in enumerate(given)))
    _only(data, ("arg", "op", "value", "mask"), where)
    missing = next((key for key in ("arg", "op", "value") if key not in data), None)
    if missing is not None:
        raise ProfileError(where, f"a comparison has {missing!r}")
    try:
        mask = _number(data.get("mask", _ALL_BITS))
        return Compare(data["arg"], data["op"], _number(data["value"]), mask)
    except (TypeError, ValueError) as error:
        raise _at(error, where) from error


def _number(value: Any) -> Any:
    return int(value, 16) if isinstance(value, str) else value


def _list(data: dict[str, Any], key: str, where: str) -> list[Any]:
    value = data.get(key, [])
    if not isinstance(value, list):
        raise ProfileError(f"{where}.{key}", f"must be a list, not {value!r}")
    return value


def _only(data: Any, known: tuple[str, ...], where: str) -> None:
    from isolate.kernel.checks import nearest

    if not isinstance(data, dict):
        raise ProfileError(where, f"must be a table, not {data!r}")
    for key in data:
        if key not in known:
            hint = nearest(key, known) or f"; known are {', '.join(known)}"
            raise ProfileError(f"{where}.{key}", f"there is no such key{hint}")


def _at(error: Exception, where: str) -> ProfileError:
    return error if isinstance(error, ProfileError) else ProfileError(where, error)
