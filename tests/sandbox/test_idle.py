"""What a sandbox takes whose program waits: memory of the processes beside the program."""

from __future__ import annotations

import ctypes
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolate
from isolate.sandbox import parked
from tests.sandbox.test_template import box_of, parked_box, used

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.sandbox.process import Process

SOON = 20.0


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    yield
    parked.end_all()


def taken(pid: int) -> tuple[int, int]:
    """KiB of private memory, and of page tables without the top level."""
    found = dict.fromkeys(("Private_Dirty", "VmPTE"), 0)
    for name in ("smaps_rollup", "status"):
        for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in found:
                found[key] = int(value.split()[0])
    return found["Private_Dirty"], found["VmPTE"]


def beside(process: Process) -> list[int]:
    """The supervisor and init."""
    supervisor = process._session.pid
    (init,) = map(int, Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split())
    return [supervisor, init]


@pytest.mark.root
@pytest.mark.parametrize("template", [False, True])
def test_memory_is_given_back(template: bool) -> None:
    """One page of each level of the tables, a page of the stack, and what a start from no tree needs at the end."""
    if ctypes.CDLL(None).prctl(35, 15, ctypes.byref(ctypes.c_uint()), 0, 0) < 0:  # PR_SET_MM, PR_SET_MM_MAP_SIZE
        pytest.skip("a kernel without CONFIG_CHECKPOINT_RESTORE: the stack stays")
    box = box_of(template=template)
    if template:
        parked_box(box)
    with box.spawn(["sleep", "1000"]) as process:
        if template:
            assert used(box) == 1
        pids, deadline = beside(process), time.monotonic() + SOON
        while any(memory > 12 or tables > 12 for memory, tables in map(taken, pids)):
            assert time.monotonic() < deadline, [taken(pid) for pid in pids]
            time.sleep(0.01)
        for pid in pids:
            assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"isolate-launcher\0"
        # All that is told at an end is still told.
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON) == -signal.SIGTERM
        assert process.result().verdict is isolate.Verdict.SIGNALED


@pytest.mark.parametrize("template", [False, True])
def test_the_end_is_told_after_it(template: bool) -> None:
    """A limit and an end of the program's own come long after."""
    box = box_of(template=template)
    if template:
        parked_box(box)
    assert box.run(["sleep", "1000"], timeout=0.2).verdict is isolate.Verdict.TIMEOUT
    killed = box.run(["sh", "-c", "sleep 0.1; echo said; exit 7"])
    assert (killed.returncode, killed.stdout, killed.wall_time > 0.1) == (7, b"said\n", True)
