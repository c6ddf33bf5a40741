"""A start from the tree finds its groups made: by the fork that waits for it. They go with whatever dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import Dev, PidNamespace, Proc, Root, Sandbox, UserNamespace
from isolate.cgroups import Cgroup, Limits, naming
from isolate.cgroups.counting import RunGroup
from isolate.cgroups.hierarchy import discover
from isolate.sandbox import parked
from isolate.sandbox.result import Verdict
from tests.boxes import SYSTEM
from tests.sandbox.test_template import launchers, parked_box, used
from tests.snapshot import SOON

from .conftest import our_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("groups")]

LIMITS = Limits(memory="32M", pids=10)
FORKS = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 30 & done 2>/dev/null; exit 1"


@pytest.fixture(autouse=True)
def _ended(nothing_left: None) -> Iterator[None]:
    yield
    parked.end_all()


def box_of(limits: Limits = LIMITS) -> Sandbox:
    return Sandbox(UserNamespace(), limits, Root(*SYSTEM, Proc(), Dev()))


def tags() -> set[int]:
    found = (naming.parse(os.path.basename(group)) for group in our_groups())
    return {int(name.tag) for name in found if name is not None and name.tag.isdigit()}


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def waiting_box(limits: Limits = LIMITS) -> tuple[Sandbox, int]:
    """A sandbox for whose next start groups are ready, and the process that has made them."""
    box = parked_box(box_of(limits))
    for _ in range(20):  # another program may mount something: that start is without the tree
        before = used(box)
        box.run(["true"]).check()
        if used(box) == before + 1:
            until(lambda: len(tags()) == 1, "no groups are ready")
            (fork,) = tags()
            return box, fork
        parked_box(box)
    raise AssertionError("the mount table changes all the time")


@pytest.mark.vm
def test_a_start_takes_what_is_ready() -> None:
    for _ in range(20):
        box, fork = waiting_box()
        before = used(box)
        with box.spawn(["cat"], stdin=-1) as process:
            if used(box) == before + 1:
                assert process._session.pid == fork
                return
    raise AssertionError("the mount table changes all the time")


@pytest.mark.vm
def test_limits_hold_and_counters_are_of_one_run() -> None:
    """Groups are not used twice: nothing of one run counts in the next."""
    box, _ = waiting_box()
    hog = box.run(["sh", "-c", "head -c 100000000 /dev/zero | tail -c 99999999 | wc -c"])
    assert hog.verdict == Verdict.OOM
    assert hog.stats.oom_kill > 0
    forks = box.run(["sh", "-c", FORKS])
    assert forks.verdict == Verdict.PIDS
    result = box.run(["true"])
    assert result.ok
    assert result.applied["Limits"]
    assert not result.stats.oom_kill
    assert not result.stats.pids_max
    assert result.peak_memory < 16 << 20
    assert result.cpu_time < 5
    assert used(box) > 1


@pytest.mark.parametrize("victim", ["fork", "launcher", "both", "nobody"])
def test_it_goes_with_whatever_dies(victim: str) -> None:
    box, fork = waiting_box()
    (launcher,) = launchers(box)
    if victim in ("launcher", "both"):
        os.kill(launcher, signal.SIGSTOP)  # or it would see to what the fork has left
    if victim in ("fork", "both"):
        os.kill(fork, signal.SIGKILL)
    if victim in ("launcher", "both"):
        os.kill(launcher, signal.SIGKILL)
    if victim == "nobody":
        parked.end_all()
    if victim == "both":
        until(lambda: naming.start_time(launcher) is None and naming.start_time(fork) is None, "they are killed")
        assert fork in tags()  # the control: nobody is left to remove it but the next start, or the end
        box.run(["true"]).check()
    until(lambda: fork not in tags(), "groups are left")
    assert box.run(["true"]).applied["Limits"]


@pytest.mark.vm
@pytest.mark.parametrize("way", ["kill", "exit"])
def test_it_goes_with_its_owner(way: str) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent.parent.parent)!r})
from tests.cgroups.test_ahead import *
box, fork = waiting_box()
print(json.dumps(sorted(our_groups())), flush=True)
sys.stdin.read()
"""
    pipe = subprocess.PIPE
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe)
    with owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        directories = json.loads(owner.stdout.readline())
        assert directories
        if way == "kill":
            owner.kill()
        owner.stdin.close()
    until(lambda: not any(map(os.path.isdir, directories)), "groups outlive their owner")


OWNER = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent.parent.parent)!r})
from tests.cgroups.test_ahead import *
box, fork = waiting_box()
print(json.dumps([*launchers(box), fork, sorted(g for g in our_groups() if g.endswith(f"-{{fork}}"))]), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_owner_launcher_and_fork_are_killed_at_once() -> None:
    """Nobody is left to remove what was made ahead: the next program does so that has a tree with groups."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", OWNER], stdin=pipe, stdout=pipe) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        launcher, fork, directories = json.loads(owner.stdout.readline())
        assert directories
        for pid in launcher, fork:
            os.kill(pid, signal.SIGSTOP)
        for pid in launcher, fork:
            os.kill(pid, signal.SIGKILL)
        until(lambda: naming.gone(launcher) and naming.gone(fork), "they are killed")
        until(lambda: not any(map(inside, directories)), "init is alive")
        RunGroup.remove_abandoned(_beside(directories))
        assert all(map(os.path.isdir, directories)), "control: they stay as long as their owner lives"
        owner.kill()
        owner.wait()
    parked_box(box_of())
    until(lambda: not any(map(os.path.isdir, directories)), "groups are left")


def _beside(directories: list[str]) -> RunGroup:
    """Groups of this process's beside these."""
    group = RunGroup()
    for number, directory in enumerate(directories):
        path = os.path.join(os.path.dirname(directory), naming.prefix())
        group.paths[str(number)] = (discover().hierarchies[0], path)
    return group


def test_only_what_is_certainly_left_is_removed(tmp_path: Path) -> None:
    pids, nobody = naming.pid_namespace(), 4_194_000
    assert naming.gone(nobody)
    mine = naming.parse(naming.prefix() + "1")
    assert mine is not None
    left = naming.Name(pids, nobody, 1, str(nobody))
    stay = [
        naming.Name(pids, nobody, 1, str(os.getppid())),  # its launcher is there
        naming.Name(pids, os.getppid(), naming.start_time(os.getppid()) or 0, str(nobody)),  # so is its owner
        naming.Name(pids + 1, nobody, 1, str(nobody)),  # of another pid namespace
        naming.Name(pids, nobody, 1, "named"),  # of a Cgroup, which may be somebody's to have
        naming.Name(pids, nobody, 2, str(nobody)),  # something is in it
        mine,
    ]
    for name in (left, *stay):
        (tmp_path / str(name)).mkdir()
    (tmp_path / str(stay[4]) / "inner").mkdir()
    (tmp_path / "other").mkdir()
    RunGroup.remove_abandoned(_beside([str(tmp_path / "any")]))
    assert {entry.name for entry in tmp_path.iterdir()} == {*map(str, stay), "other"}


HIDDEN = """
import ctypes, os, signal
from isolate.cgroups import naming
libc = ctypes.CDLL(None)
ready, tells = os.pipe()
pid = os.fork()
if pid == 0:
    libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: as a launcher is
    libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG
    os.write(tells, b"x")
    signal.pause()
os.read(ready, 1)
assert libc.unshare(0x20000) == 0 and libc.mount(None, b"/", None, 0x44000, None) == 0
assert libc.mount(b"proc", b"/proc", b"proc", 0, b"hidepid=2,gid=54321") == 0
shown = naming.start_time(pid) is not None
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
assert libc.capset(header, (ctypes.c_uint32 * 6)()) == 0
print(shown, naming.start_time(pid), naming.gone(pid), naming.gone(pid, 1))
os.kill(pid, 9)
os.waitpid(pid, 0)
print(naming.gone(pid))
"""


def test_a_process_that_proc_hides_is_not_gone() -> None:
    """With hidepid nobody but CAP_SYS_PTRACE sees a launcher in /proc. A living one's groups were removed."""
    done = subprocess.run([sys.executable, "-c", HIDDEN], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("True None False False\nTrue\n", "")


def inside(group: str) -> list[int]:
    with contextlib.suppress(FileNotFoundError, OSError):
        return [int(pid) for pid in Path(group, "cgroup.procs").read_text().split()]
    return []


def entered(group: str) -> bool:
    return bool(inside(group)) or not os.path.isdir(group)


def removed(group: str) -> bool:
    with contextlib.suppress(OSError):
        os.rmdir(group)
    return not os.path.isdir(group)


def test_somebody_removes_it() -> None:
    box, fork = waiting_box()
    for group in our_groups():
        if group.endswith(f"-{fork}"):
            until(partial(entered, group), "nobody waits in it")
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for pid in inside(group):
                    os.kill(pid, signal.SIGKILL)
            until(partial(removed, group), "it stays")
    result = box.run(["sh", "-c", FORKS])
    assert result.verdict == Verdict.PIDS
    assert result.applied["Limits"]


def test_none_waits_in_a_group_of_the_callers() -> None:
    """Whoever has named it may remove it at any time."""
    with Cgroup(Limits(memory="1G", pids=100)) as parent:
        box = parked_box(box_of(Limits(pids=10, parent=parent)))
        for _ in range(3):
            box.run(["true"]).check()
        assert not tags()


def test_no_init_waits_in_a_group_of_the_callers() -> None:
    with Cgroup(Limits(memory="1G", pids=100)) as group:
        box = parked_box(Sandbox(UserNamespace(), group, Root(*SYSTEM, Proc(), Dev())))
        for _ in range(3):
            assert box.run(["true"]).ok
        until(lambda: not any(map(inside, map(str, group.directories.values()))), "somebody is in it")
        time.sleep(0.05)
        assert not any(map(inside, map(str, group.directories.values())))


def test_explain_tells() -> None:
    assert "ahead of a start" in box_of().explain()
    assert "ahead of a start" in Sandbox(UserNamespace(), Root(*SYSTEM, Proc(), Dev())).explain()
    nobody = Sandbox(UserNamespace(), PidNamespace(init=False), Root(*SYSTEM, Proc(), Dev()))
    assert "done once" in nobody.explain()
    assert "ahead of a start" not in nobody.explain()
