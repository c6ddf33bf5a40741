"""A disk that remembers every write: a FUSE file system of two files, ``disk`` and ``mark``, for a loop device.

    python recorder.py MOUNTPOINT DISK LOG

It serves until it is unmounted. LOG gets an entry for each write to the disk, each flush, and each write to ``mark``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITE, FLUSH, MARK, FORCED = range(4)  # FORCED: a write that is on the disk when it is done
_ENTRY = struct.Struct("<BQI")  # kind, offset, bytes that follow
_DIRECT = 1  # FOPEN_DIRECT_IO: a write of the loop device is a write here, at once
_NO_ANSWER = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET
_MOST = 1 << 17


def entries(path: str | os.PathLike[str]) -> Iterator[tuple[int, int, bytes]]:
    """(kind, offset, bytes) of each entry of a log."""
    with open(path, "rb") as file:
        while head := file.read(_ENTRY.size):
            kind, offset, size = _ENTRY.unpack(head)
            yield kind, offset, file.read(size)


class Server:
    """The few requests of fuse(4) that a loop device needs (include/uapi/linux/fuse.h)."""

    def __init__(self, disk: str, log: str) -> None:
        self.disk = os.open(disk, os.O_RDWR)
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, kind: int, offset: int = 0, data: bytes = b"") -> None:
        os.write(self.log, _ENTRY.pack(kind, offset, len(data)) + data)

    def attributes(self, node: int) -> bytes:
        size = os.fstat(self.disk).st_size if node == 2 else 0
        mode = 0o40755 if node == 1 else 0o100600
        return struct.pack("<6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def answer(self, code: int, node: int, body: bytes) -> bytes | int:
        """The body of an answer, or an errno."""
        if code == 26:  # INIT
            flags = 1 << 5 | 1 << 22  # big writes, max_pages
            return struct.pack("<4I2H2I2HI7I", 7, 31, 0, flags, 16, 12, _MOST, 1, _MOST // 4096, 0, 0, *[0] * 7)
        if code == 1:  # LOOKUP
            found = {b"disk": 2, b"mark": 3}.get(body.rstrip(b"\0"))
            return struct.pack("<4Q2I", found, 0, 9, 9, 0, 0) + self.attributes(found) if found else errno.ENOENT
        if code in (3, 4):  # GETATTR, SETATTR
            return struct.pack("<Q2I", 9, 0, 0) + self.attributes(node)
        if code in (14, 27):  # OPEN, OPENDIR
            return struct.pack("<Q2I", 0, _DIRECT, 0)
        if code == 15:  # READ
            _, offset, size = struct.unpack_from("<2QI", body)
            return os.pread(self.disk, size, offset)
        if code == 16:  # WRITE
            _, offset, size = struct.unpack_from("<2QI", body)
            data = body[40 : 40 + size]
            if node == 3:
                self.note(MARK, 0, data)
            else:
                os.pwrite(self.disk, data, offset)
                self.note(WRITE, offset, data)
            return struct.pack("<2I", size, 0)
        if code == 17:  # STATFS
            return struct.pack("<5Q4I6I", 0, 0, 0, 0, 0, 4096, 255, 4096, 0, *[0] * 6)
        if code == 20:  # FSYNC
            self.note(FLUSH)
            return b""
        return b"" if code in (18, 25, 29, 38) else errno.ENOSYS  # RELEASE, FLUSH of a close, RELEASEDIR, DESTROY

    def serve(self, fd: int) -> None:
        """Until it is unmounted."""
        while True:
            try:
                request = os.read(fd, _MOST + 8192)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue
                raise
            _, code, unique, node = struct.unpack_from("<2I2Q", request)
            if code in _NO_ANSWER:
                continue
            found = self.answer(code, node, request[40:])
            body, number = (b"", found) if isinstance(found, int) else (found, 0)
            os.write(fd, struct.pack("<IiQ", 16 + len(body), -number, unique) + body)


def main(place: str, disk: str, log: str) -> None:
    """Mount, say so, and serve."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"recorder", os.fsencode(place), b"fuse", 0, options):
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    Server(disk, log).serve(fd)


if __name__ == "__main__":
    main(*sys.argv[1:])
