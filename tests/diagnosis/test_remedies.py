"""Errors that somebody new to the library meets: each says what helps, and what it says helps."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from isolate import (
    Bind,
    HostProgram,
    NetNamespace,
    Root,
    Sandbox,
    Scheduling,
    SetupError,
    Sysctl,
    TimeNamespace,
    UserNamespace,
)
from isolate.cgroups import files, refused
from isolate.diagnosis import host, steps
from isolate.engine.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def joined() -> Sandbox:
    child = subprocess.Popen(["/bin/true"])
    child.wait()  # its number is nobody's, and the next processes get higher ones
    return Sandbox(UserNamespace(), NetNamespace(pid=child.pid))


CASES: dict[str, tuple[Callable[[], Any], int, str, str]] = {
    "cwd": (lambda: Sandbox().run(["true"], cwd="/nonexistent"), errno.ENOENT, "does not exist inside", "bring it in"),
    "source": (
        lambda: Sandbox(UserNamespace(), Root(Bind("/dev/null/x", "/x"))).run(["true"]),
        errno.ENOTDIR,
        "no directory",
        "name a path that is there",
    ),
    "host program": (
        lambda: Sandbox(UserNamespace(), HostProgram(["/nonexistent"])).run(["true"]),
        errno.ENOENT,
        "no such program",
        "install it",
    ),
    "its status": (
        lambda: Sandbox(UserNamespace(), HostProgram(["/bin/false"])).run(["true"]),
        errno.ECHILD,
        "another status",
        "by hand",
    ),
    "setting": (
        lambda: Sandbox(UserNamespace(), NetNamespace(), Sysctl({"net.nosuch": "1"})).run(["true"]),
        errno.ENOENT,
        "no such setting",
        "ls /proc/sys",
    ),
    "clock": (
        lambda: Sandbox(UserNamespace(), TimeNamespace(boottime=-(10**9))).run(["true"]),
        errno.ERANGE,
        "below 0",
        "CLOCK_BOOTTIME",
    ),
    "processor": (
        lambda: Sandbox(Scheduling(affinity=[1023])).run(["true"]),
        errno.EINVAL,
        "none of these CPUs",
        "sched_getaffinity",
    ),
    "process": (lambda: joined().run(["true"]), errno.ESRCH, "no such process", "one that runs"),
}


@pytest.mark.parametrize("name", CASES)
def test_cause_and_remedy(name: str) -> None:
    start, number, cause, remedy = CASES[name]
    with pytest.raises(SetupError) as caught:
        start()
    assert caught.value.errno == number
    assert cause in (caught.value.cause or "")
    assert remedy in (caught.value.remedy or "")


def test_the_same_with_what_helps(tmp_path: Path) -> None:
    """The positive control of those above: with what the remedies name, the same starts run."""
    assert Sandbox().run(["true"], cwd=tmp_path).ok
    assert Sandbox(UserNamespace(), HostProgram(["/bin/true"])).run(["true"]).ok
    assert Sandbox(UserNamespace(), TimeNamespace(boottime=-1)).run(["true"]).ok
    assert Sandbox(Scheduling(affinity=[min(os.sched_getaffinity(0))])).run(["true"]).ok


@pytest.mark.parametrize(
    ("head", "words"),
    [(b"\x7fELF\x02\x01\x01", "an ELF file that ends in its header"), (b"", "is empty"), (b"x\0y", "neither an ELF")],
)
def test_files_that_are_no_programs(tmp_path: Path, head: bytes, words: str) -> None:
    program = tmp_path / "program"
    program.write_bytes(head)
    program.chmod(0o755)
    with pytest.raises(SetupError) as caught:
        Sandbox().run([str(program)])
    assert words in (caught.value.cause or "")
    assert caught.value.remedy


def test_the_directory_that_stops_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed place"
    closed.mkdir(mode=0o700)
    somebody = host.Host(euid=os.geteuid() + 1)
    # pytest makes directories above for this user alone: the first that stops is named.
    first = next(p for p in reversed((closed, *closed.parents)) if p.stat().st_mode & 0o001 == 0)
    told = steps.passing(somebody, os.fsencode(closed / "file"))
    assert told.startswith(f"{first} (mode 0")
    assert f"chmod o+x {shlex.quote(str(first))}" in told
    assert "namei -l" in steps.passing(somebody, b"/usr/bin/true")


def test_a_value_that_the_kernel_refuses() -> None:
    """By a file of /proc, which takes numbers alone: no host's group is changed for it."""
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        now = file.read().strip()
    files.write("/proc/self", "oom_score_adj", now.encode())  # the same write, with a number
    with pytest.raises(SetupError) as caught:
        files.write("/proc/self", "oom_score_adj", b"x")
    assert caught.value.errno == errno.EINVAL
    assert caught.value.cause == "the kernel refuses 'x' for oom_score_adj"
    assert caught.value.remedy


def test_what_helps_where_groups_are_not_ours() -> None:
    making, writing = refused.making("/sys/fs/cgroup/x"), refused.writing("memory.max", b"1", "/sys/fs/cgroup/x")
    for finding in (making[errno.EACCES], writing[errno.EACCES]):
        assert isinstance(finding, Finding)
        assert "python -m isolate doctor" in (finding.remedy or "")
