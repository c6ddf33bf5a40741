"""``Cgroup``: a cgroup that is an object of its own and outlives a child."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
import time
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Final

from isolate.cgroups import files, naming, stats
from isolate.cgroups.ending import abandon, destroy, dismiss, freeze_groups, kill_all, read_stats
from isolate.cgroups.guardian import watch
from isolate.cgroups.hierarchy import discover
from isolate.cgroups.limits import Limits
from isolate.cgroups.placement import place, removal_order
from isolate.cgroups.scope import FUTURE, guide_to, mine
from isolate.cgroups.settings import Setting, home_of, settings
from isolate.engine import native
from isolate.errors import ConflictError, SetupError, UnsupportedError
from isolate.kernel.checks import is_int, keywords
from isolate.kernel.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from typing_extensions import Self

    from isolate.cgroups.change import Inside
    from isolate.cgroups.events import Events
    from isolate.cgroups.settings import Settings
    from isolate.engine.plan import Context, Part, Step
    from isolate.engine.session import Session

__all__ = ["Cgroup"]

#: The value that removes a limit, by file.
_LIFT: Final = {
    "memory.max": "max",
    "memory.high": "max",
    "memory.low": "0",
    "memory.min": "0",
    "memory.swap.max": "max",
    "memory.oom.group": "0",
    "pids.max": "max",
    "cpu.max": "max",
    "cpu.max.burst": "0",
    "cpu.weight": "100",
    "cpuset.cpus": "\n",
    "cpuset.mems": "\n",
    "io.weight": "default 100",
    "memory.limit_in_bytes": "-1",
    "memory.memsw.limit_in_bytes": "-1",
    "cpu.cfs_quota_us": "-1",
    "cpu.cfs_burst_us": "0",
    "cpu.shares": "1024",
    "cpu.cfs_period_us": "100000",
}
_tags: Final = itertools.count(1)


@keywords
class Cgroup(Closing):
    """A cgroup in every hierarchy that this host has: create, limit, count, watch, freeze, kill.

    ``with isolate.Cgroup(Limits(memory="1G")) as group:`` makes it; leaving the block kills what is inside and removes
    it, with the groups made below it. ``create()`` and ``close()`` do the same by hand. Its directory is named
    after its owner, see :meth:`sweep`. Should this program be killed, a small process of ours that watches it
    removes the group.

    :param limits: limits for all that will be inside together.
    :param name: the last part of its name; a number otherwise. Letters, digits, ``_`` and ``.``.
    :param parent: the group to make it in; found by itself otherwise.

    >>> with Cgroup(Limits(pids=16)) as group:  # doctest: +SKIP
    ...     Sandbox(group).run(["true"]).ok
    True
    """

    #: Controllers that it gets where they can be had, so that limits can be set later.
    wanted: ClassVar[tuple[str, ...]] = (
        "memory",
        "pids",
        "cpu",
        "cpuacct",
        "cpuset",
        "io",
        "devices",
        "freezer",
    )

    def __init__(self, limits: Limits | None = None, *, name: str | None = None, parent: Cgroup | None = None) -> None:
        if limits is not None and not isinstance(limits, Limits):
            raise TypeError(f"limits must be a Limits, not {limits!r}")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str, not {name!r}")
        if name is not None and not (name and all(c.isalnum() or c in "_." for c in name) and name.isascii()):
            raise ValueError(f"name: letters, digits, '_' and '.' are allowed, not {name!r}")
        if name is not None and (name.isdigit() or len(name) > 128):
            raise ValueError(f"name: {name!r} is all digits (those stand for runs) or too long")
        self.limits: Limits = limits or Limits()
        if parent is not None:
            if not isinstance(parent, Cgroup):
                raise TypeError(f"parent must be a Cgroup, not {parent!r}")
            self.limits = dataclasses.replace(self.limits, parent=parent)
        self._tag = name if name is not None else f"g{next(_tags)}"
        #: Hierarchy (``"v2"`` or v1's controllers) to directory; empty before :meth:`create`.
        self.directories: dict[str, str] = {}
        #: The limits as they were read back from the kernel, by file.
        self.held: dict[str, str] = {}
        self._written: dict[tuple[str, str], Setting] = {}
        self._owner = -1
        self._guardian: Session | None = None
        self._finalizer: weakref.finalize[Any, Cgroup] | None = None

    def __repr__(self) -> str:
        return f"<Cgroup {self.path or self._tag}{'' if self.directories else ' (not made)'}>"

    @property
    def path(self) -> str:
        """Its directory in the v2 hierarchy, else in the first one; empty before it is made."""
        return self.directories.get("v2") or next(iter(self.directories.values()), "")

    # ---- life --------------------------------------------------------------------------------------------------

    def create(self) -> Self:
        """Make it.

        :raises UnsupportedError: this host cannot, or cannot hold one of the limits; with the reason and a remedy.
        :raises SetupError: a limit was refused. Nothing is left then.
        """
        if self.directories:
            raise ValueError(f"{self!r} is made already")
        if self.limits.network is not None:
            raise ConflictError("Limits: network= is a sandbox's with an Interface; a group has no network")
        host = discover()
        placement = place(self.limits, host, wanted=self.wanted)
        if any(spot.parent == FUTURE for spot in placement.places):
            mine().make()
            placement = place(self.limits, host, wanted=self.wanted)
        name = naming.prefix() + self._tag
        # Before anything is there to be left behind.
        self._guardian = watch([os.path.join(spot.parent, name) for spot in removal_order(placement.places)])
        try:
            for spot in placement.places:
                if spot.enable:
                    text = " ".join(f"+{c}" for c in spot.enable)
                    files.write(
                        spot.parent, "cgroup.subtree_control", text.encode(), step=f"enable {text} in {spot.parent}"
                    )
                directory = os.path.join(spot.parent, name)
                files.make(directory, step=f"make the group {name}", part="Cgroup")
                self.directories[spot.hierarchy.key] = directory
            self._apply(self._settings(self.limits))
        except BaseException:
            destroy(self.directories, native.owner(), quiet=True)
            self.directories = {}
            dismiss(self._guardian, native.owner())
            raise
        self._owner = native.owner()
        self._finalizer = weakref.finalize(self, abandon, self.directories, self._owner, repr(self), self._guardian)
        return self

    def close(self) -> None:
        """Kill what is inside and remove it, with the groups below. Nothing in a forked child, whose it is not."""
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None
        if self.directories:
            directories, self.directories = self.directories, {}
            try:
                destroy(directories, self._owner)
            finally:
                dismiss(self._guardian, self._owner)

    def __enter__(self) -> Self:
        return self if self.directories else self.create()

    def _made(self) -> dict[str, str]:
        if not self.directories:
            raise ValueError(f"{self!r}: it has to be made first, by create() or with")
        return self.directories

    @classmethod
    def view(cls, directories: Mapping[str, str], limits: Limits) -> Self:
        """A group that somebody else has made and keeps: for its counters and limits, not for its life."""
        group = cls(limits)
        group.directories = dict(directories)
        with contextlib.suppress(UnsupportedError):  # a limit that this host cannot hold was refused when it was made
            for setting in group._settings(dataclasses.replace(limits, devices=None)).files:
                home = home_of(discover(), setting.controller)
                directory = group.directories.get(home.key) if home is not None else None
                if directory is not None:
                    group._written[directory, _key(setting)] = setting
        return group

    # ---- limits ------------------------------------------------------------------------------------------------

    def _settings(self, limits: Limits) -> Settings:
        host = discover()

        def here(controller: str) -> str:
            home = home_of(host, controller)
            return self.directories.get(home.key, "") if home is not None else ""

        # v1's cpuset takes what is not given from the group above, which is where a fresh one stands.
        return settings(limits, host, lambda c: os.path.dirname(here(c)) or here(c))

    def _apply(self, wanted: Settings) -> None:
        host = discover()
        where: list[tuple[str, Setting]] = []
        for setting in wanted.files:
            home = home_of(host, setting.controller)
            directory = self.directories.get(home.key) if home is not None else None
            if directory is None:
                raise UnsupportedError(
                    errno.ENODEV,
                    f"limit {setting.field}",
                    part="Limits",
                    cause=f"the group has no {setting.controller} controller",
                    remedy="make the Cgroup with a limit of that kind, so that the controller is there from the start",
                )
            where.append((directory, setting))
        for directory, setting in _ordered(where):
            if self._written.get((directory, _key(setting))) == setting:
                continue
            self.held[setting.readback or setting.file] = files.apply(directory, setting)
            self._written[directory, _key(setting)] = setting
        if wanted.program is not None:
            files.attach_program(self.directories["v2"], wanted.program)

    def update(self, **changes: Any) -> None:
        """Change limits while it runs: the arguments of :class:`Limits`; None takes a limit back.

        :attr:`held` has the values that the kernel holds afterwards. Devices can only be set when the group is made.

        :raises SetupError: the kernel refused one (EBUSY: more memory is in use than v1 could reclaim). Those written
            before it hold.
        """
        self._made()
        if changes.get("network") != self.limits.network and "network" in changes:
            raise ValueError("update: network is fixed when the sandbox starts: its Interface holds it")
        if "devices" in changes or "parent" in changes:
            raise ValueError("update: devices and parent are fixed when the group is made")
        limits = dataclasses.replace(self.limits, **changes)
        wanted = self._settings(dataclasses.replace(limits, devices=None))
        keys = {_key(s) for s in wanted.files}
        for (directory, key), old in reversed(list(self._written.items())):  # the sum before memory
            if key not in keys and old.controller != "devices":
                data = _lift(old)
                files.write(directory, old.file, data.encode(), step=f"take back {old.field}", part="Limits")
                self.held.pop(old.file, None)
                del self._written[directory, key]
        self._apply(wanted)
        self.limits = limits

    # ---- what is inside ----------------------------------------------------------------------------------------

    def add(self, pid: int = 0) -> None:
        """Move a process in, with all its threads; 0 is the caller. Its memory stays charged to its old group.

        If the group is in a scope of systemd's and this process may not move the other one, systemd moves it.

        :raises SetupError: ESRCH: no such process; EACCES: v2 asks for write permission in the common ancestor, too.
        """
        if not is_int(pid) or pid < 0:
            raise ValueError(f"not a pid: {pid!r}")
        for key, directory in self._made().items():
            try:
                files.write(directory, "cgroup.procs", str(pid).encode(), step=f"move process {pid} into {directory}")
            except SetupError as error:
                guide = guide_to(directory) if key == "v2" and error.errno in (errno.EACCES, errno.EPERM) else None
                if guide is None:
                    raise
                guide.attach(directory, pid or os.getpid())

    def inside(self, who: str = "process") -> Inside:
        """A block in which this process is in the group: ``with group.inside():``, and back after.

        ``who="thread"`` moves the calling thread alone, so that of this program only what it starts is inside; that is
        for v1 hierarchies. Children started in the block are in the group, plain :mod:`subprocess` ones too, and stay.
        """
        from isolate.cgroups.change import Inside

        return Inside(self._made(), who)

    def processes(self) -> list[int]:
        """Pids of all that is inside and in groups below."""
        found: set[int] = set()
        for directory in self._made().values():
            found.update(files.processes(directory))
        return sorted(found - {0})

    def steps(self, context: Context) -> Iterator[Step]:
        """As a part of a sandbox: the child is born in this group."""
        from isolate.cgroups.part import joined_steps

        return joined_steps(self._made(), context)

    def brings(self) -> Iterator[Part]:
        """The part that makes the files of the group read-only inside: see :mod:`isolate.cgroups.cover`."""
        from isolate.cgroups.cover import brings

        return brings()

    # ---- counters ----------------------------------------------------------------------------------------------

    def stats(self) -> stats.Stats:
        """The use of the group, with all groups below it, so far."""
        return read_stats(self._made())

    def events(self, timeout: float | None = None) -> Events:
        """Events of the group from now on, for a loop; see :class:`~isolate.cgroups.events.Events`."""
        from isolate.cgroups.events import Events

        return Events(self._made(), timeout)

    # ---- control -----------------------------------------------------------------------------------------------

    def freeze(self, timeout: float = 10.0) -> None:
        """Stop every process inside, and return when all have stopped.

        :raises TimeoutError: some have not within ``timeout`` seconds (uninterruptible sleep); they will.
        """
        freeze_groups(self._made(), True, timeout)

    def thaw(self, timeout: float = 10.0) -> None:
        """Let them go on."""
        freeze_groups(self._made(), False, timeout)

    def kill(self) -> None:
        """SIGKILL to every process inside, and to what they fork meanwhile: freeze, kill all, thaw.

        The group can be used again. Nobody is killed by cgroup.kill, since Linux 6.16 lets no process be born into a
        group that was killed so. Processes of other pid namespaces, which have no number here, are not reached.
        """
        kill_all(self._made())

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no process is inside; False if ``timeout`` seconds pass before."""
        from isolate.cgroups.events import wait_for

        directories = self._made()
        start = time.monotonic()
        if "v2" in directories and not wait_for(directories["v2"], "populated", 0, timeout):
            return False
        # v1 alone has no notification. Also, a process may have been moved into a v1 group only, by somebody else.
        while self.processes():
            if timeout is not None and time.monotonic() - start >= timeout:
                return False
            time.sleep(0.005)
        return True

    async def await_empty(self, timeout: float | None = None) -> bool:
        """As :meth:`wait`, for asyncio."""
        import asyncio

        deadline = None if timeout is None else time.monotonic() + timeout
        with self.events() as events:
            while self.processes():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                if "v2" not in self.directories:
                    await asyncio.sleep(0.005)
                    continue
                try:
                    await asyncio.wait_for(events.__aiter__().__anext__(), left)
                except (asyncio.TimeoutError, StopAsyncIteration):
                    continue
        return True

    # ---- the host ----------------------------------------------------------------------------------------------

    @staticmethod
    def sweep() -> list[str]:
        """Remove groups that programs which have ended left behind; the directories removed.

        Only groups with a name of ours, made by a process that certainly ended, in the places where this process would
        make its own; what is still inside is killed. Nothing else is touched.
        """
        from isolate.cgroups.sweep import sweep

        return sweep()

    @staticmethod
    def take_over(controllers: Sequence[str] = ("memory", "pids", "cpu", "cpuset", "io")) -> str:
        """Move every process of this process's own v2 group into a leaf below it, so that it can pass controllers on.

        A program needs this under v2's "no internal processes" rule to make groups below its own, as in a container or
        a delegated service. If the group is a unit of systemd's that was not delegated, systemd is first asked for a
        scope with Delegate=yes, and this process moves there (extra ``isolate-linux[systemd]``). The library never
        calls it by itself, because it moves processes that may belong to others. Returns the directory in which groups
        can be made now. If it was free already, nothing is moved.

        :raises UnsupportedError: there is no v2 hierarchy, or the group is not ours.
        """
        from isolate.cgroups.sweep import take_over

        return take_over(tuple(controllers))


def _key(setting: Setting) -> str:
    """The subject of a setting: two for the same replace one another."""
    if setting.file.startswith(("io.max", "blkio.throttle", "rdma.", "misc.", "net_prio.", "devices.")):
        return f"{setting.file} {setting.data.decode().split(' ')[0]}"
    return setting.file


def _lift(setting: Setting) -> str:
    name = setting.data.decode().split(" ")[0]
    if setting.file == "io.max":
        return f"{name} rbps=max wbps=max riops=max wiops=max"
    if setting.file.startswith("blkio.throttle"):
        return f"{name} 0"
    if setting.file.startswith("hugetlb."):
        return "-1" if setting.file.endswith("_in_bytes") else "max"
    if setting.file == "rdma.max":
        return f"{name} hca_handle=max hca_object=max"
    if setting.file == "misc.max":
        return f"{name} max"
    return _LIFT[setting.file]


def _ordered(where: list[tuple[str, Setting]]) -> list[tuple[str, Setting]]:
    """v1 keeps memory <= memory+swap at every moment: when memory is raised above the sum, the sum goes first."""
    at = {s.file: i for i, (_, s) in enumerate(where)}
    memory, both = at.get("memory.limit_in_bytes"), at.get("memory.memsw.limit_in_bytes")
    if memory is not None and both is not None:
        directory, setting = where[memory]
        holds = stats.single(files.read(directory, "memory.memsw.limit_in_bytes"))
        if holds is not None and (int(setting.data) < 0 or int(setting.data) > holds):
            where[memory], where[both] = where[both], where[memory]
    return where
