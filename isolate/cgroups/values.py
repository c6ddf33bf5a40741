"""The values of ``Limits``: what a child may use, read and checked."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from isolate.cgroups import devices as _devices
from isolate.cgroups.limit_values import Size, mapping, number_set
from isolate.kernel import checks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_IO_KEYS: Final = ("rbps", "wbps", "riops", "wiops")
_RDMA_KEYS: Final = ("hca_handle", "hca_object")
#: The kernel's PID_MAX_LIMIT on 64-bit machines.
_PIDS: Final = 4 << 20
#: Below this not even an init and an exec fit; the kernel would kill the child before it began.
_MEMORY: Final = 64 << 10
#: Shortest quota and period that the kernel takes, and the longest period, in microseconds (sched-bwc.rst).
_SHORTEST, _LONGEST = 1_000, 1_000_000


class Above(Protocol):
    """A group to make another one in: a :class:`~isolate.Cgroup`."""

    @property
    def directories(self) -> Mapping[str, str]:
        """Its directory in each hierarchy."""
        ...


@dataclass(frozen=True)
class LimitValues:
    """The fields of :class:`~isolate.Limits`, which says what each means."""

    memory: Size | None = None
    swap: Size | None = None
    pids: int | Literal["max"] | None = None
    cpu: float | None = None
    cpu_weight: int | None = None
    cpus: str | Iterable[int] | int | None = None
    io: Mapping[Any, Mapping[str, Size]] | tuple[tuple[str, tuple[tuple[str, int | None], ...]], ...] | None = None
    hugetlb: Mapping[str, Size] | tuple[tuple[str, int | None], ...] | None = None
    devices: Iterable[Any] | None = None
    memory_high: Size | None = None
    memory_low: Size | None = None
    memory_min: Size | None = None
    oom_group: bool | None = None
    cpu_period: float = 0.1
    cpu_burst: float | None = None
    mems: str | Iterable[int] | int | None = None
    io_weight: int | None = None
    rdma: Mapping[str, Mapping[str, int]] | tuple[tuple[str, tuple[tuple[str, int], ...]], ...] | None = None
    misc: Mapping[str, Size] | tuple[tuple[str, int | None], ...] | None = None
    net_class: int | None = None
    net_prio: Mapping[str, int] | tuple[tuple[str, int], ...] | None = None
    parent: Above | str | os.PathLike[str] | None = None
    network: int | str | None = None

    #: Devices that programs expect: null, zero, full, random, urandom, tty, ptmx, pseudo terminals.
    DEVICES = _devices.DEFAULT

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name, low in (("memory", _MEMORY), ("swap", 0), ("memory_high", 0), ("memory_low", 0), ("memory_min", 0)):
            value = getattr(self, name)
            if value is not None:
                found = checks.limit(name, value, low)
                put(self, name, "max" if found is None else found)
        if self.network is not None:
            put(self, "network", checks.rate("network", self.network))
        if self.pids is not None and self.pids != "max":
            checks.integer("pids", self.pids, 1, _PIDS)
        if self.oom_group is not None:
            checks.flag("oom_group", self.oom_group)
        self._check_memory()
        self._check_cpu()
        for name in ("cpus", "mems"):
            value = getattr(self, name)
            if value is not None:
                put(self, name, number_set(name, value))
        for name in ("cpu_weight", "io_weight"):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name), 1, 10_000)
        if self.io is not None:
            put(self, "io", _io(self.io))
        if self.hugetlb is not None:
            put(self, "hugetlb", _sizes("hugetlb", self.hugetlb, _page_size))
        if self.misc is not None:
            put(self, "misc", _sizes("misc", self.misc, lambda key: checks.text("misc", key)))
        if self.rdma is not None:
            put(self, "rdma", _rdma(self.rdma))
        if self.devices is not None:
            put(self, "devices", _devices.parse_all(self.devices))
        if self.net_class is not None:
            checks.integer("net_class", self.net_class, 1, (1 << 32) - 1)
        if self.net_prio is not None:
            items = _pairs("net_prio", self.net_prio)
            put(
                self,
                "net_prio",
                tuple((checks.text("net_prio", str(k)), checks.integer("net_prio", v, 0, 1 << 31)) for k, v in items),
            )
        if isinstance(self.parent, (str, os.PathLike)):
            path = checks.text("parent", os.fspath(self.parent))
            if not os.path.isabs(path):
                raise ValueError(f"parent: {path!r} is not an absolute path")
            put(self, "parent", path)

    def _check_memory(self) -> None:
        if self.swap is not None and self.memory is None:
            raise ValueError("swap: a limit on swap without one on memory holds nothing; give memory, too")
        if self.swap not in (None, "max") and self.memory == "max":
            raise ValueError("swap: a limit on swap without one on memory holds nothing; memory is 'max'")
        order = ("memory_min", "memory_low", "memory_high", "memory")
        given = [(name, v) for name in order if isinstance(v := getattr(self, name), int)]
        for (below, a), (above, b) in itertools.pairwise(given):
            if a > b:
                raise ValueError(f"{below}: {a} is above {above} ({b})")

    def _check_cpu(self) -> None:
        object.__setattr__(
            self, "cpu_period", checks.number("cpu_period", self.cpu_period, _SHORTEST / 1e6, _LONGEST / 1e6)
        )
        if self.cpu is not None:
            object.__setattr__(self, "cpu", checks.number("cpu", self.cpu, 0.001, 65536.0))
            if self.quota < _SHORTEST:
                raise ValueError(
                    f"cpu: {self.cpu} of a period of {self.cpu_period} s is {self.quota} µs; the kernel's least is "
                    f"{_SHORTEST} µs: use a longer cpu_period"
                )
        if self.cpu_burst is not None:
            if self.cpu is None:
                raise ValueError("cpu_burst: there is nothing to save up without cpu")
            checks.number("cpu_burst", self.cpu_burst, 0, self.quota / 1e6)

    @property
    def quota(self) -> int:
        """Microseconds of ``cpu`` in each period."""
        return round((self.cpu or 0) * self.period)

    @property
    def period(self) -> int:
        """``cpu_period`` in microseconds."""
        return round(self.cpu_period * 1_000_000)

    @property
    def swap_limit(self) -> int | None:
        """The limit on swap in bytes that holds: 0 when only memory is limited; None without a limit."""
        if self.swap is not None:
            return self.swap if isinstance(self.swap, int) else None
        return 0 if isinstance(self.memory, int) else None


def _pairs(name: str, value: object) -> list[tuple[Any, Any]]:
    """The items of a mapping, or of the tuple of pairs that an earlier Limits made of one (dataclasses.replace)."""
    if isinstance(value, tuple) and all(isinstance(v, tuple) and len(v) == 2 for v in value):
        return sorted(value)
    return sorted(mapping(name, value).items(), key=lambda item: str(item[0]))


def _io(value: object) -> tuple[tuple[str, tuple[tuple[str, int | None], ...]], ...]:
    found = []
    for path, rates in _pairs("io", value):
        where = checks.text("io", os.fspath(path))
        limits = []
        for key, rate in _pairs(f"io[{where!r}]", rates):
            checks.choice(f"io[{where!r}]", key, _IO_KEYS)
            limits.append((key, checks.limit(f"io[{where!r}].{key}", rate, 1) if rate is not None else None))
        if not limits:
            raise ValueError(f"io[{where!r}]: says nothing; known: {', '.join(_IO_KEYS)}")
        found.append((where, tuple(limits)))
    return tuple(found)


def _page_size(key: object) -> str:
    """``2MB``, as the kernel names the files."""
    found = checks.limit("hugetlb", key, 4096)
    if found is None or found & (found - 1):
        raise ValueError(f"hugetlb: {key!r} is no page size")
    for unit, scale in (("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10)):
        if found >= scale:
            return f"{found // scale}{unit}"
    raise AssertionError(found)


def _sizes(name: str, value: object, key_of: Any) -> tuple[tuple[str, int | None], ...]:
    return tuple((key_of(k), checks.limit(f"{name}[{k!r}]", v)) for k, v in _pairs(name, value))


def _rdma(value: object) -> tuple[tuple[str, tuple[tuple[str, int], ...]], ...]:
    found = []
    for device, limits in _pairs("rdma", value):
        entries = tuple(
            (
                checks.choice(f"rdma[{device!r}]", k, _RDMA_KEYS),
                checks.integer(f"rdma[{device!r}].{k}", v, 0, (1 << 31) - 1),
            )
            for k, v in _pairs(f"rdma[{device!r}]", limits)
        )
        found.append((checks.text("rdma", str(device)), entries))
    return tuple(found)
