"""The groups of a Cgroup by their directories: counters, freezing, killing and removal."""

from __future__ import annotations

import errno
import os
import select
import time
import warnings
from typing import TYPE_CHECKING

from isolate.cgroups import files, naming, stats
from isolate.engine import native
from isolate.errors import SetupError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolate.engine.session import Session

__all__ = ["abandon", "dismiss", "destroy", "freeze_groups", "kill_all", "read_stats"]


def read_stats(directories: Mapping[str, str]) -> stats.Stats:
    """The counters of a group by its directories."""
    found: stats.Files = {}
    for key, directory in directories.items():
        version = 2 if key == "v2" else 1
        for file, _ in stats.V2_FILES if version == 2 else stats.V1_FILES:
            if version == 1 and file.partition(".")[0] not in key.split(","):
                continue
            data = files.read(directory, file)
            if data is not None:
                found[version, file] = data
    return stats.parse(found)


def _freezer(directories: Mapping[str, str]) -> str | None:
    return next((d for k, d in directories.items() if "freezer" in k.split(",")), None)


def freeze_groups(directories: Mapping[str, str], stop: bool, timeout: float) -> None:
    """Freeze or thaw a group by its directories; see :meth:`Cgroup.freeze`."""
    from isolate.cgroups.events import wait_for

    v2 = directories.get("v2")
    if v2 is not None and os.path.exists(os.path.join(v2, "cgroup.freeze")):
        files.write(v2, "cgroup.freeze", b"1" if stop else b"0")
        if not wait_for(v2, "frozen", int(stop), timeout):
            raise TimeoutError(f"{v2} is not {'frozen' if stop else 'thawed'} after {timeout} s")
        return
    freezer = _freezer(directories)
    if freezer is None:
        raise UnsupportedError(
            errno.ENODEV, "freeze", part="Cgroup", cause="no cgroup.freeze (Linux 5.2), no v1 freezer"
        )
    deadline = time.monotonic() + timeout
    wanted = b"FROZEN" if stop else b"THAWED"
    files.write(freezer, "freezer.state", wanted)
    while (files.read(freezer, "freezer.state") or wanted).strip() != wanted:
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{freezer} is not {wanted.decode()} after {timeout} s")
        time.sleep(0.001)  # v1 tells nobody
        files.write(freezer, "freezer.state", wanted)  # what forked meanwhile has to be frozen again


def kill_all(directories: Mapping[str, str], timeout: float = 2.0) -> None:
    """SIGKILL to everybody in a group that may live on, and to what they fork meanwhile.

    Frozen first, so that none forks while we go through the list; a task that is frozen on v1 dies when it is thawed.
    """
    v2, freezer = directories.get("v2"), _freezer(directories)
    frozen = None if v2 is None else files.read(v2, "cgroup.freeze")
    try:
        if v2 is not None and frozen is not None:
            files.write(v2, "cgroup.freeze", b"1")
        elif freezer is not None:
            files.write(freezer, "freezer.state", b"FROZEN")
        deadline = time.monotonic() + timeout
        left = True
        while left and time.monotonic() < deadline:
            for directory in directories.values():
                files.kill(directory)
            if freezer is not None:
                files.thaw(freezer)
            left = any(pid > 0 and _runs(pid) for d in directories.values() for pid in files.processes(d))
            if left:
                select.select([], [], [], 0.001)
    finally:
        if freezer is not None:
            files.thaw(freezer)
        if v2 is not None and frozen is not None:
            files.write(v2, "cgroup.freeze", frozen.strip() or b"0")


def _runs(pid: int) -> bool:
    """Whether a process is one that a signal still changes anything for."""
    return pid != os.getpid() and not naming.gone(pid)


def destroy(directories: Mapping[str, str], owner: int, *, quiet: bool = False) -> None:
    """Kill what is inside and remove the directories. Nothing in a forked child: they are the parent's."""
    if not native.owns(owner):
        return
    first: BaseException | None = None
    for directory in sorted(directories.values(), key=lambda d: d != _freezer(directories)):  # as removal_order()
        try:
            files.remove(directory)
        except SetupError as error:
            first = first or error
    if first is not None and not quiet:
        raise first


def dismiss(guardian: Session | None, owner: int) -> None:
    """End the process that would remove the groups at this program's end."""
    if guardian is not None and native.owns(owner):
        guardian.dismiss(1.0)


def abandon(directories: Mapping[str, str], owner: int, text: str, guardian: Session) -> None:
    """The object went, or the interpreter ends, and nobody closed the group."""
    if native.owns(owner) and any(os.path.isdir(d) for d in directories.values()):
        warnings.warn(f"{text} was not closed", ResourceWarning, stacklevel=2)
        destroy(directories, owner, quiet=True)
        dismiss(guardian, owner)
