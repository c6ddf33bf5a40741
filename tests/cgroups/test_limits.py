"""``Limits`` as a value: what it takes, what it refuses, and what it means on a v1 and on a v2 host."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolate.cgroups import Device, Limits
from isolate.cgroups.hierarchy import Hierarchy, Host
from isolate.cgroups.limit_values import format_list, parse_list
from isolate.cgroups.settings import settings
from isolate.errors import UnsupportedError
from isolate.kernel.checks import limit

_CONTROLLERS = frozenset({"cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc"})
HOST2 = Host((Hierarchy(2, _CONTROLLERS, "/x", "/x", False),))
HOST1 = Host(
    tuple(
        Hierarchy(1, frozenset({c}), f"/x/{c}", f"/x/{c}", False)
        for c in ("cpu", "cpuset", "memory", "blkio", "pids", "devices", "net_cls")
    )
)


def files(limits: Limits, host: Host) -> dict[str, tuple[bytes, bytes | None]]:
    return {s.file: (s.data, s.expect) for s in settings(limits, host, lambda _: "/nonexistent").files}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("4K", 4096),
        ("256M", 256 << 20),
        ("1.5G", 3 << 29),
        ("2GiB", 2 << 30),
        ("1mb", 1 << 20),
        (" 7 k ", 7168),
        ("max", None),
        (123, 123),
        ("1T", 1 << 40),
    ],
)
def test_sizes(text: int | str, value: int | None) -> None:
    assert limit("x", text) == value


@pytest.mark.parametrize("text", ["", "M", "-1", "1X", "1.M5", "1..5M", "٣M", "1 2", "0x10", -1, 1 << 63, "1\x00"])
def test_bad_sizes(text: int | str) -> None:
    with pytest.raises(ValueError, match=r"^x must "):
        limit("x", text)


@given(st.sets(st.integers(0, 300), min_size=1))
def test_lists_round_trip(numbers: set[int]) -> None:
    assert parse_list("cpus", format_list(numbers)) == numbers


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"memory": -1}, ValueError, "memory"),
    ({"memory": 4095}, ValueError, "memory"),
    ({"memory": True}, TypeError, "memory"),
    ({"memory": 1.5}, TypeError, "memory"),
    ({"swap": "1G"}, ValueError, "swap without one on memory|without one on memory"),
    ({"memory": "max", "swap": 0}, ValueError, "swap"),
    ({"memory": "1M", "memory_min": "2M"}, ValueError, "memory_min: 2097152 is above memory"),
    ({"memory_low": "3M", "memory_high": "2M"}, ValueError, "memory_low"),
    ({"pids": 0}, ValueError, "pids"),
    ({"pids": (4 << 20) + 1}, ValueError, "pids"),
    ({"pids": "many"}, TypeError, "pids"),
    ({"cpu": 0}, ValueError, "cpu"),
    ({"cpu": -1}, ValueError, "cpu"),
    ({"cpu": math.nan}, ValueError, "cpu"),
    ({"cpu": math.inf}, ValueError, "cpu"),
    ({"cpu": 0.005}, ValueError, "least is 1000"),
    ({"cpu": 1, "cpu_period": 2}, ValueError, "cpu_period"),
    ({"cpu_burst": 0.1}, ValueError, "without cpu"),
    ({"cpu": 0.5, "cpu_burst": 1}, ValueError, "cpu_burst"),
    ({"cpu_weight": 0}, ValueError, "cpu_weight"),
    ({"cpu_weight": 10001}, ValueError, "cpu_weight"),
    ({"cpus": ""}, ValueError, "empty"),
    ({"cpus": "3-1"}, ValueError, "cpus"),
    ({"cpus": "a"}, ValueError, "cpus"),
    ({"cpus": [True]}, TypeError, "cpus"),
    ({"mems": [-1]}, ValueError, "mems"),
    ({"io": {"/": {"rbsp": 1}}}, ValueError, "did you mean 'rbps'"),
    ({"io": {"/": {}}}, ValueError, "says nothing"),
    ({"io": {"/": {"rbps": 0}}}, ValueError, "rbps"),
    ({"io": {"/a\0b": {"rbps": 1}}}, ValueError, "NUL"),
    ({"io": "/dev/sda"}, TypeError, "mapping"),
    ({"hugetlb": {"3M": 1}}, ValueError, "page size"),
    ({"rdma": {"mlx": {"hca_handel": 1}}}, ValueError, "did you mean 'hca_handle'"),
    ({"devices": "c 1:3 rw"}, TypeError, "sequence"),
    ({"devices": ["c 1:3 rx"]}, ValueError, "access"),
    ({"devices": ["c 1"]}, ValueError, "is not like"),
    ({"devices": ["d 1:3 rw"]}, ValueError, "kind"),
    ({"devices": ["a 1:3 r"]}, ValueError, "every device"),
    ({"devices": ["/etc/passwd"]}, ValueError, "no device"),
    ({"devices": ["/nonexistent"]}, ValueError, "No such file"),
    ({"net_class": 0}, ValueError, "net_class"),
    ({"parent": "relative"}, ValueError, "absolute"),
    ({"oom_group": 1}, TypeError, "oom_group"),
]


@pytest.mark.parametrize(("arguments", "kind", "text"), REFUSED, ids=[str(r[0])[:40] for r in REFUSED])
def test_refused(arguments: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        Limits(**arguments)


def test_it_is_a_value() -> None:
    limits = Limits(memory="64M", io={"/": {"rbps": "1M", "wiops": 5}}, devices=["c 1:3 rw", "/dev/null"], cpus=[1, 0])
    same = Limits(memory=64 << 20, io={"/": {"wiops": 5, "rbps": 1 << 20}}, devices=["c 1:3 rw"], cpus="0-1")
    assert limits == same
    assert hash(limits) == hash(same)
    assert pickle.loads(pickle.dumps(limits)) == limits
    assert dataclasses.replace(limits, pids=3) == Limits(
        memory="64M", io={"/": {"rbps": "1M", "wiops": 5}}, devices=["c 1:3 rw"], cpus="0,1", pids=3
    )
    assert repr(Limits(memory="1M", pids=2)) == "Limits(memory=1048576, pids=2)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        limits.memory = 1  # type: ignore[misc]


def test_devices_are_read() -> None:
    assert Limits(devices=["c 136:* rw", "b *:* m", "a", "/dev/null r"]).devices == (
        Device("c", 136, None, "rw"),
        Device("b", None, None, "m"),
        Device(),
        Device("c", 1, 3, "r"),
    )
    assert str(Device("c", 136, None, "wr")) == "c 136:* rw"


def test_v2_files() -> None:
    limits = Limits(memory=(64 << 20) + 5, memory_high="32M", pids=7, cpu=1.5, cpu_burst=0.05, cpu_weight=50)
    assert files(limits, HOST2) == {
        "memory.high": (b"33554432", b"33554432\n"),
        "memory.max": (b"67108869", b"67108864\n"),  # whole pages are what holds
        "memory.swap.max": (b"0", b"0\n"),
        "memory.oom.group": (b"1", b"1\n"),
        "pids.max": (b"7", b"7\n"),
        "cpu.max": (b"150000 100000", b"150000 100000\n"),
        "cpu.max.burst": (b"50000", b"50000\n"),
        "cpu.weight": (b"50", b"50\n"),
    }
    assert "memory.swap.max" in files(Limits(memory="max", swap="max"), HOST2)
    assert "memory.oom.group" not in files(Limits(memory="1M", oom_group=False), HOST2)


def test_v1_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isolate.cgroups.settings.os.path.exists", lambda path: True)
    found = files(Limits(memory="64M", swap="16M", pids=7, cpu=0.5, cpu_weight=100), HOST1)
    assert list(found.items())[:2] == [
        ("memory.limit_in_bytes", (b"67108864", b"67108864\n")),
        ("memory.memsw.limit_in_bytes", (b"83886080", b"83886080\n")),  # the sum, and second
    ]
    assert found["cpu.cfs_quota_us"] == (b"50000", b"50000\n")
    assert found["cpu.shares"] == (b"1024", b"1024\n")


def test_v1_devices_are_denied_first() -> None:
    rows = settings(Limits(devices=["c 1:3 rw", "c 5:* r"]), HOST1, lambda _: "/nonexistent").files
    assert [(r.file, r.data, r.readback, r.expect) for r in rows if r.controller == "devices"] == [
        ("devices.deny", b"a", "", None),
        ("devices.allow", b"c 1:3 rw", "devices.list", None),
        ("devices.allow", b"c 5:* r", "devices.list", b"c 1:3 rw\nc 5:* r\n"),
    ]
    rows = settings(Limits(devices=["c 1:3 w", "c 5:* r", "c 1:3 r"]), HOST1, lambda _: "/nonexistent").files
    assert [r for r in rows if r.controller == "devices"][
        -1
    ].expect == b"c 1:3 rw\nc 5:* r\n"  # two rules for one device are one line


def test_every_device_and_interface_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What shares a file with others is looked for among its lines, however many there are."""
    monkeypatch.setattr("isolate.cgroups.settings.disk_of", lambda name, path: path)
    limits = Limits(io={"8:0": {"rbps": 4096}, "8:16": {"wiops": 7, "rbps": "max"}, "8:32": {"rbps": "max"}})
    rows = settings(limits, HOST2, lambda _: "/nonexistent").files
    assert [(r.data, r.expect, r.among) for r in rows] == [
        (b"8:0 rbps=4096 wbps=max riops=max wiops=max", b"8:0 rbps=4096 wbps=max riops=max wiops=max", True),
        (b"8:16 rbps=max wbps=max riops=max wiops=7", b"8:16 rbps=max wbps=max riops=max wiops=7", True),
        (b"8:32 rbps=max wbps=max riops=max wiops=max", None, True),  # has no line then
    ]
    rows = settings(limits, HOST1, lambda _: "/nonexistent").files
    assert [r.expect for r in rows if r.controller == "io"] == [b"8:0 4096", None, b"8:16 7", None]
    (row,) = settings(Limits(rdma={"mlx5_0": {"hca_handle": 2}}), HOST2, lambda _: "/x").files
    assert row.expect == b"mlx5_0 hca_handle=2 hca_object=max"
    (row,) = settings(Limits(misc={"sev": 3}), HOST2, lambda _: "/x").files
    assert row.expect == b"sev 3"


@pytest.mark.parametrize(
    ("limits", "host", "text"),
    [
        (Limits(memory_high="1M"), HOST1, "nothing like it"),
        (Limits(oom_group=True), HOST1, "memory.oom.group"),
        (Limits(hugetlb={"2M": 0}), HOST1, "hugetlb controller"),
        (Limits(net_class=1), HOST2, "cgroup v1 only"),
        (Limits(pids=1), Host(()), "pids controller"),
    ],
)
def test_what_a_host_cannot_hold_is_an_error(limits: Limits, host: Host, text: str) -> None:
    with pytest.raises(UnsupportedError, match=text) as caught:
        settings(limits, host, lambda _: "/nonexistent")
    assert caught.value.part == "Limits"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (Limits(cpus="60000"), "no processor 60000"),
        (Limits(mems="60000"), "no memory node 60000"),
        (Limits(io={"/dev/null": {"rbps": 1}}), "character device"),
        (Limits(io={"/proc": {"rbps": 1}}), "without a block device"),
        (Limits(io={"4095:9": {"rbps": 1}}), "no block device 4095:9"),
        (Limits(hugetlb={"512T": 1}), "no pages of"),
    ],
)
def test_what_is_not_there(limits: Limits, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        settings(limits, HOST2, lambda _: "/nonexistent")
