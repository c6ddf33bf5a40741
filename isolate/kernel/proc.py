"""The one reader of /proc's text: whole fields, and lines that end with a newline and nothing else.

Much of it holds what strangers have chosen: names of processes, of cgroups, of mount points. The kernel escapes
newlines in them, and blanks where fields are separated by blanks, but no other character. So nothing here searches for
a word, and nothing takes a carriage return, a form feed or U+2028 for the end of a line (``str.splitlines``, and files
that are opened as text, do).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MountRow", "fields", "lines", "mount_rows", "read", "status", "unescape"]


def lines(data: bytes) -> list[str]:
    """The lines of a file; bytes that are not UTF-8 as ``os.fsdecode`` has them."""
    found = os.fsdecode(data).split("\n")
    if found[-1] == "":
        found.pop()
    return found


def fields(data: bytes) -> dict[str, str]:
    """The fields of a ``status`` file: ``Name:``, blanks, value. Of two of one name the first."""
    found: dict[str, str] = {}
    for line in lines(data):
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name, value.strip(" \t"))
    return found


def status(pid: int | str = "self", *, proc: str = "/proc") -> dict[str, str]:
    """The fields of a process's ``status`` (proc_pid_status(5)).

    :raises OSError: there is no such process, or it has ended.
    """
    return fields(read(f"{proc}/{pid}/status"))


def read(path: str) -> bytes:
    """A whole file of /proc. By descriptor: the interpreter's last objects ask when ``open`` is gone already.

    :raises OSError: it cannot be opened or read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = bytearray()
        while piece := os.read(fd, 1 << 16):
            found += piece
        return bytes(found)
    finally:
        os.close(fd)


class MountRow(NamedTuple):
    """A line of ``mountinfo`` (proc_pid_mountinfo(5))."""

    identity: int
    parent: int
    device: str
    root: str
    target: str
    options: tuple[str, ...]
    kind: str
    source: str
    super_options: tuple[str, ...]


def mount_rows(data: bytes) -> Iterator[MountRow]:
    """The mounts of a ``mountinfo`` file, in its order; a line that is none is left out."""
    for line in lines(data):
        head, dash, tail = line.partition(" - ")
        before, after = head.split(" "), tail.split(" ")
        if not dash or len(before) < 6 or len(after) < 3 or not (before[0].isdigit() and before[1].isdigit()):
            continue
        yield MountRow(
            int(before[0]),
            int(before[1]),
            before[2],
            unescape(before[3]),
            unescape(before[4]),
            tuple(before[5].split(",")),
            after[0],
            unescape(after[1]),
            tuple(after[2].split(",")),
        )


def unescape(field: str) -> str:
    """A field of ``mountinfo``: space, tab, newline and backslash stand there as three octal digits."""
    if "\\" not in field:
        return field
    out = bytearray()
    raw = os.fsencode(field)
    at = 0
    while at < len(raw):
        digits = raw[at + 1 : at + 4]
        if raw[at] == 0x5C and len(digits) == 3 and all(0x30 <= d <= 0x37 for d in digits):
            out.append(int(digits, 8) & 0xFF)
            at += 4
        else:
            out.append(raw[at])
            at += 1
    return os.fsdecode(bytes(out))
