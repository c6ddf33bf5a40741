"""The place of a new group: its directory in each hierarchy, and the controllers to be enabled there first.

v2 knows two rules that stand in the way (cgroup-v2.rst): a group other than the root may have processes or enabled
controllers, not both ("no internal processes"), and a controller can be enabled only where the parent passes it on.
So the caller's own group is tried first, then the groups above it that are ours to write, and last, where systemd
manages them, a scope that systemd is asked for (:mod:`isolate.cgroups.scope`).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from isolate.cgroups import scope, systemd
from isolate.cgroups.hierarchy import read
from isolate.cgroups.settings import controllers, home_of, unsupported
from isolate.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.cgroups.hierarchy import Hierarchy, Host
    from isolate.cgroups.values import LimitValues


@dataclass(frozen=True)
class Place:
    """A directory to make groups in."""

    hierarchy: Hierarchy
    #: :data:`isolate.cgroups.scope.FUTURE` where systemd is asked for it when something starts.
    parent: str
    #: Controllers that the parent does not pass on yet (v2).
    enable: tuple[str, ...] = ()
    #: It is the scope of this program.
    scope: bool = False


@dataclass(frozen=True)
class Placement:
    """One place for each hierarchy that takes part; v2 first."""

    places: tuple[Place, ...]

    def of(self, hierarchy: Hierarchy | None) -> Place | None:
        """The place in a hierarchy."""
        return next((p for p in self.places if p.hierarchy == hierarchy), None)


def removal_order(places: Iterable[Place]) -> list[Place]:
    """v1's freezer first: removal thaws and kills, and what is frozen there does not die in any other hierarchy."""
    return sorted(places, key=lambda spot: "freezer" not in spot.hierarchy.controllers)


def writable(directory: str) -> bool:
    """Whether groups can be made in it, by the effective ids."""
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=True)


def owner(path: str) -> str:
    """Whose a file is, in words."""
    try:
        uid = os.stat(path).st_uid
    except OSError as error:
        return f"cannot be looked at: {error.strerror}"
    try:
        import pwd

        return f"owned by {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"owned by uid {uid}"


def systemd_running() -> bool:
    """Whether systemd is the init of this host (sd_booted(3))."""
    return os.path.isdir("/run/systemd/system")


def delegated(directory: str) -> bool:
    """Whether systemd has handed the group over (Delegate=yes leaves an extended attribute)."""
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(directory, name) == b"1":
                return True
        except OSError:
            continue
    return False


def belongs_to_systemd(directory: str) -> bool:
    """Whether it is a unit's group that systemd has not handed over."""
    return directory.endswith((".slice", ".scope", ".service")) and systemd_running() and not delegated(directory)


def _unit(own: str) -> str:
    """The group of the unit that a group is in, "" if there is none. A user's manager is none: it has units."""
    while own.strip("/"):
        if own.endswith((".scope", ".service")) and not _of_manager(own):
            return own
        own = os.path.dirname(own)
    return ""


def _handed_over(hierarchy: Hierarchy) -> bool:
    """Whether this program is in a unit that was delegated, where its groups belong, too.

    A user's manager leaves no attribute (systemd 252). But below a unit's own group stands only who was put there by
    somebody that it was handed over to.
    """
    unit = _unit(hierarchy.own)
    return bool(unit) and (unit != hierarchy.own or delegated(unit))


def _of_manager(directory: str) -> bool:
    """Whether it is the group of a user's manager: delegated, but to that manager."""
    name = os.path.basename(directory)
    return name.startswith("user@") and name.endswith(".service")


def is_root(directory: str) -> bool:
    """Whether it is the root of the v2 hierarchy itself, which alone has no cgroup.type."""
    return not os.path.exists(os.path.join(directory, "cgroup.type"))


def populated_itself(directory: str) -> bool:
    """Whether processes are in this very group."""
    return bool(read(os.path.join(directory, "cgroup.procs")).split())


def _candidates(hierarchy: Hierarchy) -> list[str]:
    if not hierarchy.own:
        return [hierarchy.mount]
    found, at = [], hierarchy.own
    while True:
        found.append(at)
        if at == hierarchy.mount:
            return found
        at = os.path.dirname(at)


def offered(directory: str) -> frozenset[str]:
    """The controllers that a v2 group has to pass on."""
    return frozenset(read(os.path.join(directory, "cgroup.controllers")).split())


def _judge(directory: str, needed: frozenset[str], *, ours: bool = False) -> tuple[tuple[str, ...] | None, str]:
    """The controllers to enable in a directory, or None and the reason why it cannot be. ``ours``: it is delegated."""
    if not writable(directory):
        return None, f"{directory} is not ours to write ({owner(directory)})"
    if read(os.path.join(directory, "cgroup.type")).strip() in ("threaded", "domain invalid"):
        return None, f"{directory} is a threaded group"
    passed = frozenset(read(os.path.join(directory, "cgroup.subtree_control")).split())
    missing = needed - passed
    if not missing:
        return (), ""
    control = os.path.join(directory, "cgroup.subtree_control")
    absent = missing - offered(directory)
    if absent:
        return None, f"{directory}/cgroup.controllers lacks {' '.join(sorted(absent))}"
    if not os.access(control, os.W_OK, effective_ids=True):
        return None, f"{control} does not list {' '.join(sorted(missing))} and is {owner(control)}"
    # Also for the controllers that the kernel would enable there: what is made below is "domain invalid" then, and
    # nothing can be born in it (EOPNOTSUPP).
    if not is_root(directory) and populated_itself(directory):
        return None, f"{directory} has processes in it, so it can pass no controller on (EBUSY)"
    if not ours and belongs_to_systemd(directory) and not is_root(directory):
        return None, f"{directory} belongs to systemd, which has not delegated it"
    return tuple(sorted(missing)), ""


def _place_v2(hierarchy: Hierarchy, needed: dict[str, str], wanted: Iterable[str]) -> Place:
    reasons: list[str] = []
    if hierarchy.read_only:
        raise unsupported(
            next(iter(needed.values()), "accounting"),
            f"the cgroup file system at {hierarchy.mount} is mounted read-only",
            "start the container with a writable cgroup file system and a cgroup namespace (podman: --cgroupns=private "
            "-v /sys/fs/cgroup:/sys/fs/cgroup:rw; docker: --privileged), or leave Limits out",
            number=errno.EROFS,
            path=hierarchy.mount,
        )
    user = os.geteuid() != 0
    # A user's manager may reset its groups at any moment: it drops controllers that it does not need itself, and limits
    # go with them. Its groups are better than nothing only where it cannot be asked for a scope.
    found = _own_or_above(hierarchy, needed, wanted, reasons, alone=user)
    if found is None and not _handed_over(hierarchy):
        found = _in_scope(hierarchy, needed, wanted, reasons)
    if found is None and user:
        found = _own_or_above(hierarchy, needed, wanted, [], alone=False)
    if found is None:
        raise _refusal(hierarchy, needed, reasons)
    return found


def _own_or_above(
    hierarchy: Hierarchy, needed: dict[str, str], wanted: Iterable[str], reasons: list[str], *, alone: bool
) -> Place | None:
    """A place in the own group or above; ``alone``: none that a user's manager manages as well."""
    handed_over = _unit(hierarchy.own) if _handed_over(hierarchy) else ""
    for also in (frozenset(wanted), frozenset[str]()):
        reasons.clear()
        for directory in _candidates(hierarchy):
            if directory not in (hierarchy.own, handed_over) and (
                (belongs_to_systemd(directory) and (alone or os.geteuid() == 0)) or (alone and _of_manager(directory))
            ):
                reasons.append(f"{directory} belongs to systemd, which has not delegated it")
                continue
            ours = directory == handed_over
            enable, reason = _judge(directory, frozenset(needed) | (also & offered(directory)), ours=ours)
            if enable is not None:
                return Place(hierarchy, directory, enable)
            reasons.append(reason)
    return None


def _in_scope(hierarchy: Hierarchy, needed: dict[str, str], wanted: Iterable[str], reasons: list[str]) -> Place | None:
    """A place in the scope of this program: the one that is there, or the one that can be asked for."""
    held = scope.mine().directory()
    if held:
        for also in (frozenset(wanted) & offered(held), frozenset[str]()):
            enable, reason = _judge(held, frozenset(needed) | also, ours=True)
            if enable is not None:
                return Place(hierarchy, held, enable, scope=True)
        reasons.append(reason)
        return None
    obstacle = systemd.obstacle()
    if obstacle is not None:
        if systemd_running():
            reasons.append(f"systemd cannot be asked for a scope: {obstacle[0]}")
        return None
    passed = scope.expected(hierarchy)
    lacking = frozenset(needed) - passed if passed is not None else frozenset[str]()
    if lacking:
        reasons.append(f"a scope of systemd's would lack {' '.join(sorted(lacking))} here")
        return None
    return Place(hierarchy, scope.FUTURE, scope=True)


def _refusal(hierarchy: Hierarchy, needed: dict[str, str], reasons: list[str]) -> UnsupportedError:
    own = hierarchy.own or hierarchy.mount
    busy = any("EBUSY" in r for r in reasons[:1])
    if busy:
        remedy = "isolate.Cgroup.take_over(), once at the program's start: it moves this process's group into a leaf"
        number = errno.EBUSY
    elif systemd_running():
        user = "" if os.geteuid() == 0 else "--user "
        names = " ".join(sorted(needed)) or "yes"
        obstacle = systemd.obstacle()
        remedy = (
            f"{obstacle[1]}: systemd is asked for a scope with Delegate=yes then; " if obstacle is not None else ""
        ) + (
            f"run under: systemd-run {user}--scope -p Delegate=yes PROGRAM; "
            f"to delegate controllers to users: Delegate={names} in a drop-in for user@.service"
        )
        number = errno.EACCES
    else:
        remedy = (
            f"as root: mkdir a group, echo '+{' +'.join(sorted(needed)) or 'memory'}' > its parent's "
            f"cgroup.subtree_control, chown {os.geteuid()} the group, its cgroup.procs, cgroup.threads and "
            "cgroup.subtree_control, and start the program in it"
        )
        number = errno.EACCES
    return UnsupportedError(
        number,
        f"find a cgroup to make groups in (for {', '.join(sorted(set(needed.values()))) or 'accounting'})",
        part="Limits",
        path=own,
        cause="; ".join(reasons),
        remedy=remedy,
    )


#: Controllers that are used for counting besides those for limits, if that has no further cost.
ACCOUNTING: Final = ("memory", "pids")


def place(limits: LimitValues, host: Host, *, wanted: tuple[str, ...] = ACCOUNTING) -> Placement:
    """The place where the group of these limits is made. Reads only; nothing is made or enabled here.

    ``wanted`` are controllers that are used where they can be had.

    :raises UnsupportedError: with what stands in the way (file, owner) and what gives it.
    """
    needed = controllers(limits)
    if not host.hierarchies:
        raise unsupported(
            next(iter(needed.values()), "accounting"),
            "no cgroup file system is mounted",
            "mount one (mount -t cgroup2 none /sys/fs/cgroup), or leave Limits out",
            number=errno.ENODEV,
        )
    given = limits.parent
    places: list[Place] = []
    v2 = host.v2
    for_v2 = {
        c: f for c, f in needed.items() if c != "devices" and (h := home_of(host, c)) is not None and h.version == 2
    }
    if given is not None:
        return _inside(given, host, needed, for_v2, wanted)
    if v2 is not None:
        if host.mode == "unified" or for_v2:
            places.append(_place_v2(v2, for_v2, wanted if host.mode == "unified" else ()))
        elif v2.own and not v2.read_only and writable(v2.own) and not _judge(v2.own, frozenset())[1]:
            places.append(Place(v2, v2.own))  # hybrid: for cgroup.kill, cgroup.freeze, cpu.stat and pressure
    also = [*wanted, *(() if places else ("cpuacct", "freezer"))]
    places += _places_v1(host, needed, also)
    if not places:
        first = host.hierarchies[0]
        raise unsupported(
            "accounting",
            _v1_obstacle(first) or f"{first.own or first.mount} cannot be used",
            _v1_remedy(first),
            number=errno.EACCES,
            path=first.own or None,
        )
    return Placement(tuple(places))


def _places_v1(host: Host, needed: dict[str, str], wanted: Iterable[str]) -> list[Place]:
    found: dict[str, Place] = {}
    for controller, field in [*needed.items(), *((c, "") for c in wanted)]:
        home = home_of(host, controller)
        if home is None or home.version != 1 or home.key in found:
            continue
        reason = _v1_obstacle(home)
        if not reason:
            found[home.key] = Place(home, home.own)
        elif field:
            raise unsupported(
                field,
                reason,
                _v1_remedy(home, *_obstructed(host, needed)),
                number=errno.EROFS if home.read_only else errno.EACCES,
                path=home.own or home.mount,
            )
    return list(found.values())


def _obstructed(host: Host, needed: Iterable[str]) -> Iterator[Hierarchy]:
    """The hierarchies that are needed and cannot be had: one remedy is for all of them."""
    for controller in needed:
        home = home_of(host, controller)
        if home is not None and home.version == 1 and _v1_obstacle(home):
            yield home


def _v1_remedy(home: Hierarchy, *others: Hierarchy) -> str:
    if home.read_only:
        return (
            "start the container with a writable cgroup file system (podman: -v /sys/fs/cgroup:/sys/fs/cgroup:rw;"
            " docker: --privileged), or leave Limits out"
        )
    homes = {each.key: each for each in (home, *others) if not each.read_only}
    names = ",".join(sorted({name for each in homes.values() for name in each.controllers})) or "this hierarchy"
    if os.geteuid() == 0:
        return f"start this program in a group of {names} that it may write to, or leave Limits out"
    try:
        import pwd

        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # cgcreate knows users by their names alone
        uid, group = os.geteuid(), f"isolate-{os.geteuid()}"
        mounts = " ".join(sorted(each.mount for each in homes.values()))
        shell = os.getppid()
        return (
            f"run as root; or as root: for c in {mounts}; do mkdir -p $c/{group} && chown -R {uid} $c/{group} &&"
            f" echo {shell} > $c/{group}/cgroup.procs; done ({shell} started this program: start it there again)"
        )
    return (
        f"run as root; or as root: cgcreate -a {user} -t {user} -g {names}:/{user}, and start this program in it:"
        f" cgexec -g {names}:/{user} (package: cgroup-tools)"
    )


def _v1_obstacle(home: Hierarchy) -> str:
    if home.read_only:
        return f"the cgroup file system at {home.mount} is mounted read-only"
    if not home.own:
        return f"this process's group is not beneath {home.mount}"
    if not writable(home.own):
        return f"{home.own} is not ours to write ({owner(home.own)})"
    return ""


def _inside(
    given: object, host: Host, needed: dict[str, str], for_v2: dict[str, str], wanted: tuple[str, ...]
) -> Placement:
    """Beneath a group that the caller named."""
    directories: dict[str, str] = {"v2": given} if isinstance(given, str) else getattr(given, "directories")  # noqa: B009
    places: list[Place] = []
    for hierarchy in sorted(host.hierarchies, key=lambda h: -h.version):
        directory = directories.get(hierarchy.key)
        if directory is None:
            continue
        if not os.path.isdir(directory):
            raise ValueError(f"parent: there is no cgroup {directory}")
        enable: tuple[str, ...] | None = ()
        if hierarchy.version == 2:
            also = frozenset(wanted) & offered(directory) if host.mode == "unified" else frozenset[str]()
            enable, reason = _judge(directory, frozenset(for_v2) | also)
            if enable is None:
                enable, reason = _judge(directory, frozenset(for_v2))
            if enable is None:
                raise _refusal(hierarchy, for_v2, [reason])
        places.append(Place(hierarchy, directory, enable or ()))
    for controller, field in needed.items():
        home = home_of(host, controller)
        if home is not None and home.key not in {p.hierarchy.key for p in places}:
            raise unsupported(
                field, f"the given parent has no group in the {home.key} hierarchy", "make the parent with Cgroup()"
            )
    return Placement(tuple(places))
