"""Data of profiles as TOML and JSON: parsed and written."""

from __future__ import annotations

import json
import os
import re
import stat
from typing import Any

from isolate.kernel.extras import install
from isolate.tools.profiles.errors import ProfileError

__all__ = ["FORMATS", "content", "parsed", "parsed_text", "written"]

_LARGEST = 16 << 20
FORMATS = ("toml", "json")
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a directory"),
)
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def parsed(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The data of a file.

    :raises ProfileError: it is not TOML or JSON, no regular file, or too large.
    """
    try:
        return parsed_text(content(path), "json" if os.fspath(path).endswith(".json") else "toml")
    except ProfileError as error:
        if error.path:
            raise
        raise ProfileError("", f"{os.fspath(path)}: {error.why}") from error


def content(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file of a bounded size. A FIFO or a device, which may never end, is not waited for.

    :raises ProfileError: it is another kind of file, or too large.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        found = next((word for asks, word in _KINDS if asks(mode)), "another kind of file")
        raise ProfileError("", f"must be a regular file, not {found}")
    with open(fd, "rb") as file:
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise ProfileError("", f"must have at most {_LARGEST} bytes")
    return text


def parsed_text(text: str | bytes, format: str) -> dict[str, Any]:
    from isolate.kernel.checks import choice

    choice("format", format, FORMATS)
    try:
        words = text.decode() if isinstance(text, bytes) else text
        found = json.loads(words, object_pairs_hook=_once) if format == "json" else _toml_parser(words)
    except RecursionError:
        raise ProfileError("", "it is nested too deep") from None
    except ValueError as error:
        raise ProfileError("", f"not {format.upper()}: {error}") from error
    if not isinstance(found, dict):
        raise ProfileError("", f"a profile is a table, not {type(found).__name__}")
    try:
        _check_text("", found)
    except RecursionError:
        raise ProfileError("", "it is nested too deep") from None
    return found


def _check_text(path: str, value: Any) -> None:
    """Refuse half of a surrogate pair, which JSON can have: no bytes stand for it. Those of ``os.fsdecode`` stay."""
    if isinstance(value, str):
        _check_bytes(path, value)
    elif isinstance(value, list):
        for at, each in enumerate(value):
            _check_text(f"{path}[{at}]", each)
    elif isinstance(value, dict):
        for key, each in value.items():
            _check_bytes(path, key)
            _check_text(f"{path}.{key}" if path else key, each)


def _check_bytes(path: str, text: str) -> None:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ProfileError(path, f"must be text that has bytes, not {text!r} (half of a surrogate pair)") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A table of JSON's, in which a key stands once, as in TOML: who reads the first would not see the last."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice in one table")
        found[key] = value
    return found


def written(data: dict[str, Any], format: str) -> str:
    """Data as the text of a profile."""
    from isolate.kernel.checks import choice

    if choice("format", format, FORMATS) == "json":
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    return _whole(data)


def _toml_parser(text: str) -> Any:
    import importlib

    try:
        module = importlib.import_module("tomllib")
    except ModuleNotFoundError:  # Python 3.10
        try:
            module = importlib.import_module("tomli")
        except ModuleNotFoundError:
            raise ProfileError("", f"Python 3.10 reads no TOML by itself: {install('profiles')}, or use JSON") from None
    return module.loads(text)


def _whole(data: dict[str, Any]) -> str:
    """Data of a profile as TOML: a table for each part, and within it what is nested in one line each."""
    lines = [f"{_key(name)} = {_toml(value)}" for name, value in data.items() if not _tables(value)]
    for name, value in data.items():
        if _tables(value):
            for table in value if isinstance(value, list) else [value]:
                lines += ["", f"[[{_key(name)}]]" if isinstance(value, list) else f"[{_key(name)}]"]
                lines += [f"{_key(key)} = {_toml(each, wide=True)}" for key, each in table.items()]
    return "\n".join(lines) + "\n"


def _tables(value: Any) -> bool:
    several = isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)
    return isinstance(value, dict) or several


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _string(name)


def _string(text: str) -> str:
    # JSON's escapes are TOML's; TOML wants one for DEL besides.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml(value: Any, wide: bool = False) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(key)} = {_toml(each)}' for key, each in value.items())} }}" if value else "{}"
    if isinstance(value, list):
        if wide and value and all(isinstance(each, dict) for each in value):
            return "[\n" + "".join(f"  {_toml(each)},\n" for each in value) + "]"
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value) if not isinstance(value, float) else repr(value)
