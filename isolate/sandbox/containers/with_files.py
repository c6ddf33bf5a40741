"""The verbs of a container about files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, overload

from isolate.kernel.checks import is_int
from isolate.sandbox.containers.beneath import Doing, components
from isolate.sandbox.containers.bounds import Bounds
from isolate.sandbox.containers.sinks import Here, Inside, Memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolate.sandbox.containers.beneath import FileInfo
    from isolate.sandbox.containers.files import Files
    from isolate.sandbox.words import StrOrBytesPath

__all__ = ["WithFiles", "bounds_of", "opened"]

_MODE = 0o644


class WithFiles:
    """Files into a container and out of it.

    Everything is done as the container's user: what a program inside may not do is not done here, and the caller's
    rights over files (root's) are put aside. Paths are from the container's root. No symbolic link is followed
    anywhere, no FIFO, socket or device is opened, and a call ends within its caps and its ``timeout``.
    """

    __slots__ = ()

    #: As errors name it.
    _PART: ClassVar[str] = "Container"

    def _doing(self, what: str) -> Doing:
        return Doing(f"{what} the {self._PART.lower()}", self._PART)

    @property
    def _files(self) -> Files:
        raise NotImplementedError

    def read(self, path: StrOrBytesPath, *, max_size: int | str = "64M", timeout: float = 60.0) -> bytes:
        """The content of a regular file.

        :raises SetupError: ENOENT; ELOOP: a symbolic link is on the way; EINVAL: a FIFO, a device, a directory; EFBIG:
            more than ``max_size``; EACCES: the container's user may not read it.
        """
        return self._files.read(path, Bounds.of(self._doing("read a file of"), max_size, timeout=timeout))

    def write(
        self,
        path: StrOrBytesPath,
        data: str | bytes,
        *,
        mode: int = _MODE,
        mtime: float | None = None,
        parents: bool = False,
    ) -> None:
        """Write a file, whole, in the place of whatever has its name: a link or a FIFO is replaced, never written to,
        and another name of a file keeps the old content.

        ``mode`` has no set-id bits. ``parents`` makes the directories on the way.

        :raises SetupError: ELOOP: a symbolic link is on the way; EISDIR, EACCES, EROFS, ENOSPC.
        """
        if not is_int(mode) or not 0 <= mode <= 0o1777:
            raise ValueError(f"mode must be from 0 to 0o1777, without set-id bits, not {mode!r}")
        content = data.encode() if isinstance(data, str) else bytes(data)
        self._files.write(path, content, mode, mtime, parents, self._doing("write a file of"))

    def put(
        self,
        source: StrOrBytesPath | Mapping[str, str | bytes],
        target: StrOrBytesPath = "/",
        *,
        times: bool = True,
        parents: bool = True,
        max_size: int | str = "1G",
        max_files: int = 100_000,
        max_depth: int = 64,
        timeout: float = 600.0,
    ) -> None:
        """Copy a file to ``target``, or the contents of a directory into it, or a mapping of paths to contents.

        Modes are kept without set-id bits, with ``times`` those of change, too. Everything belongs to the container's
        user. Symbolic links of a tree are copied as links. A file of the same name is replaced; a directory of
        the same name is filled. Holes stay holes.

        :raises ValueError: a FIFO, a socket or a device in the tree.
        :raises SetupError: as :meth:`write`; EFBIG, EMFILE, ENAMETOOLONG: the caps on bytes, files and depth.
        """
        bounds = Bounds.of(self._doing("put files into"), max_size, max_files, max_depth, timeout)
        self._files.put(source, target, times, parents, bounds)

    @overload
    def get(
        self,
        pattern: StrOrBytesPath,
        into: None = ...,
        *,
        max_size: int | str = ...,
        max_files: int = ...,
        max_depth: int = ...,
        timeout: float = ...,
    ) -> dict[str, bytes]: ...
    @overload
    def get(
        self,
        pattern: StrOrBytesPath,
        into: StrOrBytesPath,
        *,
        max_size: int | str = ...,
        max_files: int = ...,
        max_depth: int = ...,
        timeout: float = ...,
    ) -> list[FileInfo]: ...
    def get(
        self,
        pattern: StrOrBytesPath,
        into: StrOrBytesPath | None = None,
        *,
        max_size: int | str = "1G",
        max_files: int = 100_000,
        max_depth: int = 64,
        timeout: float = 600.0,
    ) -> dict[str, bytes] | list[FileInfo]:
        """Fetch the files that match a pattern (``*``, ``?`` and ``[…]`` in names), with what is below directories.

        Without ``into`` the contents, by path. With it files and directories are made below that directory, from the
        last name before the first pattern on: ``get("/work/out/*.txt", "here")`` makes ``here/a.txt``. They are the
        caller's, with mode 755 or 644 and the times of change; holes stay holes; a file that is there already is an
        error. All matches are listed. A match that is no file and no directory is not fetched (``saved`` is None).
        A hard link is a file like any other, if the container's user may read it.

        :raises SetupError: ENOENT: a path without a pattern is not there; EACCES; EFBIG, EMFILE, ENAMETOOLONG,
            ETIMEDOUT: the caps on bytes (a sparse file counts whole), files, depth and time. Files fetched so far stay.
        :raises FileExistsError: a file of that name is there.
        """
        bounds = Bounds.of(self._doing("fetch files of"), max_size, max_files, max_depth, timeout)
        if into is None:
            memory = Memory()
            self._files.get(pattern, memory, bounds)
            return memory.contents
        os.makedirs(into, exist_ok=True)
        fd = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return self._files.get(pattern, Here(fd), bounds)
        finally:
            os.close(fd)

    def copy_to(
        self,
        other: WithFiles,
        source: StrOrBytesPath,
        target: StrOrBytesPath,
        *,
        times: bool = True,
        parents: bool = True,
        max_size: int | str = "1G",
        max_files: int = 100_000,
        max_depth: int = 64,
        timeout: float = 600.0,
    ) -> list[FileInfo]:
        """Copy a file to ``target`` in another container, or the contents of a directory into it.

        It is read as this container's user and written as the other's, by the rules of :meth:`put`, links as links.
        FIFOs, sockets and devices are left out: their ``saved`` is None in what is returned; of the others it is the
        path in the other container.

        :raises SetupError: as :meth:`get` and :meth:`put`. Files copied so far stay.
        :raises ValueError: ``target`` is below ``source`` in the same container.
        """
        names, to = components(source), components(target)
        if other is self and to[: len(names)] == names and len(to) > len(names):
            raise ValueError(f"{target!r} is below {source!r}: a directory cannot be copied into itself")
        reading = Bounds.of(self._doing("fetch files of"), max_size, max_files, max_depth, timeout)
        writing = Bounds.of(other._doing("put files into"), max_size, max_files, max_depth, timeout)
        files = self._files
        name = b""
        if not files.is_directory(names, reading):
            if not to:
                raise ValueError("copy_to: a file needs a name inside")
            name = to.pop()
        return other._files.filled(
            b"/".join(to),
            parents,
            writing,
            lambda placing, fd, path: files.send(source, Inside(placing, fd, path, times), name, reading),
        )

    def list(
        self,
        path: StrOrBytesPath = "/",
        *,
        recursive: bool = False,
        max_files: int = 100_000,
        max_depth: int = 64,
        timeout: float = 60.0,
    ) -> list[FileInfo]:
        """The contents of a directory, by name; with ``recursive`` everything below it.

        :raises SetupError: ENOENT, ENOTDIR, ELOOP, EACCES; EMFILE, ENAMETOOLONG: the caps.
        """
        bounds = Bounds.of(self._doing("list files of"), 0, max_files, max_depth, timeout)
        return self._files.listed(path, recursive, bounds)


def opened(container: WithFiles) -> Files:
    """The files of a container, for what copies them in other forms."""
    return container._files


def bounds_of(
    container: WithFiles, what: str, max_size: int | str, max_files: int, max_depth: int, timeout: float
) -> Bounds:
    """The caps of one call that does something (``"put files into"``)."""
    return Bounds.of(container._doing(what), max_size, max_files, max_depth, timeout)
