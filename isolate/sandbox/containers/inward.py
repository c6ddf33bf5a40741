"""``c.put``, ``c.write``: files into a container."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from isolate.sandbox.containers.beneath import Doing, Opened, components
from isolate.sandbox.containers.bounds import Bounds, names_in
from isolate.sandbox.containers.copying import copy_sparse, write_all
from isolate.sandbox.containers.placing import DIRECTORY, Placing

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolate.sandbox.containers.acting import Actor

__all__ = ["Inward"]

T = TypeVar("T")


class Inward:
    """Writing files of one container, whose root is an open directory."""

    def __init__(self, root: int, actor: Actor) -> None:
        self._root = root
        self._actor = actor

    def write(self, path: object, data: bytes, mode: int, mtime: float | None, parents: bool, doing: Doing) -> None:
        """One regular file, in the place of whatever has its name."""
        names = components(path)
        if not names:
            raise ValueError(f"not a file inside the container: {path!r}")
        times = None if mtime is None else (int(mtime * 1e9), int(mtime * 1e9))

        def body() -> None:
            placing = Placing(self._actor, doing)
            with Opened(placing.beneath(self._root, names[:-1], parents)) as directory:
                whole = b"/".join(names)
                placing.file(directory, names[-1], whole, mode, _filling(data), times)

        self._actor.call(body)

    def put(self, source: Any, target: object, times: bool, parents: bool, bounds: Bounds) -> None:
        """A file, a tree or a mapping."""
        names = components(target)
        placing = Placing(self._actor, bounds)
        if isinstance(source, Mapping):
            plain = {tuple(components(key)): value for key, value in source.items()}

            def from_mapping() -> None:
                for below, value in plain.items():
                    if not below or not isinstance(value, (str, bytes, bytearray)):
                        raise TypeError(
                            f"put: contents must be a mapping of paths to str or bytes, not {below!r}: {value!r}"
                        )
                    data = value.encode() if isinstance(value, str) else bytes(value)
                    whole = [*names, *below]
                    path = b"/".join(whole)
                    bounds.one_file(path)
                    bounds.some_bytes(len(data), path)
                    with Opened(placing.beneath(self._root, whole[:-1], True)) as directory:
                        placing.file(directory, whole[-1], path, 0o644, _filling(data), None)

            self._actor.call(from_mapping)
            return

        def from_host() -> None:
            path = os.fsencode(source)
            found = os.stat(path)  # the caller's own: a link that was given is followed
            if not stat.S_ISDIR(found.st_mode):
                if not names:
                    raise ValueError("put: a file needs a name inside")
                with Opened(placing.beneath(self._root, names[:-1], parents)) as directory:
                    _put_file(placing, None, path, directory, names[-1], b"/".join(names), times, bounds)
                return
            with (
                Opened(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as host,
                Opened(placing.beneath(self._root, names, parents)) as directory,
            ):
                _put_tree(placing, host, directory, b"/".join(names), times, bounds, 1)

        self._actor.call(from_host)

    def filled(self, target: object, parents: bool, bounds: Bounds, body: Callable[[Placing, int, bytes], T]) -> T:
        """Call something with what makes files, an open directory to make them in, and its path."""
        names = components(target)
        placing = Placing(self._actor, bounds)

        def called() -> T:
            with Opened(placing.beneath(self._root, names, parents)) as directory:
                return body(placing, directory, b"/".join(names))

        return self._actor.call(called)


def _filling(data: bytes) -> Callable[[int], None]:
    return lambda fd: write_all(fd, data)


def _put_tree(
    placing: Placing, host: int, directory: int, path: bytes, times: bool, bounds: Bounds, depth: int
) -> None:
    bounds.deep(depth, path)
    for name in sorted(names_in(host, path, bounds)):
        below = b"/".join(filter(None, (path, name)))
        found = os.stat(name, dir_fd=host, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            with (
                Opened(placing.directory(directory, name, below)) as inner,
                Opened(os.open(name, DIRECTORY | os.O_CLOEXEC, dir_fd=host)) as source,
            ):
                _put_tree(placing, source, inner, below, times, bounds, depth + 1)
                placing.settle(inner, found.st_mode, (found.st_atime_ns, found.st_mtime_ns) if times else None)
        elif stat.S_ISLNK(found.st_mode):
            placing.link(directory, name, below, os.readlink(name, dir_fd=host))
        else:
            _put_file(placing, host, name, directory, name, below, times, bounds)


def _put_file(
    placing: Placing,
    host: int | None,
    source: bytes,
    directory: int,
    name: bytes,
    path: bytes,
    times: bool,
    bounds: Bounds,
) -> None:
    opening = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if host is None else os.O_NOFOLLOW)
    found = os.stat(source, dir_fd=host, follow_symlinks=host is None)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"put: {os.fsdecode(source)!r} is no file, directory or symbolic link")
    with Opened(os.open(source, opening, dir_fd=host)) as fd:
        found = os.fstat(fd)
        bounds.some_bytes(found.st_size, path)
        placing.file(
            directory,
            name,
            path,
            found.st_mode & 0o777,
            lambda to: copy_sparse(fd, to, found.st_size, bounds),
            (found.st_mtime_ns, found.st_mtime_ns) if times else None,
        )
