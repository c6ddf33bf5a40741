"""The use of a group: the kernel's counters of v2 and v1, in one shape."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from isolate.kernel.proc import lines

if TYPE_CHECKING:
    from collections.abc import Mapping

#: USER_HZ: v1's cpuacct.stat counts in it.
_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Pressure:
    """How much of the time tasks of a group waited for a resource: pressure stall information.

    ``Stats.pressure["memory"]["some"]`` counts the time in which some tasks waited, ``["full"]`` that in which all did;
    the resources are ``cpu``, ``memory`` and ``io``. Reading it needs no more than the right to read the group's files.

    Linux 4.20; v2 groups only, also those of a hybrid host. Source: Documentation/accounting/psi.rst.

    >>> Pressure(avg10=12.5, avg60=3.0, avg300=0.6, total=1.75).avg10
    12.5
    """

    #: Percent of the last 10 seconds, from 0 to 100.
    avg10: float
    #: Percent of the last 60 seconds.
    avg60: float
    #: Percent of the last 300 seconds.
    avg300: float
    #: Seconds since the group was made.
    total: float


@dataclass(frozen=True)
class IoStats:
    """Bytes and operations that reached one device."""

    rbytes: int = 0
    wbytes: int = 0
    rios: int = 0
    wios: int = 0


@dataclass(frozen=True)
class Stats:
    """Counters of a group with all below it. None: this host does not count it. Times are seconds, memory is bytes."""

    cpu_time: float | None = None
    cpu_user: float | None = None
    cpu_system: float | None = None
    #: Periods in which the quota was used up, and for how long the group waited then.
    cpu_throttled: int | None = None
    cpu_throttled_time: float | None = None
    memory: int | None = None
    peak_memory: int | None = None  #: all that was charged at once, page cache included; v2: Linux 5.19
    memory_anon: int | None = None
    memory_file: int | None = None  #: page cache, with what is in tmpfs and shared memory
    memory_shmem: int | None = None  #: tmpfs and shared memory alone
    memory_kernel: int | None = None
    swap: int | None = None
    peak_swap: int | None = None  #: v2: Linux 6.5
    oom: int | None = None  #: times that the limit was reached and could not be held by reclaim
    oom_kill: int | None = None  #: processes killed for it
    memory_high: int | None = None  #: times that the group was held back above memory.high
    memory_max: int | None = None  #: times that it ran into its limit
    pids: int | None = None
    peak_pids: int | None = None  #: Linux 6.1 with v2, 6.6 with v1
    pids_max: int | None = None  #: forks refused for pids.max
    io: Mapping[str, IoStats] = field(default_factory=dict)
    #: ``"cpu"``, ``"memory"``, ``"io"`` and then ``"some"``, ``"full"``.
    pressure: Mapping[str, Mapping[str, Pressure]] = field(default_factory=dict)
    #: What each network interface has moved, by its device: :class:`isolate.network.Counters`. Of a program that runs.
    interfaces: Mapping[str, Any] = field(default_factory=dict)


#: The files that :func:`parse` reads, by the version of the hierarchy: (file, room that its content needs).
V2_FILES: Final = (
    ("cpu.stat", 1024),
    ("memory.current", 32),
    ("memory.peak", 32),
    ("memory.stat", 8192),
    ("memory.events", 256),
    ("memory.swap.current", 32),
    ("memory.swap.peak", 32),
    ("pids.current", 32),
    ("pids.peak", 32),
    ("pids.events", 64),
    ("io.stat", 4096),
    ("cpu.pressure", 256),
    ("memory.pressure", 256),
    ("io.pressure", 256),
)
V1_FILES: Final = (
    ("memory.usage_in_bytes", 32),
    ("memory.max_usage_in_bytes", 32),
    ("memory.memsw.max_usage_in_bytes", 32),
    ("memory.stat", 8192),
    ("memory.oom_control", 256),
    ("memory.failcnt", 32),
    ("pids.current", 32),
    ("pids.peak", 32),
    ("pids.events", 64),
    ("cpuacct.usage", 32),
    ("cpuacct.usage_user", 32),
    ("cpuacct.usage_sys", 32),
    ("cpu.stat", 512),
    ("blkio.throttle.io_service_bytes_recursive", 4096),
    ("blkio.throttle.io_serviced_recursive", 4096),
)
#: When the last process is dead, what is charged now says nothing any more, and costs the most to read.
NOT_AT_END: Final = frozenset({"memory.current", "memory.swap.current", "pids.current", "memory.usage_in_bytes"})
#: Which controller a file belongs to; "" for those that every v2 group has.
CORE_FILES: Final = frozenset({"cpu.stat", "cpu.pressure", "memory.pressure", "io.pressure"})

Files = dict[tuple[int, str], bytes]


def controller_of(version: int, file: str) -> str:
    """The controller (by the hierarchy's own name) without which a file is not there; "" for none."""
    return "" if version == 2 and file in CORE_FILES else file.partition(".")[0]


def pairs(data: bytes) -> dict[str, int]:
    """A flat keyed file: ``name number`` a line."""
    found: dict[str, int] = {}
    for line in lines(data):
        name, space, value = line.partition(" ")
        if space and value.strip().isdigit():
            found[name] = int(value)
    return found


def named(data: bytes, *names: str) -> dict[str, int]:
    """The lines with these names of a flat keyed file. Others are not parsed: each run with limits reads the file."""
    text, found = b"\n" + data, {}
    for name in names:
        at = text.find(b"\n%b " % name.encode())
        if at >= 0:
            value = text[at + len(name) + 2 :].partition(b"\n")[0].strip()
            if value.isdigit():
                found[name] = int(value)
    return found


def single(data: bytes | None) -> int | None:
    """A file with one number."""
    text = (data or b"").strip()
    return int(text) if text.isdigit() else None


def _io2(data: bytes) -> dict[str, IoStats]:
    found = {}
    for line in lines(data):
        device, _, rest = line.partition(" ")
        values = {k: int(v) for k, eq, v in (item.partition("=") for item in rest.split()) if eq and v.isdigit()}
        if ":" in device and values:
            found[device] = IoStats(*(values.get(k, 0) for k in ("rbytes", "wbytes", "rios", "wios")))
    return found


def _io1(count: bytes, operations: bytes) -> dict[str, IoStats]:
    rows: dict[str, dict[str, int]] = {}
    for data, suffix in ((count, "bytes"), (operations, "ios")):
        for line in lines(data):
            fields = line.split()
            if len(fields) == 3 and fields[1] in ("Read", "Write"):
                rows.setdefault(fields[0], {})[fields[1][0].lower() + suffix] = int(fields[2])
    return {
        device: IoStats(*(row.get(k, 0) for k in ("rbytes", "wbytes", "rios", "wios")))
        for device, row in rows.items()
        if any(row.values())
    }


def _pressure(data: bytes) -> dict[str, Pressure]:
    found = {}
    for line in lines(data):
        kind, _, rest = line.partition(" ")
        pressure = _of_line(rest)
        if pressure is not None:
            found[kind] = pressure
    return found


@functools.lru_cache(maxsize=64)
def _of_line(rest: str) -> Pressure | None:
    """Remembered: after a short run all six lines say zero, and each run with limits reads them."""
    values = dict(item.split("=", 1) for item in rest.split() if "=" in item)
    try:
        averages = float(values["avg10"]), float(values["avg60"]), float(values["avg300"])
        return Pressure(*averages, int(values["total"]) / 1e6)
    except (KeyError, ValueError):
        return None


def parse(files: Files) -> Stats:
    """Counters from the contents of files, by (version, name). Absent files are absent counters."""
    values: dict[str, object] = {}
    two = {name: data for (version, name), data in files.items() if version == 2 and data}
    one = {name: data for (version, name), data in files.items() if version == 1 and data}
    _cpu(two, one, values)
    _memory(two, one, values)
    for name, file in (("pids", "pids.current"), ("peak_pids", "pids.peak")):
        values[name] = single(two.get(file) or one.get(file))
    events = two.get("pids.events") or one.get("pids.events")
    values["pids_max"] = pairs(events).get("max", 0) if events else None
    if "io.stat" in two:
        values["io"] = _io2(two["io.stat"])
    elif "blkio.throttle.io_service_bytes_recursive" in one:
        values["io"] = _io1(
            one["blkio.throttle.io_service_bytes_recursive"], one.get("blkio.throttle.io_serviced_recursive", b"")
        )
    kinds = {k: _pressure(two[f"{k}.pressure"]) for k in ("cpu", "memory", "io") if f"{k}.pressure" in two}
    values["pressure"] = {k: v for k, v in kinds.items() if v}
    return Stats(**values)  # type: ignore[arg-type]


def _cpu(two: dict[str, bytes], one: dict[str, bytes], values: dict[str, object]) -> None:
    throttled: dict[str, int] = {}
    if "cpu.stat" in two:
        names = ("usage_usec", "user_usec", "system_usec", "nr_throttled", "throttled_usec", "throttled_time")
        cpu = named(two["cpu.stat"], *names)
        for name, key in (("cpu_time", "usage_usec"), ("cpu_user", "user_usec"), ("cpu_system", "system_usec")):
            values[name] = cpu[key] / 1e6 if key in cpu else None
        throttled = cpu
    elif "cpuacct.usage" in one:
        files = (("cpu_time", "cpuacct.usage"), ("cpu_user", "cpuacct.usage_user"), ("cpu_system", "cpuacct.usage_sys"))
        for name, key in files:
            count = single(one.get(key))
            values[name] = None if count is None else count / 1e9
    if "nr_throttled" not in throttled and "cpu.stat" in one:
        throttled = pairs(one["cpu.stat"])
    values["cpu_throttled"] = throttled.get("nr_throttled")
    if "throttled_usec" in throttled:
        values["cpu_throttled_time"] = throttled["throttled_usec"] / 1e6
    elif "throttled_time" in throttled:
        values["cpu_throttled_time"] = throttled["throttled_time"] / 1e9


#: Our names of rows of memory.stat, and the kernel's.
_STAT_V1 = {
    "memory_anon": "total_rss",
    "memory_file": "total_cache",
    "memory_shmem": "total_shmem",
    "swap": "total_swap",
}
_STAT_V2 = {"memory_anon": "anon", "memory_file": "file", "memory_shmem": "shmem", "memory_kernel": "kernel"}


def _memory(two: dict[str, bytes], one: dict[str, bytes], values: dict[str, object]) -> None:
    if "memory.oom_control" in one:
        values["memory"] = single(one.get("memory.usage_in_bytes"))
        values["peak_memory"] = single(one.get("memory.max_usage_in_bytes"))
        both = single(one.get("memory.memsw.max_usage_in_bytes"))
        peak = single(one.get("memory.max_usage_in_bytes"))
        # v1 records the peak of the sum only: what is above the peak of memory was certainly swap.
        values["peak_swap"] = None if both is None or peak is None else max(0, both - peak)
        values["oom_kill"] = pairs(one["memory.oom_control"]).get("oom_kill", 0)
        values["memory_max"] = single(one.get("memory.failcnt"))
        stat = named(one.get("memory.stat", b""), *_STAT_V1.values())
        values.update({name: stat.get(key) for name, key in _STAT_V1.items()})
        return
    values["memory"] = single(two.get("memory.current"))
    values["peak_memory"] = single(two.get("memory.peak"))
    values["swap"] = single(two.get("memory.swap.current"))
    values["peak_swap"] = single(two.get("memory.swap.peak"))
    stat = named(two.get("memory.stat", b""), *_STAT_V2.values())
    values.update({name: stat.get(key) for name, key in _STAT_V2.items()})
    if "memory.events" in two:
        events = pairs(two["memory.events"])
        for name, key in (("oom", "oom"), ("oom_kill", "oom_kill"), ("memory_high", "high"), ("memory_max", "max")):
            values[name] = events.get(key, 0)


def peak_in_use(found: Stats, largest: int) -> int | None:
    """The most memory that could not have been had back by reading a file again: anonymous and shared memory.

    The kernel keeps the peak of all that is charged, and page cache is charged to whoever reads a file first. So the
    page cache that is left when everything inside has ended is taken off. Memory that was in use before that cache came
    is missing then, and shows in ``largest``, the resident set of the largest process. A group that came to its limit
    had no more than that.
    """
    if found.peak_memory is None:
        return None
    cache = max(0, (found.memory_file or 0) - (found.memory_shmem or 0))
    peak = max(found.peak_memory - cache, largest)
    return min(peak, found.peak_memory) if found.oom_kill or found.memory_max else peak


def verdict(before: Stats | None, after: Stats, *, failed: bool = True) -> str | None:
    """``"OOM"`` or ``"PIDS"`` if the group's own counters say so, else None.

    OOM: the OOM killer took a process of the group, whether or not it was the program itself. PIDS: a fork was refused
    for pids.max, and the program failed (``failed``). ``before`` are the counters at the start, None for a fresh group.
    """
    if (after.oom_kill or 0) > ((before.oom_kill if before else 0) or 0):
        return "OOM"
    if failed and (after.pids_max or 0) > ((before.pids_max if before else 0) or 0):
        return "PIDS"
    return None
