"""What a program sees of its group from inside."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from isolate import (
    Capabilities,
    CgroupFs,
    CgroupNamespace,
    Limits,
    MountNamespace,
    PidNamespace,
    Root,
    Sandbox,
    Symlink,
    UserNamespace,
)
from isolate.mounts import Bind, Proc
from tests.cgroups.conftest import HOST

if TYPE_CHECKING:
    from isolate.cgroups.hierarchy import Hierarchy

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("groups")]

SYSTEM = [Bind("/usr"), *(Symlink(f"usr/{n}", f"/{n}") for n in ("bin", "sbin", "lib", "lib64"))]


def test_the_namespace_is_rooted_at_the_group() -> None:
    outside = Sandbox(Limits(pids=20)).run(["cat", "/proc/self/cgroup"]).stdout.split()
    assert any(line.rpartition(b":")[2].startswith(b"/") and b"isolate-" in line for line in outside)
    inside = Sandbox(Limits(pids=20), CgroupNamespace()).run(["cat", "/proc/self/cgroup"]).stdout.split()
    held = {line.partition(b":")[0] for line in outside if b"isolate-" in line}
    assert held
    assert {line.rpartition(b":")[2] for line in inside if line.partition(b":")[0] in held} == {b"/"}


@pytest.mark.skipif(HOST.v2 is None, reason="v1 alone")
@pytest.mark.parametrize("user", [False, True], ids=["root", "user namespace"])
def test_the_file_system_is_the_groups_own_and_read_only(user: bool) -> None:
    parts = [PidNamespace(), Limits(pids=20), Root(*SYSTEM, Proc(), CgroupFs())] + ([UserNamespace()] if user else [])
    code = """
        cat /sys/fs/cgroup/cgroup.procs | wc -l
        ls -d /sys/fs/cgroup/isolate-* /sys/fs/cgroup/system.slice 2>/dev/null
        mkdir /sys/fs/cgroup/x 2>&1 | grep -o 'Read-only file system'
        (echo 1 > /sys/fs/cgroup/cgroup.kill) 2>/dev/null
        echo alive
    """
    result = Sandbox(*parts).run(["sh", "-c", code], text=True)
    lines = result.stdout.split("\n")
    assert int(lines[0]) >= 2, result
    assert lines[1:] == ["Read-only file system", "alive", ""], result
    assert os.path.exists(f"{HOST.v2.mount}/cgroup.procs")  # type: ignore[union-attr]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could mount one")
@pytest.mark.parametrize("hierarchy", HOST.hierarchies, ids=lambda h: h.key)
def test_none_can_be_mounted_inside(hierarchy: Hierarchy) -> None:
    """v1's release_agent runs on the host as root whatever it names (CVE-2022-0492), so nobody may get at one."""
    options = "-t cgroup2" if hierarchy.version == 2 else f"-t cgroup -o {hierarchy.key}"
    command = ["sh", "-c", f"mount {options} none /mnt && ls /mnt/cgroup.procs"]
    parts = [PidNamespace(), MountNamespace(), Limits(pids=20)]
    held = Sandbox(*parts).run(command)
    assert (held.returncode, held.stdout) != (0, b"/mnt/cgroup.procs\n")
    assert b"permission denied" in held.stderr
    free = Sandbox(*parts, Capabilities({"SYS_ADMIN"})).run(command)
    assert (free.returncode, free.stdout) == (0, b"/mnt/cgroup.procs\n"), free
