"""The benchmark measures what it says: its C twin makes the system calls that the library makes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
#: Calls that a plan says, each.
PLANNED = ("clone3", "execve", "fsmount", "fsopen", "mount_setattr", "move_mount", "open_tree", "openat2", "seccomp")
#: Calls whose number depends on who is quicker.
TIMING = {"wait4", "rt_sigtimedwait", "ppoll", "clock_gettime"}


@pytest.fixture(scope="module")
def spawn() -> Any:
    spec = importlib.util.spec_from_file_location("spawn", BENCHMARKS / "spawn.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["spawn"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def strace() -> None:
    if shutil.which("strace") is None:
        assert os.environ.get("ISOLATE_REQUIRE_KERNEL") != "1", "strace is not installed (package: strace)"
        pytest.skip("strace is not installed (package: strace)")


@pytest.mark.usefixtures("strace")
def test_the_twin_makes_the_same_calls(spawn: Any, tmp_path: Path) -> None:
    programs, driver = spawn.prepare(tmp_path)
    counts = spawn.verify(tmp_path, driver, programs)
    # What the plan says is said to both. The engine of either may spare a call that the other one makes, but as a whole
    # the twin never makes one more: that would make the comparison easier for the library. Whether init finds its child
    # dead at once or has to wait for the signal is a matter of who is quicker.
    assert {name: counts[name][0] for name in PLANNED} == {name: counts[name][1] for name in PLANNED}
    ours, twin = (sum(pair[i] for name, pair in counts.items() if name not in TIMING) for i in (0, 1))
    assert 0.93 * ours < twin <= ours
    for name in ("clone3", "pivot_root", "move_mount", "execve", "capset", "sendmsg"):
        assert counts[name][0] >= 1


@pytest.mark.usefixtures("strace")
def test_the_template_twin_makes_the_same_calls(spawn: Any, tmp_path: Path) -> None:
    """A start from the C program's tree, beside one from the library's."""
    programs, driver = spawn.prepare(tmp_path)
    counts = spawn.verify_parked(tmp_path, driver, programs)
    assert {name: counts[name][0] for name in PLANNED} == {name: counts[name][1] for name in PLANNED}
    ours, twin = (sum(pair[i] for name, pair in counts.items() if name not in TIMING) for i in (0, 1))
    assert 0.85 * ours < twin <= ours
    assert not {"pivot_root", "umount2"} & counts.keys()


def test_the_rows_run(spawn: Any, tmp_path: Path) -> None:
    """Every row measures something, and no start of the twin is free of errors by doing nothing."""
    programs, driver = spawn.prepare(tmp_path)
    twin = spawn.build(tmp_path, spawn.box(programs, net=False), "twin")
    parked = spawn.build_parked(tmp_path, spawn.box(programs, net=False), "parked")
    for kind, program in (("twin", twin), ("plain", twin), ("parked", parked)):
        row = spawn.Driver(driver, kind, [str(program)])
        for _ in range(3):
            assert 0 < row() < 60
        row.close()
    broken = spawn.Driver(driver, "exec", [str(tmp_path / "missing")])
    with pytest.raises(SystemExit, match="failed"):
        broken()
    broken.close()
