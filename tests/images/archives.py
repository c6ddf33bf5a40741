"""Archives made by hand, byte by byte: also those that no tool writes."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def octal(value: int, width: int) -> bytes:
    """A number as headers have it."""
    return b"%0*o\0" % (width - 1, value)


def header(
    name: bytes,
    kind: bytes = b"0",
    size: int = 0,
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    major: int = 0,
    minor: int = 0,
    prefix: bytes = b"",
    raw: dict[int, bytes] | None = None,
    checksum: bytes | None = None,
) -> bytes:
    """512 bytes. ``raw`` overwrites bytes from an offset on, before the checksum is made."""
    block = bytearray(512)
    fields = (
        (0, name[:100]),
        (100, octal(mode, 8)),
        (108, octal(uid, 8)),
        (116, octal(gid, 8)),
        (124, octal(size, 12)),
        (136, octal(mtime, 12)),
        (156, kind),
        (157, link[:100]),
        (257, magic),
        (329, octal(major, 8)),
        (337, octal(minor, 8)),
        (345, prefix),
    )
    for at, data in fields:
        block[at : at + len(data)] = data
    for at, data in (raw or {}).items():
        block[at : at + len(data)] = data
    block[148:156] = b" " * 8
    block[148:156] = checksum if checksum is not None else b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    """Data up to a whole number of blocks."""
    return data + bytes(-len(data) % 512)


def record(key: bytes, value: bytes) -> bytes:
    """A record of an extended header."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return b"%d" % length + rest


def pax(records: dict[bytes, bytes], kind: bytes = b"x") -> bytes:
    """An extended header."""
    data = b"".join(record(key, value) for key, value in records.items())
    return header(b"pax", kind, len(data)) + padded(data)


class Maker:
    """An archive, entry by entry."""

    def __init__(self) -> None:
        self.data = b""

    def add(self, data: bytes) -> Maker:
        """Any bytes."""
        self.data += data
        return self

    def file(self, name: str | bytes, data: bytes = b"", **fields: int) -> Maker:
        """A regular file."""
        return self.add(header(encoded(name), b"0", len(data), **fields) + padded(data))  # type: ignore[arg-type]

    def directory(self, name: str | bytes, **fields: int) -> Maker:
        """A directory, 0755 unless said."""
        return self.add(header(encoded(name), b"5", **{"mode": 0o755, **fields}))  # type: ignore[arg-type]

    def symlink(self, name: str | bytes, target: str | bytes) -> Maker:
        """A symbolic link."""
        return self.add(header(encoded(name), b"2", link=encoded(target), mode=0o777))

    def link(self, name: str | bytes, target: str | bytes) -> Maker:
        """A hard link."""
        return self.add(header(encoded(name), b"1", link=encoded(target)))

    def device(self, name: str | bytes, major: int, minor: int, kind: bytes = b"3") -> Maker:
        """A device node."""
        return self.add(header(encoded(name), kind, major=major, minor=minor))

    def done(self) -> bytes:
        """With its end."""
        return self.data + bytes(1024)


def encoded(text: str | bytes) -> bytes:
    """As bytes."""
    return text if isinstance(text, bytes) else text.encode()


def tree_of(top: str | bytes, *, times: bool = True) -> dict[bytes, tuple[object, ...]]:
    """Everything that lstat, readlink, listxattr and the contents tell of a tree, by path: for comparing."""
    found: dict[bytes, tuple[object, ...]] = {}
    inodes: dict[tuple[int, int], bytes] = {}
    top = os.fsencode(top)
    todo = [b""]
    while todo:
        path = todo.pop()
        full = os.path.join(top, path)
        row = os.lstat(full)
        what: object = None
        if stat.S_ISDIR(row.st_mode):
            todo += [os.path.join(path, name) for name in os.listdir(full)]
        elif stat.S_ISLNK(row.st_mode):
            what = os.readlink(full)
        elif stat.S_ISREG(row.st_mode):
            with open(full, "rb") as file:
                what = file.read()
        if row.st_nlink > 1 and not stat.S_ISDIR(row.st_mode):
            inodes[row.st_dev, row.st_ino] = min(path, inodes.get((row.st_dev, row.st_ino), path))
        xattrs: dict[str, bytes] = {}
        if not stat.S_ISLNK(row.st_mode):
            with contextlib.suppress(OSError):
                xattrs = {name: os.getxattr(full, name) for name in os.listxattr(full)}
        mtime = row.st_mtime_ns if times and path else None
        found[path] = (
            row.st_mode if path else 0,
            row.st_uid,
            row.st_gid,
            row.st_rdev,
            mtime,
            what,
            xattrs,
            (row.st_dev, row.st_ino) if row.st_nlink > 1 and not stat.S_ISDIR(row.st_mode) else None,
        )
    return {
        path: (*rest, inodes[inode] if inode else None)  # type: ignore[index]
        for path, (*rest, inode) in found.items()
    }


_opened: list[int] = []


def opened(path: Path) -> int:
    """A directory's descriptor, until the end of the test."""
    path.mkdir(exist_ok=True)
    _opened.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
    return _opened[-1]


def close_all() -> None:
    """What was opened: other tests count descriptors, and have a limit of them."""
    while _opened:
        os.close(_opened.pop())
