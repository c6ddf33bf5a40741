"""The events of a group as they happen: an iterator for threads and for asyncio.

v2: ``cgroup.events``, ``memory.events`` and ``pids.events`` are watched with poll(2), POLLPRI (cgroup-v2.rst). v1: the
OOM notification of the memory controller through an eventfd (cgroup-v1/memory.rst, section 9); a pure v1 host has no
notification of ``populated``.
"""

from __future__ import annotations

import os
import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.cgroups import stats
from isolate.kernel.closing import Closing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping


@dataclass(frozen=True)
class Event:
    """Something that happened.

    ``kind`` is ``oom``, ``oom_kill``, ``oom_group_kill``, ``high``, ``max``, ``low``, ``pids_max``, ``populated`` or
    ``frozen``; ``count`` the counter's new value, or for the last two 1 or 0.
    """

    kind: str
    count: int


class Events(Closing):
    """The events of a group from now on. For ``for`` and ``async for``; close it, or use ``with``.

    The iteration ends when the group has been removed, or when ``timeout`` seconds pass without an event.
    """

    def __init__(self, directories: Mapping[str, str], timeout: float | None = None) -> None:
        self._timeout = timeout
        self._files: dict[int, tuple[str, dict[str, int]]] = {}
        self._eventfd = -1
        self._poll = select.poll()
        v2 = directories.get("v2")
        try:
            if v2 is not None:
                for file in ("cgroup.events", "memory.events", "pids.events"):
                    self._watch(os.path.join(v2, file), file)
            for key, directory in directories.items():
                if "memory" in key.split(","):
                    self._watch_v1(directory)
        except BaseException:
            self.close()
            raise

    def _watch(self, path: str, name: str) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        # The first read arms the notification, and is what later reads are compared with.
        self._files[fd] = (name, stats.pairs(os.read(fd, 4096)))
        self._poll.register(fd, select.POLLPRI | select.POLLERR)

    def _watch_v1(self, directory: str) -> None:
        path = os.path.join(directory, "memory.oom_control")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._files[fd] = ("memory.oom_control", stats.pairs(os.read(fd, 4096)))
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        control = os.open(os.path.join(directory, "cgroup.event_control"), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(control, f"{self._eventfd} {fd}".encode())
        finally:
            os.close(control)
        self._poll.register(self._eventfd, select.POLLIN)

    def _changes(self, fd: int) -> list[Event]:
        name, before = self._files[fd]
        try:
            after = stats.pairs(os.pread(fd, 4096, 0))
        except OSError:
            self._forget(fd)  # ENODEV: the group was removed
            return []
        self._files[fd] = (name, after)
        prefix = "pids_" if name == "pids.events" else ""
        skip = {"oom_kill_disable", "under_oom"}
        return [Event(prefix + k, v) for k, v in after.items() if v != before.get(k, 0) and k not in skip]

    def _forget(self, fd: int) -> None:
        name, _ = self._files.pop(fd)
        if name != "memory.oom_control":
            self._poll.unregister(fd)
        os.close(fd)

    def _oom_file(self) -> int:
        return next((fd for fd, (name, _) in self._files.items() if name == "memory.oom_control"), -1)

    def _take(self, ready: list[tuple[int, int]]) -> list[Event]:
        found: list[Event] = []
        for fd, _ in ready:
            if fd == self._eventfd:
                os.read(fd, 8)
                if self._oom_file() < 0:
                    continue
                # The notification comes when the group runs out, the victim is counted a little later.
                found.append(Event("oom", 1))
                found += self._changes(self._oom_file())
            elif fd in self._files:
                found += self._changes(fd)
        return found

    @property
    def _alive(self) -> bool:
        return any(name != "memory.oom_control" for name, _ in self._files.values()) or self._eventfd >= 0

    def __iter__(self) -> Iterator[Event]:
        while self._alive:
            deadline = None if self._timeout is None else time.monotonic() + self._timeout
            found: list[Event] = []
            while self._alive and not found:
                left = None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000))
                ready = self._poll.poll(left)
                if not ready:
                    return
                found = self._take(ready)
            yield from found

    async def __aiter__(self) -> AsyncIterator[Event]:
        import asyncio

        loop = asyncio.get_running_loop()
        while self._alive:
            # epoll knows no POLLPRI through asyncio, but an epoll instance of our own is readable when it has one.
            changed = asyncio.Event()
            epoll = select.epoll()
            try:
                for fd, (name, _) in self._files.items():
                    if name != "memory.oom_control":
                        epoll.register(fd, select.EPOLLPRI | select.EPOLLERR)
                if self._eventfd >= 0:
                    epoll.register(self._eventfd, select.EPOLLIN)
                loop.add_reader(epoll.fileno(), changed.set)
                try:
                    await asyncio.wait_for(changed.wait(), self._timeout)
                except asyncio.TimeoutError:
                    return
                finally:
                    loop.remove_reader(epoll.fileno())
                ready = epoll.poll(0)
            finally:
                epoll.close()
            for event in self._take(ready):
                yield event

    def close(self) -> None:
        """Stop watching."""
        for fd in [*self._files, *([self._eventfd] if self._eventfd >= 0 else [])]:
            os.close(fd)
        self._files.clear()
        self._eventfd = -1


def wait_for(directory: str, kind: str, value: int, timeout: float | None) -> bool:
    """Wait until ``cgroup.events`` of a v2 group says ``kind value``; False if ``timeout`` seconds pass before."""
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        fd = os.open(os.path.join(directory, "cgroup.events"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLPRI | select.POLLERR)
        while True:
            try:
                if stats.pairs(os.pread(fd, 4096, 0)).get(kind, value) == value:
                    return True
            except OSError:
                return True  # removed meanwhile
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            poll.poll(None if left is None else int(left * 1000) + 1)
    finally:
        os.close(fd)
