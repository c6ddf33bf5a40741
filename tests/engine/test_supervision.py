"""Whoever becomes the parent of what a program leaves behind: it goes all the same, in whatever pid namespace."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import PIPE, ConflictError, PidNamespace, Sandbox, UserNamespace, Verdict
from tests.snapshot import SOON

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate import Process
    from tests.snapshot import Snapshot

pytestmark = pytest.mark.root

LEAVES = "setsid sh -c 'sleep 1000 & sleep 1000' & sleep 1000 & "


def members(process: Process) -> set[int]:
    """Processes in the pid namespace of this one."""
    namespace = os.readlink(f"/proc/{process.pid}/ns/pid")
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{name}/ns/pid") == namespace:
                    found.add(int(name))
    return found


@pytest.fixture
def holder(clean: Snapshot) -> Iterator[Process]:
    """A sandbox that runs, with a pid namespace to join."""
    with Sandbox(PidNamespace()).spawn(["sleep", "1000"]) as process:
        yield process


def test_joined_pid_namespace(holder: Process) -> None:
    """Its PID 1 is another's and would inherit; nothing reaches it, and the sandbox that was there goes on."""
    box = Sandbox(PidNamespace(pid=holder.pid))
    before = members(holder)
    assert len(before) == 2
    result = box.run(["sh", "-c", LEAVES + "echo $$; exit 3"], timeout=20)
    assert result.returncode == 3
    assert int(result.stdout) > 2, "it is in that namespace"
    assert members(holder) == before
    assert box.run(["sh", "-c", LEAVES + "sleep 1000"], timeout=0.2).verdict is Verdict.TIMEOUT
    assert members(holder) == before
    with box.spawn(["sh", "-c", LEAVES + "echo up; sleep 1000"], stdout=PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert len(members(holder)) > len(before) + 3, "the control: they were there"
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
        assert members(holder) == before
    assert holder.poll() is None


def test_joined_without_init_is_refused() -> None:
    with pytest.raises(ConflictError, match="init=False"):
        PidNamespace(pid=1, init=False)


def test_stopped_init_is_killed(clean: Snapshot) -> None:
    """init cannot reap, so the supervisor does not wait for it for long."""
    for box in (Sandbox(), Sandbox(UserNamespace(), PidNamespace())):
        process = box.spawn(["sh", "-c", LEAVES + "sleep 1000"])
        launcher = process._session.pid
        (init,) = map(int, Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split())
        os.kill(init, signal.SIGSTOP)
        process.kill()
        assert process.wait(SOON) == -signal.SIGKILL
        process.close()


def test_cpu_time_of_what_was_left_behind(clean: Snapshot) -> None:
    """What is killed at the end is reaped first, so that its time is counted; with and without a pid namespace."""
    for box in (Sandbox(), Sandbox(UserNamespace(), PidNamespace())):
        for seconds in (0.5, 2, 8):  # a busy machine may give it little
            burn = f"(while :; do :; done) & sleep {seconds}"
            used = box.run(["sh", "-c", burn], timeout=60).cpu_time
            if used > 0.05:
                break
        assert used > 0.05
