"""``Cgroup`` as an object, on whatever hierarchies there are."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from isolate.cgroups import Cgroup, Limits, naming
from isolate.errors import SetupError, UnsupportedError
from isolate.sandbox.box import Sandbox
from isolate.sandbox.result import Verdict
from tests.cgroups.conftest import HOST, MIB, PYTHON, UNIFIED, our_groups

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("groups")]


@pytest.fixture
def sleeper():  # type: ignore[no-untyped-def]
    """Processes that sleep; what is left of them is killed."""
    made: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen(["sleep", "1000"]))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait()


def test_life(sleeper) -> None:  # type: ignore[no-untyped-def]
    group = Cgroup(Limits(pids=20), name="life")
    assert not group.directories
    with pytest.raises(ValueError, match="made first"):
        group.stats()
    with group:
        assert all(os.path.isdir(d) for d in group.directories.values())
        assert os.path.basename(group.path) == f"{naming.prefix()}life"
        assert group.held["pids.max"] == "20"
        with pytest.raises(ValueError, match="already"):
            group.create()
        process = sleeper()
        assert group.processes() == []
        group.add(process.pid)
        assert group.processes() == [process.pid]
        with Cgroup(parent=group, name="inner") as inner:
            assert os.path.dirname(inner.path) == group.path
            second = sleeper()
            inner.add(second.pid)
            assert group.processes() == sorted([process.pid, second.pid])
        assert second.wait() == -signal.SIGKILL
        directories = dict(group.directories)
    assert process.wait() == -signal.SIGKILL
    assert not any(os.path.exists(d) for d in directories.values())
    group.close()


def test_groups_made_below_go_too(sleeper) -> None:  # type: ignore[no-untyped-def]
    process = sleeper()
    with Cgroup() as group:
        for directory in group.directories.values():
            if "cpuset" in directory:
                continue
            os.makedirs(os.path.join(directory, "a", "b"))
        Path(group.path, "a", "b", "cgroup.procs").write_text(str(process.pid))
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "7", "a-b", "x\0", "é"])
def test_names(name: str) -> None:
    if name == "..":
        with Cgroup(name=name) as group:  # harmless: it is the last part of a longer name
            assert group.path.endswith("-..")
        return
    with pytest.raises(ValueError, match="name"):
        Cgroup(name=name)


def test_update_in_any_order() -> None:
    with Cgroup(Limits(memory="64M")) as group:
        name = "memory.max" if UNIFIED else "memory.limit_in_bytes"
        for value in ("256M", "16M", "128M"):
            group.update(memory=value)
            assert int(group.held[name]) == int(value[:-1]) * MIB
        group.update(memory=(16 << 20) + 5)
        assert group.held[name] == str(16 * MIB)  # as it holds, not as it was asked for
        group.update(pids=5, cpu=0.5)
        group.update(memory=None, cpu=None)
        assert name not in group.held
        assert group.limits == Limits(pids=5)
        expected = "max" if UNIFIED else "9223372036854771712"
        directory = group.path if UNIFIED else group.directories["memory"]
        assert Path(directory, name).read_text().strip() == expected
        with pytest.raises(ValueError, match="pids"):
            group.update(pids=-1)
        with pytest.raises(TypeError, match="pidz"):
            group.update(pidz=1)
        with pytest.raises(ValueError, match="fixed"):
            group.update(devices=())


def test_a_limit_holds_for_all_inside_together() -> None:
    hold = "x = bytearray(40 << 20); import sys; sys.stdout.write('.'); sys.stdout.flush(); sys.stdin.read()"
    with Cgroup(Limits(memory="64M", oom_group=False)) as group:
        first = Sandbox(group).spawn([*PYTHON, hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with first:
            assert first.stdout is not None
            assert first.stdout.read(1) == b"."
            second = Sandbox(group).run([*PYTHON, hold], input=b"")
            assert second.verdict in (Verdict.SIGNALED, Verdict.OK)
            stats = group.stats()
            assert stats.oom_kill is not None
            assert stats.oom_kill >= 1
            assert stats.memory is not None
            assert stats.memory <= 64 * MIB


def test_a_group_per_child_below_it() -> None:
    with Cgroup(Limits(pids=100)) as group:
        box = Sandbox(Limits(memory="64M", parent=group))
        result = box.run([*PYTHON, "print(open('/proc/self/cgroup').read())"])
        assert os.path.basename(group.path).encode() + b"/isolate-" in result.stdout
        bomb = box.run([*PYTHON, "x = bytearray(160 << 20)"])
        assert bomb.verdict is Verdict.OOM
        assert os.path.isdir(group.path)


def test_stats_count() -> None:
    with Cgroup() as group:
        code = "import time\nx = bytearray(30 << 20)\nwhile time.process_time() < 0.3: pass"
        assert Sandbox(group).run([*PYTHON, code]).verdict is Verdict.OK
        stats = group.stats()
        assert stats.cpu_time is not None
        assert 0.3 <= stats.cpu_time < 5
        assert stats.peak_memory is not None
        assert stats.peak_memory > 30 * MIB
        assert stats.pids == 0
        if UNIFIED:
            assert set(stats.pressure) == {"cpu", "memory", "io"}
            assert stats.memory_kernel is not None


def test_freeze_and_thaw() -> None:
    code = "import sys\nfor line in sys.stdin.buffer.raw: sys.stdout.buffer.raw.write(line)"
    with Cgroup() as group:
        process = Sandbox(group).spawn([*PYTHON, code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"1\n")
            process.stdin.flush()
            assert process.stdout.read(2) == b"1\n"
            group.freeze()
            before = group.stats().cpu_time
            process.stdin.write(b"2\n")
            process.stdin.flush()
            os.set_blocking(process.stdout.fileno(), False)
            assert not select_readable(process.stdout.fileno(), 0.3)
            # It may have been on its way into the freezer still.
            assert group.stats().cpu_time - before < 0.01
            group.thaw()
            assert select_readable(process.stdout.fileno(), 10)


def select_readable(fd: int, timeout: float) -> bool:
    import select

    return bool(select.select([fd], [], [], timeout)[0])


def test_kill_and_wait(sleeper) -> None:  # type: ignore[no-untyped-def]
    processes = [sleeper() for _ in range(5)]
    with Cgroup() as group:
        for process in processes:
            group.add(process.pid)
        assert not group.wait(0.05)
        group.freeze()  # a frozen group can be killed, too
        group.kill()
        assert group.wait(10)
        assert [p.wait() for p in processes] == [-signal.SIGKILL] * 5


def test_kill_a_fork_bomb() -> None:
    code = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
    with Cgroup(Limits(pids=50)) as group:
        process = Sandbox(group).spawn([*PYTHON, code])
        with process, group.events(timeout=30) as events:
            if UNIFIED:
                assert any(e.kind == "pids_max" for e in events)
            group.kill()
            assert group.wait(10)
            assert process.wait(10) == -signal.SIGKILL


def test_events_in_a_thread_and_in_asyncio(sleeper) -> None:  # type: ignore[no-untyped-def]
    if HOST.v2 is None:
        pytest.skip("a v1 host has no notification of populated")
    with Cgroup() as group:
        with group.events(timeout=20) as events:
            process = sleeper()
            threading.Timer(0.05, group.add, [process.pid]).start()
            iterator = iter(events)
            first = next(iterator)
            assert (first.kind, first.count) == ("populated", 1)
            group.kill()
            assert (next(iterator).kind, process.wait()) == ("populated", -signal.SIGKILL)

        async def watch() -> list[str]:
            found = []
            with group.events(timeout=20) as events:
                asyncio.get_running_loop().call_later(0.05, group.add, sleeper().pid)
                async for event in events:
                    found.append(f"{event.kind} {event.count}")
                    if event.kind == "populated" and event.count:
                        asyncio.get_running_loop().call_later(0.05, group.kill)
                    elif event.kind == "populated":
                        break
            assert await group.await_empty(10)
            return found

        assert asyncio.run(watch()) == ["populated 1", "populated 0"]


def test_events_of_memory() -> None:
    with Cgroup(Limits(memory="48M")) as group, group.events(timeout=30) as events:
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.extend(e.kind for e in until(events, "oom")))
        reader.start()
        Sandbox(group).run([*PYTHON, "x = bytearray(160 << 20)"])
        reader.join(30)
        assert "oom" in seen


def until(events, kind: str):  # type: ignore[no-untyped-def]
    for event in events:
        yield event
        if event.kind == kind:
            return


def test_what_cannot_be_added() -> None:
    with Cgroup() as group:
        with pytest.raises(SetupError) as caught:
            group.add((1 << 22) + 1)
        assert caught.value.errno == 3
        with pytest.raises(ValueError, match="pid"):
            group.add(-1)


def test_a_limit_that_fails_leaves_nothing() -> None:
    before = our_groups()
    with pytest.raises((SetupError, ValueError, UnsupportedError)):
        Cgroup(Limits(memory="64M", cpus="0", mems="60000")).create()
    assert our_groups() <= before


def test_forgotten_groups_go_with_a_warning() -> None:
    group = Cgroup().create()
    directories = dict(group.directories)
    with pytest.warns(ResourceWarning, match="not closed"):
        del group
    assert not any(os.path.exists(d) for d in directories.values())


def test_a_forked_child_does_not_take_it_down() -> None:
    code = """
import os
from isolate.cgroups import Cgroup
with Cgroup() as group:
    pid = os.fork()
    if pid == 0:
        group.close()
        os._exit(0)
    os.waitpid(pid, 0)
    print(os.path.isdir(group.path))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "True\n"


KILLED = """
import os, signal, sys
from isolate.cgroups import Cgroup
group = Cgroup(name="killed").create()
print(*group.directories.values(), flush=True)
group.add(int(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_owner_takes_its_group_along(sleeper) -> None:  # type: ignore[no-untyped-def]
    if HOST.v2 is None:
        pytest.skip("pure v1 has no cgroup.kill: there sweep() does it")
    process = sleeper()
    owner = subprocess.run([sys.executable, "-c", KILLED, str(process.pid)], capture_output=True, text=True)
    assert owner.returncode == -signal.SIGKILL
    assert process.wait(10) == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while any(os.path.exists(d) for d in owner.stdout.split()) and time.monotonic() < deadline:
        time.sleep(0.01)  # a removed directory tells nobody
    assert owner.stdout.split()
    assert not any(os.path.exists(d) for d in owner.stdout.split())


LEAVE = """
import os, signal, sys
from isolate.cgroups import Cgroup
group = Cgroup(name="left").create()
os.kill(group._guardian.pid, signal.SIGKILL)  # as when the OOM killer takes both
pid = os.fork()
if pid == 0:
    for fd in (1, 2): os.dup2(os.open("/dev/null", os.O_RDWR), fd)
    os.execvp("sleep", ["sleep", "1000"])
group.add(pid)
print(pid, *group.directories.values(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_sweep(sleeper) -> None:  # type: ignore[no-untyped-def]
    """Groups of a killed program go; those of a living one, and those that are not ours by name, stay."""
    mine = Cgroup(name="mine").create()
    process = sleeper()
    mine.add(process.pid)
    foreign = os.path.join(os.path.dirname(mine.path), f"other-{os.getpid()}")
    os.mkdir(foreign)
    try:
        left = subprocess.run([sys.executable, "-c", LEAVE], capture_output=True, text=True)
        pid, *directories = left.stdout.split()
        removed = Cgroup.sweep()
        # Others who use the library on this machine may have left some, too.
        others = [naming.parse(os.path.basename(d)) for d in set(removed) - set(directories)]
        assert all(name is not None and naming.abandoned(name) for name in others)
        assert not any(os.path.exists(d) for d in directories)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # gone: reaped already, or just now
            assert Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
        assert os.path.isdir(foreign)
        assert mine.processes() == [process.pid]
    finally:
        os.rmdir(foreign)
        mine.close()


@pytest.mark.parametrize("name", ["", "isolate", "isolate-1-2-3", "isolate-x-y-z-t", "isolate-1-2-3-", "mine-1-2-3-4"])
def test_names_that_are_not_ours(name: str) -> None:
    assert naming.parse(name) is None


def test_a_name_says_whose_it_is() -> None:
    name = naming.parse(naming.prefix() + "tag")
    assert name is not None
    assert (name.pid, name.tag, str(name)) == (os.getpid(), "tag", naming.prefix() + "tag")
    assert not naming.abandoned(name)
    assert naming.abandoned(naming.Name(name.namespace, name.pid, name.start - 1, "tag"))
    assert not naming.abandoned(naming.Name(name.namespace + 1, name.pid, name.start - 1, "tag"))
    assert not naming.abandoned(naming.Name(name.namespace, name.pid, name.start - 1, str(os.getpid())))


def test_a_running_program_is_counted_and_frozen() -> None:
    code = "import sys\nx = bytearray(30 << 20)\nfor line in sys.stdin.buffer.raw: sys.stdout.buffer.raw.write(line)"
    with Sandbox(Limits(pids=20)).spawn([*PYTHON, code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"1\n")
        process.stdin.flush()
        assert process.stdout.read(2) == b"1\n"
        stats = process.stats()
        assert stats.pids == 2
        assert stats.memory is not None
        assert stats.memory > 30 * MIB
        process.freeze()
        process.stdin.write(b"2\n")
        process.stdin.flush()
        assert not select_readable(process.stdout.fileno(), 0.3)
        process.thaw()
        assert select_readable(process.stdout.fileno(), 10)
        process.freeze()  # what is frozen is taken down all the same
    assert process.returncode == -signal.SIGKILL
    with Sandbox().spawn(["true"]) as process, pytest.raises(ValueError, match=r"add Limits\(\)"):
        process.stats()
