"""What this process and this machine hold, before and after."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

from isolate.sandbox import parked

#: Seconds for what comes at once. A busy machine takes its time, and what never comes is told all the same.
SOON = 30.0


def descriptors(pid: int | str = "self") -> dict[int, str]:
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return {fd: to for fd, to in found.items() if not to.startswith(f"/proc/{os.getpid()}/fd")}


def children() -> set[int]:
    """Read twice: if a child is reaped while the kernel writes the list, one behind it may be left out (proc(5))."""
    found: set[int] = set()
    for task in os.listdir("/proc/self/task") * 2:
        with contextlib.suppress(OSError):
            found |= set(map(int, Path(f"/proc/self/task/{task}/children").read_text().split()))
    return found


def mounted() -> set[str]:
    """The mounts that this process sees."""
    return set(Path("/proc/self/mountinfo").read_text().splitlines())


def still_mounted(before: set[str], seconds: float = SOON) -> set[str]:
    """Mounts that were not there before and stay for so long. What another program mounts for a moment is not told."""
    deadline = time.monotonic() + seconds
    while (left := mounted() - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def threads() -> int:
    """Python's threads, without those that trio keeps for ten seconds in case that it needs one again."""
    return sum(not thread.name.startswith("Trio thread") for thread in threading.enumerate())


def alone(seconds: float = 20.0) -> None:
    """Wait until the threads of earlier tests have ended, for what the kernel does only for a process with one.

    A thread that has been joined is the kernel's for a moment more.
    """
    gc.collect()
    deadline = time.monotonic() + seconds
    while (threading.active_count() > 1 or len(os.listdir("/proc/self/task")) > 1) and time.monotonic() < deadline:
        time.sleep(0.01)


_stay: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def settled(seconds: float = 10.0) -> None:
    """Wait until the library's threads of earlier tests have ended. Who stays longer is waited for once."""
    deadline = time.monotonic() + seconds
    while found := [thread for thread in threading.enumerate() if _lingers(thread)]:
        if time.monotonic() > deadline:
            _stay.update(found)
            return
        gc.collect()  # some end with the object that they belong to
        time.sleep(0.005)


def _lingers(thread: threading.Thread) -> bool:
    return thread.name.startswith("isolate") and thread is not threading.current_thread() and thread not in _stay


def cgroups() -> set[str]:
    """Groups that this process has made: their names carry its pid."""
    found = set()
    for root, names, _ in os.walk("/sys/fs/cgroup"):
        for name in list(names):
            if name.startswith("isolate-"):
                if f"-{os.getpid()}-" in name:
                    found.add(os.path.join(root, name))
                names.remove(name)  # not into those of another program: they come and go, and may be deep
    return found


def resident() -> int:
    """Bytes of this process's anonymous memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


@dataclass
class Snapshot:
    """Taken before; compared after."""

    fds: dict[int, str]
    threads: int
    mounts: set[str]
    children: set[int]
    cgroups: set[str]

    @classmethod
    def take(cls) -> Snapshot:
        parked.end_all()  # what is kept for the next start is not left behind
        gc.collect()
        return cls(descriptors(), threads(), mounted(), children(), cgroups())

    def difference(self) -> list[str]:
        now = Snapshot.take()
        found = [f"descriptor {fd}: {now.fds[fd]}" for fd in now.fds.keys() - self.fds.keys()]
        found += [f"threads {self.threads} -> {now.threads}"] if now.threads > self.threads else []
        # What has gone is nothing left behind; a mount whose options are others has a line that was not there.
        found += [f"mount {line}" for line in now.mounts - self.mounts]
        found += [f"child {pid}" for pid in now.children - self.children]
        found += [f"cgroup {path}" for path in now.cgroups - self.cgroups]
        return found

    def compare(self, seconds: float = SOON) -> None:
        """Fails when something is there ``seconds`` later that was not there before, and returns at once when not."""
        deadline = time.monotonic() + seconds
        while (left := self.difference()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not left, left
