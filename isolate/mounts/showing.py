"""How entries print: as the code that makes them, without what is at its default."""

from __future__ import annotations

import dataclasses
from typing import Any

from isolate.kernel.paths import text

__all__ = ["Shown"]


def _value(value: object) -> str:
    if isinstance(value, bytes):
        return repr(text(value))
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    return repr(value)


class Shown:
    """``repr()`` for dataclasses of this package."""

    def __repr__(self) -> str:
        shown: list[str] = []
        me: Any = self
        for field in dataclasses.fields(me):
            value = getattr(self, field.name)
            if not field.repr:
                shown.append(f"<{len(value)} bytes>")
                continue
            default = field.default
            if field.name == "target" and default is None:
                default = getattr(self, "source", None)  # Bind: where the host has it
            same = value == default or (
                isinstance(default, str) and isinstance(value, bytes) and text(value) == default
            )
            value_text = f"{value:#o}" if field.name == "mode" else _value(value)
            if not same:
                shown.append(f"{field.name}={value_text}" if field.kw_only else value_text)
        return f"{type(self).__name__}({', '.join(shown)})"
