"""The words of a profile: the parts and entries that it can name, and the keys that each of them takes."""

from __future__ import annotations

import importlib
import inspect
from functools import lru_cache
from typing import Any

__all__ = ["ENTRIES", "HOST", "PARTS", "REFUSED", "TOP", "VERSION", "class_of", "keys_of", "listed", "mapping", "pairs"]

#: The version of the format that is written. Another one is refused: its keys may mean something else.
VERSION = 1

#: The parts of a profile, by the names that they have in Python.
PARTS = (
    "UserNamespace",
    "MountNamespace",
    "PidNamespace",
    "NetNamespace",
    "IpcNamespace",
    "UtsNamespace",
    "CgroupNamespace",
    "TimeNamespace",
    "Sysctl",
    "Root",
    "HostProgram",
    "Limits",
    "Capabilities",
    "Credentials",
    "NoNewPrivs",
    "Rlimits",
    "Scheduling",
    "SessionKeyring",
    "SetIdFiles",
    "Landlock",
    "Seccomp",
    "Surroundings",
    "Interface",
    "Userspace",
    "Domains",
    "Connect",
)

#: The entries of a Root.
ENTRIES = (
    "Bind",
    "CgroupFs",
    "Dev",
    "Device",
    "Dir",
    "Etc",
    "File",
    "FileSystem",
    "ImageRoot",
    "Mask",
    "Mqueue",
    "Overlay",
    "Proc",
    "ReadOnly",
    "Symlink",
    "Sys",
    "Tmpfs",
)

#: Parts and entries that are not names of ``isolate`` itself, and the packages that have them.
_PACKAGES = {
    "Interface": "network",
    "Userspace": "network",
    "Domains": "network",
    "Connect": "network",
    "ImageRoot": "images",
}

#: The keys of the profile itself.
TOP = ("version", "extends", "without", "order", "template")

#: Keys that hold a path of the host, which a profile may name from where it stands itself: ``./task``.
HOST = {
    ("Bind", "source"),
    ("Bind", "beneath"),
    ("Overlay", "lower"),
    ("Overlay", "upper"),
    ("Overlay", "work"),
    ("ImageRoot", "store"),
}

_FUNCTION = "a function in Python has no words in a profile"
#: Arguments that a profile has no words for, and why.
REFUSED = {
    ("Domains", "log"): _FUNCTION,
    ("Domains", "resolve"): _FUNCTION,
    ("Connect", "log"): _FUNCTION,
    ("ImageRoot", "writable"): "an Upper belongs to the program that makes it: Upper(store)",
}


def class_of(kind: str) -> Any:
    """The class of a part or an entry."""
    package = _PACKAGES.get(kind)
    return getattr(importlib.import_module("isolate" if package is None else f"isolate.{package}"), kind)


@lru_cache(maxsize=64)
def keys_of(kind: str) -> dict[str, inspect.Parameter]:
    """The keys of a part or an entry: the arguments of its constructor. ``entries`` are those of a Root."""
    found = dict(inspect.signature(class_of(kind)).parameters)
    return {name: parameter for name, parameter in found.items() if name not in ("notify", "notify_timeout")}


def listed(kind: str) -> str | None:
    """The key that is the constructor's ``*arguments``: the entries of a Root, the names of Domains."""
    return next((name for name, key in keys_of(kind).items() if key.kind is key.VAR_POSITIONAL), None)


def mapping(parameter: inspect.Parameter) -> bool:
    """Whether an argument is a mapping of names to values."""
    return "Mapping[" in str(parameter.annotation)


def pairs(value: object) -> bool:
    """Whether a value is a mapping as the parts keep one: a tuple of pairs."""
    return isinstance(value, tuple) and all(isinstance(each, tuple) and len(each) == 2 for each in value)
