"""Controllers that this machine's hierarchies do not have: on unified v2, in the virtual machine (see ``tests/vm``)."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import NetNamespace
from isolate.cgroups import Cgroup, Limits
from isolate.cgroups.hierarchy import discover
from isolate.sandbox.box import Sandbox
from isolate.sandbox.result import Verdict
from tests.cgroups.conftest import UNIFIED, python

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.vm,
    pytest.mark.usefixtures("groups"),
    pytest.mark.skipif(not UNIFIED, reason="needs unified v2"),
]
#: The machine is ours alone: what is written to its sysctls and mounted in it goes with it.
OURS = os.environ.get("ISOLATE_EMULATED") == "1"


def test_protected_memory() -> None:
    with Cgroup(Limits(memory="256M", memory_high="128M", memory_low="64M", memory_min="32M")) as group:
        files = {
            name: int(Path(group.path, f"memory.{name}").read_text()) >> 20 for name in ("max", "high", "low", "min")
        }
        assert files == {"max": 256, "high": 128, "low": 64, "min": 32}
        group.update(memory_low="48M")
        assert Path(group.path, "memory.low").read_text() == f"{48 << 20}\n"


HUGE = """
import mmap
pages = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)  # MAP_HUGETLB
for at in range(0, 8 << 20, 2 << 20):
    pages[at] = 1
"""


@pytest.fixture
def huge_pages() -> Iterator[None]:
    if not OURS or not os.path.isdir("/sys/kernel/mm/hugepages/hugepages-2048kB"):
        pytest.skip("reserves huge pages: only in the virtual machine")
    file = Path("/proc/sys/vm/nr_hugepages")
    before = file.read_text()
    file.write_text("8\n")
    assert int(file.read_text()) == 8
    yield
    file.write_text(before)


@pytest.mark.usefixtures("huge_pages")
def test_huge_pages() -> None:
    held = python(HUGE, Limits(hugetlb={"2M": "4M"}))
    assert (held.verdict, held.returncode) == (Verdict.SIGNALED, -7), held  # SIGBUS at the third
    assert python(HUGE, Limits(hugetlb={"2M": "8M"})).verdict is Verdict.OK
    assert python(HUGE, Limits()).verdict is Verdict.OK


def test_what_is_not_there() -> None:
    """The controllers are, the devices are not: refused by the kernel, with the file and the device."""
    for limits, word, number in (
        (Limits(rdma={"mlx5_0": {"hca_handle": 2}}), "rdma.max", errno.ENODEV),
        (Limits(misc={"sev": 1}), "misc.max", errno.EINVAL),
    ):
        with pytest.raises(OSError, match=word) as raised:
            Sandbox(limits).run(["true"])
        assert raised.value.errno == number


SEND = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    for _ in range(10):
        out.sendto(b"x" * 500, ("127.0.0.1", 9))
"""
TC = """
ip link set lo up
tc qdisc add dev lo root handle 10: htb
tc class add dev lo parent 10: classid 10:1 htb rate 100mbit
tc filter add dev lo parent 10: protocol ip prio 10 handle 1: cgroup
"""


@pytest.fixture
def network_classes() -> Iterator[None]:
    """A v1 hierarchy for the network beside v2, which this kernel has only there."""
    if not OURS or shutil.which("tc") is None or "net_cls" not in Path("/proc/cgroups").read_text():
        pytest.skip("mounts a hierarchy: only in the virtual machine, with net_cls and tc (package: iproute2)")
    for module in ("cls_cgroup", "sch_htb", "netprio_cgroup"):
        subprocess.run(["modprobe", "-q", module], check=False)
    place = Path("/tmp/net_cls")
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "cgroup", "-o", "net_cls,net_prio", "none", place], check=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for group in place.glob("isolate-*"):
                group.rmdir()
        subprocess.run(["umount", place], check=True)
        place.rmdir()


def sent() -> int:
    """Bytes that went through the class 10:1."""
    text = subprocess.run(["tc", "-s", "class", "show", "dev", "lo"], check=True, capture_output=True, text=True).stdout
    return int(text.split("Sent ")[1].split()[0])


@pytest.mark.usefixtures("network_classes")
def test_network_class_and_priority() -> None:
    assert {h.version for h in discover().hierarchies} == {1, 2}
    with NetNamespace():
        subprocess.run(["sh", "-ec", TC], check=True)
        assert python(SEND, Limits(net_class=0x100002)).ok, "the control: another class"
        assert sent() == 0
        assert python(SEND, Limits(net_class=0x100001, memory="256M")).ok
        assert sent() >= 5000
    with Cgroup(Limits(net_prio={"lo": 5})) as group:
        places = [h.own for h in discover().hierarchies if "net_prio" in h.controllers]
        (file,) = [next(Path(p).glob("isolate-*/net_prio.ifpriomap")) for p in places]
        assert "lo 5" in file.read_text().splitlines()
        assert Sandbox(group).run(["true"]).ok
