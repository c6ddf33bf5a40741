"""``CgroupPool``: groups made ahead of time, so that a start finds one with its limits in force already."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import threading
from collections import deque
from typing import TYPE_CHECKING

from isolate.cgroups import files
from isolate.cgroups.counting import RunGroup, report_steps
from isolate.cgroups.cover import cover_steps
from isolate.cgroups.ending import destroy
from isolate.cgroups.group import Cgroup
from isolate.cgroups.hierarchy import discover
from isolate.cgroups.limits import Limits
from isolate.cgroups.part import BOUNDS, guided_steps, thaw_steps
from isolate.cgroups.placement import ACCOUNTING, place
from isolate.cgroups.settings import home_of, settings
from isolate.engine import native
from isolate.engine.plan import Phase, Register, Step, call
from isolate.errors import ConflictError, SetupError
from isolate.kernel.checks import is_int, keywords
from isolate.kernel.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from isolate.cgroups.placement import Placement
    from isolate.cgroups.settings import Settings
    from isolate.engine.plan import Context, Launched, Part

__all__ = ["CgroupPool"]

_F_DUPFD_CLOEXEC = 1030
_PAUSE = 1.0  # seconds, before what has failed is tried again


class _Shelf(Cgroup):
    """The group that the ready ones stand in: where the limits want it, but with none of them in force."""

    wanted = ACCOUNTING

    def _settings(self, limits: Limits) -> Settings:
        return super()._settings(Limits())


class _Ready:
    """A group with its limits written and read back, for one start; closing it gives it back to be removed."""

    def __init__(self, pool: CgroupPool, directories: dict[str, str]) -> None:
        self.directories = directories
        #: For each hierarchy the group itself, and on v1 the file by which a thread moves itself in.
        self.fds: list[int] = []
        self._pool: CgroupPool | None = pool

    def open(self) -> None:
        for key, directory in self.directories.items():
            self.fds.append(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            if key != "v2":
                self.fds.append(os.open(os.path.join(directory, "tasks"), os.O_WRONLY | os.O_CLOEXEC))

    def release(self) -> None:
        while self.fds:
            os.close(self.fds.pop())

    def started(self, session: Launched) -> None:
        """The launcher has its own copies."""

    def close(self) -> None:
        pool, self._pool = self._pool, None
        self.release()
        if pool is not None:
            pool._give_back(self)


def _remove(used: _Ready, owner: int) -> None:
    """Remove a group that was used.

    :raises SetupError: it is still there.
    """
    destroy(used.directories, owner, quiet=True)
    for directory in used.directories.values():
        if os.path.isdir(directory):
            raise SetupError(errno.EBUSY, "remove a used group", part="CgroupPool", syscall="rmdir", path=directory)


@keywords
class CgroupPool(Closing):
    """Groups made ahead of time: a part in the place of :class:`Limits`, for programs that start often.

    .. code-block:: python

        with isolate.CgroupPool(isolate.Limits(memory="256M", pids=64), size=8) as pool:
            box = isolate.Sandbox(pool, isolate.PidNamespace())
            for job in jobs:
                box.run(job)

    Each start takes a group that is ready: it is made and limited, and every limit was read back. No group is used
    twice. A thread of the pool makes new groups and removes used ones while the program runs. If no group is ready, one
    is made on the spot. All are in one group, which ends with the pool: on leaving the block, and when this program
    ends in any way, as with :class:`Cgroup`. Programs that still run in them are killed then.

    Verdicts, ``Result.stats`` and all else are as with :class:`Limits`. A group that was used is removed a moment
    *after* ``run`` has returned.

    :param limits: for each start alone, not for all together.
    :param size: how many stand ready; from 1 to 1000.

    >>> with CgroupPool(Limits(pids=16), size=2) as pool:  # doctest: +SKIP
    ...     Sandbox(pool).run(["true"]).ok
    True
    """

    def __init__(self, limits: Limits | None = None, *, size: int = 8) -> None:
        if limits is not None and not isinstance(limits, Limits):
            raise TypeError(f"limits must be a Limits, not {limits!r}")
        if not is_int(size):
            raise TypeError(f"size must be an int, not {size!r}")
        if not 1 <= size <= 1000:
            raise ValueError(f"size: {size} is not within 1 … 1000")
        self.limits: Limits = limits or Limits()
        self.size: int = size
        self._shelf = _Shelf(self.limits)
        self._placement: Placement | None = None
        self._settings: Settings | None = None
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._ready: deque[_Ready] = deque()
        self._used: deque[_Ready] = deque()
        self._open = False
        self._owner = -1
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"CgroupPool({self.limits!r}, size={self.size})"

    @property
    def directory(self) -> str:
        """The group that they all stand in, as :attr:`Cgroup.path`."""
        return self._shelf.path

    # ---- life --------------------------------------------------------------------------------------------------

    def create(self) -> Self:
        """Make the groups.

        :raises UnsupportedError: as :class:`Limits` in a sandbox. :raises SetupError: a limit was refused.
        """
        if self._open:
            raise ValueError(f"{self!r} is made already")
        self._shelf.create()
        try:
            host = discover()
            limits = dataclasses.replace(self.limits, parent=self._shelf)
            self._placement = place(limits, host, wanted=ACCOUNTING)
            for spot in self._placement.places:
                if spot.enable:
                    text = " ".join(f"+{c}" for c in spot.enable)
                    step = f"enable {text} in {spot.parent}"
                    files.write(spot.parent, "cgroup.subtree_control", text.encode(), step=step, part="CgroupPool")
            parents = {spot.hierarchy: spot.parent for spot in self._placement.places}
            self._settings = settings(
                limits, host, lambda c: parents.get(home, "") if (home := home_of(host, c)) is not None else ""
            )
            self._homes = {s.controller: home for s in self._settings.files if (home := home_of(host, s.controller))}
            self._ready.extend(self._make() for _ in range(self.size))
        except BaseException:
            self._release()
            self._shelf.close()
            raise
        self._open, self._owner = True, native.owner()
        self._thread = threading.Thread(target=self._work, name="isolate.CgroupPool", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Remove the groups, and kill what is still in them. Nothing in a forked child, whose they are not."""
        if not self._open or not native.owns(self._owner):
            return
        with self._changed:
            self._open = False
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._release()
        self._shelf.close()

    def _release(self) -> None:
        for ready in (*self._ready, *self._used):
            ready.release()
        self._ready.clear()
        self._used.clear()

    def __enter__(self) -> Self:
        return self if self._open else self.create()

    # ---- ready ones --------------------------------------------------------------------------------------------

    def _make(self) -> _Ready:
        assert self._placement is not None
        assert self._settings is not None
        name = str(next(self._numbers))
        ready = _Ready(self, {})
        try:
            for spot in self._placement.places:
                directory = os.path.join(spot.parent, name)
                files.make(directory, step="make a group for the pool", part="CgroupPool")
                ready.directories[spot.hierarchy.key] = directory
            if "v2" in ready.directories:
                for file, most in BOUNDS:
                    files.write(ready.directories["v2"], file, most, part="CgroupPool")
            for setting in self._settings.files:
                files.apply(ready.directories[self._homes[setting.controller].key], setting)
            if self._settings.program is not None:
                files.attach_program(ready.directories["v2"], self._settings.program)
            try:
                ready.open()
            except OSError as error:
                raise SetupError(
                    error.errno or 0,
                    "open a group of the pool",
                    part="CgroupPool",
                    syscall="open",
                    path=error.filename,
                ) from None
        except BaseException:
            ready.release()
            destroy(ready.directories, native.owner(), quiet=True)
            raise
        return ready

    def take(self) -> _Ready:
        """A ready group, for one start. Part of what a sandbox does; programs have no need of it."""
        if not self._open or not native.owns(self._owner):
            raise ValueError(f"{self!r}: it has to be made first, by create() or with, and in this process")
        with self._changed:
            if self._ready:
                return self._ready.popleft()
            self._changed.notify()
        while True:
            try:
                return self._make()
            except SetupError as error:
                # EAGAIN, ENOSPC: so many groups there may be, and some of them are ours that wait to be removed.
                used = self._next_used() if error.errno in (errno.EAGAIN, errno.ENOSPC) else None
                if used is None:
                    raise
                _remove(used, self._owner)

    def _next_used(self) -> _Ready | None:
        with self._changed:
            return self._used.popleft() if self._used else None

    def _give_back(self, ready: _Ready) -> None:
        with self._changed:
            if self._open:
                self._used.append(ready)
                self._changed.notify()

    def _work(self) -> None:
        """Replace and remove, until the pool is closed."""
        while True:
            with self._changed:
                while self._open and not self._used and len(self._ready) >= self.size:
                    self._changed.wait()
                if not self._open:
                    return
                used = self._used.popleft() if self._used else None
                wanted = len(self._ready) < self.size
            # Errors pass, above all a full table of descriptors or groups: only the pool ends this thread. Removal
            # comes first, because it makes room.
            failed = False
            if used is not None:
                try:
                    _remove(used, self._owner)
                except Exception:
                    failed = True
                    with self._changed:
                        self._used.append(used)
            if wanted:
                try:
                    made = self._make()
                except Exception:
                    failed = True  # whoever takes next makes one on the spot, and gets the error
                else:
                    with self._changed:
                        self._ready.append(made)
            if failed:
                with self._changed:
                    if self._open:
                        self._changed.wait(_PAUSE)

    # ---- as a part ---------------------------------------------------------------------------------------------

    def brings(self) -> Iterator[Part]:
        """The part that makes the files of the group read-only inside: see :mod:`isolate.cgroups.cover`."""
        from isolate.cgroups.cover import brings

        return brings()

    def steps(self, context: Context) -> Iterator[Step]:
        """As a part of a sandbox: each start is in a group of its own."""
        if self._placement is None or not self._open:
            raise ValueError(f"{self!r}: it has to be made first, by create() or with")
        if context.find(Limits) is not None:
            raise ConflictError("a CgroupPool has its limits already: Limits(...) beside it says them twice")
        group = RunGroup()
        group.pool = self
        context.group = group
        if "v2" in self._shelf.directories:
            yield from guided_steps(self._shelf.directories["v2"], context)
        slots = iter(context.resource(self, sum(1 if s.hierarchy.version == 2 else 2 for s in self._placement.places)))
        for spot in self._placement.places:
            key = spot.hierarchy.key
            group.paths[key] = (spot.hierarchy, "")
            register = Register(f"group in {key}")
            taking = call("fcntl", next(slots), _F_DUPFD_CLOEXEC, 0, out=register)
            yield Step(Phase.CGROUP, f"take a ready group in {spot.parent}", (taking,))
            if spot.hierarchy.version == 2:
                yield Step(Phase.CLONE, "born in the group", cgroup=register)
            else:
                entering = call("write", next(slots), b"0", 1, expect=1)
                yield Step(Phase.ENTER, f"go into the group of {key}", (entering,))
            yield from thaw_steps(key, register, b".")
            yield from report_steps(spot, register, group)
        yield from cover_steps(context)
