"""Policies from and to JSON: the OCI runtime specification's ``linux.seccomp``, and profiles as Docker and Podman have.

A profile's rules about one call are alternatives; where they contradict one another the specification leaves the
answer open, and here the later rule wins.
"""

from __future__ import annotations

import errno as _errno
import json
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from isolate.kernel import syscalls
from isolate.kernel.checks import is_int

from . import decide
from .actions import Action
from .bpf import FAMILIES
from .conditions import MASK64, All, Any_, Compare, Condition, every
from .rules import Rule

if TYPE_CHECKING:
    from .value import Policy

__all__ = ["from_oci", "to_oci"]

_ACTIONS = {
    "SCMP_ACT_KILL": "kill_thread",
    "SCMP_ACT_KILL_THREAD": "kill_thread",
    "SCMP_ACT_KILL_PROCESS": "kill_process",
    "SCMP_ACT_TRAP": "trap",
    "SCMP_ACT_ERRNO": "errno",
    "SCMP_ACT_TRACE": "trace",
    "SCMP_ACT_ALLOW": "allow",
    "SCMP_ACT_LOG": "log",
    "SCMP_ACT_NOTIFY": "notify",
}
_TO_ACTION = {kind: name for name, kind in _ACTIONS.items() if name != "SCMP_ACT_KILL"}
_OPS = {
    "SCMP_CMP_NE": "!=",
    "SCMP_CMP_LT": "<",
    "SCMP_CMP_LE": "<=",
    "SCMP_CMP_EQ": "==",
    "SCMP_CMP_GE": ">=",
    "SCMP_CMP_GT": ">",
}
_TO_OP = {op: name for name, op in _OPS.items()}
_ABIS = {
    "SCMP_ARCH_X86_64": "x86_64",
    "SCMP_ARCH_X86": "i386",
    "SCMP_ARCH_X32": "x32",
    "SCMP_ARCH_AARCH64": "aarch64",
    "SCMP_ARCH_ARM": "arm",
    "SCMP_ARCH_RISCV64": "riscv64",
}
_TO_ABI = {abi: name for name, abi in _ABIS.items()}
# Architectures that this library has no tables for: known words, nothing to do.
_OTHER_ABIS = tuple(
    f"SCMP_ARCH_{name}"
    for name in [
        "MIPS",
        "MIPS64",
        "MIPS64N32",
        "MIPSEL",
        "MIPSEL64",
        "MIPSEL64N32",
        "PPC",
        "PPC64",
        "PPC64LE",
        "S390",
        "S390X",
        "PARISC",
        "PARISC64",
        "LOONGARCH64",
        "M68K",
        "SH",
        "SHEB",
        "NATIVE",
    ]
)
# Docker's words for architectures, as Go has them.
_GO_ARCH = {"x86_64": "amd64", "aarch64": "arm64", "i386": "x86"}
_FLAGS = {"SECCOMP_FILTER_FLAG_LOG": "log", "SECCOMP_FILTER_FLAG_SPEC_ALLOW": "spec_allow"}
_NO_FLAGS = ("SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV")

_PROFILE = {
    "defaultAction",
    "defaultErrnoRet",
    "defaultErrno",
    "architectures",
    "archMap",
    "flags",
    "listenerPath",
    "listenerMetadata",
    "syscalls",
}
_SYSCALL = {"names", "name", "action", "errnoRet", "errno", "args", "comment", "includes", "excludes"}
_ARGUMENT = {"index", "value", "valueTwo", "op"}
_FILTER = {"caps", "arches", "minKernel"}


def from_oci(
    profile: Mapping[str, Any] | str | bytes,
    *,
    capabilities: Iterable[str] = (),
    arch: str | None = None,
    kernel: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """The arguments of ``Seccomp`` for a profile: see ``Seccomp.from_oci``. ``rules`` are the positional ones."""
    if isinstance(profile, (str, bytes)):
        profile = _parsed(profile)
    elif not isinstance(profile, Mapping):
        raise TypeError(f"a profile is an object or its JSON, not {profile!r}")
    _known(profile, _PROFILE, "the profile")
    arch = syscalls.native_arch() if arch is None else syscalls.canonical_arch(arch)
    kernel = kernel or decide.running_kernel()
    caps = {cap.upper() if cap.upper().startswith("CAP_") else "CAP_" + cap.upper() for cap in capabilities}
    if profile.get("listenerPath"):
        raise ValueError("listenerPath is not supported: the notifications of a filter go to Python")
    otherwise = _action(profile, "defaultAction", "defaultErrnoRet", "the profile", "defaultErrno")
    rules: list[Rule] = []
    for at, entry in enumerate(_list(profile, "syscalls", "the profile")):
        where = f"syscalls[{at}]"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{where} is not an object: {entry!r}")
        _known(entry, _SYSCALL, where)
        includes, excludes = _object(entry, "includes", where), _object(entry, "excludes", where)
        if not _applies(includes, excludes, caps, arch, kernel, where):
            continue
        names = _list(entry, "names", where) or ([entry["name"]] if "name" in entry else [])
        # Profiles list calls of architectures that the tables do not have, and of kernels to come.
        found = [name for name in names if isinstance(name, str) and syscalls.known(name)]
        odd = [name for name in names if not isinstance(name, str) or not name.replace("_", "").isalnum()]
        if odd or not names:
            raise ValueError(f"{where} has no names of system calls: {odd or names!r}")
        if found:
            action = _action(entry, "action", "errnoRet", where, "errno")
            rules += _entry_rules(action, tuple(found), _list(entry, "args", where), where)
    flags: dict[str, bool] = {}
    for flag in _words(profile, "flags", "the profile"):
        if flag in _FLAGS:
            flags[_FLAGS[flag]] = True
        elif flag not in _NO_FLAGS:
            raise ValueError(f"unknown flag {flag!r}")
    log, spec_allow = flags.get("log", False), flags.get("spec_allow", False)
    return {
        "rules": rules,
        "otherwise": otherwise,
        "compat": _compat(profile, arch),
        "log": log,
        "spec_allow": spec_allow,
    }


def _parsed(text: str | bytes) -> Mapping[str, Any]:
    """The object of a JSON text; whoever wrote it may be hostile."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("not a profile: its JSON is nested too deep") from None
    except ValueError as error:
        shown = os.fsdecode(text[:80])
        hint = (
            f"; {shown!r} looks like a path: give what the file holds, pathlib.Path(…).read_text()"
            if len(text) < 4096 and "{" not in shown and ("/" in shown or shown.endswith(".json"))
            else ""
        )
        raise ValueError(f"not JSON: {error}{hint}") from None
    if not isinstance(found, dict):
        raise ValueError(f"not a profile: its JSON is no object but {type(found).__name__}")
    return found


def to_oci(policy: Policy) -> dict[str, Any]:
    """See ``Seccomp.to_oci``."""
    if policy.ready is not None:
        raise ValueError("a ready program cannot be written as OCI rules")
    if policy.foreign != Action.KILL_PROCESS:
        raise ValueError("OCI cannot say what calls through other ABIs answer (foreign=)")
    # Rules about one call have no order there. So each answer goes with the condition under which it is reached.
    groups: dict[tuple[Rule, ...], list[str]] = {}
    for name in sorted(frozenset().union(*(rule.calls for rule in policy.rules))):
        groups.setdefault(tuple(rule for rule in policy.rules if name in rule.calls), []).append(name)
    entries: list[dict[str, Any]] = []
    blind = decide.blind_calls(policy)
    if blind:
        entries.append({"names": sorted(blind), "action": "SCMP_ACT_ERRNO", "errnoRet": _errno.ENOSYS})
    for rules, grouped in groups.items():
        names = [name for name in grouped if name not in blind]
        for action, when in _reached(rules) if names else ():
            if action == policy.otherwise:
                continue
            try:
                alternatives = _alternatives(when)
                arguments = [[_argument(compare) for compare in compares] for compares in alternatives]
            except ValueError as error:
                raise ValueError(f"{names[0]}: {error}") from None
            for args in arguments:
                entry: dict[str, Any] = {"names": names, "action": _TO_ACTION[action.kind]}
                if action.kind in ("errno", "trace"):
                    entry["errnoRet"] = action.data
                if args:
                    entry["args"] = args
                entries.append(entry)
    profile: dict[str, Any] = {"defaultAction": _TO_ACTION[policy.otherwise.kind]}
    if policy.otherwise.kind in ("errno", "trace"):
        profile["defaultErrnoRet"] = policy.otherwise.data
    arch = syscalls.native_arch()
    profile["architectures"] = [_TO_ABI[abi] for abi in decide.covered(policy, arch)]
    flags = [flag for flag, name in _FLAGS.items() if getattr(policy, name)]
    if flags:
        profile["flags"] = flags
    profile["syscalls"] = entries
    return profile


def _reached(rules: tuple[Rule, ...]) -> list[tuple[Action, Condition | None]]:
    """Each rule's answer with the whole condition of reaching it, past those that are tried before it."""
    found: list[tuple[Action, Condition | None]] = []
    before: list[tuple[Action, Condition]] = []
    for rule in reversed(rules):
        parts = [~when for action, when in before if action != rule.action]
        if rule.when is not None:
            parts.insert(0, rule.when)
        found.append((rule.action, every(*parts) if parts else None))
        if rule.when is None:
            break
        before.append((rule.action, rule.when))
    return found


def _entry_rules(action: Action, names: tuple[str, ...], arguments: list[Any], where: str) -> list[Rule]:
    compares: list[Compare] = []
    for at, argument in enumerate(arguments):
        place = f"{where}.args[{at}]"
        if not isinstance(argument, Mapping):
            raise ValueError(f"{place} is not an object: {argument!r}")
        _known(argument, _ARGUMENT, place)
        op = argument.get("op")
        index, value, second = (_number(argument, key, place) for key in ("index", "value", "valueTwo"))
        if not isinstance(op, str):
            raise ValueError(f"{place}: op is no string: {op!r}")
        if op == "SCMP_CMP_MASKED_EQ":
            compares.append(Compare(index, "==", second, value))
        elif op in _OPS:
            compares.append(Compare(index, _OPS[op], value))
        else:
            raise ValueError(f"{place} has the unknown operator {op!r}")
    if not compares:
        return [Rule(action, names)]
    # Runtimes take several conditions on one argument as alternatives, since libseccomp could not join them.
    indexes = [compare.index for compare in compares]
    if len(set(indexes)) != len(indexes):
        return [Rule(action, names, compare) for compare in compares]
    return [Rule(action, names, every(*compares))]


def _alternatives(when: Condition | None) -> list[list[Compare]]:
    """The condition as alternatives of conditions that all hold, each on another argument."""
    if when is None:
        return [[]]
    if isinstance(when, Compare):
        return [[when]]
    if isinstance(when, Any_):
        return [found for condition in when.conditions for found in _alternatives(condition)]
    assert isinstance(when, All)
    joined: list[list[Compare]] = [[]]
    for condition in when.conditions:
        joined = [left + right for left in joined for right in _alternatives(condition)]
        if len(joined) > 256:
            raise ValueError("the conditions have too many alternatives to write out")
    for compares in joined:
        indexes = [compare.index for compare in compares]
        if len(set(indexes)) != len(indexes):
            raise ValueError(f"OCI cannot join two conditions on one argument: {when!r}")
    return joined


def _argument(compare: Compare) -> dict[str, Any]:
    value = compare.value & compare.mask if compare.value < 0 else compare.value
    if compare.mask == MASK64:
        return {"index": compare.index, "value": value, "op": _TO_OP[compare.op]}
    if compare.op == "==":
        return {"index": compare.index, "value": compare.mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
    raise ValueError(f"OCI cannot say {compare!r}: under a mask it has only ==")


def _known(entry: Mapping[str, Any], fields: set[str], where: str) -> None:
    for key in entry:
        if key not in fields:
            from isolate.kernel.checks import nearest

            raise ValueError(f"{where} has the unknown field {key!r}{nearest(key, sorted(fields))}")


def _list(entry: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = entry.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{where}: {key} is not a list: {value!r}")
    return value


def _words(entry: Mapping[str, Any], key: str, where: str) -> list[str]:
    value = _list(entry, key, where)
    for word in value:
        if not isinstance(word, str):
            raise ValueError(f"{where}: {key} has something that is no string: {word!r}")
    return value


def _object(entry: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = entry.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: {key} is not an object: {value!r}")
    return value


def _number(entry: Mapping[str, Any], key: str, where: str) -> int:
    value = entry.get(key, 0)
    if not is_int(value) or not 0 <= value <= MASK64:
        raise ValueError(f"{where}: {key} is not an unsigned 64-bit number: {value!r}")
    return value


def _action(entry: Mapping[str, Any], key: str, number: str, where: str, word: str) -> Action:
    name = entry.get(key)
    if not isinstance(name, str) or name not in _ACTIONS:
        raise ValueError(f"{where} has the unknown action {name!r}; known are {', '.join(_ACTIONS)}")
    kind = _ACTIONS[name]
    if kind in ("errno", "trace"):
        # Docker's and Podman's profiles may name the errno besides.
        default = _errno.EPERM
        if entry.get(number) is not None:
            return Action(kind, _number(entry, number, where))
        named = entry.get(word)
        if kind == "errno" and named:
            if not (is_int(named) or isinstance(named, str)):
                raise ValueError(f"{where}: {word} is no errno: {named!r}")
            return Action.errno(named)
        return Action(kind, default)
    return Action(kind)


def _applies(
    includes: Mapping[str, Any],
    excludes: Mapping[str, Any],
    caps: set[str],
    arch: str,
    kernel: tuple[int, int],
    where: str,
) -> bool:
    """Docker's rule: everything that ``includes`` names must be so, nothing that ``excludes`` names may be."""
    _known(includes, _FILTER, f"{where}.includes")
    _known(excludes, _FILTER, f"{where}.excludes")
    words = {arch, _GO_ARCH.get(arch, arch)}
    wanted_caps, wanted_arches = _words(includes, "caps", where), _words(includes, "arches", where)
    if wanted_arches and not words & set(wanted_arches):
        return False
    if not set(wanted_caps) <= caps:
        return False
    if includes.get("minKernel") and kernel < _version(includes["minKernel"], where):
        return False
    if words & set(_words(excludes, "arches", where)) or caps & set(_words(excludes, "caps", where)):
        return False
    return not (excludes.get("minKernel") and kernel >= _version(excludes["minKernel"], where))


def _version(text: Any, where: str) -> tuple[int, int]:
    try:
        major, minor = str(text).split(".")[:2]
        return int(major), int(minor)
    except ValueError:
        raise ValueError(f"{where}: minKernel is not of the form 4.8: {text!r}") from None


def _compat(profile: Mapping[str, Any], arch: str) -> tuple[str, ...]:
    listed = list(_words(profile, "architectures", "the profile"))
    for entry in _list(profile, "archMap", "the profile"):
        if not isinstance(entry, Mapping):
            raise ValueError(f"archMap has an entry that is not an object: {entry!r}")
        _known(entry, {"architecture", "subArchitectures"}, "archMap")
        name = entry.get("architecture", "")
        if not isinstance(name, str):
            raise ValueError(f"archMap: architecture is no string: {name!r}")
        subs = _words(entry, "subArchitectures", "archMap")
        if _ABIS.get(name) == arch:
            listed += subs
    for name in listed:
        if name not in _ABIS and name not in _OTHER_ABIS:
            raise ValueError(f"unknown architecture {name!r}")
    return tuple(abi for name in listed if (abi := _ABIS.get(name)) in FAMILIES[arch] and abi is not None)
