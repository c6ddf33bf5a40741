"""Groups that stand ready: as good as fresh ones, each for one start, and none left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from isolate import CgroupNamespace, PidNamespace
from isolate.cgroups import Cgroup, CgroupPool, Limits, files
from isolate.errors import ConflictError
from isolate.sandbox.box import Sandbox
from isolate.sandbox.result import Verdict
from tests.cgroups.conftest import HOST, MIB, PYTHON, our_groups

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("groups")]

BOMB = [*PYTHON, "x = bytearray(160 << 20)"]
GROUP = [*PYTHON, "print(open('/proc/self/cgroup').read())"]


def test_its_limits_hold() -> None:
    with CgroupPool(Limits(memory="64M", pids=20, cpu=1.0), size=2) as pool:
        box = Sandbox(pool)
        held = box.run(BOMB)
        assert held.verdict is Verdict.OOM
        assert held.peak_memory <= 64 * MIB
        assert held.stats is not None
        assert held.stats.oom_kill is not None
        after = box.run(["true"])  # nothing of the one before is counted
        assert (after.verdict, after.stats.oom_kill) == (Verdict.OK, 0)  # type: ignore[union-attr]
        fork = "import os\nfor _ in range(30):\n if os.fork() == 0: os.read(os.pipe()[0], 1)"
        assert box.run([*PYTHON, fork]).verdict is Verdict.PIDS
    with CgroupPool(Limits(), size=1) as free:  # the control
        assert Sandbox(free).run(BOMB).verdict is Verdict.OK


def test_each_start_has_its_own() -> None:
    """More at once than stand ready, and more in a row."""
    with CgroupPool(Limits(memory="64M"), size=3) as pool:
        box = Sandbox(pool, PidNamespace())
        with ThreadPoolExecutor(8) as threads:
            seen = [r.stdout for r in threads.map(lambda _: box.run(GROUP), range(24))]
        assert all(b"isolate-" in s for s in seen)
        assert len(set(seen)) == 24
        inside = (box + CgroupNamespace()).run(GROUP).stdout
        assert b"isolate-" not in inside


def test_what_stands_ready_is_replaced_and_what_was_used_removed() -> None:
    with CgroupPool(Limits(pids=9), size=4) as pool:
        box = Sandbox(pool)
        directory = pool.directory
        first = set(os.listdir(directory))
        for _ in range(6):
            assert box.run(["true"]).ok
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            names = {n for n in os.listdir(directory) if n.isdigit()}
            if len(names) == 4 and not names & {n for n in first if n.isdigit()}:
                break
            time.sleep(0.01)  # a removed directory tells nobody
        assert len(names) == 4
    assert not os.path.exists(directory)


def test_a_running_program_is_counted_and_further_ones_are_inside() -> None:
    with CgroupPool(Limits(pids=20), size=1) as pool:
        box = Sandbox(pool, PidNamespace())
        with box.spawn(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stats().pids == 2
            process.freeze()
            process.thaw()
            with process.exec(GROUP, stdout=subprocess.PIPE) as further:
                assert further.stdout is not None
                told = further.stdout.read()
                assert further.wait(20) == 0
            assert os.path.basename(pool.directory).encode() in told


def test_devices_are_held_too() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    code = "import os\ntry: open('/dev/full')\nexcept OSError as e: print(e.errno)"
    with CgroupPool(Limits(devices=["c 1:3 rw"]), size=1) as pool:
        assert Sandbox(pool).run([*PYTHON, code]).stdout == b"1\n"
    with CgroupPool(size=1) as pool:
        assert Sandbox(pool).run([*PYTHON, code]).stdout == b""


def test_what_is_refused() -> None:
    for wrong in (0, -1, 1001):
        with pytest.raises(ValueError, match="size"):
            CgroupPool(size=wrong)
    for strange in (True, 1.5, "8"):
        with pytest.raises(TypeError, match="size"):
            CgroupPool(size=strange)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Limits"):
        CgroupPool(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="made first"):
        Sandbox(CgroupPool())
    before = our_groups()
    with pytest.raises(ValueError, match="no processor 60000"):
        CgroupPool(Limits(cpus="60000")).create()
    assert our_groups() <= before
    with CgroupPool(size=1) as pool:
        with pytest.raises(ConflictError):
            Sandbox(pool, Limits(pids=9))
        with pytest.raises(ValueError, match="already"):
            pool.create()
        box = Sandbox(pool)
    with pytest.raises(ValueError, match="made first"):
        box.run(["true"])
    pool.close()


OWNER = """
import os, signal, sys
import isolate
pool = isolate.CgroupPool(isolate.Limits(pids=20), size=3).create()
process = isolate.Sandbox(pool).spawn(["sleep", "1000"])
print(pool.directory, flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(0)"])
def test_it_goes_with_its_owner(end: str) -> None:
    if HOST.v2 is None:
        pytest.skip("pure v1 has no cgroup.kill: there sweep() does it")
    command = [sys.executable, "-W", "ignore", "-c", OWNER.format(end=end)]
    directory = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    assert directory
    deadline = time.monotonic() + 20
    while os.path.exists(directory) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(directory)


def test_a_forked_child_does_not_take_it_down() -> None:
    code = """
import os
from isolate.cgroups import CgroupPool
with CgroupPool(size=1) as pool:
    pid = os.fork()
    if pid == 0:
        pool.close()
        os._exit(0)
    os.waitpid(pid, 0)
    print(os.path.isdir(pool.directory))
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "True\n"


def test_in_a_group_of_the_callers() -> None:
    with Cgroup() as group, CgroupPool(Limits(pids=9, parent=group), size=1) as pool:
        told = Sandbox(pool).run(GROUP).stdout
        assert os.path.basename(group.path).encode() in told


def test_37_a_descriptor_that_is_missing_ends_no_worker() -> None:
    """One EMFILE and one EAGAIN, at each place where the worker can meet them."""
    import resource

    with CgroupPool(Limits(pids=20), size=2) as pool:
        box = Sandbox(pool)
        assert box.run(["true"]).ok
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        held = [pool.take() for _ in range(2)]
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
        try:
            for ready in held:
                ready.close()
            with pytest.raises(OSError, match="CgroupPool"):
                held.extend(iter(pool.take, None))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for ready in held:
                ready.close()
        assert pool._thread is not None
        deadline = time.monotonic() + 20
        while (len(pool._ready) < 2 or pool._used) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert pool._thread.is_alive()
        assert (len(pool._ready), len(pool._used)) == (2, 0), "it works on"
        assert box.run(["true"]).ok


@pytest.mark.skipif(HOST.v2 is None, reason="cgroup.max.descendants is v2's")
def test_37_used_groups_make_room_where_so_many_are_allowed() -> None:
    with CgroupPool(Limits(), size=2) as pool:
        directory = pool._shelf.directories["v2"]
        files.write(directory, "cgroup.max.descendants", b"4")
        for _ in range(20):
            assert Sandbox(pool).run(["true"]).ok
        assert pool._thread is not None
        assert pool._thread.is_alive()
    assert not os.path.exists(directory)
