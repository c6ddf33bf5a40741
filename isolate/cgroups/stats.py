"""The use of a group: the kernel's counters of v2 and v1, in one shape."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from isolate.engine.native import ffi, lib
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


@functools.lru_cache(maxsize=64)
def _pressure(data: bytes) -> tuple[tuple[str, Pressure], ...]:
    """Remembered, as are the lines: after a short run most say zero, and each run with limits reads them."""
    found = ((kind, _of_line(rest)) for kind, _, rest in (line.partition(" ") for line in lines(data)))
    return tuple((kind, pressure) for kind, pressure in found if pressure is not None)


@functools.lru_cache(maxsize=64)
def _of_line(rest: str) -> Pressure | None:
    values = dict(item.split("=", 1) for item in rest.split() if "=" in item)
    try:
        averages = float(values["avg10"]), float(values["avg60"]), float(values["avg300"])
        return Pressure(*averages, int(values["total"]) / 1e6)
    except (KeyError, ValueError):
        return None


#: Where each counter is: the field, the version, the file, its line (``""``: all of it), nanoseconds of a unit of time.
#: Of two rows for a field the first that is there. A line with a ``?`` is 0 where the file does not have it.
_ROWS: Final = (
    ("cpu_time", 2, "cpu.stat", "usage_usec", 1000),
    ("cpu_time", 1, "cpuacct.usage", "", 1),
    ("cpu_user", 2, "cpu.stat", "user_usec", 1000),
    ("cpu_user", 1, "cpuacct.usage_user", "", 1),
    ("cpu_system", 2, "cpu.stat", "system_usec", 1000),
    ("cpu_system", 1, "cpuacct.usage_sys", "", 1),
    ("cpu_throttled", 2, "cpu.stat", "nr_throttled", 1),
    ("cpu_throttled", 1, "cpu.stat", "nr_throttled", 1),
    ("cpu_throttled_time", 2, "cpu.stat", "throttled_usec", 1000),
    ("cpu_throttled_time", 1, "cpu.stat", "throttled_time", 1),
    ("memory", 1, "memory.usage_in_bytes", "", 1),
    ("memory", 2, "memory.current", "", 1),
    ("peak_memory", 1, "memory.max_usage_in_bytes", "", 1),
    ("peak_memory", 2, "memory.peak", "", 1),
    ("memory_anon", 1, "memory.stat", "total_rss", 1),
    ("memory_anon", 2, "memory.stat", "anon", 1),
    ("memory_file", 1, "memory.stat", "total_cache", 1),
    ("memory_file", 2, "memory.stat", "file", 1),
    ("memory_shmem", 1, "memory.stat", "total_shmem", 1),
    ("memory_shmem", 2, "memory.stat", "shmem", 1),
    ("memory_kernel", 2, "memory.stat", "kernel", 1),
    ("swap", 1, "memory.stat", "total_swap", 1),
    ("swap", 2, "memory.swap.current", "", 1),
    ("peak_swap", 2, "memory.swap.peak", "", 1),
    ("oom", 2, "memory.events", "oom?", 1),
    ("oom_kill", 1, "memory.oom_control", "oom_kill?", 1),
    ("oom_kill", 2, "memory.events", "oom_kill?", 1),
    ("memory_high", 2, "memory.events", "high?", 1),
    ("memory_max", 1, "memory.failcnt", "", 1),
    ("memory_max", 2, "memory.events", "max?", 1),
    ("pids", 2, "pids.current", "", 1),
    ("pids", 1, "pids.current", "", 1),
    ("peak_pids", 2, "pids.peak", "", 1),
    ("peak_pids", 1, "pids.peak", "", 1),
    ("pids_max", 2, "pids.events", "max?", 1),
    ("pids_max", 1, "pids.events", "max?", 1),
    ("both", 1, "memory.memsw.max_usage_in_bytes", "", 1),
)
_NAMES: Final = tuple(dict.fromkeys(row[0] for row in _ROWS))
_TIMES: Final = ("cpu_time", "cpu_user", "cpu_system", "cpu_throttled_time")


class Reader:
    """Reads the counters from the contents of files that stand in some bytes: for each (version, name) its offset, and
    the length at most, up to a NUL. Made once, for all bytes that are laid out like this."""

    def __init__(self, places: Mapping[tuple[int, str], tuple[int, int]]) -> None:
        self._places = places
        rows = [(row, places[row[1], row[2]]) for row in _ROWS if (row[1], row[2]) in places]
        self._rows = ffi.new("struct iso_counter[]", max(1, len(rows)))
        self._count = len(rows)
        keys = bytearray()
        for found, ((name, _, _, line, scale), (at, size)) in zip(self._rows, rows, strict=False):
            key = line.rstrip("?").encode()
            found.at, found.size, found.key, found.key_size = at, size, len(keys), len(key)
            found.scale, found.zero, found.value = scale, line.endswith("?"), _NAMES.index(name)
            keys += key
        self._keys = ffi.from_buffer(bytes(keys) or b"\0")
        self._pressures = [(k, f"{k}.pressure") for k in ("cpu", "memory", "io") if (2, f"{k}.pressure") in places]

    def _text(self, data: bytes, version: int, file: str) -> bytes:
        at, size = self._places.get((version, file), (0, 0))
        return data[at : at + size].partition(b"\0")[0] if size and data[at : at + 1] != b"\0" else b""

    def read(self, data: bytes) -> Stats:
        """The counters. Those in absent or empty files are None."""
        numbers = ffi.new("int64_t[]", len(_NAMES))
        lib.iso_counters(self._rows, self._count, self._keys, data, len(data), numbers, len(_NAMES))
        found = [None if n < 0 else n for n in ffi.unpack(numbers, len(_NAMES))]
        values: dict[str, Any] = dict(zip(_NAMES, found, strict=True))
        values["io"], values["interfaces"] = {}, {}
        for name in _TIMES:
            if values[name] is not None:
                values[name] /= 1e9
        both, peak = values.pop("both"), values["peak_memory"]
        if both is not None and peak is not None:
            # v1 records the peak of the sum only: what is above the peak of memory was certainly swap.
            values["peak_swap"] = max(0, both - peak)
        if moved := self._text(data, 2, "io.stat"):
            values["io"] = _io2(moved)
        elif moved := self._text(data, 1, "blkio.throttle.io_service_bytes_recursive"):
            values["io"] = _io1(moved, self._text(data, 1, "blkio.throttle.io_serviced_recursive"))
        kinds = ((kind, dict(_pressure(self._text(data, 2, file)))) for kind, file in self._pressures)
        values["pressure"] = {kind: times for kind, times in kinds if times}
        # Not by the constructor of a frozen dataclass, which calls object.__setattr__ for each field.
        stats = object.__new__(Stats)
        vars(stats).update(values)
        return stats


def parse(files: Files) -> Stats:
    """Counters from the contents of files, by (version, name). Absent files are absent counters."""
    data, places = bytearray(), {}
    for name, text in files.items():
        places[name] = len(data), len(text)
        data += text
    return Reader(places).read(bytes(data))


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
