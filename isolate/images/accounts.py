"""The ids of a configuration's ``user``: names looked up in the image's own files, which are hostile text."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.images.errors import ImageError
from isolate.images.pack.stack import Stack

if TYPE_CHECKING:
    from isolate.images.image import Image
    from isolate.images.store import Store

__all__ = ["Account", "account"]

_LARGEST = 4 << 20
_MAX_ID = 2**32 - 2


@dataclass(frozen=True)
class Account:
    """Ids inside, and the home directory if the image's /etc/passwd has one."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str | None = None


def account(image: Image, store: Store, user: str | None = None) -> Account:
    """The ids of the configuration's user (or of another): ``""``, ``name``, ``uid``, ``name:group``, ``uid:gid``.

    As docker has it: a name's group is that of /etc/passwd, and its supplementary groups those of /etc/group, unless a
    group is given; a number that has no line there is in group 0.

    :raises ImageError: a name that the image's files do not have.
    """
    wanted = (image.config.user or "" if user is None else user) or "0"
    name, colon, group = wanted.partition(":")
    lease, trees = store.lease(image)
    with lease:
        stack = Stack(tuple(reversed(trees)), contents=store.opened.contents())
        try:
            users, groups = _lines(stack, b"etc/passwd", 7), _lines(stack, b"etc/group", 4)
        finally:
            stack.close()
    uid, row = _find(name or "0", users, "user", wanted)
    gid = _number(row[3]) if row is not None else None
    if colon:
        return Account(uid, _find(group or "0", groups, "group", wanted)[0], (), _home(row))
    own = row[0] if row is not None else None
    more = [_number(line[2]) for line in groups if own is not None and own in line[3].split(",")]
    return Account(uid, gid or 0, tuple(dict.fromkeys(n for n in more if n is not None)), _home(row))


def _home(row: list[str] | None) -> str | None:
    return row[5] if row is not None and row[5].startswith("/") else None


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10):
        return None
    return int(text) if int(text) <= _MAX_ID else None


def _find(word: str, rows: list[list[str]], what: str, wanted: str) -> tuple[int, list[str] | None]:
    """Look for the name first, as docker does, because a name may consist of digits."""
    for row in rows:
        number = _number(row[2])
        if row[0] == word and number is not None:
            return number, row
    number = _number(word)
    if number is None:
        raise ImageError("config", f"has the user {wanted!r}, and the image no {what} {word!r}")
    return number, next((row for row in rows if _number(row[2]) == number), None)


def _lines(stack: Stack, path: bytes, fields: int) -> list[list[str]]:
    """The lines of a file that shows, split; those that have other fields are left out. No link is followed."""
    found = stack.lookup(path)
    if found is None or not stat.S_ISREG(found[1].st_mode) or found[1].st_size > _LARGEST:
        return []
    try:
        fd = found[0].read(path)
    except OSError:
        return []  # not the caller's to read: then no name is known
    with open(fd, "rb") as file:
        data = file.read(_LARGEST)
    rows = [line.decode("utf-8", "surrogateescape").split(":") for line in data.split(b"\n")]
    return [row for row in rows if len(row) == fields and row[0]]
