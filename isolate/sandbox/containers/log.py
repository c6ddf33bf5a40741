"""A bounded log in two files: when one is full, it takes the place of the one before."""

from __future__ import annotations

import contextlib
import os
import stat
import threading

__all__ = ["Log", "read_log"]


class Log:
    """The output of a detached container's programs: the last ``size`` bytes at most."""

    def __init__(self, directory: int, size: int) -> None:
        self._directory = directory
        self._half = max(size // 2, 1)
        self._lock = threading.Lock()
        self._closed = False
        self._file = self._open()
        self._written = 0

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO of that name keeps nobody waiting
        return os.open("log", flags, 0o600, dir_fd=self._directory)

    def write(self, data: bytes) -> None:
        """Append. What cannot be written (a full disk) is lost, and the program that wrote it goes on."""
        with self._lock, contextlib.suppress(OSError):
            while data and not self._closed:
                if self._file < 0:
                    self._file, self._written = self._open(), 0
                if self._written >= self._half:
                    os.rename("log", "log.1", src_dir_fd=self._directory, dst_dir_fd=self._directory)
                    # First forgotten: if no other one can be opened, the number may soon be another file's.
                    full, self._file = self._file, -1
                    os.close(full)
                    continue
                count = os.write(self._file, data[: self._half - self._written])
                self._written += count
                data = data[count:]

    def close(self) -> None:
        """Nothing is written any more."""
        with self._lock:
            self._closed = True
            if self._file >= 0:
                os.close(self._file)
            self._file = -1


def read_log(directory: int) -> bytes:
    """All that is kept."""
    found = b""
    for name in ("log.1", "log"):
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
            with open(fd, "rb") as file:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    found += file.read()
    return found
