"""The protections of a sandbox in ten lines: the beginning of ``isolate explain``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from isolate.sandbox.box import Sandbox

__all__ = ["holds", "summary"]

_MOST = 12  # names in one line


def summary(box: Sandbox) -> str:
    """Ten lines, each with a word and what holds. The defaults of a sandbox are told as well."""
    from isolate.errors import printable

    return "\n".join(f"{name:12} {printable(text)}" for name, text in holds(box).items())


def holds(box: Sandbox) -> dict[str, str]:
    """The protections in force, by the words of the ten lines."""
    from isolate.sandbox.defaults import defaults

    parts = defaults(box.parts)
    return {
        "runs as": _identity(parts),
        "sees": _seen(parts),
        "may write": _writable(parts),
        "hidden": _hidden(parts),
        "network": _network(parts),
        "limited": _limits(parts),
        "per process": _rlimits(parts),
        "privileges": _privileges(parts),
        "refused": _refused(parts),
        "besides": _besides(box.parts),
    }


def _find(parts: Iterable[Any], kind: Any) -> Any:
    return next((part for part in parts if isinstance(part, kind)), None)


def _some(words: Iterable[str]) -> str:
    found = list(dict.fromkeys(words))
    more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return ", ".join(found[:_MOST]) + more


def _identity(parts: Iterable[Any]) -> str:
    from isolate.attributes.credentials import Credentials
    from isolate.namespaces.ids import outside
    from isolate.namespaces.part import UserNamespace

    user, ids = _find(parts, UserNamespace), _find(parts, Credentials)
    if user is None:
        uid = os.geteuid() if ids is None or ids.uid is None else ids.uid
        return f"uid {uid} of the host" + (": root" if uid == 0 else "")
    if user.joined:
        return "a user of the user namespace that it joins"
    uid = user.uid if ids is None or ids.uid is None else ids.uid
    host = os.geteuid() if user.map is None else outside(user.map.uids, uid)
    return f"uid {uid} inside, uid {host} on the host" + (": root" if host == 0 else "")


def _entries(parts: Iterable[Any]) -> Any:
    from isolate.mounts import Root

    root = _find(parts, Root)
    return None if root is None else root.entries


def _text(path: Any) -> str:
    return f"descriptor {path}" if isinstance(path, int) else os.fsdecode(path)


def _name(entry: Any) -> str:
    target, source = getattr(entry, "target", None), getattr(entry, "source", None)
    if target is None:
        return repr(entry)
    moved = source is not None and source != target
    return f"{_text(target)} (the host's {_text(source)})" if moved else _text(target)


def _seen(parts: Iterable[Any]) -> str:
    entries = _entries(parts)
    if entries is None:
        return "the caller's files, or those of the mount namespace that it joins"
    targets = {_text(entry.target) for entry in entries if getattr(entry, "target", None) is not None}
    tops = [
        entry
        for entry in entries
        if not _below(getattr(entry, "target", None), targets) or "(the host's" in _name(entry)
    ]
    # The entries that the caller named come last in a root. Look for those.
    return "a root of its own with " + (_some(_name(entry) for entry in reversed(tops)) or "nothing in it")


def _below(target: Any, others: Iterable[str]) -> bool:
    """Whether a target lies below another one, which is named already."""
    return target is not None and any(_text(target).startswith(f"{other}/") for other in others if other != "/")


def _writable(parts: Iterable[Any]) -> str:
    from isolate.landlock.part import Landlock

    entries = _entries(parts)
    ruled = " (less by Landlock)" if _find(parts, Landlock) is not None else ""
    if entries is None:
        return "what its user may write on the host" + ruled
    found = [_name(entry) for entry in entries if getattr(entry, "read_only", None) is False]
    return (_some(found) or "nothing but what /dev and /proc have") + ruled


def _hidden(parts: Iterable[Any]) -> str:
    from isolate import namespaces as ns

    words = {
        ns.PidNamespace: "processes",
        ns.IpcNamespace: "IPC",
        ns.UtsNamespace: "host name",
        ns.CgroupNamespace: "cgroups",
        ns.TimeNamespace: "clocks",
        ns.UserNamespace: "users",
    }
    own = [word for kind, word in words.items() if (found := _find(parts, kind)) is not None and not found.joined]
    if _entries(parts) is not None:
        own.insert(0, "files")
    shared = [word for kind, word in words.items() if word not in own and kind is not ns.TimeNamespace]
    said = f"the host's {_some(own)}" if own else "nothing"
    return said + (f"; not hidden: its {_some(shared)}" if shared else "")


def _of_network(part: Any) -> bool:
    return type(part).__module__.startswith("isolate.network")


def _network(parts: Iterable[Any]) -> str:
    from isolate.namespaces.part import NetNamespace

    own = [part for part in parts if _of_network(part)]
    if own:
        return _some(repr(part) for part in own)
    net = _find(parts, NetNamespace)
    if net is None:
        return "the caller's: all that it reaches"
    if net.joined:
        return "that of the network namespace that it joins"
    return "its own: loopback and nothing else" if net.loopback else "its own: nothing, not even loopback"


def _given(part: Any) -> list[str]:
    from dataclasses import fields

    found = ((field.name.rstrip("_"), getattr(part, field.name), field.default) for field in fields(part))
    return [f"{name} {value}" for name, value, default in found if value is not None and value != default]


def _limits(parts: Iterable[Any]) -> str:
    from isolate.cgroups import Limits

    limits = _find(parts, Limits)
    if limits is None:
        return "nothing in all: memory, processes and CPU are what its user may have"
    return "all of it together: " + (_some(_given(limits)) or "counted, without a limit")


def _rlimits(parts: Iterable[Any]) -> str:
    from isolate.attributes.rlimits import UNLIMITED, Rlimits

    held = _find(parts, Rlimits).values()
    return (
        _some(f"{name.rstrip('_')} {'unlimited' if hard == UNLIMITED else hard}" for name, (_, hard) in held.items())
        or "as the caller"
    )


def _privileges(parts: Iterable[Any]) -> str:
    from isolate.attributes.privileges import NoNewPrivs
    from isolate.capabilities.part import Capabilities

    sets = _find(parts, Capabilities)
    held = sorted(cap.name.lower() for cap in sets.permitted | sets.ambient)
    gains = _find(parts, NoNewPrivs)
    later = "gains none by exec" if gains is None or gains.enabled else "may gain some by exec (set-uid files)"
    return f"{_some(held) if held else 'no capability'}; {later}"


def _refused(parts: Iterable[Any]) -> str:
    from isolate.sandbox.defaults import no_nested_user_namespaces
    from isolate.seccomp import Seccomp

    words = []
    for policy in (part for part in parts if isinstance(part, Seccomp)):
        if not policy.restricts:
            words.append("no system call by a filter")
        elif policy == Seccomp.default():
            words.append("system calls outside of Seccomp.default()")
        elif policy == no_nested_user_namespaces():
            words.append("new user namespaces")
        elif policy.ready is not None:
            words.append("system calls by a ready filter")
        else:
            words.append(f"system calls by a filter of {len(policy.rules)} rules, the others answer {policy.otherwise}")
    return "; ".join(dict.fromkeys(words)) or "no system call by a filter"


def _besides(parts: Iterable[Any]) -> str:
    """The parts that no other line tells."""
    told = {
        "Capabilities",
        "CgroupNamespace",
        "Credentials",
        "IpcNamespace",
        "Launch",
        "Limits",
        "MountNamespace",
        "NetNamespace",
        "NoNewPrivs",
        "PidNamespace",
        "Rlimits",
        "Root",
        "Seccomp",
        "TimeNamespace",
        "UserNamespace",
        "UtsNamespace",
    }
    other = (part for part in parts if type(part).__name__ not in told and not _of_network(part))
    return _some(repr(part) for part in other) or "nothing"
