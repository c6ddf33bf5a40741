"""Leftovers of other programs, and the caller's own group: all code for groups that this process did not make."""

from __future__ import annotations

import errno
import os

from isolate.cgroups import files, naming
from isolate.cgroups.hierarchy import discover
from isolate.cgroups.placement import belongs_to_systemd, owner, populated_itself, writable
from isolate.errors import SetupError, UnsupportedError

#: The tag of the leaf that a group's processes are moved to.
_LEAF = "self"


def _left_in(directory: str) -> list[str]:
    found = []
    try:
        entries = list(os.scandir(directory))
    except OSError:
        return []
    for entry in entries:
        name = naming.parse(entry.name)
        if name is not None and entry.is_dir(follow_symlinks=False) and naming.abandoned(name):
            found.append(entry.path)
    return found


def sweep() -> list[str]:
    """See :meth:`isolate.Cgroup.sweep`."""
    removed: list[str] = []
    for hierarchy in discover().hierarchies:
        if hierarchy.read_only:
            continue
        at = hierarchy.own or hierarchy.mount
        while True:
            for path in _left_in(at):
                if remove(path):
                    removed.append(path)
            if at == hierarchy.mount or hierarchy.version == 1:
                break
            at = os.path.dirname(at)
    return removed


def remove(path: str) -> bool:
    """Kill what is in a group and remove it; whether it is gone."""
    try:
        files.remove(path)
    except SetupError:
        return not os.path.exists(path)
    return True


def take_over(controllers: tuple[str, ...]) -> str:
    """See :meth:`isolate.Cgroup.take_over`."""
    host = discover()
    v2 = host.v2
    if v2 is None or not v2.own:
        raise UnsupportedError(
            errno.ENODEV, "take the own group over", part="Cgroup", cause="there is no v2 hierarchy in sight"
        )
    own = v2.own
    if not os.path.exists(os.path.join(own, "cgroup.type")):
        return own  # the root may have both
    if belongs_to_systemd(own):
        from isolate.cgroups.systemd import enter_scope

        own = enter_scope(v2)
    name = naming.parse(os.path.basename(own))
    if name is not None and name.tag == _LEAF and own != v2.mount:
        own = os.path.dirname(own)  # done before, by this program or the one that started it
    if not writable(own):
        raise UnsupportedError(
            errno.EACCES,
            "take the own group over",
            part="Cgroup",
            path=own,
            cause=f"it is {owner(own)}",
            remedy="have it delegated: systemd-run --user --scope -p Delegate=yes PROGRAM",
        )
    available = (files.read(own, "cgroup.controllers") or b"").decode().split()
    enabled = (files.read(own, "cgroup.subtree_control") or b"").decode().split()
    wanted = [c for c in controllers if c in available and c not in enabled]
    if not wanted:
        return own
    if populated_itself(own):
        leaf = os.path.join(own, naming.prefix() + _LEAF)
        os.makedirs(leaf, exist_ok=True)
        # Again and again: what forks while it is moved leaves its child behind.
        for _ in range(100):
            pids = (files.read(own, "cgroup.procs") or b"").split()
            if not pids:
                break
            for pid in pids:
                try:
                    files.write(leaf, "cgroup.procs", pid, step=f"move process {pid.decode()} into the leaf")
                except SetupError as error:
                    if error.errno != errno.ESRCH:
                        raise
    for controller in wanted:
        files.write(own, "cgroup.subtree_control", f"+{controller}".encode(), step=f"enable {controller}")
    return own
