"""The counters from the text of a group's files, and those of a real run beside its files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolate.cgroups import stats
from isolate.cgroups.stats import IoStats, Pressure, Reader, Stats, parse

LINE = b"some avg10=1.50 avg60=0.25 avg300=0.00 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
V2 = {
    "cpu.stat": b"usage_usec 1500001\nuser_usec 1000000\nsystem_usec 500001\n"
    b"nr_periods 9\nnr_throttled 3\nthrottled_usec 250\n",
    "memory.current": b"4096\n",
    "memory.peak": b"8192\n",
    "memory.stat": b"anon 100\nfile 200\nkernel 300\nfile_mapped 7\nshmem 50\n",
    "memory.events": b"low 0\nhigh 4\nmax 5\noom 6\noom_kill 7\noom_group_kill 1\n",
    "memory.swap.current": b"0\n",
    "memory.swap.peak": b"11\n",
    "pids.current": b"1\n",
    "pids.peak": b"12\n",
    "pids.events": b"max 13\n",
    "io.stat": b"8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n",
    "cpu.pressure": LINE,
    "memory.pressure": b"",
    "io.pressure": b"some nothing\n",
}
V1 = {
    "cpuacct.usage": b"2500000001\n",
    "cpuacct.usage_user": b"2000000000\n",
    "cpuacct.usage_sys": b"500000001\n",
    "cpu.stat": b"nr_periods 1\nnr_throttled 2\nthrottled_time 3000000000\n",
    "memory.usage_in_bytes": b"1\n",
    "memory.max_usage_in_bytes": b"4096\n",
    "memory.memsw.max_usage_in_bytes": b"5000\n",
    "memory.stat": b"cache 1\nrss 2\ntotal_cache 30\ntotal_rss 40\ntotal_shmem 50\ntotal_swap 60\n",
    "memory.oom_control": b"oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "memory.failcnt": b"8\n",
    "pids.peak": b"3\n",
    "pids.events": b"max 1\n",
    "blkio.throttle.io_service_bytes_recursive": b"8:0 Read 5\n8:0 Write 6\n8:0 Total 11\nTotal 11\n",
    "blkio.throttle.io_serviced_recursive": b"8:0 Read 1\n8:0 Write 2\n",
}
OF_V2 = Stats(
    cpu_time=1.500001,
    cpu_user=1.0,
    cpu_system=0.500001,
    cpu_throttled=3,
    cpu_throttled_time=0.00025,
    memory=4096,
    peak_memory=8192,
    memory_anon=100,
    memory_file=200,
    memory_shmem=50,
    memory_kernel=300,
    swap=0,
    peak_swap=11,
    oom=6,
    oom_kill=7,
    memory_high=4,
    memory_max=5,
    pids=1,
    peak_pids=12,
    pids_max=13,
    io={"8:0": IoStats(1, 2, 3, 4)},
    pressure={"cpu": {"some": Pressure(1.5, 0.25, 0.0, 1.5), "full": Pressure(0.0, 0.0, 0.0, 7e-6)}},
)
OF_V1 = Stats(
    cpu_time=2.500000001,
    cpu_user=2.0,
    cpu_system=0.500000001,
    cpu_throttled=2,
    cpu_throttled_time=3.0,
    memory=1,
    peak_memory=4096,
    memory_anon=40,
    memory_file=30,
    memory_shmem=50,
    swap=60,
    peak_swap=904,
    oom_kill=2,
    memory_max=8,
    peak_pids=3,
    pids_max=1,
    io={"8:0": IoStats(5, 6, 1, 2)},
)


def of(files: dict[str, bytes], version: int) -> stats.Files:
    return {(version, name): data for name, data in files.items()}


def test_all_of_v2() -> None:
    assert parse(of(V2, 2)) == OF_V2
    assert set(V2) == {name for name, _ in stats.V2_FILES}


def test_all_of_v1() -> None:
    assert parse(of(V1, 1)) == OF_V1
    assert set(V1) == {name for name, _ in stats.V1_FILES} - {"pids.current"}


def test_a_hybrid_host_counts_each_thing_once() -> None:
    # Everything of v1 beside the files that every group of v2 has.
    core = {name: V2[name] for name in stats.CORE_FILES}
    found = parse({**of(V1, 1), **of(core, 2)})
    assert (found.cpu_time, found.memory_anon, found.oom_kill) == (OF_V2.cpu_time, OF_V1.memory_anon, OF_V1.oom_kill)
    assert found.pressure == OF_V2.pressure


def test_nothing() -> None:
    assert parse({}) == Stats()
    assert parse(dict.fromkeys((*of(V1, 1), *of(V2, 2)), b"")) == Stats()


def test_a_file_without_a_line() -> None:
    found = parse({(2, "memory.events"): b"low 0\n", (2, "pids.events"): b"\n", (2, "memory.stat"): b"a 1\n"})
    assert found == Stats(oom=0, oom_kill=0, memory_high=0, memory_max=0, pids_max=0)


def test_pressures_are_nobody_elses() -> None:
    first, second = parse(of(V2, 2)), parse(of(V2, 2))
    first.pressure["cpu"].clear()  # type: ignore[attr-defined]
    assert second == parse(of(V2, 2)) == OF_V2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"5", 5),
        (b" 5 \n", 5),
        (b"9223372036854775807\n", 2**63 - 1),
        (b"9223372036854775808\n", None),
        (b"99999999999999999999999\n", None),
        (b"max\n", None),
        (b"-1\n", None),
        (b"1 2\n", None),
        (b"\n", None),
        (b" ", None),
        (b"5\0 6", 5),
    ],
)
def test_a_number(text: bytes, value: int | None) -> None:
    assert parse({(2, "memory.peak"): text}).peak_memory == value


def test_nothing_beyond_the_bytes_is_read() -> None:
    # A report that is shorter than it should be; and text up to the last byte that may be used.
    reader = Reader({(2, "memory.peak"): (0, 4), (2, "pids.peak"): (4, 4), (2, "pids.events"): (2**32 - 1, 2**32 - 1)})
    assert reader.read(b"12345678") == Stats(peak_memory=1234, peak_pids=5678)
    assert reader.read(b"1234567") == Stats(peak_memory=1234)
    assert reader.read(b"") == Stats()


KEYS = st.sampled_from([b"anon", b"file", b"file_mapped", b"an", b"shmem", b"anon_thp", b"", b" anon"])
VALUES = st.one_of(
    st.integers(0, 2**64).map(lambda n: str(n).encode()), st.binary(max_size=4).filter(lambda b: b"\n" not in b)
)
TEXTS = st.one_of(
    st.lists(st.tuples(KEYS, st.sampled_from([b" ", b"", b"  "]), VALUES).map(b"".join), max_size=6).map(b"\n".join),
    st.binary(max_size=40),
)


@given(TEXTS)
def test_lines_as_python_finds_them(text: bytes) -> None:
    # The same in a few words: up to a NUL, the first line that begins with the key and a blank.
    expected: dict[bytes, int] = {}
    for line in text.partition(b"\0")[0].split(b"\n"):
        key, blank, value = line.partition(b" ")
        digits = value.strip(b" ")
        if blank and key not in expected:
            number = int(digits) if digits.isdigit() else -1
            expected[key] = number if number < 2**63 else -1
    found = parse({(2, "memory.stat"): text})
    for name, key in (("memory_anon", b"anon"), ("memory_file", b"file"), ("memory_shmem", b"shmem")):
        number = expected.get(key, -1)
        assert getattr(found, name) == (None if number < 0 else number), (key, text)
