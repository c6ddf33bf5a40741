"""The mounts of an OCI ``config.json`` as entries of a root."""

from __future__ import annotations

import os
from typing import Any

from isolate.tools.profiles.errors import ProfileError

__all__ = ["mounts"]

#: Options that hold for every mount here, or that say what is the kernel's default.
_ALWAYS = frozenset(
    ("nosuid", "nodev", "relatime", "strictatime", "private", "rprivate", "slave", "rslave", "newinstance", "rw")
)


def mounts(given: list[Any], bundle: str) -> list[Any]:
    """The entries. What :class:`~isolate.Dev` brings by itself (pts, shm, mqueue) is not made twice."""
    found: list[Any] = []
    device: dict[str, Any] | None = None
    for at, each in enumerate(given):
        where = f"mounts[{at}]"
        if not isinstance(each, dict) or not isinstance(each.get("destination"), str):
            raise ProfileError(f"{where}.destination", "has to be given")
        extra = next((key for key in each if key not in ("destination", "type", "source", "options")), None)
        if extra is not None and each[extra]:
            raise ProfileError(f"{where}.{extra}", "cannot be honoured here")
        target, options = each["destination"], _options(each, where)
        if target == "/dev" and each.get("type") == "tmpfs":
            device = {"pts": False, "shm": None, "mqueue": False}
            found.append(device)  # made at the end: mounts below it say what it has
            _left(options, ("noexec", "mode", "size"), where)
        elif device is not None and target == "/dev/pts" and each.get("type") == "devpts":
            device["pts"] = True
            _left(options, ("noexec", "ptmxmode", "mode", "gid"), where)
        elif device is not None and target == "/dev/shm" and each.get("type") == "tmpfs":
            device["shm"] = options.pop("size", "64M") or "64M"
            _left(options, ("noexec", "mode"), where)
        elif device is not None and target == "/dev/mqueue" and each.get("type") == "mqueue":
            device["mqueue"] = True
            _left(options, ("noexec",), where)
        else:
            found.append(_entry(each, target, options, where, bundle))
    return [_device(each, given) if isinstance(each, dict) else each for each in found]


def _device(words: dict[str, Any], given: list[Any]) -> Any:
    from isolate.mounts import Dev

    try:
        return Dev(**words)
    except (TypeError, ValueError) as error:
        at = next(n for n, each in enumerate(given) if each["destination"] == "/dev/shm")
        raise ProfileError(f"mounts[{at}].options", error) from error


def _options(each: dict[str, Any], where: str) -> dict[str, str | None]:
    words = each.get("options") or []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ProfileError(f"{where}.options", f"must be a list of words, not {words!r}")
    pairs = (word.partition("=") for word in words)
    return {name: value if equal else None for name, equal, value in pairs if name not in _ALWAYS}


def _left(options: dict[str, str | None], known: tuple[str, ...], where: str) -> None:
    other = next((name for name in options if name not in known), None)
    if other is not None:
        raise ProfileError(f"{where}.options", f"{other!r} cannot be honoured for this mount")


def _entry(each: dict[str, Any], target: str, options: dict[str, str | None], where: str, bundle: str) -> Any:
    from isolate.mounts import Bind, CgroupFs, Mqueue, Proc, Sys, Tmpfs

    kind = each.get("type") or "bind"
    try:
        if kind == "bind" or "bind" in options or "rbind" in options:
            recursive = "rbind" in options
            words: dict[str, Any] = {
                "read_only": "ro" in options,
                "recursive": recursive,
                "exec": "noexec" not in options,
            }
            _left(options, ("bind", "rbind", "ro", "noexec", "suid", "dev", "exec"), where)
            words.update({name: True for name in ("suid", "dev") if name in options})
            source = each.get("source")
            if not isinstance(source, str):
                raise ProfileError(f"{where}.source", "has to be given")
            return Bind(os.path.normpath(os.path.join(bundle, source)), target, **words)
        if kind == "tmpfs":
            _left(options, ("size", "mode", "noexec", "exec", "ro"), where)
            words = {"exec": "noexec" not in options, "read_only": "ro" in options}
            if options.get("size"):
                words["size"] = options["size"]
            if options.get("mode"):
                words["mode"] = int(str(options["mode"]), 8)
            return Tmpfs(target, **words)
        # A sysfs and the cgroups are read-only here by themselves.
        _left(options, ("noexec", "ro") if kind in ("sysfs", "cgroup", "cgroup2") else ("noexec",), where)
        entries: dict[str, Any] = {
            "proc": Proc,
            "sysfs": Sys,
            "mqueue": Mqueue,
            "cgroup": CgroupFs,
            "cgroup2": CgroupFs,
        }
        if kind not in entries:
            raise ProfileError(
                f"{where}.type",
                f"{kind!r} cannot be honoured here; known are bind, tmpfs, devpts on /dev/pts, {', '.join(entries)}",
            )
        return entries[kind](target)
    except ProfileError:
        raise
    except (TypeError, ValueError) as error:
        raise ProfileError(where, error) from error
