"""Entries as bytes: always the same for the same tree, and read alike by every tool.

ustar where it can say everything, else one extended header with just what it cannot. No names of users, no times of
access or change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolate.images.archive import entry as kinds
from isolate.images.archive.pax import MAX_PAX, SCHILY
from isolate.images.errors import LayerError

if TYPE_CHECKING:
    from isolate.images.archive.entry import Entry

__all__ = ["END", "header", "order", "padding"]

#: The blocks behind the last entry.
END = bytes(1024)
_MAX_OCTAL = {7: 0o7777777, 11: 0o77777777777}
_ZEROS = bytes(512)


def order(path: bytes) -> bytes:
    """The key by which paths are sorted: by their bytes, and a directory's contents right behind it.

    GNU tar sets the times of a directory as soon as something that is not beneath it comes.
    """
    return path.replace(b"/", b"\0")


def padding(size: int) -> bytes:
    """The zeros behind a file of that size."""
    return _ZEROS[: -size % 512]


def header(entry: Entry) -> bytes:
    """The header of an entry, with an extended one before it where it needs one.

    :raises LayerError: what no archive can say: an attribute with ``=`` or ``%`` in its name, or too much of them.
    """
    name = entry.path or b"."
    if entry.kind == kinds.DIRECTORY:
        name += b"/"
    records: list[tuple[bytes, bytes]] = []
    prefix = b""
    if len(name) > 100:
        prefix, short = _split(name)
        if not prefix:
            records.append((b"path", name))
        name = short
    link = entry.link
    if len(link) > 100:
        records.append((b"linkpath", link))
        link = link[:100]
    seconds, rest = divmod(entry.mtime, 1_000_000_000)
    if rest or seconds > _MAX_OCTAL[11]:
        text = b"%d.%09d" % (seconds, rest)
        records.append((b"mtime", text.rstrip(b"0").rstrip(b".")))
    uid, gid, size = entry.uid, entry.gid, entry.size
    for key, value, width in ((b"uid", uid, 7), (b"gid", gid, 7), (b"size", size, 11)):
        if value > _MAX_OCTAL[width]:
            records.append((key, b"%d" % value))
    if entry.xattrs:
        records += [(SCHILY + key, entry.xattrs[key]) for key in sorted(entry.xattrs)]
        for key in entry.xattrs:
            if b"=" in key or b"%" in key or b"\0" in key:
                raise LayerError(entry.path, f"the attribute {key!r} has a name that archives cannot say")
    before = _extended(entry, records) if records else b""
    return before + _block(
        name, entry.kind, entry.mode, uid, gid, size, min(seconds, _MAX_OCTAL[11]), link, entry.device, prefix
    )


def _split(name: bytes) -> tuple[bytes, bytes]:
    """A long name as prefix and rest where ustar can have it so, else nothing and its beginning."""
    if len(name) <= 256:
        at = name.find(b"/", len(name) - 101, -1)
        if 0 < at <= 155:
            return name[:at], name[at + 1 :]
    return b"", name[:100]


def _extended(entry: Entry, records: list[tuple[bytes, bytes]]) -> bytes:
    for key, value in records:
        if key in (b"path", b"linkpath"):
            try:
                value.decode()
            except UnicodeDecodeError:
                records.insert(0, (b"hdrcharset", b"BINARY"))  # else the names would have to be UTF-8
                break
    data = b"".join(_record(key, value) for key, value in records)
    if len(data) > MAX_PAX:
        raise LayerError(entry.path, f"names and attributes of {len(data)} bytes; the limit is {MAX_PAX}")
    name = b"PaxHeaders/" + (entry.path.rpartition(b"/")[2] or b".")[:80]
    return _block(name, "x", 0o644, 0, 0, len(data), 0, b"", (0, 0), b"") + data + padding(len(data))


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(b"%d" % rest)
    if len(b"%d" % length) + rest != length:
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _block(
    name: bytes,
    kind: str,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    seconds: int,
    link: bytes,
    device: tuple[int, int],
    prefix: bytes,
) -> bytes:
    largest = _MAX_OCTAL[7]
    before = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (
        name.ljust(100, b"\0"),
        mode,
        min(uid, largest),
        min(gid, largest),
        min(size, _MAX_OCTAL[11]),
        seconds,
    )
    after = b"%s%sustar\x0000%s%07o\0%07o\0%s" % (
        kind.encode(),
        link.ljust(100, b"\0"),
        bytes(64),
        *device,
        prefix.ljust(167, b"\0"),
    )
    return b"%s%06o\0 %s" % (before, sum(before) + sum(after) + 256, after)
