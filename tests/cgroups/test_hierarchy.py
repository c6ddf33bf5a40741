"""Discovery, from the texts of hosts of every kind."""

from __future__ import annotations

import os

import pytest

from isolate.cgroups import Limits
from isolate.cgroups.hierarchy import Mount, build, directory_of, discover, parse_membership, parse_mountinfo
from isolate.cgroups.placement import place
from isolate.errors import UnsupportedError

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "36 31 0:33 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd\n"
)
TMPFS = "31 23 0:28 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n"
ALL = "cpuset cpu io memory hugetlb pids rdma misc\n"


def test_unified_as_root() -> None:
    host = build(V2, "0::/\n", controllers_of={"/sys/fs/cgroup/cgroup.controllers": ALL})
    assert host.mode == "unified"
    assert host.v2 is not None
    assert host.v2.own == "/sys/fs/cgroup"
    assert host.v2.controllers == set(ALL.split())
    assert not host.v2.read_only


def test_delegated_user() -> None:
    own = "/user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope"
    host = build(V2, f"0::{own}\n", controllers_of={f"/sys/fs/cgroup{own}/cgroup.controllers": "memory pids\n"})
    assert host.v2 is not None
    assert host.v2.own == f"/sys/fs/cgroup{own}"
    assert host.v2.controllers == {"memory", "pids"}


def test_container_with_a_cgroup_namespace_and_a_read_only_mount() -> None:
    text = "40 23 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n"
    host = build(text, "0::/\n", controllers_of={})
    assert host.v2 is not None
    assert host.v2.own == "/sys/fs/cgroup"
    assert host.v2.read_only


def test_container_without_a_cgroup_namespace() -> None:
    # Docker on v1: each container's own group is bind-mounted at the top.
    text = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    host = build(text, "4:memory:/docker/abc\n")
    assert host.home("memory") is not None
    assert host.hierarchies[0].own == "/sys/fs/cgroup/memory"
    deeper = build(text, "4:memory:/docker/abc/inner\n")
    assert deeper.hierarchies[0].own == "/sys/fs/cgroup/memory/inner"
    # A group beside what is mounted cannot be named here.
    assert build(text, "4:memory:/docker/abcd\n").hierarchies[0].own == ""


def test_a_mount_from_above_the_namespace_is_not_used() -> None:
    text = "35 31 0:32 /../.. /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
    assert build(text, "0::/\n", controllers_of={}).hierarchies[0].own == ""
    assert directory_of(Mount(2, "/", "/c", False, frozenset()), "/../x") == ""


def test_hybrid() -> None:
    unified = "37 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    members = "3:cpu,cpuacct:/a\n2:memory:/b\n1:name=systemd:/c\n0::/d\n"
    controllers = {"/sys/fs/cgroup/unified/d/cgroup.controllers": "hugetlb\n"}
    host = build(TMPFS + V1 + unified, members, controllers_of=controllers)
    assert host.mode == "hybrid"
    homes = {c: h and (h.version, h.own) for c in ("cpu", "cpuacct", "memory", "hugetlb", "io") for h in [host.home(c)]}
    assert homes == {
        "cpu": (1, "/sys/fs/cgroup/cpu,cpuacct/a"),
        "cpuacct": (1, "/sys/fs/cgroup/cpu,cpuacct/a"),
        "memory": (1, "/sys/fs/cgroup/memory/b"),
        "hugetlb": (2, "/sys/fs/cgroup/unified/d"),
        "io": None,
    }
    assert host.hierarchies[0].key == "cpu,cpuacct"


def test_legacy_and_none() -> None:
    assert build(V1, "2:memory:/\n1:cpu,cpuacct:/\n").mode == "legacy"
    assert build(TMPFS, "").mode == "none"


def test_the_writable_mount_is_taken_when_there_are_two() -> None:
    second = V2.replace("/sys/fs/cgroup rw", "/run/cg ro")
    host = build(second + V2, "0::/\n", controllers_of={})
    assert host.v2 is not None
    assert host.v2.mount == "/sys/fs/cgroup"


def test_where_nothing_can_be_made_nothing_is_pretended() -> None:
    """Accounting alone is refused, too: an empty ``stats`` would look like a program that used nothing."""
    for text in (V1.replace("rw", "ro"), V1):
        with pytest.raises(UnsupportedError, match=r"cannot be used|read-only|not ours|not beneath"):
            place(Limits(), build(text, "2:memory:/nonexistent\n1:cpu,cpuacct:/nonexistent\n"))


def test_escapes_and_odd_lines() -> None:
    (mount,) = parse_mountinfo(V2.replace("/sys/fs/cgroup", r"/a\040b\134c\011d"))
    assert mount.target == "/a b\\c\td"
    assert parse_mountinfo("garbage\n1 2 3\n" + V2.replace(" - ", " ")) == []
    assert parse_membership("x:y\n0::relative\n:::\n") == []
    (member,) = parse_membership("12:pids:/a:b (deleted)\n")
    assert (member.path, member.controllers) == ("/a:b", {"pids"})


@pytest.mark.vm
def test_this_host_agrees_with_the_kernel() -> None:
    """Every directory that discovery calls our own lists this process."""
    host = discover()
    assert host.mode != "none"
    for hierarchy in host.hierarchies:
        with open(os.path.join(hierarchy.own, "cgroup.procs"), encoding="ascii") as file:
            assert str(os.getpid()) in file.read().split()
