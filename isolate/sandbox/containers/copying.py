"""Bytes from one descriptor to another."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isolate.sandbox.containers.bounds import Bounds

__all__ = ["CHUNK", "copy_sparse", "write_all"]

CHUNK: int = 1 << 20


def write_all(fd: int, data: bytes | memoryview) -> None:
    """All of the bytes, however many write(2) takes at once."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def copy_sparse(source: int, target: int, size: int, bounds: Bounds) -> None:
    """Copy at most ``size`` bytes, holes as holes (lseek(2), SEEK_DATA)."""
    at = 0
    while at < size:
        try:
            start = os.lseek(source, at, os.SEEK_DATA)
            end = os.lseek(source, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # a hole up to the end
            start, end = at, size  # a file system that knows no holes
        end = min(end, size)
        os.lseek(source, start, os.SEEK_SET)
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            bounds.some_bytes(0, b"")
            data = os.read(source, min(CHUNK, end - start))
            if not data:
                end = size  # it has been cut meanwhile
                break
            write_all(target, data)
            start += len(data)
        at = max(end, at + 1)
    os.ftruncate(target, size)
