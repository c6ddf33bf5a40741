"""The caps of one call about a container's files, and how what the kernel says is told."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass

from isolate.errors import SetupError, printable
from isolate.kernel import checks
from isolate.kernel.checks import is_int
from isolate.sandbox.containers.beneath import Doing

__all__ = ["Bounds", "names_in"]


@dataclass
class Bounds(Doing):
    """The remainder of the caps of one call."""

    size: int
    files: int
    depth: int
    #: time.monotonic() at which it is given up.
    deadline: float

    @classmethod
    def of(
        cls, doing: Doing, max_size: int | str = 0, max_files: int = 1, max_depth: int = 1, timeout: float = 60.0
    ) -> Bounds:
        """Checked."""
        for name, value in (("max_files", max_files), ("max_depth", max_depth)):
            if not is_int(value) or value < 1:
                raise ValueError(f"{name} must be an int from 1 on, not {value!r}")
        size = checks.size("max_size", max_size)
        return cls(doing.step, doing.part, size, max_files, max_depth, time.monotonic() + timeout)

    def _over(self, number: int, cause: str, cap: str, path: bytes) -> SetupError:
        remedy = f"raise {cap}, or take less at a time"
        return SetupError(
            number, self.step, part=self.part, path=printable(os.fsdecode(path)), cause=cause, remedy=remedy
        )

    def one_file(self, path: bytes) -> None:
        """Count a file."""
        self.files -= 1
        if self.files < 0:
            raise self._over(errno.EMFILE, "there are more files than max_files", "max_files", path)
        if time.monotonic() > self.deadline:
            raise self._over(errno.ETIMEDOUT, "it takes longer than timeout", "timeout", path)

    def some_bytes(self, count: int, path: bytes) -> None:
        """Count bytes."""
        self.size -= count
        if self.size < 0:
            raise self._over(errno.EFBIG, "there are more bytes than max_size", "max_size", path)
        if time.monotonic() > self.deadline:
            raise self._over(errno.ETIMEDOUT, "it takes longer than timeout", "timeout", path)

    def deep(self, depth: int, path: bytes) -> None:
        """Look at a depth."""
        if depth > self.depth:
            raise self._over(errno.ENAMETOOLONG, "directories are deeper than max_depth", "max_depth", path)


def names_in(directory: int, path: bytes, bounds: Bounds) -> list[bytes]:
    """The names in a directory, of which there may be any number."""
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            bounds.one_file(b"/".join(filter(None, (path, name))))
            found.append(name)
    return found
