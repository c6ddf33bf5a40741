"""This process, or this thread, in a cgroup, and back (cgroups(7))."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

from isolate.cgroups import files
from isolate.cgroups.hierarchy import discover
from isolate.errors import UnsupportedError
from isolate.thread.blocks import entered
from isolate.thread.change import Change
from isolate.thread.entering import Reversible

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Inside"]


class Inside(Reversible):
    """The value of :meth:`isolate.Cgroup.inside`: a block in which this process, or this thread, is in the group."""

    __slots__ = ("_directories", "_who")

    def __init__(self, directories: Mapping[str, str], who: str) -> None:
        if who not in ("process", "thread"):
            raise ValueError(f"inside: who must be 'process' or 'thread', not {who!r}")
        if who == "thread" and "v2" in directories and len(directories) == 1:
            raise UnsupportedError(
                errno.EOPNOTSUPP,
                "move one thread into the group",
                part="Cgroup",
                cause="cgroup v2 moves whole processes",
                remedy="move the process, inside('process'), or start children by Sandbox(group).spawn(...)",
            )
        self._directories = dict(directories)
        self._who = who

    def __repr__(self) -> str:
        return f"Cgroup.inside({self._who!r})"

    def enter(self) -> None:
        """Move in, to stay."""
        entered()
        self.here().apply()

    def here(self) -> Change:
        """The move, and the move back."""
        return _Move(self._directories, self._who)


class _Move(Change):
    order = 30
    text = "the cgroup"

    def __init__(self, directories: Mapping[str, str], who: str) -> None:
        self._file, self._number = ("tasks", "thread") if who == "thread" else ("cgroup.procs", "process")
        self._directories = {k: d for k, d in directories.items() if who != "thread" or k != "v2"}
        self._before: dict[str, str] = {}

    def _id(self) -> bytes:
        return b"%d" % (threading.get_native_id() if self._number == "thread" else os.getpid())

    def check(self) -> None:
        """Check that the present group is a directory that can be seen."""
        host = {hierarchy.key: hierarchy for hierarchy in discover().hierarchies}
        for key in self._directories:
            if key not in host or not host[key].own:
                raise UnsupportedError(
                    errno.ENOENT,
                    "find the group to come back to",
                    part="Cgroup",
                    cause=f"this process's own {key} group lies outside of what is mounted here",
                )

    def apply(self) -> None:
        """Into the group of each hierarchy."""
        own = _membership()
        for key, directory in self._directories.items():
            if own.get(key):  # where it cannot be seen there is no way back, for which check() refuses a block
                self._before[key] = own[key]
            files.write(directory, self._file, self._id(), step=f"move this {self._number} into {directory}")

    def undo(self) -> None:
        """Each back to where it was."""
        failed: OSError | None = None
        for directory in reversed(self._before.values()):
            try:
                files.write(directory, self._file, self._id(), step=f"move this {self._number} back to {directory}")
            except OSError as error:
                failed = error
        if failed is not None:
            raise failed

    def now(self) -> str:
        """The groups of this thread."""
        return ", ".join(f"{key} {directory}" for key, directory in _membership().items() if key in self._directories)


def _membership() -> dict[str, str]:
    """Directories of this thread's groups, by hierarchy."""
    from isolate.cgroups.hierarchy import build, read

    host = build(read("/proc/thread-self/mountinfo"), read("/proc/thread-self/cgroup"))
    return {hierarchy.key: hierarchy.own for hierarchy in host.hierarchies}
