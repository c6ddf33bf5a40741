"""Making one file, directory or link in a container's directory, as the container's user."""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

from isolate.sandbox.containers.beneath import Doing, Opened, open_beneath

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolate.sandbox.containers.acting import Actor

__all__ = ["DIRECTORY", "Placing"]

DIRECTORY: int = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Placing:
    """What is made is made in an open directory, under one name; ``path`` is what errors call it."""

    def __init__(self, actor: Actor, doing: Doing) -> None:
        self._actor = actor
        self._doing = doing

    def beneath(self, start: int, names: Sequence[bytes], make: bool) -> int:
        """The directory below another one; with ``make`` what is missing of it is made."""
        with self._actor.acting():
            fd = open_beneath(start, b"", DIRECTORY)
            for index, name in enumerate(names):
                try:
                    inner = self._directory(fd, name, make)
                except OSError as error:
                    raise self._doing.told(error, b"/".join(names[: index + 1])) from None
                finally:
                    os.close(fd)
                fd = inner
        return fd

    def directory(self, directory: int, name: bytes, path: bytes) -> int:
        """A directory that is made, or is there already."""
        with self._actor.acting():
            try:
                return self._directory(directory, name, True)
            except OSError as error:
                raise self._doing.told(error, path) from None

    @staticmethod
    def _directory(directory: int, name: bytes, make: bool) -> int:
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=directory)
        return open_beneath(directory, name, DIRECTORY)

    def settle(self, directory: int, mode: int, times: tuple[int, int] | None) -> None:
        """Mode and times of a directory; one that was there already and is another's keeps its own."""
        with self._actor.acting(), contextlib.suppress(PermissionError):
            os.fchmod(directory, mode & 0o777)
            if times is not None:
                os.utime(directory, ns=times)

    def file(
        self,
        directory: int,
        name: bytes,
        path: bytes,
        mode: int,
        fill: Callable[[int], object],
        times: tuple[int, int] | None,
    ) -> None:
        """Under another name first: who looks finds the old file or the whole new one, and a link is replaced, not
        followed."""
        other = b".isolate-" + secrets.token_hex(8).encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._actor.acting():
            try:
                fd = os.open(other, flags, 0o600, dir_fd=directory)
                try:
                    with Opened(fd):
                        fill(fd)
                        os.fchmod(fd, mode)
                        if times is not None:
                            os.utime(fd, ns=times)
                    os.rename(other, name, src_dir_fd=directory, dst_dir_fd=directory)
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.unlink(other, dir_fd=directory)
                    raise
            except OSError as error:
                raise self._doing.told(error, path) from None

    def link(self, directory: int, name: bytes, path: bytes, to: bytes) -> None:
        """A symbolic link, in the place of a file of that name."""
        with self._actor.acting():
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
                os.symlink(to, name, dir_fd=directory)
            except OSError as error:
                raise self._doing.told(error, path) from None

    def name(self, directory: int, name: bytes, path: bytes, start: int, to: Sequence[bytes]) -> None:
        """One more name of the file that is ``to`` below another directory; no link is followed on the way."""
        with Opened(self.beneath(start, to[:-1], False)) as there, self._actor.acting():
            try:
                other = b".isolate-" + secrets.token_hex(8).encode()
                os.link(to[-1], other, src_dir_fd=there, dst_dir_fd=directory, follow_symlinks=False)
                try:
                    os.rename(other, name, src_dir_fd=directory, dst_dir_fd=directory)
                finally:
                    # Nothing happens if both are the same file (rename(2)), so the other one can be left.
                    with contextlib.suppress(OSError):
                        os.unlink(other, dir_fd=directory)
            except OSError as error:
                raise self._doing.told(error, path) from None
