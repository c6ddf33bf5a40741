"""So many starts in a row, and so many sandboxes alive for so long: descriptors, processes, mounts, cgroups and memory
of caller and kernel stay as they are.

In the slow lane, with less than what a release is measured with:

    ISOLATE_STARTS=100000 ISOLATE_ALIVE=500 ISOLATE_ALIVE_SECONDS=3600 pytest -m slow -s tests/leaks/test_endurance.py
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import isolate
from tests.sandbox.test_template import box_of, parked_box, used
from tests.snapshot import Snapshot, resident

STARTS = int(os.environ.get("ISOLATE_STARTS", "1000"))
ALIVE = int(os.environ.get("ISOLATE_ALIVE", "50"))
SECONDS = float(os.environ.get("ISOLATE_ALIVE_SECONDS", "10"))

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(7200)]
#: Objects of the kernel that a sandbox has one or some of, and that no cache keeps.
SLABS = ("mnt_cache", "pid_namespace", "user_namespace", "net_namespace", "nsproxy", "shmem_inode_cache")


def kernel() -> dict[str, int]:
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
    print(f"{of} sandboxes: {grown}")
    assert not {name: n for name, n in grown.items() if n > of / 5 + 500 and name in (*SLABS, "cgroups")}, grown


@pytest.mark.parametrize("template", [True, False], ids=["tree", "each-time"])
def test_many_in_a_row(template: bool) -> None:
    limits = isolate.Limits(memory="64M", pids=20)
    box = box_of(parts=(isolate.NetNamespace(), limits), template=template)
    for _ in range(20):
        assert box.run(["true"]).ok
    if template:
        parked_box(box)
    before, objects, memory, count = Snapshot.take(), kernel(), resident(), used(box)
    begin = time.monotonic()
    for number in range(STARTS):
        result = box.run(["true"], stdout=isolate.DEVNULL, stderr=isolate.DEVNULL)
        assert result.ok, (number, result)
    print(f"{STARTS / (time.monotonic() - begin):.0f} starts in a second, {used(box) - count} from the tree")
    grown = resident() - memory
    print(f"the caller's memory: {grown / 1024:+.0f} KiB")
    assert grown < 1 << 20
    before.compare()
    flat(objects, kernel(), STARTS)


def test_many_alive() -> None:
    box = parked_box(box_of(parts=(isolate.NetNamespace(),)))
    before, objects = Snapshot.take(), kernel()
    alive = [
        box.spawn(["cat"], stdin=isolate.PIPE, stdout=isolate.DEVNULL, stderr=isolate.DEVNULL) for _ in range(ALIVE)
    ]
    try:
        held, during = Snapshot.take(), kernel()
        memory, end = resident(), time.monotonic() + SECONDS
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 5))  # what is waited for is the time itself
            assert all(process.poll() is None for process in alive)
        assert resident() - memory < 1 << 20
        held.compare()
        flat(during, kernel(), ALIVE)
        each = {name: round((during[name] - objects[name]) / ALIVE, 1) for name in objects}
        print(f"of one that is alive: {each}, descriptors {(len(held.fds) - len(before.fds)) / ALIVE}")
    finally:
        for process in alive:
            process.close()
    before.compare()
    flat(objects, kernel(), ALIVE)
