"""``--mount`` of RUN as it is written: ``type=cache,target=/root/.cache``."""

from __future__ import annotations

import csv
import difflib
import posixpath
import re
from typing import TYPE_CHECKING, Final

from isolate.build.instructions import Mount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["nearest_word", "read_mount"]

#: The names of a key, and the one that it is kept by.
_KEYS: Final = {
    "dst": "target",
    "destination": "target",
    "src": "source",
    "ro": "readonly",
    "rw": "readwrite",
    **{key: key for key in ("type", "target", "source", "from", "readonly", "readwrite", "id", "sharing", "required")},
    **{key: key for key in ("mode", "uid", "gid", "size", "env")},
}
_ALONE: Final = ("readonly", "readwrite", "required")
#: Go's strconv.ParseBool.
_BOOLEANS: Final = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}


def nearest_word(word: str, known: Iterable[str]) -> str:
    """A word for an error, with the nearest of those that are known."""
    found = difflib.get_close_matches(word, list(known), 1)
    return f" {word!r}" + (f": did you mean {found[0]}?" if found else "")


def read_mount(text: str, error: Callable[[str], Exception], expand: Callable[[str], str] | None = None) -> Mount:
    """The value of ``--mount``.

    :param expand: how variables in the values become their contents. None: they are not known yet, so that of a text
        with variables only the form is judged.
    """

    def wrong(why: str) -> Exception:
        return error(f"--mount={text}: {why}")

    try:
        (fields,) = csv.reader([text], strict=True)
    except (csv.Error, ValueError):
        raise wrong("not a list of key=value") from None
    values: dict[str, str] = {}
    for each in fields:
        word, equals, value = each.partition("=")
        word = word.strip().lower()
        key = _KEYS.get(word)
        if key is None:
            raise wrong(f"unknown key{nearest_word(word, _KEYS)}")
        if not equals and key not in _ALONE:
            raise wrong(f"{word} needs a value")
        if key == "from" and "$" in value:
            raise wrong("from takes no variable: name a stage (FROM $X AS name), and that")
        values[key] = "true" if not equals else value if expand is None else expand(value)
    kind = values.get("type", "bind").lower()
    if kind == "ssh":
        raise wrong("type 'ssh' is not offered: agents are not forwarded; give the key as a secret")
    origin, target, source, name = (values.get(key) for key in ("from", "target", "source", "id"))
    if expand is None and "$" in text:
        return Mount(kind, target, source, origin, id=name, written=text)
    if kind == "secret":
        if source is not None and name is not None:
            raise wrong("source and id are the same for a secret: one of them")
        source, name = None, name or source or (posixpath.basename(target) if target else None)
    numbers: dict[str, int] = {}
    for key, base in (("mode", 8), ("uid", 10), ("gid", 10)):
        if key in values:
            if not re.fullmatch(r"[0-7]{1,5}" if base == 8 else r"[0-9]{1,10}", values[key]):
                raise wrong(f"{key}={values[key]!r} is no number")
            numbers[key] = int(values[key], base)
    flags: dict[str, bool] = {}
    for key in _ALONE:
        if key in values:
            if values[key] not in _BOOLEANS:
                raise wrong(f"{key}={values[key]} must be true or false")
            flags[key] = _BOOLEANS[values[key]]
    read_only = flags.get("readonly", not flags["readwrite"] if "readwrite" in flags else None)
    try:
        return Mount(
            kind,
            target,
            source,
            origin,
            read_only,
            name,
            values.get("sharing", "shared").lower() if "sharing" in values else None,
            flags.get("required", False),
            numbers.get("mode"),
            numbers.get("uid"),
            numbers.get("gid"),
            values.get("size"),
            values.get("env"),
            text if expand is None else None,
        )
    except ValueError as why:
        raise wrong(str(why).removeprefix("Mount: ")) from None
