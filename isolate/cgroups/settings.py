"""The files that a ``Limits`` is written to: those of v2, or those of v1 if the controller is there.

A limit that v1 cannot hold is an :class:`~isolate.errors.UnsupportedError` here, before anything starts. Sources:
cgroup-v2.rst and cgroup-v1/*.rst of the kernel's admin guide.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from isolate.cgroups import devices as _devices
from isolate.cgroups.hierarchy import read
from isolate.cgroups.limit_values import disk_of, parse_list
from isolate.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolate.cgroups.hierarchy import Hierarchy, Host
    from isolate.cgroups.values import LimitValues

#: Names of v2's controllers that v1 calls differently.
V1_NAMES: Final = {"io": "blkio"}
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
#: page_counter's largest value: from there on the kernel says "max".
_NO_LIMIT: Final = (1 << 63) // _PAGE * _PAGE - _PAGE


@dataclass(frozen=True)
class Setting:
    """One value to write into one file of the group, and what must be read there afterwards."""

    field: str  #: of Limits
    controller: str  #: v2's name
    file: str
    data: bytes
    #: Read back afterwards: the file's whole content, or with ``among`` one of its lines; None: nothing can be seen.
    expect: bytes | None
    #: False: a kernel without the file holds the limit anyway.
    needed: bool = True
    #: The file that ``expect`` is about, if another than ``file``.
    readback: str = ""
    #: ``expect`` (without its end) is one line of several: one for each device, interface or resource.
    among: bool = False


@dataclass(frozen=True)
class Settings:
    """The files in the order in which they must be written, and the devices' program (v2)."""

    files: tuple[Setting, ...]
    program: bytes | None = None


def unsupported(
    field: str, why: str, remedy: str, *, number: int = errno.EOPNOTSUPP, path: str | None = None
) -> UnsupportedError:
    """The error of a limit that this host cannot hold."""
    return UnsupportedError(number, f"limit {field}", part="Limits", path=path, cause=why, remedy=remedy)


def controllers(limits: LimitValues) -> dict[str, str]:
    """The controllers that limits need, each with the field that asks for it."""
    needed: dict[str, str] = {}
    for field, controller in _CONTROLLERS.items():
        value = getattr(limits, field)
        if value is not None and not (field == "oom_group" and value is False):
            needed.setdefault(controller, field)
    return needed


_CONTROLLERS: Final = {
    "memory": "memory", "swap": "memory", "memory_high": "memory", "memory_low": "memory", "memory_min": "memory",
    "oom_group": "memory", "pids": "pids", "cpu": "cpu", "cpu_weight": "cpu", "cpu_burst": "cpu", "cpus": "cpuset",
    "mems": "cpuset", "io": "io", "io_weight": "io", "hugetlb": "hugetlb", "rdma": "rdma", "misc": "misc",
    "devices": "devices", "net_class": "net_cls", "net_prio": "net_prio",
}  # fmt: skip  # a table: limit and controller


def settings(limits: LimitValues, host: Host, parent_of: Callable[[str], str]) -> Settings:
    """The files to write. ``parent_of`` gives the directory in which the group is made, by controller."""

    def version(controller: str) -> int:
        home = home_of(host, controller)
        return home.version if home else 0

    files: list[Setting] = []
    program: bytes | None = None
    for controller, field in controllers(limits).items():
        where = version(controller)
        if controller in ("net_cls", "net_prio") and where != 1:
            raise unsupported(
                field,
                f"the {controller} controller exists on cgroup v1 only",
                "mark packets by a BPF program of the network part",
            )
        if controller == "devices" and where == 2:
            program = _devices.program(_devices.parse_all(limits.devices or ()))
            continue
        make = {1: _V1, 2: _V2}.get(where, {}).get(controller)
        if make is None:
            raise unsupported(
                field,
                f"no cgroup hierarchy of this host has the {V1_NAMES.get(controller, controller)} controller",
                "see /proc/cgroups and the kernel's boot parameters (cgroup_disable=, cgroup_no_v1=)",
                number=errno.ENODEV,
            )
        files += make(limits, parent_of(controller))
    if version("cpuset") == 1 and "cpuset" not in controllers(limits) and parent_of("cpuset"):
        files += _cpuset1(limits, parent_of("cpuset"))  # mounted together with another controller
    return Settings(tuple(files), program)


def home_of(host: Host, controller: str) -> Hierarchy | None:
    """The hierarchy that a controller (by v2's name) is used through, or None."""
    legacy = next(
        (h for h in host.hierarchies if h.version == 1 and V1_NAMES.get(controller, controller) in h.controllers), None
    )
    if legacy is not None:
        return legacy
    v2 = host.v2
    if v2 is None:
        return None
    if controller == "devices":
        return v2  # a program, not a controller
    # Unified: whether the controller is there and delegated is for the choice of the parent to find out.
    return v2 if host.mode == "unified" or controller in v2.controllers else None


def _items(value: object) -> tuple[Any, ...]:
    """The pairs that ``Limits`` has made of a mapping."""
    return value if isinstance(value, tuple) else ()


def _text(value: int | str | None) -> str:
    return "max" if value is None else str(value)


def _pages(value: int | str | None) -> str:
    """As the kernel reads it back: whole pages, rounded down."""
    if not isinstance(value, int) or value >= _NO_LIMIT:
        return "max"
    return str(value // _PAGE * _PAGE)


def _one(
    field: str, controller: str, file: str, data: str, expect: str | None = None, *, needed: bool = True
) -> Setting:
    return Setting(
        field, controller, file, data.encode(), ((data if expect is None else expect) + "\n").encode(), needed
    )


# ---- v2 ------------------------------------------------------------------------------------------------------------


def _memory2(limits: LimitValues, parent: str) -> Iterator[Setting]:
    # High before max: whoever is over both is slowed down first. On a fresh group the order does not matter.
    for field, file in (("memory_min", "min"), ("memory_low", "low"), ("memory_high", "high"), ("memory", "max")):
        value = getattr(limits, field)
        if value is not None:
            yield _one(field, "memory", f"memory.{file}", _text(value), _pages(value))
    if limits.swap is not None or limits.swap_limit is not None:
        value = "max" if limits.swap_limit is None else limits.swap_limit
        # Without CONFIG_SWAP the file is not there, and neither is swap.
        yield _one(
            "swap", "memory", "memory.swap.max", _text(value), _pages(value), needed=os.path.exists("/proc/swaps")
        )
    if limits.oom_group is not False:
        yield _one("oom_group", "memory", "memory.oom.group", "1", needed=limits.oom_group is True)


def _pids2(limits: LimitValues, parent: str) -> Iterator[Setting]:
    yield _one("pids", "pids", "pids.max", _text(limits.pids))


def _cpu2(limits: LimitValues, parent: str) -> Iterator[Setting]:
    if limits.cpu is not None:
        yield _one("cpu", "cpu", "cpu.max", f"{limits.quota} {limits.period}")
    if limits.cpu_burst is not None:
        yield _one("cpu_burst", "cpu", "cpu.max.burst", str(round(limits.cpu_burst * 1e6)))
    if limits.cpu_weight is not None:
        yield _one("cpu_weight", "cpu", "cpu.weight", str(limits.cpu_weight))


def _online(field: str, wanted: str) -> None:
    path = "/sys/devices/system/cpu/online" if field == "cpus" else "/sys/devices/system/node/online"
    online = parse_list(field, read(path).strip() or "0")
    missing = sorted(parse_list(field, wanted) - online)
    if missing:
        what = "processor" if field == "cpus" else "memory node"
        raise ValueError(f"{field}: there is no {what} {missing[0]} online ({path})")


def _cpuset2(limits: LimitValues, parent: str) -> Iterator[Setting]:
    for field in ("cpus", "mems"):
        value = getattr(limits, field)
        if value is not None:
            _online(field, value)
            yield _one(field, "cpuset", f"cpuset.{field}", value)


def _devices_of(limits: LimitValues) -> Iterator[tuple[str, dict[str, int | None]]]:
    merged: dict[str, dict[str, int | None]] = {}
    for path, rates in _items(limits.io):
        # Two paths may lie on one disk: the stricter rate holds.
        entry = merged.setdefault(disk_of("io", path), {})
        for key, rate in rates:
            old = entry.get(key)
            entry[key] = rate if old is None else old if rate is None else min(old, rate)
    yield from merged.items()


def _io2(limits: LimitValues, parent: str) -> Iterator[Setting]:
    for device, rates in _devices_of(limits):
        # All four, or a rate that an update does not name any more would stay.
        full = " ".join([device, *(f"{k}={_text(rates.get(k))}" for k in ("rbps", "wbps", "riops", "wiops"))])
        # A device without any limit has no line.
        held = any(v is not None for v in rates.values())
        yield Setting("io", "io", "io.max", full.encode(), full.encode() if held else None, among=True)
    if limits.io_weight is not None:
        if not os.path.exists(os.path.join(parent, "io.bfq.weight")):
            yield _one("io_weight", "io", "io.weight", f"default {limits.io_weight}")
        else:
            weight = str(limits.io_weight).encode()
            yield Setting("io_weight", "io", "io.bfq.weight", weight, b"default " + weight, among=True)


def _hugetlb2(limits: LimitValues, parent: str) -> Iterator[Setting]:
    for page, value in _items(limits.hugetlb):
        yield _one("hugetlb", "hugetlb", f"hugetlb.{_page(page)}.max", _text(value), _huge(page, value, "max"))


def _page(page: object) -> str:
    kinds = sorted(os.listdir("/sys/kernel/mm/hugepages")) if os.path.isdir("/sys/kernel/mm/hugepages") else []
    there = [_named(int(k.removeprefix("hugepages-").removesuffix("kB")) << 10) for k in kinds]
    if page not in there:
        raise ValueError(f"hugetlb: this kernel has no pages of {page}; it has {', '.join(there) or 'none'}")
    return str(page)


def _named(size: int) -> str:
    return f"{size >> 30}GB" if size >= 1 << 30 else f"{size >> 20}MB" if size >= 1 << 20 else f"{size >> 10}KB"


def _huge(page: object, value: object, unlimited: str) -> str:
    text = str(page)
    size = int(text[:-2]) << {"KB": 10, "MB": 20, "GB": 30}[text[-2:]]
    return str(value // size * size) if isinstance(value, int) and value < _NO_LIMIT else unlimited


def _rdma2(limits: LimitValues, parent: str) -> Iterator[Setting]:
    for device, entries in _items(limits.rdma):
        given = dict(entries)
        full = " ".join([str(device), *(f"{k}={given.get(k, 'max')}" for k in ("hca_handle", "hca_object"))])
        yield Setting("rdma", "rdma", "rdma.max", full.encode(), full.encode(), among=True)


def _misc2(limits: LimitValues, parent: str) -> Iterator[Setting]:
    for name, value in _items(limits.misc):
        data = f"{name} {_text(value)}".encode()
        yield Setting("misc", "misc", "misc.max", data, data, among=True)


# ---- v1 ------------------------------------------------------------------------------------------------------------

_V1_NO_LIMIT: Final = str(((1 << 63) - 1) // _PAGE * _PAGE)


def _memory1(limits: LimitValues, parent: str) -> Iterator[Setting]:
    for field in ("memory_high", "memory_low", "memory_min"):
        if getattr(limits, field) is not None:
            why = "cgroup v1's memory controller has nothing like it"
            raise unsupported(field, why, "boot with cgroup v2, or leave it out")
    if limits.oom_group:
        raise unsupported(
            "oom_group",
            "cgroup v1's OOM killer takes one process and has no memory.oom.group",
            "leave oom_group out: it is on wherever the kernel can",
        )
    if limits.memory is not None:
        data = str(limits.memory) if isinstance(limits.memory, int) else "-1"
        expect = _V1_NO_LIMIT if _pages(limits.memory) == "max" else _pages(limits.memory)
        yield _one("memory", "memory", "memory.limit_in_bytes", data, expect)
    if limits.swap is not None or limits.swap_limit is not None:
        yield from _memsw(limits, parent)


def _memsw(limits: LimitValues, parent: str) -> Iterator[Setting]:
    """v1 limits the sum of memory and swap; it must never be below memory, so it is written second."""
    if not os.path.exists(os.path.join(parent, "memory.memsw.limit_in_bytes")):
        swaps = read("/proc/swaps").rstrip("\n").split("\n")[1:]
        if limits.swap is None and not swaps:
            return  # no swap is in use, so the default of none holds
        raise unsupported(
            "swap",
            "the kernel does not account for swap (memory.memsw.limit_in_bytes is missing)",
            "boot with swapaccount=1, or say swap='max'",
        )
    both = isinstance(limits.memory, int) and limits.swap_limit is not None
    total = int(limits.memory or 0) + int(limits.swap_limit or 0) if both else None
    expect = _V1_NO_LIMIT if total is None or _pages(total) == "max" else _pages(total)
    yield _one("swap", "memory", "memory.memsw.limit_in_bytes", "-1" if total is None else str(total), expect)


def _cpu1(limits: LimitValues, parent: str) -> Iterator[Setting]:
    if limits.cpu is not None:
        yield _one("cpu", "cpu", "cpu.cfs_period_us", str(limits.period))
        yield _one("cpu", "cpu", "cpu.cfs_quota_us", str(limits.quota))
    if limits.cpu_burst is not None:
        yield _one("cpu_burst", "cpu", "cpu.cfs_burst_us", str(round(limits.cpu_burst * 1e6)))
    if limits.cpu_weight is not None:
        # v2's 100 is v1's 1024, and both are linear.
        yield _one("cpu_weight", "cpu", "cpu.shares", str(max(2, round(limits.cpu_weight * 1024 / 100))))


def _cpuset1(limits: LimitValues, parent: str) -> Iterator[Setting]:
    # A fresh v1 cpuset is empty and takes no task until both are set.
    for field in ("mems", "cpus"):
        value = getattr(limits, field)
        if value is not None:
            _online(field, value)
        else:
            value = (
                read(os.path.join(parent, f"cpuset.{field}")).strip()
                or read(os.path.join(parent, f"cpuset.effective_{field}")).strip()
            )
        yield _one(field, "cpuset", f"cpuset.{field}", value)


_V1_IO: Final = {"rbps": "read_bps", "wbps": "write_bps", "riops": "read_iops", "wiops": "write_iops"}


def _io1(limits: LimitValues, parent: str) -> Iterator[Setting]:
    for device, rates in _devices_of(limits):
        for key, rate in rates.items():
            text = f"{device} {rate or 0}".encode()
            file = f"blkio.throttle.{_V1_IO[key]}_device"
            yield Setting("io", "io", file, text, text if rate else None, among=True)
    if limits.io_weight is not None:
        # blkio.weight went with the CFQ scheduler (Linux 5.0); BFQ has its own file, in groups below the root.
        yield _one("io_weight", "io", "blkio.bfq.weight", str(min(limits.io_weight, 1000)))


def _hugetlb1(limits: LimitValues, parent: str) -> Iterator[Setting]:
    for page, value in _items(limits.hugetlb):
        data = str(value) if isinstance(value, int) else "-1"
        unlimited = _huge(page, (1 << 63) - 1 - _PAGE, "")
        yield Setting(
            "hugetlb",
            "hugetlb",
            f"hugetlb.{_page(page)}.limit_in_bytes",
            data.encode(),
            (_huge(page, value, unlimited) + "\n").encode() if isinstance(value, int) else None,
        )


def _devices1(limits: LimitValues, parent: str) -> Iterator[Setting]:
    rules = _devices.parse_all(limits.devices or ())
    if any(r.kind == "a" for r in rules):
        return
    yield Setting("devices", "devices", "devices.deny", b"a", None)
    held: dict[tuple[str, int | None, int | None], _devices.Device] = {}
    for at, rule in enumerate(rules):
        # Two rules for one device are one line of the list, with the accesses of both.
        key = (rule.kind, rule.major, rule.minor)
        access = {*rule.access, *(held[key].access if key in held else "")}
        held[key] = _devices.Device(*key, "".join(access))
        lines = "".join(f"{merged}\n" for merged in held.values()).encode()
        last = at == len(rules) - 1
        yield Setting(
            "devices", "devices", "devices.allow", str(rule).encode(), lines if last else None, readback="devices.list"
        )


def _net_class1(limits: LimitValues, parent: str) -> Iterator[Setting]:
    yield _one("net_class", "net_cls", "net_cls.classid", str(limits.net_class))


def _net_prio1(limits: LimitValues, parent: str) -> Iterator[Setting]:
    for interface, priority in _items(limits.net_prio):
        data = f"{interface} {priority}".encode()
        yield Setting("net_prio", "net_prio", "net_prio.ifpriomap", data, data, among=True)


_V2: Final = {
    "memory": _memory2,
    "pids": _pids2,
    "cpu": _cpu2,
    "cpuset": _cpuset2,
    "io": _io2,
    "hugetlb": _hugetlb2,
    "rdma": _rdma2,
    "misc": _misc2,
}
_V1: Final = {
    "memory": _memory1,
    "pids": _pids2,
    "cpu": _cpu1,
    "cpuset": _cpuset1,
    "io": _io1,
    "hugetlb": _hugetlb1,
    "rdma": _rdma2,
    "misc": _misc2,
    "devices": _devices1,
    "net_cls": _net_class1,
    "net_prio": _net_prio1,
}
