"""Entries of an archive: ustar, PAX and GNU's long names; everything that two tools might read apart is refused.

Formats: pax(1) of POSIX.1-2008, "tar Interchange Format"; GNU tar's manual, "Basic Tar Format".
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from isolate.images.archive import entry as kinds
from isolate.images.archive.entry import Entry
from isolate.images.archive.names import MAX_PATH, link_target, path_of
from isolate.images.archive.numbers import MAX_ID, field
from isolate.images.archive.pax import MAX_PAX, check_global, parse, values
from isolate.images.errors import LayerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.images.archive.source import Source

__all__ = ["entries"]

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_ZEROS = bytes(512)
_MAX_TIME = 1 << 36  # seconds: the year 4147; file systems end earlier (ext4 in 2446) or later
_TYPES = {
    b"\0": kinds.FILE,
    b"0": kinds.FILE,
    b"1": kinds.HARD_LINK,
    b"2": kinds.SYMLINK,
    b"3": kinds.CHARACTER_DEVICE,
    b"4": kinds.BLOCK_DEVICE,
    b"5": kinds.DIRECTORY,
    b"6": kinds.FIFO,
}
_OTHERS = {
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ\0": "compressed by xz",
    b"\x1f\x8b": "compressed by gzip once more",
    b"\x28\xb5\x2f\xfd": "compressed by zstd once more",
    b"\x04\x22\x4d\x18": "compressed by lz4",
    b"PK\x03\x04": "a zip archive",
    b"07070": "a cpio archive",
    b"!<arch>\n": "an ar archive, as Debian's packages are",
    b"\xed\xab\xee\xdb": "an RPM package",
    b"hsqs": "a squashfs image",
}
_REFUSED = {
    b"S": "a sparse file, which tools read differently",
    b"7": "a contiguous file, which tools read differently",
    b"D": "a directory listing of an incremental archive",
    b"M": "a part of a file that began in another archive",
    b"V": "a volume label",
    b"N": "a list of long names in GNU's oldest form",
}


def entries(source: Source, *, ended: bool = True) -> Iterator[Entry]:
    """The entries in order. The bytes of a file stand at the source's place while its entry is held, and have to be
    taken (:meth:`Source.pieces`), all of them, before the next entry is asked for; the padding is the reader's.

    ``ended=False`` takes an archive without the two blocks of zeros at its end: for bytes whose digest is known.

    :raises LayerError: an entry that is not in the formats, or that tools would read differently.
    """
    small: dict[bytes, int] = {}  # numbers of short fields seen before: most archives have few of them
    extended: dict[bytes, bytes] = {}
    seen = False  # an extended header waits for its entry
    long_name: bytes | None = None
    long_link: bytes | None = None
    while True:
        block = source.block()
        if block == _ZEROS:
            if seen or long_name is not None or long_link is not None:
                raise LayerError(b"", "an extended header without an entry behind it")
            return _end(source)
        if len(block) < 512:
            if block and source.count < 512:
                raise _none(block)
            if seen or long_name is not None or long_link is not None or block:
                raise LayerError(b"", "the archive is cut off within a header")
            if ended:
                raise LayerError(b"", "the archive is cut off: the two blocks of zeros at its end are missing")
            return
        name, mode, uid, gid, size, mtime, checksum, flag, link, magic, _, _, _, major, minor, prefix = _HEADER.unpack(
            block
        )
        raw = name.partition(b"\0")[0]
        if not _is_header(block, checksum):
            # Its name is not told: these bytes can be anything.
            if source.count == 512:
                raise _none(block)
            raise LayerError(b"", f"the checksum of the header at byte {source.count - 512} is wrong")
        length = field(size, raw, "size")
        if flag in b"xgLKX":
            data = _extension(source, length, flag, raw)
            if flag == b"x":
                if seen:
                    raise LayerError(raw, "two extended headers for one entry")
                extended, seen = parse(data, raw), True
            elif flag == b"g":
                check_global(parse(data, raw), raw)
            elif flag == b"L":
                long_name = _once(long_name, data, raw)
            elif flag == b"K":
                long_link = _once(long_link, data, raw)
            else:
                raise LayerError(raw, "an extended header in Sun's form, which tools read differently")
            continue
        if magic == b"ustar\0":
            prefix = prefix[:131] if block[508:] == b"tar\0" else prefix
            before = prefix.partition(b"\0")[0]
            if before:
                raw = before + b"/" + raw
        if long_name is not None:
            raw = long_name
        target = link.partition(b"\0")[0] if long_link is None else long_link
        kind = _TYPES.get(flag)
        if kind is None:
            rule = _REFUSED.get(flag, f"an entry of unknown type {flag!r}")
            raise LayerError(raw, rule)
        numbers = []
        for data, what in ((mode, "mode"), (uid, "uid"), (gid, "gid")):
            number = small.get(data)
            if number is None:
                number = small[data] = field(data, raw, what)
            numbers.append(number)
        entry = Entry(raw, kind, mode=numbers[0] & 0o7777, uid=numbers[1], gid=numbers[2], size=length, link=target)
        entry.mtime = field(mtime, raw, "time") * 1_000_000_000
        if seen:
            if (long_name is not None and b"path" in extended) or (long_link is not None and b"linkpath" in extended):
                raise LayerError(raw, "two long names for one entry, of which tools take one or the other")
            values(entry, extended)
            extended, seen = {}, False
        long_name = long_link = None
        if kind in "34":
            entry.device = field(major, raw, "major number"), field(minor, raw, "minor number")
        _settle(entry, flag)
        yield entry
        padding = -entry.size % 512
        if padding and len(source.take(padding)) < padding:
            raise LayerError(entry.path, "the archive is cut off within a file")


def _is_header(block: bytes, checksum: bytes) -> bool:
    try:
        stored = field(checksum, b"", "checksum")
    except LayerError:
        return False
    hole = 256 - sum(checksum)  # the field itself counts as eight spaces
    if sum(block) + hole == stored:
        return True
    # Some old programs summed signed bytes; every reader takes that too.
    return sum(b - 256 if b > 127 else b for b in block[:148] + block[156:]) + 256 == stored


def _none(block: bytes) -> LayerError:
    """The error about bytes that do not begin like an archive."""
    for magic, form in _OTHERS.items():
        if block.startswith(magic):
            return LayerError(b"", f"no tar archive: it is {form}")
    if len(block) < 512:
        return LayerError(b"", f"no tar archive: it has {len(block)} bytes, less than one header")
    return LayerError(b"", "no tar archive: its first 512 bytes are no header (their checksum is wrong)")


def _extension(source: Source, length: int, flag: bytes, raw: bytes) -> bytes:
    limit = MAX_PAX if flag in b"xgX" else MAX_PATH + 1
    if length > limit:
        raise LayerError(raw, f"an extended header of {length} bytes; the limit is {limit}")
    whole = length + -length % 512
    data = source.take(whole)
    if len(data) < whole:
        raise LayerError(raw, "the archive is cut off within a header")
    return data[:length]


def _once(old: bytes | None, data: bytes, raw: bytes) -> bytes:
    if old is not None:
        raise LayerError(raw, "two long names for one entry")
    text, _, rest = data.partition(b"\0")
    if rest.strip(b"\0"):
        raise LayerError(text, "a NUL in a long name")
    return text


def _settle(entry: Entry, flag: bytes) -> None:
    """The path in its one form, and what contradicts itself refused."""
    raw, kind = entry.path, entry.kind
    path = path_of(raw)
    if kind == kinds.FILE and raw[-1:] == b"/":
        if flag != b"\0":
            raise LayerError(raw, "a file with a slash behind its name, which is a directory to some tools")
        kind = entry.kind = kinds.DIRECTORY  # as archives older than ustar have them
    entry.path = path
    if not path and kind != kinds.DIRECTORY:
        raise LayerError(raw, "the top of the tree is not a directory")
    if entry.size and kind != kinds.FILE:
        raise LayerError(raw, "something else than a file with bytes of its own, which tools read differently")
    if kind == kinds.SYMLINK:
        link_target(path, entry.link)
    elif kind == kinds.HARD_LINK:
        entry.link = path_of(entry.link, "target of a hard link")
    else:
        entry.link = b""
    if entry.uid > MAX_ID or entry.gid > MAX_ID:
        raise LayerError(path, f"an owner beyond {MAX_ID}: {entry.uid}:{entry.gid}")
    if entry.mtime >= _MAX_TIME * 1_000_000_000:
        raise LayerError(path, "a time beyond the year 4147")
    if entry.device != (0, 0) and (entry.device[0] >= 1 << 12 or entry.device[1] >= 1 << 20):
        raise LayerError(path, f"a device that the kernel has no number for: {entry.device}")


def _end(source: Source) -> None:
    if source.block() != _ZEROS:
        raise LayerError(b"", "one block of zeros where the archive should end with two")
    zeros = b""
    for piece in source.rest():
        if len(zeros) != len(piece):
            zeros = bytes(len(piece))
        if piece != zeros:
            raise LayerError(b"", "bytes behind the end of the archive")
