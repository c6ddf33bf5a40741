"""So many starts in a row, and so many sandboxes alive for so long: descriptors, processes, mounts, cgroups and memory
of caller and kernel stay as they are.

In the slow lane, with less than what a release is measured with:

    ISOLATE_STARTS=100000 ISOLATE_ALIVE=500 ISOLATE_ALIVE_SECONDS=3600 pytest -m slow -s tests/leaks/test_endurance.py

Where memory is accounted by cgroup v1 (or nothing limits the sandboxes) the caller is in a group of its own meanwhile:
then the kernel says what it holds for this caller and all that it started, whatever others on the machine do.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolate
from isolate.sandbox import parked
from tests.sandbox.test_template import box_of, parked_box, used
from tests.snapshot import SOON, Snapshot, cgroups, descriptors, resident

if TYPE_CHECKING:
    from collections.abc import Iterator

STARTS = int(os.environ.get("ISOLATE_STARTS", "1000"))
ALIVE = int(os.environ.get("ISOLATE_ALIVE", "50"))
SECONDS = float(os.environ.get("ISOLATE_ALIVE_SECONDS", "10"))

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(7200)]
#: Objects of the kernel that a sandbox has one or some of, and that no cache keeps.
SLABS = ("mnt_cache", "pid_namespace", "user_namespace", "net_namespace", "nsproxy", "shmem_inode_cache")
KIB = 1024


def machine() -> dict[str, int]:
    """How many of each kind there are on the machine, and its memory in use for such things, in KiB."""
    found = {"cgroups": sum(1 for _ in Path("/sys/fs/cgroup").rglob("cgroup.procs"))}
    for line in Path("/proc/slabinfo").read_text().splitlines()[2:]:
        name, active, *_ = line.split()
        if name in SLABS:
            found[name] = int(active)
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value, *_ = line.split()
        if name in ("SUnreclaim:", "KernelStack:", "PageTables:", "Percpu:"):
            found[name.rstrip(":")] = int(value)
    return found


def flat(before: dict[str, int], after: dict[str, int], of: int) -> None:
    """Nothing has grown by one for every fifth sandbox. Others on the machine have some, too, and its memory is theirs
    as well: that is shown."""
    grown = {name: after[name] - before[name] for name in before}
    print(f"{of} sandboxes, the whole machine: {grown}")
    assert not {name: n for name, n in grown.items() if n > of / 5 + 500 and name in (*SLABS, "cgroups")}, grown


class Own:
    """What this process and everything that it started hold, from time to time."""

    def __init__(self, group: isolate.Cgroup | None) -> None:
        self.memory = self.pids = None
        if group is not None:
            at = [Path(group.directories.get(name, group.directories["v2"])) for name in ("memory", "pids")]
            self.memory, self.pids = at
        self.begin = time.monotonic()
        self.samples: list[dict[str, int]] = []

    def processes(self) -> int:
        assert self.pids is not None
        return sum(len(file.read_text().split()) for file in self.pids.rglob("cgroup.procs"))

    def kernel(self) -> int:
        """KiB of the kernel's memory for them, without what it would give back, and without processes that have ended
        and wait for the machine's PID 1 to collect them (a launcher is nobody's child in the end)."""
        assert self.memory is not None
        assert self.pids is not None
        end = time.monotonic() + SOON
        while int((self.pids / "pids.current").read_text()) > self.processes() and time.monotonic() < end:
            time.sleep(0.05)
        for name, data in (("memory.force_empty", "0"), ("memory.reclaim", "64M")):
            with contextlib.suppress(OSError):  # there is less to be given back, or no such file
                (self.memory / name).write_text(data)
        if (file := self.memory / "memory.kmem.usage_in_bytes").exists():
            return int(file.read_text()) // KIB
        found = dict(line.split() for line in (self.memory / "memory.stat").read_text().splitlines())
        return int(found["kernel"]) // KIB

    def take(self) -> dict[str, int]:
        """A sample, printed: memory in KiB."""
        found = {"seconds": int(time.monotonic() - self.begin), "caller": resident() // KIB}
        found["descriptors"] = len(descriptors())
        found["mounts"] = Path("/proc/self/mountinfo").read_text().count("\n")
        found["cgroups"] = len(cgroups())
        if self.memory is not None:
            found["processes"] = self.processes()
            found["kernel"] = self.kernel()
        print(found, flush=True)
        self.samples.append(found)
        return found

    def flat(self, first: int, memory: int) -> None:
        """From the ``first`` sample to the last nothing has grown, and memory by no more than so many KiB."""
        before, after = self.samples[first], self.samples[-1]
        grown = {name: after[name] - before[name] for name in before if name != "seconds"}
        # A launcher that is parked at one time and not at another has descriptors, processes and groups.
        # Others mount, too.
        allowed = {
            "caller": KIB,
            "kernel": memory,
            **dict.fromkeys(("descriptors", "processes", "mounts", "cgroups"), 8),
        }
        assert not {name: n for name, n in grown.items() if n > allowed.get(name, 0)}, (grown, self.samples)


@contextlib.contextmanager
def apart(*, limited: bool) -> Iterator[Own]:
    """In a group of its own, where that is no hindrance to groups below it. Not by a block: that would be a state of
    the thread's, under which nothing starts from a tree."""
    with isolate.Cgroup() as group:
        if "memory" in group.directories:
            moved = {name: group.directories[name] for name in ("memory", "pids")}
        elif limited:
            yield Own(None)  # a group of v2 with processes in it has none below it with controllers
            return
        else:
            moved = {"": group.directories["v2"]}
        for directory in moved.values():
            Path(directory, "cgroup.procs").write_text("0")
        try:
            yield Own(group)
        finally:
            parked.end_all()
            for directory in moved.values():
                # The group stands below the one that this process was in.
                Path(directory).parent.joinpath("cgroup.procs").write_text("0")


@pytest.mark.parametrize("template", [True, False], ids=["tree", "each-time"])
def test_many_in_a_row(template: bool) -> None:
    limits = isolate.Limits(memory="64M", pids=20)
    box = box_of(parts=(isolate.NetNamespace(), limits), template=template)
    with apart(limited=True) as own:
        for _ in range(20):
            assert box.run(["true"]).ok
        if template:
            parked_box(box)
        before, objects, count = Snapshot.take(), machine(), used(box)
        begin = time.monotonic()
        for number in range(STARTS):
            result = box.run(["true"], stdout=isolate.DEVNULL, stderr=isolate.DEVNULL)
            assert result.ok, (number, result)
            if number % max(1, STARTS // 10) == STARTS // 20:
                own.take()
        print(f"{STARTS / (time.monotonic() - begin):.0f} starts in a second, {used(box) - count} from the tree")
        before.compare()
        own.flat(1, 4 * KIB)
    flat(objects, machine(), STARTS)


def test_many_alive() -> None:
    with apart(limited=False) as own:
        box = parked_box(box_of(parts=(isolate.NetNamespace(),)))
        before, objects, none = Snapshot.take(), machine(), own.take()
        alive = [
            box.spawn(["cat"], stdin=isolate.PIPE, stdout=isolate.DEVNULL, stderr=isolate.DEVNULL) for _ in range(ALIVE)
        ]
        try:
            held, during = Snapshot.take(), machine()
            first, end = own.take(), time.monotonic() + SECONDS
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(left, max(5, SECONDS / 20)))  # what is waited for is the time itself
                assert all(process.poll() is None for process in alive)
                own.take()
            own.flat(max(1, len(own.samples) // 4), 4 * KIB)  # by then whatever is made once has been
            held.compare()
            flat(during, machine(), ALIVE)
            names = [name for name in first if name != "seconds"]
            print("of one that is alive:", {name: round((first[name] - none[name]) / ALIVE, 1) for name in names})
        finally:
            for process in alive:
                process.close()
        before.compare()
        last = own.take()
        assert last.get("processes", 0) <= none.get("processes", 0)
    flat(objects, machine(), ALIVE)
