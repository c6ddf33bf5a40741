"""``c.get``, ``c.read``, ``c.list``: files out of a container."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from isolate.sandbox.containers.beneath import FileInfo, Opened, components, info_of, open_beneath, reopen_regular
from isolate.sandbox.containers.bounds import Bounds, names_in
from isolate.sandbox.containers.copying import copy_sparse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.sandbox.containers.acting import Actor

__all__ = ["Outward"]

_CHUNK = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Outward:
    """Reading the files of one container, whose root is an open directory."""

    def __init__(self, root: int, actor: Actor) -> None:
        self._root = root
        self._actor = actor

    def read(self, path: object, bounds: Bounds) -> bytes:
        """The content of one regular file."""
        inside = b"/".join(components(path))

        def body() -> bytes:
            with self._actor.acting():
                return self._content(self._root, inside, inside, bounds)

        return self._actor.call(body)

    def _content(self, directory: int, name: bytes, path: bytes, bounds: Bounds) -> bytes:
        found = bytearray()
        try:
            with Opened(open_beneath(directory, name, os.O_PATH)) as handle, Opened(reopen_regular(handle)) as fd:
                bounds.some_bytes(os.fstat(fd).st_size, path)
                bounds.size += os.fstat(fd).st_size
                while data := os.read(fd, _CHUNK):
                    bounds.some_bytes(len(data), path)
                    found += data
        except OSError as error:
            raise bounds.told(error, path) from None
        return bytes(found)

    def listed(self, path: object, recursive: bool, bounds: Bounds) -> list[FileInfo]:
        """The contents of a directory."""
        names = components(path)

        def body() -> list[FileInfo]:
            with self._actor.acting():
                base = b"/".join(names)
                try:
                    fd = open_beneath(self._root, base, _DIRECTORY)
                except OSError as error:
                    raise bounds.told(error, base) from None
                with Opened(fd):
                    return [info_of(b"/" + p, s) for p, s, _, _ in self._walk(fd, base, bounds, recursive=recursive)]

        return self._actor.call(body)

    def _walk(
        self, directory: int, path: bytes, bounds: Bounds, *, recursive: bool = True, depth: int = 0
    ) -> Iterator[tuple[bytes, os.stat_result, int, bytes]]:
        """(path, status, directory, name) of all below, a directory before what is in it."""
        for name in sorted(names_in(directory, path, bounds)):
            below = b"/".join(filter(None, (path, name)))
            try:
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                continue  # it has gone meanwhile
            except OSError as error:
                raise bounds.told(error, below) from None
            yield below, found, directory, name
            if recursive and stat.S_ISDIR(found.st_mode):
                bounds.deep(depth + 1, below)
                try:
                    fd = open_beneath(directory, name, _DIRECTORY)
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                        continue  # it was exchanged meanwhile
                    raise bounds.told(error, below) from None
                with Opened(fd):
                    yield from self._walk(fd, below, bounds, depth=depth + 1)

    def get(self, pattern: object, into: int | None, bounds: Bounds) -> tuple[list[FileInfo], dict[str, bytes]]:
        """The matches of a pattern with everything below them, and the contents if ``into`` is None."""
        names = components(pattern)
        fixed = 0
        while fixed < len(names) and not any(c in names[fixed] for c in b"*?["):
            fixed += 1
        if fixed == len(names) and fixed:
            fixed -= 1  # one file, or a tree: itself is what is fetched
        base = b"/".join(names[:fixed])
        found: list[FileInfo] = []
        contents: dict[str, bytes] = {}

        def body() -> None:
            with self._actor.acting():
                try:
                    fd = open_beneath(self._root, base, _DIRECTORY)
                except OSError as error:
                    raise bounds.told(error, base) from None
            with Opened(fd):
                self._matching(fd, base, names[fixed:], into, bounds, found, contents)

        self._actor.call(body)
        if not found and names and not any(c in b"/".join(names) for c in b"*?["):
            raise bounds.told(FileNotFoundError(errno.ENOENT, ""), b"/".join(names))
        return found, contents

    def _matching(
        self,
        fd: int,
        path: bytes,
        names: list[bytes],
        into: int | None,
        bounds: Bounds,
        found: list[FileInfo],
        contents: dict[str, bytes],
    ) -> None:
        if not names:
            self._fetch_below(fd, path, into, bounds, found, contents, 0)
            return
        pattern = os.fsdecode(names[0])
        with self._actor.acting():
            present = sorted(names_in(fd, path, bounds))
        for name in present:
            hidden = name.startswith(b".") and not pattern.startswith(".")
            if hidden or not fnmatchcase(os.fsdecode(name), pattern):
                continue
            below = b"/".join(filter(None, (path, name)))
            status = self._status(fd, name)
            if status is None:
                continue
            if len(names) == 1:
                self._fetch(fd, name, below, status, into, bounds, found, contents, 0)
            elif stat.S_ISDIR(status.st_mode):
                with self._directory(fd, name, below, bounds) as inner, _made(into, name, status) as (host, _):
                    if inner is not None:
                        self._matching(inner, below, names[1:], host, bounds, found, contents)

    def _status(self, fd: int, name: bytes) -> os.stat_result | None:
        """The status of a name in a directory; None if it has gone meanwhile."""
        with self._actor.acting():
            try:
                return os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                return None

    @contextlib.contextmanager
    def _directory(self, fd: int, name: bytes, path: bytes, bounds: Bounds) -> Iterator[int | None]:
        with self._actor.acting():
            try:
                inner = open_beneath(fd, name, _DIRECTORY)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                    raise bounds.told(error, path) from None
                inner = -1
        if inner < 0:
            yield None  # it was exchanged meanwhile
            return
        with Opened(inner):
            yield inner

    def _fetch_below(
        self,
        fd: int,
        path: bytes,
        into: int | None,
        bounds: Bounds,
        found: list[FileInfo],
        contents: dict[str, bytes],
        depth: int,
    ) -> None:
        bounds.deep(depth, path)
        with self._actor.acting():
            names = sorted(names_in(fd, path, bounds))
        for name in names:
            below = b"/".join(filter(None, (path, name)))
            status = self._status(fd, name)
            if status is not None:
                self._fetch(fd, name, below, status, into, bounds, found, contents, depth)

    def _fetch(
        self,
        fd: int,
        name: bytes,
        path: bytes,
        status: os.stat_result,
        into: int | None,
        bounds: Bounds,
        found: list[FileInfo],
        contents: dict[str, bytes],
        depth: int,
    ) -> None:
        if stat.S_ISDIR(status.st_mode):
            with self._directory(fd, name, path, bounds) as inner, _made(into, name, status) as (host, saved):
                if inner is not None:
                    found.append(info_of(b"/" + path, status, saved))
                    self._fetch_below(inner, path, host, bounds, found, contents, depth + 1)
            return
        if not stat.S_ISREG(status.st_mode):
            found.append(info_of(b"/" + path, status))
            return
        if into is None:
            with self._actor.acting():
                contents["/" + os.fsdecode(path)] = self._content(fd, name, path, bounds)
            found.append(info_of(b"/" + path, status))
            return
        with self._actor.acting():
            try:
                with Opened(open_beneath(fd, name, os.O_PATH)) as handle:
                    source = reopen_regular(handle)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINVAL):
                    return  # it was exchanged meanwhile
                raise bounds.told(error, path) from None
        with Opened(source):
            status = os.fstat(source)
            bounds.some_bytes(status.st_size, path)  # a sparse file counts as what it says it is
            mode = 0o755 if status.st_mode & 0o111 else 0o644
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            target = os.open(name, flags, mode, dir_fd=into)
            with Opened(target):
                copy_sparse(source, target, status.st_size, bounds)
                os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        found.append(info_of(b"/" + path, status, _host_path(into, name)))


@contextlib.contextmanager
def _made(into: int | None, name: bytes, status: os.stat_result) -> Iterator[tuple[int | None, str | None]]:
    """A directory of the host for one that is fetched; there may be one of ours already."""
    if into is None:
        yield None, None
        return
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=into)
    with Opened(os.open(name, _DIRECTORY | os.O_CLOEXEC, dir_fd=into)) as fd:
        yield fd, _host_path(into, name)
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))


def _host_path(into: int, name: bytes) -> str:
    return os.path.join(os.readlink(f"/proc/self/fd/{into}"), os.fsdecode(name))
