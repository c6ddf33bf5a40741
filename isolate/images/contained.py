"""Tar archives into a container and out of it, as ``docker cp`` has them with ``-``.

Everything is made as the container's user, beneath a directory that is open; no link is followed, so whatever an
archive says stays inside.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from isolate.images.archive import entry as kinds
from isolate.images.archive.compression import PIECE, compression_of
from isolate.images.archive.entry import Entry
from isolate.images.archive.read import entries
from isolate.images.archive.source import Source
from isolate.images.archive.write import END, header
from isolate.images.errors import LayerError
from isolate.sandbox.containers.beneath import FileInfo, Opened
from isolate.sandbox.containers.copying import CHUNK, write_all
from isolate.sandbox.containers.with_files import bounds_of, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolate.sandbox.containers.bounds import Bounds
    from isolate.sandbox.containers.placing import Placing
    from isolate.sandbox.containers.sinks import Sink
    from isolate.sandbox.containers.with_files import WithFiles
    from isolate.sandbox.words import StrOrBytesPath

__all__ = ["get_archive", "put_archive"]

_KINDS = {
    kinds.FILE: "file",
    kinds.HARD_LINK: "file",
    kinds.DIRECTORY: "directory",
    kinds.SYMLINK: "symlink",
    kinds.FIFO: "fifo",
}
#: Bytes that an archive may have besides those of its files: headers, and what fills its last record.
_HEADERS = 8192
_RECORD = 1 << 20
_MAX_TIME = (1 << 36) * 1_000_000_000 - 1  # the latest that the reader takes


def get_archive(
    container: WithFiles,
    path: StrOrBytesPath,
    write: Callable[[bytes], object],
    *,
    max_size: int | str = "1G",
    max_files: int = 100_000,
    max_depth: int = 64,
    timeout: float = 600.0,
) -> list[FileInfo]:
    """Write a file or a tree of a container as a tar archive, in pieces: ``write`` is called with each.

    The names begin with the last one of ``path``; with ``/.`` at its end they are those in the directory. Symbolic
    links are in the archive as they are, and whoever unpacks it decides about them. Entries have no owners and no
    set-id bits. Sockets, FIFOs and devices are left out: their ``saved`` is None in what is returned.

    :raises SetupError: as :meth:`isolate.Container.get`. What was written until then is no whole archive.

    ::

        with open("out.tar", "wb") as file:
            get_archive(c, "/work/out", file.write)
    """
    bounds = bounds_of(container, "fetch files of", max_size, max_files, max_depth, timeout)
    found = opened(container).send(path, _Archive(write), _own_name(path), bounds)
    write(END)
    return found


def _own_name(path: StrOrBytesPath) -> bytes:
    data = os.fsencode(path)
    return b"" if data.endswith(b"/.") or data == b"." else data.rstrip(b"/").rpartition(b"/")[2]


def put_archive(
    container: WithFiles,
    read: Callable[[int], bytes],
    target: StrOrBytesPath = "/",
    *,
    times: bool = True,
    parents: bool = True,
    max_size: int | str = "1G",
    max_files: int = 100_000,
    max_depth: int = 64,
    timeout: float = 600.0,
) -> list[FileInfo]:
    """Unpack a tar archive below a directory of a container. ``read`` is called with a number of bytes, and gives as
    many at most; none at the end.

    By the rules of :meth:`isolate.Container.put`: everything belongs to the container's user, modes have no set-id
    bits, no link is followed, a file of the same name is replaced. Hard links are made to files below ``target``.
    FIFOs and devices are left out: their ``saved`` is None in what is returned.

    :raises LayerError: no tar archive, one that is compressed, cut off, or has names that lead out.
    :raises SetupError: as :meth:`isolate.Container.put`. What was unpacked until then stays.

    ::

        with open("in.tar", "rb") as file:
            put_archive(c, file.read, "/work")
    """
    bounds = bounds_of(container, "put files into", max_size, max_files, max_depth, timeout)
    return opened(container).filled(
        target, parents, bounds, lambda placing, top, path: _unpack(placing, top, path, read, times, bounds)
    )


class _Archive:
    """A directory in a tar archive that is written."""

    def __init__(self, write: Callable[[bytes], object], path: bytes = b"") -> None:
        self._write = write
        self._path = path

    def _entry(self, name: bytes, kind: str, status: os.stat_result, size: int = 0, link: bytes = b"") -> bytes:
        path = b"/".join(filter(None, (self._path, name)))
        time = min(max(status.st_mtime_ns, 0), _MAX_TIME)
        self._write(header(Entry(path, kind, mode=status.st_mode & 0o777, size=size, mtime=time, link=link)))
        return path

    @contextlib.contextmanager
    def directory(self, name: bytes, status: os.stat_result) -> Iterator[tuple[Sink, str | None]]:
        """Its entry stands before what is in it."""
        path = self._entry(name, kinds.DIRECTORY, status)
        yield _Archive(self._write, path), os.fsdecode(path)

    def file(self, name: bytes, path: bytes, source: int, status: os.stat_result, bounds: Bounds) -> str | None:
        """As many bytes as it had when it was opened: an archive says so before they come."""
        bounds.some_bytes(status.st_size, path)
        inside = self._entry(name, kinds.FILE, status, size=status.st_size)
        missing = status.st_size
        while missing:
            bounds.some_bytes(0, path)
            # If it has been cut meanwhile, the rest is zeros.
            data = os.read(source, min(CHUNK, missing)) or bytes(min(CHUNK, missing))
            self._write(data)
            missing -= len(data)
        self._write(bytes(-status.st_size % 512))
        return os.fsdecode(inside)

    def link(self, name: bytes, path: bytes, to: bytes, status: os.stat_result) -> str | None:
        """As it is: whoever unpacks the archive decides about it."""
        return os.fsdecode(self._entry(name, kinds.SYMLINK, status, link=to))


def _unpack(
    placing: Placing, top: int, path: bytes, read: Callable[[int], bytes], times: bool, bounds: Bounds
) -> list[FileInfo]:
    """Make every entry; those that are no file, directory or link are left. ``path`` is where ``top`` is."""
    source = Source(_pieces(read, bounds))
    unpacking = _Unpacking(placing, top, path, times, bounds)
    try:
        found = [unpacking.add(entry, source) for entry in entries(source) if entry.path]
        unpacking.finish()
    finally:
        unpacking.close()
    return found


def _pieces(read: Callable[[int], bytes], bounds: Bounds) -> Iterator[bytes]:
    left = bounds.size + _HEADERS * (bounds.files + 1) + _RECORD
    first = True
    while data := read(PIECE):
        if first and (form := compression_of(data)) != "none":
            program = {"gzip": "gunzip", "zstd": "unzstd"}[form]
            raise LayerError(b"", f"the archive is compressed by {form}: send it through {program} first")
        first = False
        left -= len(data)
        if left < 0:
            raise LayerError(b"", "the archive has more bytes than max_size and max_files leave room for")
        bounds.some_bytes(0, b"")
        yield data


class _Unpacking:
    def __init__(self, placing: Placing, top: int, path: bytes, times: bool, bounds: Bounds) -> None:
        self._placing = placing
        self._top = top
        self._path = path
        self._times = times
        self._bounds = bounds
        self._open: tuple[list[bytes], int] | None = None  # the directory of the last entry
        self._directories: list[tuple[list[bytes], Entry]] = []

    def close(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def _parent(self, names: list[bytes]) -> int:
        if self._open is None or self._open[0] != names:
            self.close()
            self._open = names, self._placing.beneath(self._top, names, True)
        return self._open[1]

    def add(self, entry: Entry, source: Source) -> FileInfo:
        """Make one."""
        names = entry.path.split(b"/")
        path = b"/".join(filter(None, (self._path, entry.path)))
        self._bounds.one_file(path)
        self._bounds.deep(len(names), path)
        self._bounds.some_bytes(entry.size, path)
        made = self._make(entry, names, path, source)
        return FileInfo(
            os.fsdecode(entry.path),
            _KINDS.get(entry.kind, "device"),
            entry.size,
            entry.mode,
            entry.mtime / 1e9,
            saved=f"/{os.fsdecode(path)}" if made else None,
        )

    def _make(self, entry: Entry, names: list[bytes], path: bytes, source: Source) -> bool:
        name = names[-1]
        if entry.kind == kinds.DIRECTORY:
            os.close(self._placing.directory(self._parent(names[:-1]), name, path))
            self._directories.append((names, entry))
        elif entry.kind == kinds.SYMLINK:
            self._placing.link(self._parent(names[:-1]), name, path, entry.link)
        elif entry.kind == kinds.HARD_LINK:
            self._placing.name(self._parent(names[:-1]), name, path, self._top, entry.link.split(b"/"))
        elif entry.kind == kinds.FILE:

            def fill(fd: int) -> None:
                for piece in source.pieces(entry.size, entry.path):
                    write_all(fd, piece)

            times = (entry.mtime, entry.mtime) if self._times else None
            self._placing.file(self._parent(names[:-1]), name, path, entry.mode & 0o777, fill, times)
        else:
            return False
        return True

    def finish(self) -> None:
        """The directories get their modes last: one may be closed to its own user."""
        for names, entry in reversed(self._directories):
            try:
                fd = self._placing.beneath(self._top, names, False)
            except OSError:
                continue  # a program inside has exchanged it meanwhile
            with Opened(fd):
                self._placing.settle(fd, entry.mode, (entry.mtime, entry.mtime) if self._times else None)
