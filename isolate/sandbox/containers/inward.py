"""``c.put``, ``c.write``: files into a container."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isolate.sandbox.containers.beneath import Doing, Opened, components, open_beneath
from isolate.sandbox.containers.bounds import Bounds, names_in
from isolate.sandbox.containers.copying import copy_sparse, write_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.sandbox.containers.acting import Actor

__all__ = ["Inward"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


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

        def body() -> None:
            with self._actor.acting(), Opened(self._parent(names[:-1], parents, doing)) as directory:
                whole = b"/".join(names)
                self._placed(directory, names[-1], whole, mode, doing, lambda fd: write_all(fd, data), mtime)

        self._actor.call(body)

    def _parent(self, names: list[bytes], make: bool, doing: Doing) -> int:
        fd = open_beneath(self._root, b"", _DIRECTORY)
        for index, name in enumerate(names):
            try:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, 0o755, dir_fd=fd)
                inner = open_beneath(fd, name, _DIRECTORY)
            except OSError as error:
                raise doing.told(error, b"/".join(names[: index + 1])) from None
            finally:
                os.close(fd)
            fd = inner
        return fd

    def _placed(
        self, directory: int, name: bytes, path: bytes, mode: int, doing: Doing, fill: Any, mtime: float | None
    ) -> None:
        """Under another name first: who looks finds the old file or the whole new one, and a link is replaced, not
        followed."""
        other = b".isolate-" + secrets.token_hex(8).encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(other, flags, 0o600, dir_fd=directory)
            try:
                with Opened(fd):
                    fill(fd)
                    os.fchmod(fd, mode)
                    if mtime is not None:
                        os.utime(fd, (mtime, mtime))
                os.rename(other, name, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(other, dir_fd=directory)
                raise
        except OSError as error:
            raise doing.told(error, path) from None

    def put(self, source: Any, target: object, times: bool, parents: bool, bounds: Bounds) -> None:
        """A file, a tree or a mapping."""
        names = components(target)
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
                    bounds.one_file(b"/".join(whole))
                    bounds.some_bytes(len(data), b"/".join(whole))
                    with self._actor.acting(), Opened(self._parent(whole[:-1], True, bounds)) as directory:
                        self._placed(
                            directory,
                            whole[-1],
                            b"/".join(whole),
                            0o644,
                            bounds,
                            lambda fd, data=data: write_all(fd, data),
                            None,
                        )

            self._actor.call(from_mapping)
            return

        def from_host() -> None:
            path = os.fsencode(source)
            found = os.stat(path)  # the caller's own: a link that was given is followed
            if not stat.S_ISDIR(found.st_mode):
                if not names:
                    raise ValueError("put: a file needs a name inside")
                with self._acting_parent(names[:-1], parents, bounds) as directory:
                    self._put_file(None, path, directory, names[-1], b"/".join(names), times, bounds)
                return
            with (
                Opened(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as host,
                self._acting_parent(names, parents, bounds) as directory,
            ):
                self._put_tree(host, directory, b"/".join(names), times, bounds, 1)

        self._actor.call(from_host)

    @contextlib.contextmanager
    def _acting_parent(self, names: list[bytes], parents: bool, bounds: Bounds) -> Iterator[int]:
        with self._actor.acting():
            fd = self._parent(names, parents, bounds)
        with Opened(fd):
            yield fd

    def _put_tree(self, host: int, directory: int, path: bytes, times: bool, bounds: Bounds, depth: int) -> None:
        bounds.deep(depth, path)
        for name in sorted(names_in(host, path, bounds)):
            below = b"/".join(filter(None, (path, name)))
            found = os.stat(name, dir_fd=host, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                with self._actor.acting():
                    try:
                        with contextlib.suppress(FileExistsError):
                            os.mkdir(name, 0o755, dir_fd=directory)
                        inner = open_beneath(directory, name, _DIRECTORY)
                    except OSError as error:
                        raise bounds.told(error, below) from None
                with Opened(inner), Opened(os.open(name, _DIRECTORY | os.O_CLOEXEC, dir_fd=host)) as source:
                    self._put_tree(source, inner, below, times, bounds, depth + 1)
                    with self._actor.acting(), contextlib.suppress(PermissionError):  # it was there, and is another's
                        os.fchmod(inner, found.st_mode & 0o777)
                        if times:
                            os.utime(inner, ns=(found.st_atime_ns, found.st_mtime_ns))
            elif stat.S_ISLNK(found.st_mode):
                to = os.readlink(name, dir_fd=host)
                with self._actor.acting():
                    try:
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(name, dir_fd=directory)
                        os.symlink(to, name, dir_fd=directory)
                    except OSError as error:
                        raise bounds.told(error, below) from None
            else:
                self._put_file(host, name, directory, name, below, times, bounds)

    def _put_file(
        self, host: int | None, source: bytes, directory: int, name: bytes, path: bytes, times: bool, bounds: Bounds
    ) -> None:
        opening = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if host is None else os.O_NOFOLLOW)
        found = os.stat(source, dir_fd=host, follow_symlinks=host is None)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"put: {os.fsdecode(source)!r} is no file, directory or symbolic link")
        with Opened(os.open(source, opening, dir_fd=host)) as fd:
            found = os.fstat(fd)
            bounds.some_bytes(found.st_size, path)
            with self._actor.acting():
                self._placed(
                    directory,
                    name,
                    path,
                    found.st_mode & 0o777,
                    bounds,
                    lambda to: copy_sparse(fd, to, found.st_size, bounds),
                    found.st_mtime if times else None,
                )
