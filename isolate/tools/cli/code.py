"""A sandbox as the Python code that makes it, defaults left out: what ``explain --code`` prints."""

from __future__ import annotations

import os
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isolate.sandbox.box import Sandbox

__all__ = ["code"]


def code(box: Sandbox) -> str:
    """An expression with the public names that makes an equal sandbox."""
    parts = "".join(f"    {_indent(_show(part))},\n" for part in box.parts)
    return f"Sandbox(\n{parts})"


def _indent(text: str) -> str:
    return text.replace("\n", "\n    ")


def _show(value: Any) -> str:
    from isolate.mounts import Root
    from isolate.seccomp import Seccomp

    if isinstance(value, bytes):
        return repr(os.fsdecode(value))
    if isinstance(value, tuple):
        return f"({', '.join(map(_show, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, Seccomp):
        for name in ("default", "strict"):
            if value == getattr(Seccomp, name)():
                return f"Seccomp.{name}()"
    if isinstance(value, Root):
        entries = "".join(f"    {_show(entry)},\n" for entry in value.entries)
        return f"Root(\n{entries})"
    # The docstring that the dataclass decorator made is long. A class with its own docstring says it better.
    if is_dataclass(value) and hasattr(type(value).__repr__, "__wrapped__"):
        return _call(value)
    return repr(value)


def _call(value: Any) -> str:
    given: list[str] = []
    ahead = True  # positional as long as nothing was left out
    for field in fields(value):
        shown = getattr(value, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        required = default is MISSING
        if isinstance(shown, bytes) and isinstance(default, str):
            default = os.fsencode(default)
        if not required and shown == default:
            ahead = False
            continue
        if field.name == "target" and shown == getattr(value, "source", None):
            ahead = False  # a Bind is where the host has it, unless it is said
            continue
        given.append(_show(shown) if ahead and required else f"{field.name}={_show(shown)}")
        ahead = ahead and required
    return f"{type(value).__name__}({', '.join(given)})"
