"""The isolating parts of an OCI runtime's ``config.json`` (runtime-spec 1.2) as a sandbox.

What would be left out is an error with its key's path: a sandbox is never weaker than its configuration says.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from isolate.kernel.checks import nearest
from isolate.kernel.namespaces import KINDS
from isolate.tools.profiles.errors import ProfileError
from isolate.tools.profiles.oci_mounts import mounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from isolate.sandbox.box import Sandbox

__all__ = ["from_oci"]

_NAMESPACES = {kind.word: kind.file for kind in KINDS}
#: Keys that name or show a container, and isolate nothing.
_OTHER = ("ociVersion", "annotations")
_LINUX = (
    "namespaces",
    "uidMappings",
    "gidMappings",
    "timeOffsets",
    "resources",
    "seccomp",
    "rootfsPropagation",
    "maskedPaths",
    "readonlyPaths",
)
_PROCESS = (
    "terminal",
    "consoleSize",
    "cwd",
    "env",
    "args",
    "user",
    "capabilities",
    "rlimits",
    "noNewPrivileges",
    "oomScoreAdj",
    "scheduler",
    "ioPriority",
)

#: The devices that a runtime supplies whatever the list says ("Default Devices" of the specification).
_EVERY_DEVICE = (
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
)


def from_oci(config: Mapping[str, Any], *, bundle: str | os.PathLike[str]) -> Sandbox:
    """The sandbox of an OCI ``config.json``: root, mounts, namespaces, ids, limits, capabilities, seccomp.

    ``bundle`` is the directory of the file, which its root file system is named from. What the process is to find
    (``args``, ``env``, ``cwd``) becomes :class:`~isolate.Surroundings`, so ``box.run([])`` starts it.

    :raises ProfileError: a key that this library cannot honour, or does not know: hooks, sysctls, SELinux and AppArmor
        labels, devices of its own; its ``path`` is the key's.
    """
    from isolate.sandbox.box import Sandbox

    _known(config, ("root", "process", "hostname", "domainname", "mounts", "linux", *_OTHER), "")
    linux = table(config, "linux", "linux")
    process = table(config, "process", "process")
    _known(linux, _LINUX, "linux")
    _known(process, _PROCESS, "process")
    parts = [
        *_namespaces(config, linux),
        _told("root", lambda: _root(config, linux, os.path.abspath(os.fspath(bundle)))),
        *_process(process),
        *_limits(table(linux, "resources", "linux.resources")),
    ]
    if "seccomp" in linux:
        parts.append(_told("linux.seccomp", lambda: _seccomp(linux["seccomp"], process)))
    box: Sandbox = _told("", lambda: Sandbox(*parts))
    return box


def _known(data: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    words = list(known)
    for key, value in data.items():
        if key not in words and value not in (None, {}, [], "", False):
            path = f"{where}.{key}" if where else key
            raise ProfileError(path, f"cannot be honoured here{nearest(key, words)}")


def table(data: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """A table of a table; empty where there is none."""
    value = data.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ProfileError(where, f"must be an object, not {value!r}")
    return value


def _list(data: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = data.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ProfileError(where, f"must be a list, not {value!r}")
    return value


def _told(where: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except ProfileError:
        raise
    except KeyError as error:
        raise ProfileError(f"{where}.{error.args[0]}", "has to be given") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ProfileError(where, error) from error


def _namespaces(config: Mapping[str, Any], linux: dict[str, Any]) -> list[Any]:
    from isolate.namespaces.ids import IdMap
    from isolate.namespaces.part import PARTS

    found: list[Any] = []
    own: set[str] = set()
    for at, each in enumerate(_list(linux, "namespaces", "linux.namespaces")):
        where = f"linux.namespaces[{at}]"
        kind = each.get("type") if isinstance(each, dict) else None
        if kind not in _NAMESPACES or kind in own:
            raise ProfileError(f"{where}.type", f"no namespace, or one twice: {kind!r}{nearest(kind, _NAMESPACES)}")
        _known(each, ("type", "path"), where)
        own.add(kind)
        words: dict[str, Any] = {"path": each["path"]} if each.get("path") else {}
        if kind == "user" and not words:
            maps = [
                [_range(m, f"linux.{w}[{n}]") for n, m in enumerate(_list(linux, w, f"linux.{w}"))]
                for w in ("uidMappings", "gidMappings")
            ]
            words["map"] = _told("linux.uidMappings", lambda maps=maps: IdMap(*maps))  # type: ignore[misc]
            user = table(table(config, "process", "process"), "user", "process.user")
            words.update(uid=user.get("uid", 0), gid=user.get("gid", 0))
        if kind == "uts" and not words:
            words = {name: config[name] for name in ("hostname", "domainname") if config.get(name)}
        if kind == "mount" and linux.get("rootfsPropagation"):
            words["propagation"] = linux["rootfsPropagation"].removeprefix("r")
        if kind == "time" and not words:
            words = _offsets(table(linux, "timeOffsets", "linux.timeOffsets"))
        cls: Any = PARTS[_NAMESPACES[kind]]
        found.append(_told(where, lambda cls=cls, words=words: cls(**words)))  # type: ignore[misc]
    for key, kind in (("hostname", "uts"), ("domainname", "uts")):
        if config.get(key) and kind not in own:
            raise ProfileError(key, "a name of its own wants a uts namespace of its own")
    for key in ("uidMappings", "gidMappings"):
        if linux.get(key) and "user" not in own:
            raise ProfileError(f"linux.{key}", "a map of ids wants a user namespace of its own")
    if "mount" not in own:
        raise ProfileError("linux.namespaces", "a root of its own wants a mount namespace of its own")
    return found


def _range(data: Any, where: str) -> tuple[int, int, int]:
    if not isinstance(data, dict):
        raise ProfileError(where, f"must be an object, not {data!r}")
    _known(data, ("containerID", "hostID", "size"), where)
    return _told(where, lambda: (data["containerID"], data["hostID"], data["size"]))  # type: ignore[no-any-return]


def _offsets(data: dict[str, Any]) -> dict[str, Any]:
    _known(data, ("monotonic", "boottime"), "linux.timeOffsets")
    return {name: (each.get("secs", 0), each.get("nanosecs", 0)) for name, each in data.items()}


def _root(config: Mapping[str, Any], linux: dict[str, Any], bundle: str) -> Any:
    from isolate.mounts import Bind, Mask, ReadOnly, Root

    root = table(config, "root", "root")
    _known(root, ("path", "readonly"), "root")
    if not isinstance(root.get("path"), str):
        raise ProfileError("root.path", "has to be given")
    source = os.path.normpath(os.path.join(bundle, root["path"]))
    read_only = root.get("readonly", False)
    if not isinstance(read_only, bool):
        raise ProfileError("root.readonly", f"must be true or false, not {read_only!r}")
    entries: list[Any] = [Bind(source, "/", read_only=read_only)]
    entries += mounts(_list(config, "mounts", "mounts"), bundle)
    own = _own(entries)
    for key, cls, words in (("readonlyPaths", ReadOnly, {}), ("maskedPaths", Mask, {"optional": True})):
        for at, path in enumerate(_list(linux, key, f"linux.{key}")):
            if path not in own:
                entries.append(_told(f"linux.{key}[{at}]", partial(cls, path, **words)))
    return Root(*entries)


def _own(entries: Iterable[Any]) -> frozenset[str]:
    """The paths that a Proc and a Sys among the entries mask or make read-only by themselves."""
    from isolate.mounts import Proc, Sys

    found: set[str] = set()
    for each in entries:
        if isinstance(each, Proc) and each == Proc():
            found |= {f"/proc{path}" for path in (*each.masked, *each.read_only)}
        if isinstance(each, Sys) and each == Sys():
            found |= {f"/sys{path}" for path in each.masked}
    return frozenset(found)


def _process(process: dict[str, Any]) -> list[Any]:
    from isolate import Capabilities, Credentials, NoNewPrivs, Rlimits, Scheduling, Surroundings

    found: list[Any] = []
    user = table(process, "user", "process.user")
    _known(user, ("uid", "gid", "umask", "additionalGids"), "process.user")
    if user:
        words = {"uid": user.get("uid", 0), "gid": user.get("gid", 0)}
        groups = tuple(_list(user, "additionalGids", "process.user.additionalGids"))
        umask = {"umask": user["umask"]} if user.get("umask") is not None else {}
        found.append(_told("process.user", lambda: Credentials(**words, groups=groups, **umask)))
    caps = table(process, "capabilities", "process.capabilities")
    sets = ("effective", "permitted", "inheritable", "ambient", "bounding")
    _known(caps, sets, "process.capabilities")
    if "capabilities" in process:
        held: dict[str, Any] = {name: tuple(_list(caps, name, f"process.capabilities.{name}")) for name in sets}
        found.append(_told("process.capabilities", lambda: Capabilities(**held)))
    limits = {}
    for at, each in enumerate(_list(process, "rlimits", "process.rlimits")):
        where = f"process.rlimits[{at}]"
        pair = _told(where, lambda each=each: (each["type"], (each["soft"], each["hard"])))  # type: ignore[misc]
        name = str(pair[0]).removeprefix("RLIMIT_").lower()
        if name in limits:
            raise ProfileError(f"{where}.type", f"{name} stands there twice")
        limits["as_" if name == "as" else name] = pair[1]
    if limits:
        found.append(_told("process.rlimits", lambda: Rlimits(**limits)))
    if process.get("noNewPrivileges") is False:
        found.append(NoNewPrivs(False))
    for key in ("scheduler", "ioPriority"):
        if process.get(key):
            raise ProfileError(f"process.{key}", "cannot be honoured here")
    if process.get("oomScoreAdj") is not None:
        found.append(_told("process.oomScoreAdj", lambda: Scheduling(oom_score_adj=process["oomScoreAdj"])))
    said = [word.partition("=") for word in _list(process, "env", "process.env") if isinstance(word, str)]
    env = {name: value for name, _, value in said}
    args = _list(process, "args", "process.args")
    found.append(_told("process", lambda: Surroundings(env=env, cwd=process.get("cwd", "/"), cmd=args)))
    return found


def _limits(resources: dict[str, Any]) -> list[Any]:
    from isolate.cgroups import Limits

    _known(resources, ("memory", "cpu", "pids", "devices"), "linux.resources")
    memory = table(resources, "memory", "linux.resources.memory")
    cpu = table(resources, "cpu", "linux.resources.cpu")
    pids = table(resources, "pids", "linux.resources.pids")
    _known(memory, ("limit", "swap", "reservation"), "linux.resources.memory")
    _known(cpu, ("shares", "quota", "period", "cpus", "mems", "burst"), "linux.resources.cpu")
    _known(pids, ("limit",), "linux.resources.pids")
    words: dict[str, Any] = {}
    if _set(memory.get("limit")):
        words["memory"] = memory["limit"]
    if _set(memory.get("swap")):  # there it is memory and swap together
        words["swap"] = _told("linux.resources.memory.swap", lambda: memory["swap"] - memory.get("limit", 0))
    if _set(memory.get("reservation")):
        words["memory_low"] = memory["reservation"]
    if _set(cpu.get("quota")):
        words["cpu"] = _told("linux.resources.cpu.quota", lambda: cpu["quota"] / cpu.get("period", 100000))
        words["cpu_period"] = cpu.get("period", 100000) / 1e6
    if _set(cpu.get("burst")):
        words["cpu_burst"] = cpu["burst"] / 1e6
    if cpu.get("shares"):  # 2 to 262144 become 1 to 10000, as runc has it
        shares = _told("linux.resources.cpu.shares", lambda: min(max(int(cpu["shares"]), 2), 262144))
        words["cpu_weight"] = 1 + (shares - 2) * 9999 // 262142
    words.update({key: cpu[key] for key in ("cpus", "mems") if cpu.get(key)})
    if _set(pids.get("limit")):
        words["pids"] = pids["limit"]
    rules = _list(resources, "devices", "linux.resources.devices")
    if rules:
        words["devices"] = _devices(rules)
    return [_told("linux.resources", lambda: Limits(**words))] if words else []


def _set(value: Any) -> bool:
    return value is not None and value != -1


def _devices(rules: list[Any]) -> list[str]:
    """A list of what is allowed; it has to begin with the denial of all, as every runtime writes it."""
    where = "linux.resources.devices"
    first = rules[0] if isinstance(rules[0], dict) else {}
    if first.get("allow") is not False or first.get("major") is not None or first.get("type", "a") not in ("a", None):
        raise ProfileError(f"{where}[0]", "only a list that first denies every device can be honoured")
    found = [*_EVERY_DEVICE]
    for at, each in enumerate(rules[1:], 1):
        if not isinstance(each, dict) or each.get("allow") is not True:
            raise ProfileError(f"{where}[{at}]", "only rules that allow can stand after the first")
        numbers = [("*" if each.get(key) in (None, -1) else each[key]) for key in ("major", "minor")]
        found.append(f"{each.get('type', 'c')} {numbers[0]}:{numbers[1]} {each.get('access', 'rwm')}")
    return found


def _seccomp(data: Any, process: dict[str, Any]) -> Any:
    from isolate.seccomp import Seccomp

    held = table(process, "capabilities", "process.capabilities").get("effective") or ()
    return Seccomp.from_oci(data, capabilities=held)
