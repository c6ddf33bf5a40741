"""Places that files of a container are copied to: the caller's memory or directory, another container."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Protocol

from isolate.sandbox.containers.beneath import Opened
from isolate.sandbox.containers.copying import CHUNK, copy_sparse
from isolate.sandbox.containers.placing import DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from isolate.sandbox.containers.bounds import Bounds
    from isolate.sandbox.containers.placing import Placing

__all__ = ["Here", "Inside", "Memory", "Sink", "content"]


class Sink(Protocol):
    """One directory that is copied to. The calls answer under which name it is there; None: it is not."""

    def directory(self, name: bytes, status: os.stat_result) -> AbstractContextManager[tuple[Sink, str | None]]:
        """A directory in it, which gets its times at the end of the block."""
        raise NotImplementedError

    def file(self, name: bytes, path: bytes, source: int, status: os.stat_result, bounds: Bounds) -> str | None:
        """A regular file, read from a descriptor and counted. ``path`` is where it is in the container."""

    def link(self, name: bytes, path: bytes, to: bytes, status: os.stat_result) -> str | None:
        """A symbolic link."""


class Memory:
    """The contents by path."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    @contextlib.contextmanager
    def directory(self, name: bytes, status: os.stat_result) -> Iterator[tuple[Sink, str | None]]:
        """Nothing is kept of it."""
        yield self, None

    def file(self, name: bytes, path: bytes, source: int, status: os.stat_result, bounds: Bounds) -> str | None:
        """Keep its content."""
        self.contents["/" + os.fsdecode(path)] = content(source, path, bounds)
        return None

    def link(self, name: bytes, path: bytes, to: bytes, status: os.stat_result) -> str | None:
        """Nothing is kept of it."""
        return None


def content(source: int, path: bytes, bounds: Bounds) -> bytes:
    """The content of a file, which may become longer meanwhile."""
    found = bytearray()
    size = os.fstat(source).st_size
    bounds.some_bytes(size, path)  # one that is too large is refused before it is read
    bounds.size += size
    while data := os.read(source, CHUNK):
        bounds.some_bytes(len(data), path)
        found += data
    return bytes(found)


class Here:
    """A directory of the caller's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @contextlib.contextmanager
    def directory(self, name: bytes, status: os.stat_result) -> Iterator[tuple[Sink, str | None]]:
        """There may be one already."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=self._fd)
        with Opened(os.open(name, DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)) as fd:
            yield Here(fd), self._path(name)
            os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))

    def file(self, name: bytes, path: bytes, source: int, status: os.stat_result, bounds: Bounds) -> str | None:
        """A new file; holes stay holes. A sparse file counts as what it says it is."""
        bounds.some_bytes(status.st_size, path)
        mode = 0o755 if status.st_mode & 0o111 else 0o644
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with Opened(os.open(name, flags, mode, dir_fd=self._fd)) as target:
            copy_sparse(source, target, status.st_size, bounds)
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        return self._path(name)

    def link(self, name: bytes, path: bytes, to: bytes, status: os.stat_result) -> str | None:
        """No link is made: it might lead anywhere."""
        return None

    def _path(self, name: bytes) -> str:
        return os.path.join(os.readlink(f"/proc/self/fd/{self._fd}"), os.fsdecode(name))


class Inside:
    """A directory of a container."""

    def __init__(self, placing: Placing, fd: int, path: bytes, times: bool) -> None:
        self._placing = placing
        self._fd = fd
        self._path = path
        self._times = times

    def _below(self, name: bytes) -> bytes:
        return b"/".join(filter(None, (self._path, name)))

    @contextlib.contextmanager
    def directory(self, name: bytes, status: os.stat_result) -> Iterator[tuple[Sink, str | None]]:
        """There may be one already."""
        path = self._below(name)
        with Opened(self._placing.directory(self._fd, name, path)) as inner:
            yield Inside(self._placing, inner, path, self._times), f"/{os.fsdecode(path)}"
            times = (status.st_atime_ns, status.st_mtime_ns) if self._times else None
            self._placing.settle(inner, status.st_mode, times)

    def file(self, name: bytes, path: bytes, source: int, status: os.stat_result, bounds: Bounds) -> str | None:
        """In the place of whatever has its name; holes stay holes."""
        bounds.some_bytes(status.st_size, path)
        below = self._below(name)
        self._placing.file(
            self._fd,
            name,
            below,
            status.st_mode & 0o777,
            lambda to: copy_sparse(source, to, status.st_size, bounds),
            (status.st_mtime_ns, status.st_mtime_ns) if self._times else None,
        )
        return f"/{os.fsdecode(below)}"

    def link(self, name: bytes, path: bytes, to: bytes, status: os.stat_result) -> str | None:
        """As it is: it is followed by the programs of that container only."""
        below = self._below(name)
        self._placing.link(self._fd, name, below, to)
        return f"/{os.fsdecode(below)}"
