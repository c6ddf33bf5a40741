"""``c.put``, ``c.get``, ``c.read``, ``c.write``, ``c.list``: files into a container and out of it.

Everything is done from the descriptor of the container's root, as the container's user, one name at a time or beneath
(openat2(2)): what the programs inside have made leads nowhere else, opens no device, and blocks nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from isolate.errors import SetupError
from isolate.kernel import checks
from isolate.sandbox.containers.beneath import (
    FileInfo,
    Opened,
    components,
    info_of,
    open_beneath,
    problem,
    reopen_regular,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.sandbox.containers.acting import Actor

__all__ = ["Bounds", "Files"]

_CHUNK = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@dataclass
class Bounds:
    """What is left of the caps of one call."""

    size: int
    files: int
    depth: int
    step: str
    #: time.monotonic() at which it is given up.
    deadline: float

    @classmethod
    def of(cls, step: str, max_size: int | str, max_files: int, max_depth: int, timeout: float) -> Bounds:
        """Checked."""
        for name, value in (("max_files", max_files), ("max_depth", max_depth)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int from 1 on, not {value!r}")
        return cls(checks.size("max_size", max_size), max_files, max_depth, step, time.monotonic() + timeout)

    def _over(self, number: int, cause: str, path: bytes) -> SetupError:
        return SetupError(number, self.step, part="Container", path=os.fsdecode(path), cause=cause)

    def one_file(self, path: bytes) -> None:
        """Count a file."""
        self.files -= 1
        if self.files < 0:
            raise self._over(errno.EMFILE, "there are more files than max_files", path)
        if time.monotonic() > self.deadline:
            raise self._over(errno.ETIMEDOUT, "it takes longer than timeout", path)

    def some_bytes(self, count: int, path: bytes) -> None:
        """Count bytes."""
        self.size -= count
        if self.size < 0:
            raise self._over(errno.EFBIG, "there are more bytes than max_size", path)
        if time.monotonic() > self.deadline:
            raise self._over(errno.ETIMEDOUT, "it takes longer than timeout", path)

    def deep(self, depth: int, path: bytes) -> None:
        """Look at a depth."""
        if depth > self.depth:
            raise self._over(errno.ENAMETOOLONG, "directories are deeper than max_depth", path)


class Files:
    """The files of one container."""

    def __init__(self, root: int, actor: Actor) -> None:
        self._root = root
        self._actor = actor

    # ---- reading -------------------------------------------------------------------------------------------------

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
            raise _told(error, bounds.step, path) from None
        return bytes(found)

    def listed(self, path: object, recursive: bool, bounds: Bounds) -> list[FileInfo]:
        """What is in a directory."""
        names = components(path)

        def body() -> list[FileInfo]:
            with self._actor.acting():
                base = b"/".join(names)
                try:
                    fd = open_beneath(self._root, base, _DIRECTORY)
                except OSError as error:
                    raise _told(error, bounds.step, base) from None
                with Opened(fd):
                    return [info_of(b"/" + p, s) for p, s, _, _ in self._walk(fd, base, bounds, recursive=recursive)]

        return self._actor.call(body)

    def _walk(
        self, directory: int, path: bytes, bounds: Bounds, *, recursive: bool = True, depth: int = 0
    ) -> Iterator[tuple[bytes, os.stat_result, int, bytes]]:
        """(path, status, directory, name) of all below, a directory before what is in it."""
        for name in sorted(self._names(directory, path, bounds)):
            below = b"/".join(filter(None, (path, name)))
            try:
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                continue  # it has gone meanwhile
            except OSError as error:
                raise _told(error, bounds.step, below) from None
            yield below, found, directory, name
            if recursive and stat.S_ISDIR(found.st_mode):
                bounds.deep(depth + 1, below)
                try:
                    fd = open_beneath(directory, name, _DIRECTORY)
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                        continue  # it was exchanged meanwhile
                    raise _told(error, bounds.step, below) from None
                with Opened(fd):
                    yield from self._walk(fd, below, bounds, depth=depth + 1)

    @staticmethod
    def _names(directory: int, path: bytes, bounds: Bounds) -> list[bytes]:
        """The names in a directory, of which there may be any number."""
        found = []
        with os.scandir(directory) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                bounds.one_file(b"/".join(filter(None, (path, name))))
                found.append(name)
        return found

    def get(self, pattern: object, into: int | None, bounds: Bounds) -> tuple[list[FileInfo], dict[str, bytes]]:
        """What matches a pattern, with what is below it, and the contents where ``into`` is None."""
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
                    raise _told(error, bounds.step, base) from None
            with Opened(fd):
                self._matching(fd, base, names[fixed:], into, bounds, found, contents)

        self._actor.call(body)
        if not found and names and not any(c in b"/".join(names) for c in b"*?["):
            raise _told(FileNotFoundError(errno.ENOENT, ""), bounds.step, b"/".join(names))
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
            present = sorted(self._names(fd, path, bounds))
        for name in present:
            hidden = name.startswith(b".") and not pattern.startswith(".")
            if hidden or not fnmatchcase(os.fsdecode(name), pattern):
                continue
            below = b"/".join(filter(None, (path, name)))
            with self._actor.acting():
                try:
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
            if len(names) == 1:
                self._fetch(fd, name, below, status, into, bounds, found, contents, 0)
            elif stat.S_ISDIR(status.st_mode):
                with self._directory(fd, name, below, bounds) as inner, _made(into, name, status) as (host, _):
                    if inner is not None:
                        self._matching(inner, below, names[1:], host, bounds, found, contents)

    @contextlib.contextmanager
    def _directory(self, fd: int, name: bytes, path: bytes, bounds: Bounds) -> Iterator[int | None]:
        with self._actor.acting():
            try:
                inner = open_beneath(fd, name, _DIRECTORY)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                    raise _told(error, bounds.step, path) from None
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
            names = sorted(self._names(fd, path, bounds))
        for name in names:
            below = b"/".join(filter(None, (path, name)))
            with self._actor.acting():
                try:
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
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
                raise _told(error, bounds.step, path) from None
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

    # ---- writing -------------------------------------------------------------------------------------------------

    def write(self, path: object, data: bytes, mode: int, mtime: float | None, parents: bool, step: str) -> None:
        """One regular file, in the place of whatever has its name."""
        names = components(path)
        if not names:
            raise ValueError(f"not a file inside the container: {path!r}")

        def body() -> None:
            with self._actor.acting(), Opened(self._parent(names[:-1], parents, step)) as directory:
                whole = b"/".join(names)
                self._placed(directory, names[-1], whole, mode, step, lambda fd: _write_all(fd, data), mtime)

        self._actor.call(body)

    def _parent(self, names: list[bytes], make: bool, step: str) -> int:
        fd = open_beneath(self._root, b"", _DIRECTORY)
        for index, name in enumerate(names):
            try:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, 0o755, dir_fd=fd)
                inner = open_beneath(fd, name, _DIRECTORY)
            except OSError as error:
                raise _told(error, step, b"/".join(names[: index + 1])) from None
            finally:
                os.close(fd)
            fd = inner
        return fd

    def _placed(
        self, directory: int, name: bytes, path: bytes, mode: int, step: str, fill: Any, mtime: float | None
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
            raise _told(error, step, path) from None

    def put(self, source: Any, target: object, times: bool, parents: bool, bounds: Bounds) -> None:
        """A file, a tree or a mapping."""
        names = components(target)
        if isinstance(source, Mapping):
            plain = {tuple(components(key)): value for key, value in source.items()}

            def from_mapping() -> None:
                for below, value in plain.items():
                    if not below or not isinstance(value, (str, bytes, bytearray)):
                        raise TypeError(f"put: a mapping of paths to str or bytes is wanted, not {below!r}: {value!r}")
                    data = value.encode() if isinstance(value, str) else bytes(value)
                    whole = [*names, *below]
                    bounds.one_file(b"/".join(whole))
                    bounds.some_bytes(len(data), b"/".join(whole))
                    with self._actor.acting(), Opened(self._parent(whole[:-1], True, bounds.step)) as directory:
                        self._placed(
                            directory,
                            whole[-1],
                            b"/".join(whole),
                            0o644,
                            bounds.step,
                            lambda fd, data=data: _write_all(fd, data),
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
            fd = self._parent(names, parents, bounds.step)
        with Opened(fd):
            yield fd

    def _put_tree(self, host: int, directory: int, path: bytes, times: bool, bounds: Bounds, depth: int) -> None:
        bounds.deep(depth, path)
        for name in sorted(self._names(host, path, bounds)):
            below = b"/".join(filter(None, (path, name)))
            found = os.stat(name, dir_fd=host, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                with self._actor.acting():
                    try:
                        with contextlib.suppress(FileExistsError):
                            os.mkdir(name, 0o755, dir_fd=directory)
                        inner = open_beneath(directory, name, _DIRECTORY)
                    except OSError as error:
                        raise _told(error, bounds.step, below) from None
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
                        raise _told(error, bounds.step, below) from None
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
                    bounds.step,
                    lambda to: copy_sparse(fd, to, found.st_size, bounds),
                    found.st_mtime if times else None,
                )


def _told(error: OSError, step: str, path: bytes) -> OSError:
    """The error with the step; what has it already stays as it is."""
    if isinstance(error, SetupError):
        return error
    told = problem(error, step, b"/" + path)
    if told.cause is None and error.strerror and error.errno == errno.EINVAL:
        return SetupError(errno.EINVAL, step, part="Container", path=told.path, cause=error.strerror)
    return told


def _write_all(fd: int, data: bytes) -> None:
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
            data = os.read(source, min(_CHUNK, end - start))
            if not data:
                end = size  # it has been cut meanwhile
                break
            _write_all(target, data)
            start += len(data)
        at = max(end, at + 1)
    os.ftruncate(target, size)


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
