"""Sandboxes that between them make every call that setting one up can take."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from isolate import (
    Bind,
    CgroupNamespace,
    Dev,
    Dir,
    File,
    IdMap,
    IpcNamespace,
    Limits,
    Mask,
    MountNamespace,
    Mqueue,
    NetNamespace,
    Overlay,
    PidNamespace,
    Proc,
    ReadOnly,
    Rlimits,
    Root,
    Sandbox,
    Symlink,
    Sys,
    Tmpfs,
    UserNamespace,
    UtsNamespace,
)

#: The host's programs, in the places where a merged /usr has them.
SYSTEM = (Bind("/usr"), Symlink("usr/bin", "/bin"), Symlink("usr/lib", "/lib"), Symlink("usr/lib64", "/lib64"))


def boxes(audit: str = "/bin/true") -> dict[str, Sandbox]:
    """By name. ``audit`` is a program whose directory the roots show at /audit."""
    directory = str(Path(audit).parent)
    entries = (
        *SYSTEM,
        Bind(directory, "/audit"),
        Proc(),
        Dev(),
        Tmpfs("/tmp", size="1M"),
        Overlay("/layer", lower=[directory]),
        File("/etc/note", b"a note"),
        Dir("/work"),
        Mqueue(),
        File("/masked", b"secret"),
        Mask("/masked"),
        Mask("/tmp"),
        Mask("/absent", optional=True),
        ReadOnly("/layer"),
    )
    namespaces = PidNamespace(), NetNamespace(), IpcNamespace(), CgroupNamespace(), UtsNamespace(hostname="audit")
    limits = Limits(memory="64M", pids=8, cpu=1.5)
    own = IdMap([(0, 65534, 1), (1, 100_000, 1000)], [(0, 65534, 1), (1, 100_000, 1000)], helpers=True)
    return {
        "namespaces": Sandbox(
            PidNamespace(),
            MountNamespace(),
            NetNamespace(),
            IpcNamespace(),
            UtsNamespace(hostname="audit"),
            Rlimits(nofile=100),
        ),
        "user": Sandbox(UserNamespace(), PidNamespace(), MountNamespace(), NetNamespace()),
        "without init": Sandbox(UserNamespace(), PidNamespace(init=False)),
        "no pid namespace": Sandbox(UserNamespace()),
        "root and limits": Sandbox(UserNamespace(), *namespaces, Root(*entries), limits),
        "root and limits of the host's": Sandbox(*namespaces, Root(*entries, Sys()), limits),
        # Mounts with an id map, and sources that are opened beneath a writable one: for the host's root alone.
        "root with owners": Sandbox(
            UserNamespace(map=IdMap([(0, 1878982656, 65536)], [(0, 1878982656, 65536)])),
            *namespaces,
            Root(
                *entries[:5],
                Proc(),
                Overlay("/layer", lower=[directory], idmap=IdMap([(0, 1878982656, 9)], [(0, 1878982656, 9)])),
                Bind(str(Path(directory).parent), "/w", read_only=False),
                Bind(directory, "/below"),
            ),
        ),
        "limits alone": Sandbox(limits),
        "newuidmap": Sandbox(UserNamespace(map=own), PidNamespace(), MountNamespace()),
    }


def groups(box: Sandbox) -> list[str]:
    """Where the cgroups of its runs are, as patterns."""
    group: Any = box.compile().plan.context.group
    return [] if group is None else [glob.escape(path) + "*" for _, path in group.paths.values()]
