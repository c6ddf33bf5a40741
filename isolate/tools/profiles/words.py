"""The words of a profile: the parts and entries that it can name, and the keys that each of them takes."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

__all__ = ["ENTRIES", "PARTS", "TOP", "VERSION", "class_of", "keys_of", "mapping", "pairs"]

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
    "Root",
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
)

#: The entries of a Root.
ENTRIES = (
    "Bind",
    "CgroupFs",
    "Dev",
    "Dir",
    "Etc",
    "File",
    "Mask",
    "Mqueue",
    "Overlay",
    "Proc",
    "ReadOnly",
    "Symlink",
    "Sys",
    "Tmpfs",
)

#: The keys of the profile itself.
TOP = ("version", "extends", "without", "order", "template")


def class_of(kind: str) -> Any:
    """The class of a part or an entry."""
    import isolate

    return getattr(isolate, kind)


@lru_cache(maxsize=64)
def keys_of(kind: str) -> dict[str, inspect.Parameter]:
    """The keys of a part or an entry: the arguments of its constructor. ``entries`` are those of a Root."""
    found = dict(inspect.signature(class_of(kind)).parameters)
    return {name: parameter for name, parameter in found.items() if name not in ("notify", "notify_timeout")}


def mapping(parameter: inspect.Parameter) -> bool:
    """Whether an argument is a mapping of names to values."""
    return "Mapping[" in str(parameter.annotation)


def pairs(value: object) -> bool:
    """Whether a value is a mapping as the parts keep one: a tuple of pairs."""
    return isinstance(value, tuple) and all(isinstance(each, tuple) and len(each) == 2 for each in value)
