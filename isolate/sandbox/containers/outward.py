"""``c.get``, ``c.read``, ``c.list``, ``c.get_archive``: files out of a container."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from isolate.sandbox.containers.beneath import FileInfo, Opened, components, info_of, open_beneath, reopen_regular
from isolate.sandbox.containers.bounds import Bounds, names_in
from isolate.sandbox.containers.placing import DIRECTORY
from isolate.sandbox.containers.sinks import content

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.sandbox.containers.acting import Actor
    from isolate.sandbox.containers.sinks import Sink

__all__ = ["Outward"]


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
                try:
                    handle = open_beneath(self._root, inside, os.O_PATH)
                    with Opened(handle), Opened(reopen_regular(handle)) as fd:
                        return content(fd, inside, bounds)
                except OSError as error:
                    raise bounds.told(error, inside) from None

        return self._actor.call(body)

    def listed(self, path: object, recursive: bool, bounds: Bounds) -> list[FileInfo]:
        """The contents of a directory."""
        names = components(path)

        def body() -> list[FileInfo]:
            with self._actor.acting():
                base = b"/".join(names)
                try:
                    fd = open_beneath(self._root, base, DIRECTORY)
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
                    fd = open_beneath(directory, name, DIRECTORY)
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                        continue  # it was exchanged meanwhile
                    raise bounds.told(error, below) from None
                with Opened(fd):
                    yield from self._walk(fd, below, bounds, depth=depth + 1)

    def get(self, pattern: object, sink: Sink, bounds: Bounds) -> list[FileInfo]:
        """Copy the matches of a pattern with everything below them."""
        names = components(pattern)
        fixed = 0
        while fixed < len(names) and not any(c in names[fixed] for c in b"*?["):
            fixed += 1
        if fixed == len(names) and fixed:
            fixed -= 1  # one file, or a tree: itself is what is fetched
        base = b"/".join(names[:fixed])
        found: list[FileInfo] = []

        def body() -> None:
            with self._top(base, bounds) as fd:
                self._matching(fd, base, names[fixed:], sink, bounds, found)

        self._actor.call(body)
        if not found and names and not any(c in b"/".join(names) for c in b"*?["):
            raise bounds.told(FileNotFoundError(errno.ENOENT, ""), b"/".join(names))
        return found

    def is_directory(self, names: list[bytes], bounds: Bounds) -> bool:
        """Whether it is one, and not something else.

        :raises SetupError: ENOENT, ELOOP, EACCES.
        """

        def body() -> bool:
            with self._actor.acting():
                try:
                    with Opened(open_beneath(self._root, b"/".join(names[:-1]), DIRECTORY)) as fd:
                        name = names[-1] if names else b"."
                        return stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
                except OSError as error:
                    raise bounds.told(error, b"/".join(names)) from None

        return self._actor.call(body)

    def send(self, path: object, sink: Sink, name: bytes, bounds: Bounds) -> list[FileInfo]:
        """Copy a file or a tree under a name; without one what is in the directory."""
        names = components(path)
        found: list[FileInfo] = []

        def body() -> None:
            whole = b"/".join(names)
            if not name:
                with self._top(whole, bounds) as fd:
                    self._fetch_below(fd, whole, sink, bounds, found, 0)
                return
            with self._top(b"/".join(names[:-1]), bounds) as fd:
                last = names[-1] if names else b"."
                status = self._status(fd, last)
                if status is None:
                    raise bounds.told(FileNotFoundError(errno.ENOENT, ""), whole)
                self._fetch(fd, last, whole, status, sink, bounds, found, 0, name)

        self._actor.call(body)
        return found

    @contextlib.contextmanager
    def _top(self, path: bytes, bounds: Bounds) -> Iterator[int]:
        with self._actor.acting():
            try:
                fd = open_beneath(self._root, path, DIRECTORY)
            except OSError as error:
                raise bounds.told(error, path) from None
        with Opened(fd):
            yield fd

    def _matching(
        self, fd: int, path: bytes, names: list[bytes], sink: Sink, bounds: Bounds, found: list[FileInfo]
    ) -> None:
        if not names:
            self._fetch_below(fd, path, sink, bounds, found, 0)
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
                self._fetch(fd, name, below, status, sink, bounds, found, 0)
            elif stat.S_ISDIR(status.st_mode):
                with self._directory(fd, name, below, bounds) as inner, sink.directory(name, status) as (inner_sink, _):
                    if inner is not None:
                        self._matching(inner, below, names[1:], inner_sink, bounds, found)

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
                inner = open_beneath(fd, name, DIRECTORY)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                    raise bounds.told(error, path) from None
                inner = -1
        if inner < 0:
            yield None  # it was exchanged meanwhile
            return
        with Opened(inner):
            yield inner

    def _fetch_below(self, fd: int, path: bytes, sink: Sink, bounds: Bounds, found: list[FileInfo], depth: int) -> None:
        bounds.deep(depth, path)
        with self._actor.acting():
            names = sorted(names_in(fd, path, bounds))
        for name in names:
            below = b"/".join(filter(None, (path, name)))
            status = self._status(fd, name)
            if status is not None:
                self._fetch(fd, name, below, status, sink, bounds, found, depth)

    def _fetch(
        self,
        fd: int,
        name: bytes,
        path: bytes,
        status: os.stat_result,
        sink: Sink,
        bounds: Bounds,
        found: list[FileInfo],
        depth: int,
        called: bytes | None = None,
    ) -> None:
        called = name if called is None else called
        if stat.S_ISDIR(status.st_mode):
            with self._directory(fd, name, path, bounds) as inner, sink.directory(called, status) as (below, saved):
                if inner is not None:
                    found.append(info_of(b"/" + path, status, saved))
                    self._fetch_below(inner, path, below, bounds, found, depth + 1)
            return
        saved = None
        if stat.S_ISLNK(status.st_mode):
            with self._actor.acting():
                try:
                    to = os.readlink(name, dir_fd=fd)
                except OSError:
                    return  # it was exchanged meanwhile
            saved = sink.link(called, path, to, status)
        elif stat.S_ISREG(status.st_mode):
            source = self._source(fd, name, path, bounds)
            if source is None:
                return
            with Opened(source):
                status = os.fstat(source)
                saved = sink.file(called, path, source, status, bounds)
        found.append(info_of(b"/" + path, status, saved))

    def _source(self, fd: int, name: bytes, path: bytes, bounds: Bounds) -> int | None:
        with self._actor.acting():
            try:
                with Opened(open_beneath(fd, name, os.O_PATH)) as handle:
                    return reopen_regular(handle)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINVAL, errno.ELOOP):
                    return None  # it was exchanged meanwhile
                raise bounds.told(error, path) from None
