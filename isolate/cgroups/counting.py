"""The groups of a run: how to find them, and the counters that its launcher reads when the program has ended."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from isolate.cgroups import stats
from isolate.cgroups.naming import abandoned, gone, parse
from isolate.cgroups.placement import offered
from isolate.engine.plan import Buffer, Label, Phase, Register, Step, Test, call
from isolate.kernel.constants import AT_FDCWD, O_CLOEXEC, O_RDONLY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from isolate.cgroups.hierarchy import Hierarchy
    from isolate.cgroups.placement import Place
    from isolate.engine.plan import Launched, Op, Resource

__all__ = ["Outcome", "RunGroup", "counted", "counter_steps", "report_steps"]

_LOOKED_AT = 4096  # entries beside a group of ours, at most
_GONE: Final = (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.EBADF)


@dataclass(frozen=True)
class Outcome:
    """The counters of a run's group."""

    stats: stats.Stats
    cpu_time: float | None
    peak_memory: int | None

    def peak_in_use(self, largest: int) -> int | None:
        """See :func:`isolate.cgroups.stats.peak_in_use`. None where the group is not the program's alone."""
        return None if self.peak_memory is None else stats.peak_in_use(self.stats, largest)

    def verdict(self, *, failed: bool) -> str | None:
        """``"OOM"``, ``"PIDS"`` or None; ``failed``: the program did not exit with 0."""
        return stats.verdict(None, self.stats, failed=failed)


class RunGroup:
    """The groups that every run of a plan makes, by hierarchy: how to find them, and what came back."""

    def __init__(self) -> None:
        #: Hierarchy to the path of the group without its last digits, the launcher's pid.
        self.paths: dict[str, tuple[Hierarchy, str]] = {}
        self.buffers: dict[tuple[int, str], Buffer] = {}
        #: The pool that gives each start a group, and also removes it.
        self.pool: Resource | None = None
        #: The values from the last report, kept because verdict and result ask for the same one.
        self._last: tuple[bytes, Outcome] | None = None
        #: What reads such a report, kept since all reports of a tape are laid out alike.
        self._reader: tuple[Sequence[tuple[Buffer, int, int]], stats.Reader] | None = None

    @property
    def counts(self) -> bool:
        """Whether one of the groups counts CPU time."""
        return any(h.version == 2 or "cpuacct" in key.split(",") for key, (h, _) in self.paths.items())

    def directories(self, session: Launched) -> dict[str, str]:
        """The group's directory in each hierarchy, for a run that goes on."""
        if self.pool is not None:
            ready = session.given_by(self.pool)
            return dict(getattr(ready, "directories", ()))
        return {key: f"{path}{session.pid}" for key, (_, path) in self.paths.items()}

    def remove(self, session: Launched) -> None:
        """Remove what a launcher that was killed has left. Where it does not go, :meth:`Cgroup.sweep` finds it."""
        from isolate.cgroups.sweep import remove

        for directory in self.directories(session).values() if self.pool is None else ():
            remove(directory)

    def remove_left(self) -> None:
        """Remove what was made ahead of a start, where all that would have removed it were killed."""
        from isolate.cgroups.sweep import remove

        for _, path in self.paths.values() if self.pool is None else ():
            parent, prefix = os.path.split(path)
            for name in os.listdir(parent):
                tag = name[len(prefix) :]
                if name.startswith(prefix) and tag.isdigit() and gone(int(tag)):
                    remove(os.path.join(parent, name))

    def remove_abandoned(self) -> None:
        """Remove groups beside ours that were made ahead of starts, by programs that were killed together with all that
        would have removed them. Only empty ones, for nothing in any is to be killed here: the kernel sees to that."""
        for _, path in self.paths.values() if self.pool is None else ():
            parent, prefix = os.path.split(path)
            with contextlib.suppress(OSError), os.scandir(parent) as entries:
                for entry in itertools.islice(entries, _LOOKED_AT):
                    name = None if entry.name.startswith(prefix) else parse(entry.name)
                    if name is not None and name.tag.isdigit() and abandoned(name):
                        with contextlib.suppress(OSError):
                            os.rmdir(entry.path)

    def usage(self, session: Launched) -> float | None:
        """Seconds of CPU time so far, of everything in the group; None where nothing counts it."""
        directories = self.directories(session)
        for key, (hierarchy, _) in self.paths.items():
            if hierarchy.version == 1 and "cpuacct" not in key:
                continue
            file = "cpu.stat" if hierarchy.version == 2 else "cpuacct.usage"
            try:
                with open(f"{directories.get(key, os.devnull)}/{file}", "rb") as opened:
                    data = opened.read()
            except OSError:
                continue
            return stats.parse({(hierarchy.version, file): data}).cpu_time
        return None

    def outcome(self, report: bytes, reports: Sequence[tuple[Buffer, int, int]]) -> Outcome:
        """The counters from the launcher's last record (``Record.report``, ``Tape.reports``)."""
        last = self._last
        if last is None or last[0] is not report:
            reader = self._reader
            if reader is None or reader[0] is not reports:
                self._reader = reader = reports, _reader(self.buffers, reports)
            found = reader[1].read(report)
            self._last = last = report, Outcome(found, found.cpu_time, found.peak_memory)
        return last[1]


def counted(
    buffers: Mapping[tuple[int, str], Buffer], report: bytes, reports: Sequence[tuple[Buffer, int, int]]
) -> stats.Stats:
    """The counters that a launcher has read into some buffers and sent with its last record."""
    return _reader(buffers, reports).read(report)


def _reader(buffers: Mapping[tuple[int, str], Buffer], reports: Sequence[tuple[Buffer, int, int]]) -> stats.Reader:
    places = {buffer: (offset, size) for buffer, offset, size in reports}
    return stats.Reader({key: places[buffer] for key, buffer in buffers.items() if buffer in places})


def report_steps(spot: Place, directory: Register, group: RunGroup) -> Iterator[Step]:
    """Read the counters when everything inside is dead."""
    version = spot.hierarchy.version
    known = stats.V2_FILES if version == 2 else stats.V1_FILES
    done = Label()
    # The group gets the controllers that the group above can pass on. Our own group may not have got all of those.
    controllers = offered(spot.parent) if version == 2 else spot.hierarchy.controllers
    ops: list[Op] = [Test(directory, 0, negate=True, label=done)]  # it was never made
    for file, room in known:
        controller = stats.controller_of(version, file)
        if file in stats.NOT_AT_END or (controller and controller not in controllers):
            continue
        buffer = Buffer(room, file, report=True)
        group.buffers[version, file] = buffer
        fd, after = Register(file), Label()
        jump = {"errors": _GONE, "policy": "jump", "label": after}
        ops += [
            call("openat", directory, file.encode(), O_RDONLY | O_CLOEXEC, 0, out=fd, **jump),
            call("read", fd, buffer, room - 1, errors=(errno.EOPNOTSUPP, errno.ENODEV, errno.EIO)),
            call("close", fd),
            after,
        ]
    if group.buffers:
        yield Step(Phase.REPORT, f"read the counters of {spot.hierarchy.key}", (*ops, done))


#: The counters that tell that a limit was reached, by the version of the hierarchy.
_TELLING: Final = {2: ("memory.events", "pids.events"), 1: ("memory.oom_control", "pids.events")}


def counter_steps(key: str, directory: str, phase: Phase, buffers: dict[tuple[int, str], Buffer]) -> Iterator[Step]:
    """Read what a group that exists has counted of limits that were reached."""
    version = 2 if key == "v2" else 1
    ops: list[Op] = []
    for file in _TELLING[version]:
        if version == 1 and file.partition(".")[0] not in key.split(","):
            continue
        room = dict(stats.V2_FILES if version == 2 else stats.V1_FILES)[file]
        buffers[version, file] = buffer = Buffer(room, file, report=True)
        fd, after = Register(file), Label()
        path = os.fsencode(os.path.join(directory, file))
        ops += [
            call("openat", AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0, out=fd, errors=_GONE, policy="jump", label=after),
            call("read", fd, buffer, room - 1, errors=(errno.EOPNOTSUPP, errno.ENODEV, errno.EIO)),
            call("close", fd),
            after,
        ]
    if ops:
        yield Step(phase, f"read the counters of {key}", tuple(ops))
