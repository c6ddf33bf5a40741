"""Which cgroup hierarchies this process sees, and where it stands in them.

Three layouts occur: *unified* (one cgroup2 mount holds every controller), *legacy* (v1 mounts only) and
*hybrid* (v1 mounts for the controllers, and a cgroup2 mount beside them for what v1 cannot do). All of it is read
from ``/proc/self/mountinfo`` and ``/proc/self/cgroup`` (cgroups(7), cgroup_namespaces(7)); nothing is assumed about
``/sys/fs/cgroup``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final, Literal

from isolate.kernel.proc import lines, mount_rows

Mode = Literal["unified", "hybrid", "legacy", "none"]

#: Controllers of v1 that the v2 hierarchy replaces by something that needs no controller.


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo about a cgroup filesystem."""

    version: int
    root: str  # the group that is mounted there, as this process's cgroup namespace sees it
    target: str
    read_only: bool
    controllers: frozenset[str]  # v1 only
    name: str = ""  # v1 only: a named hierarchy


@dataclass(frozen=True)
class Membership:
    """One line of ``/proc/PID/cgroup``."""

    hierarchy: int
    controllers: frozenset[str]
    name: str
    path: str


@dataclass(frozen=True)
class Hierarchy:
    """A hierarchy that this process can see."""

    version: int
    controllers: frozenset[str]
    mount: str
    own: str  # directory of this process's group; "" when it lies outside what is mounted
    read_only: bool

    @property
    def key(self) -> str:
        """``"v2"``, or v1's controllers joined by a comma."""
        return "v2" if self.version == 2 else ",".join(sorted(self.controllers))


@dataclass(frozen=True)
class Host:
    """Everything that :func:`discover` found."""

    hierarchies: tuple[Hierarchy, ...]

    @property
    def mode(self) -> Mode:
        versions = {h.version for h in self.hierarchies}
        if versions == {2}:
            return "unified"
        return "hybrid" if versions == {1, 2} else "legacy" if versions else "none"

    @property
    def v2(self) -> Hierarchy | None:
        """The cgroup2 hierarchy, with or without controllers."""
        return next((h for h in self.hierarchies if h.version == 2), None)

    def home(self, controller: str) -> Hierarchy | None:
        """The hierarchy that a controller is bound to, if any."""
        for h in self.hierarchies:
            if controller in h.controllers:
                return h
        return None


#: Super options of a v1 mount that are no controllers.
_OPTIONS: Final = frozenset(
    {"rw", "ro", "noprefix", "clone_children", "cpuset_v2_mode", "xattr", "all", "none", "favordynmods"}
)


def parse_mountinfo(text: str) -> list[Mount]:
    """The cgroup mounts of a ``/proc/PID/mountinfo``, in its order (proc_pid_mountinfo(5))."""
    mounts = []
    for row in mount_rows(os.fsencode(text)):
        if row.kind not in ("cgroup", "cgroup2"):
            continue
        options = row.super_options
        name = next((o[5:] for o in options if o.startswith("name=")), "")
        mounts.append(
            Mount(
                version=2 if row.kind == "cgroup2" else 1,
                root=row.root,
                target=row.target,
                read_only="ro" in row.options or "ro" in options,
                controllers=frozenset()
                if row.kind == "cgroup2"
                else frozenset(o for o in options if o not in _OPTIONS and "=" not in o),
                name=name,
            )
        )
    return mounts


def parse_membership(text: str) -> list[Membership]:
    """The lines of a ``/proc/PID/cgroup``: ``hierarchy:controllers:path``."""
    found = []
    for line in lines(os.fsencode(text)):
        number, colon, rest = line.partition(":")
        names, colon2, path = rest.partition(":")
        if not (colon and colon2 and number.isdigit() and path.startswith("/")):
            continue
        parts = [n for n in names.split(",") if n]
        found.append(
            Membership(
                hierarchy=int(number),
                controllers=frozenset(p for p in parts if not p.startswith("name=")),
                name=next((p[5:] for p in parts if p.startswith("name=")), ""),
                path=path.removesuffix(" (deleted)"),
            )
        )
    return found


def directory_of(mount: Mount, path: str) -> str:
    """The directory of the group ``path`` beneath a mount; "" if it lies outside.

    Both are as the reader's cgroup namespace sees them. In a container without a cgroup namespace ``root`` is the
    container's group; ``/..`` in either means "above my namespace", whose names nobody tells us.
    """
    if "/.." in mount.root:
        return ""
    if path == "/.." or path.startswith("/../"):
        return ""
    root = mount.root.rstrip("/")
    if path != root and not path.startswith(root + "/"):
        return ""
    rest = path[len(root) :].strip("/")
    return os.path.join(mount.target, rest) if rest else mount.target


def read(path: str) -> str:
    """A small kernel file as text, "" when it is not there or not ours to read."""
    try:
        with open(path, "rb") as file:
            return os.fsdecode(file.read())
    except OSError:
        return ""


def build(mountinfo: str, membership: str, *, controllers_of: dict[str, str] | None = None) -> Host:
    """The meaning of two texts of ``/proc`` together.

    :param controllers_of: text of ``cgroup.controllers`` by directory, instead of the files (for another host's texts).
    """
    found: dict[str, Hierarchy] = {}
    members = parse_membership(membership)
    for mount in parse_mountinfo(mountinfo):
        if mount.version == 2:
            member = next((m for m in members if m.hierarchy == 0 and not m.controllers and not m.name), None)
        elif mount.controllers:
            member = next((m for m in members if m.controllers == mount.controllers), None)
        else:
            continue  # a named hierarchy has no controller
        own = directory_of(mount, member.path) if member else ""
        controllers = mount.controllers
        if mount.version == 2:
            at = os.path.join(own or mount.target, "cgroup.controllers")
            text = controllers_of.get(at, "") if controllers_of is not None else read(at)
            controllers = frozenset(text.split())
        new = Hierarchy(mount.version, controllers, mount.target, own, mount.read_only)
        old = found.get("v2" if mount.version == 2 else new.key)
        # The same hierarchy mounted twice: the one that can be written and shows our own group.
        if old is None or (bool(new.own), not new.read_only) > (bool(old.own), not old.read_only):
            found["v2" if mount.version == 2 else new.key] = new
    return Host(tuple(found.values()))


def discover() -> Host:
    """The hierarchies as this process sees them now.

    Reads ``/proc/self/mountinfo``, so it is done once per compiled plan and not per run.
    """
    return build(read("/proc/self/mountinfo"), read("/proc/self/cgroup"))
