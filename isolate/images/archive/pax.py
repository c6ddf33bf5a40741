"""Extended headers (pax(1), "pax Extended Header")."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from isolate.images.archive.numbers import pax_number, pax_time
from isolate.images.errors import LayerError

if TYPE_CHECKING:
    from isolate.images.archive.entry import Entry

__all__ = ["MAX_PAX", "MAX_XATTR", "MAX_XATTRS", "SCHILY", "check_global", "parse", "values"]

MAX_PAX = 1 << 20
MAX_XATTR = 1 << 16  # XATTR_SIZE_MAX
MAX_XATTRS = 1 << 20
SCHILY = b"SCHILY.xattr."
_LIBARCHIVE = b"LIBARCHIVE.xattr."


def parse(data: bytes, name: bytes) -> dict[bytes, bytes]:
    """The records of a header: ``length key=value\\n``, the last of a key counts.

    :raises LayerError: anything else.
    """
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 9)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise LayerError(name, "PAX: a record without its length")
        end = at + int(digits)
        equals = data.find(b"=", space, end)
        if end > len(data) or equals < 0 or data[end - 1] != 10 or equals <= space + 1:
            raise LayerError(name, "PAX: a record that is not 'length key=value'")
        key = data[space + 1 : equals]
        if b"\0" in key:
            raise LayerError(name, "PAX: a NUL in a keyword")
        records[key] = data[equals + 1 : end - 1]
        at = end
    return records


def check_global(records: dict[bytes, bytes], name: bytes) -> None:
    """Refuse a global header that says anything about entries: GNU tar applies it to all that follow, Go to none."""
    for key in records:
        if key not in (b"comment",):
            raise LayerError(name, f"PAX: a global header with {key!r}, which tools read differently")


def values(entry: Entry, records: dict[bytes, bytes]) -> None:
    """Put into an entry what its extended header says. Keywords of others that change nothing here are passed over.

    :raises LayerError: a value that is not in the format, or what is never taken from an archive.
    """
    path = records.get(b"path")
    if path is not None:
        entry.path = _name(path, entry.path, "path")
    name = entry.path
    for key, value in records.items():
        if key == b"path":
            continue
        if key == b"linkpath":
            entry.link = _name(value, name, "linkpath")
        elif key == b"size":
            entry.size = pax_number(value, name, "size")
        elif key == b"mtime":
            entry.mtime = pax_time(value, name, "mtime")
        elif key == b"uid":
            entry.uid = pax_number(value, name, "uid")
        elif key == b"gid":
            entry.gid = pax_number(value, name, "gid")
        elif key.startswith(SCHILY):
            if b"%3D" in key or b"%25" in key:
                raise LayerError(
                    name, f"an attribute with an escape in its name, which tools read differently: {key!r}"
                )
            _xattr(entry, key[len(SCHILY) :], value)
        elif key.startswith(_LIBARCHIVE):
            # bsdtar says each attribute twice; this spelling has the name in %-escapes and the value in base64.
            try:
                data = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
            except (binascii.Error, ValueError):
                raise LayerError(name, f"PAX: {key!r} is not in base64") from None
            _xattr(entry, _unescaped(key[len(_LIBARCHIVE) :], name), data)
        elif key.startswith(b"GNU.sparse.") or key in (b"SCHILY.realsize", b"SUN.holesdata"):
            raise LayerError(name, "a sparse file, which tools read differently")
        elif key == b"hdrcharset" and value not in (b"BINARY", b"ISO-IR 10646 2000 UTF-8"):
            raise LayerError(name, f"PAX: names in the character set {value[:40]!r}")
    if sum(map(len, entry.xattrs.values())) > MAX_XATTRS:
        raise LayerError(name, f"extended attributes of more than {MAX_XATTRS} bytes together")


def _unescaped(text: bytes, name: bytes) -> bytes:
    """Without the %-escapes that libarchive writes."""
    first, *rest = text.split(b"%")
    try:
        return first + b"".join(binascii.unhexlify(part[:2]) + part[2:] for part in rest)
    except ValueError:
        raise LayerError(name, f"PAX: {text!r} has an escape that is none") from None


def _name(value: bytes, name: bytes, what: str) -> bytes:
    if not value:
        raise LayerError(name, f"PAX: an empty {what}")
    return value


def _xattr(entry: Entry, key: bytes, value: bytes) -> None:
    name = entry.path
    if not key or len(key) > 255 or b"\0" in key or b"." not in key:
        raise LayerError(name, f"an extended attribute with the name {key[:64]!r}")
    if key.startswith((b"trusted.overlay.", b"user.overlay.")):
        raise LayerError(name, f"the attribute {key!r} is overlayfs's own: it would show another tree than was packed")
    if len(value) > MAX_XATTR:
        raise LayerError(name, f"the attribute {key!r} has {len(value)} bytes; the limit is {MAX_XATTR}")
    old = entry.xattrs.get(key)
    if old is not None and old != value:
        raise LayerError(name, f"two values for the attribute {key!r}")
    entry.xattrs[key] = value
