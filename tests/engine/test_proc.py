"""/proc's text holds what strangers chose: it is read by whole fields and real ends of lines."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from isolate import Capabilities, Sandbox, attach
from isolate.cgroups.hierarchy import parse_membership, parse_mountinfo
from isolate.diagnosis.host import Host
from isolate.kernel import proc
from isolate.sandbox import outcome

#: What a process can call itself (15 bytes), and what a reader of words or of text lines would take it for.
NAMES = [
    "VmHWM:x",
    "VmHWM: 99999999",
    "\rCapPrm:\tx",
    "\rUid:\t0 0 0 0",
    "\x0cCapEff:\tx",
    "\x85Seccomp:\t2",
    "a\\nCapEff:\t1",
]

NAMED = """
import ctypes, os, sys, time
ctypes.CDLL(None).prctl(15, os.fsencode(sys.argv[1]), 0, 0, 0)
print("named", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("name", NAMES)
def test_11_a_name_is_no_figure_and_no_capability(name: str) -> None:
    with Sandbox().spawn([sys.executable, "-c", NAMED, name], stdout=-1) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"named\n"
        pid = process.pid
        assert proc.status(pid)["Name"] == name.replace("\\", r"\\").strip(" \t")
        assert Capabilities.of(pid).permitted == frozenset()
        _, peak = outcome.tree_usage(process._session.pid)
        assert 1 << 20 < peak < 1 << 34
        assert proc.status(pid)["Uid"].split()[0] == str(os.getuid())
        with attach(pid) as there:
            assert there is not None


@pytest.mark.parametrize("name", ["VmHWM:x", "VmHWM: 99999999"])
def test_11_a_run_into_its_timeout(name: str) -> None:
    result = Sandbox().run([sys.executable, "-c", NAMED, name], timeout=0.7)
    assert str(result.verdict) == "TIMEOUT"
    assert 0 < result.peak_memory < 1 << 34


def test_11_control_a_name_that_says_nothing() -> None:
    for seconds in (0.7, 3, 9):  # on a busy machine it may need more to begin
        result = Sandbox().run([sys.executable, "-c", NAMED, "python"], timeout=seconds)
        assert str(result.verdict) == "TIMEOUT"
        if result.peak_memory > 1 << 20:
            break
    assert result.peak_memory > 1 << 20


ODD = ["a\x0cb", "a\u2028b", "a\x85b", "a\rb", "a\x1cb", "a\udcffb"]


@pytest.mark.parametrize("odd", ODD)
def test_11_groups_and_mounts_of_any_name(odd: str) -> None:
    text = f"4:memory:/{odd}\n0::/{odd}\n"
    assert [m.path for m in parse_membership(text)] == [f"/{odd}", f"/{odd}"]
    text = f"30 1 0:5 / /x/{odd} rw - tmpfs none rw\n31 1 0:6 / /sys/{odd}\\040c rw,nosuid - cgroup2 none rw\n"
    assert [m.target for m in parse_mountinfo(text)] == [f"/sys/{odd} c"]
    rows = list(proc.mount_rows(os.fsencode(text)))
    assert [row.target for row in rows] == [f"/x/{odd}", f"/sys/{odd} c"]
    assert proc.fields(os.fsencode(f"Name:\t{odd}\nCapEff:\t0\n")) == {"Name": odd, "CapEff": "0"}


def test_11_of_two_fields_of_a_name_the_first_counts() -> None:
    assert proc.fields(b"Uid:\t1\t1\nX:y:z\nUid:\t0\n") == {"Uid": "1\t1", "X": "y:z"}
    assert list(proc.mount_rows(b"broken\n1 2 3 - x\n")) == []
    assert proc.unescape("a\\134040\\040\\9") == "a\\040 \\9"


def test_11_the_hosts_facts(tmp_path: object) -> None:
    """A mount point with a carriage return made a line of its own, and with it a mount that nobody made."""
    root = str(tmp_path)
    os.mkdir(f"{root}/proc")
    os.mkdir(f"{root}/proc/self")
    with open(f"{root}/proc/self/mountinfo", "wb") as file:
        file.write(b"1 0 0:1 / / rw - ext4 none rw\n2 1 0:2 / /x\r3 1 0:3 / /proc/sys rw - tmpfs none rw\n")
    with open(f"{root}/proc/self/status", "wb") as file:
        file.write(b"Name:\tx\rSeccomp:\t2\nSeccomp:\t0\n")
    host = Host(root)
    assert not host.filtered()
    assert host.over_proc() == []


def test_11_a_sandbox_in_a_group_of_an_odd_name() -> None:
    """On v1 and v2: the caller in a group whose name has a form feed makes its limits as before."""
    hierarchies = [p for p in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory") if os.path.isdir(p)]
    hierarchies = hierarchies or (["/sys/fs/cgroup"] if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else [])
    if os.geteuid() != 0 or not hierarchies:
        pytest.skip("needs root and a cgroup file system")
    code = """
import os, sys
from isolate import Limits, Sandbox
for group in sys.argv[1:]:
    open(f"{group}/cgroup.procs", "w").write(str(os.getpid()))
print(Sandbox(Limits(pids=8, memory="32M")).run(["true"]).verdict)
for group in sys.argv[1:]:
    open(f"{os.path.dirname(group)}/cgroup.procs", "w").write(str(os.getpid()))
"""
    if len(hierarchies) == 1:
        pytest.skip("a group with a process has no controllers to hand on with v2")
    with open("/proc/self/cgroup") as file:
        own = {line.split(":")[1]: line.split(":")[2].rstrip("\n") for line in file}
    groups = []
    try:
        for hierarchy in hierarchies:
            below = own.get(os.path.basename(hierarchy), "/").rstrip("/")
            groups.append(f"{hierarchy}{below}/isolate-test-{os.getpid()}-\x0c\u2028x")
            os.mkdir(groups[-1])
        done = subprocess.run([sys.executable, "-c", code, *groups], capture_output=True, text=True, check=False)
        assert done.stdout == "OK\n", done.stderr
    finally:
        for group in groups:
            os.rmdir(group)
