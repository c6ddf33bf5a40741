"""What a program tries with the group that it is in: each attempt, and beside it the same by one who is not kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from isolate import Bind, Capabilities, MountNamespace, PidNamespace, Root, TimeNamespace, UserNamespace, attach
from isolate.cgroups import Cgroup, CgroupPool, Limits, files, naming
from isolate.result import Verdict
from isolate.sandbox.box import Sandbox
from tests.cgroups.conftest import HOST, PYTHON, UNIFIED, python

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("groups")]

NOBODY = 65534
#: Writes to whatever file of its own groups, and of those above, there is; says which took it.
LIFT = """
import json, os
where = {}
for line in open("/proc/self/mountinfo"):
    head, _, tail = line.rstrip("\\n").partition(" - ")
    if tail.split(" ")[0] in ("cgroup", "cgroup2"):
        key = "" if tail.startswith("cgroup2") else tail.split(" ")[2].split(",")[-1]
        where[key] = head.split(" ")[4]
taken, seen = [], 0
for line in open("/proc/self/cgroup"):
    _, names, path = line.rstrip("\\n").split(":", 2)
    mount = where.get(names.split(",")[-1])
    if mount is None: continue
    own = mount + path
    for file, value in (
        ("memory.limit_in_bytes", "-1"), ("memory.memsw.limit_in_bytes", "-1"), ("memory.max_usage_in_bytes", "0"),
        ("memory.max", "max"), ("memory.peak", "0"), ("pids.max", "max"), ("freezer.state", "THAWED"),
        ("cgroup.freeze", "0"), ("cgroup.procs", "0"), ("../cgroup.procs", "0"), ("tasks", "0"),
    ):
        target = os.path.join(own, file)
        if not os.path.exists(target): continue
        seen += 1
        try:
            with open(target, "w") as opened: opened.write(value)
            taken.append(target)
        except OSError: pass
    try: os.mkdir(own + "/mine"); taken.append("mkdir"); os.rmdir(own + "/mine")
    except OSError: pass
print(json.dumps([seen, taken]))
"""


def attempt(box: Sandbox, **options: Any) -> tuple[int, list[str], dict[str, bool]]:
    """How many files the program saw, and which of them took what it wrote."""
    result = box.run([*PYTHON, LIFT], timeout=60, **options)
    assert result.returncode == 0, result.stderr
    seen, taken = json.loads(result.stdout)
    return seen, taken, dict(result.applied)


BOXES = {
    "alone": (PidNamespace(),),
    "mounts": (MountNamespace(propagation="slave"),),
    "bound": (Root(Bind("/", "/", read_only=False)), PidNamespace()),
    "user": (UserNamespace(), PidNamespace()),
    "named": (Root(Bind("/", "/"), Bind("/sys/fs/cgroup", "/sys/fs/cgroup", read_only=False)),),
}


@pytest.mark.parametrize("name", BOXES)
def test_34_its_files_are_not_its_own_to_write(name: str) -> None:
    seen, taken, applied = attempt(Sandbox(Limits(memory="64M", pids=20), *BOXES[name]))
    assert (taken, applied["Limits"]) == ([], True)
    assert seen > 3, "control: they are there to be seen"


def test_34_control_who_is_not_covered_lifts_them() -> None:
    """The same attempt by a plain child in such a group: every write is taken."""
    with Cgroup(Limits(memory="64M", pids=20)) as group:
        code = f"import os\nfor d in {sorted(group.directories.values())}: open(d + '/cgroup.procs', 'w').write('0')\n"
        done = subprocess.run([*PYTHON, code + LIFT], capture_output=True, text=True, check=True)
    _, taken = json.loads(done.stdout)
    assert any("memory" in path for path in taken)
    assert any(path.endswith("pids.max") for path in taken)


def test_34_so_the_limits_hold() -> None:
    result = python(LIFT + "\nx = bytearray(200 << 20)", Limits(memory="64M"), PidNamespace())
    assert result.verdict is Verdict.OOM
    assert python(LIFT + "\nx = bytearray(200 << 20)", Limits(), PidNamespace()).verdict is Verdict.OK


def test_34_in_a_group_of_the_callers_and_of_a_pool() -> None:
    with Cgroup(Limits(memory="64M", pids=20)) as group:
        assert attempt(Sandbox(group))[1] == []
    with CgroupPool(Limits(memory="64M", pids=20), size=2) as pool:
        assert attempt(Sandbox(pool))[1] == []


def test_34_in_a_mount_namespace_that_is_joined() -> None:
    """Another's mounts are not changed: the program gets a copy of them."""
    with Sandbox(MountNamespace(), PidNamespace()).spawn(["sleep", "60"]) as other, attach(other) as joined:
        seen, taken, _ = attempt(Sandbox(Limits(pids=20), joined.mount))
        assert (seen > 3, taken) == (True, [])
        table = Path(f"/proc/{other.pid}/mountinfo").read_text()
        lines = [line for line in table.split("\n") if " - cgroup" in line]
        own = [line for line in Path("/proc/self/mountinfo").read_text().split("\n") if " - cgroup" in line]
        assert sorted(line.split(" ")[4:6] for line in lines) == sorted(line.split(" ")[4:6] for line in own)


@pytest.mark.skipif(os.geteuid() != 0, reason="changes mounts without a user namespace")
def test_34_a_mount_of_the_callers_is_never_changed() -> None:
    """Also where the mount namespace of the sandbox's own is missing: a copy is made, or nothing starts."""
    code = """
import isolate
from isolate.cgroups.cover import cover_steps
class Bare:
    required = True
    def steps(self, context): yield from cover_steps(context)
def options(text): return sorted(line.split(" ")[5] for line in text.split("\\n") if " - cgroup" in line)
before = options(open("/proc/self/mountinfo").read())
inside = options(isolate.Sandbox(Bare()).run(["cat", "/proc/self/mountinfo"], text=True).stdout)
after = options(open("/proc/self/mountinfo").read())
print(len(before) == len(inside) > 0, {o.split(",")[0] for o in inside}, after == before)
"""
    # In a mount namespace of its own: what goes wrong must not harm this machine.
    command = ["unshare", "--mount", "--propagation", "slave", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() == "True {'ro'} True", done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand a group over")
@pytest.mark.parametrize("namespaces", ["", "isolate.UserNamespace(), isolate.PidNamespace()"], ids=["alone", "user"])
def test_34_nor_a_delegated_users(namespaces: str) -> None:
    made = []
    try:
        for hierarchy in HOST.hierarchies:
            # A v1 cpuset group takes no process before its cpus and nodes are written.
            if not hierarchy.own or hierarchy.read_only or ("cpuset" in hierarchy.controllers and not UNIFIED):
                continue
            directory = f"{hierarchy.own}/delegated-{os.getpid()}"
            if UNIFIED:
                files.write(hierarchy.own, "cgroup.subtree_control", b"+memory +pids")
            os.mkdir(directory)
            made.append(directory)
            for name in ("", *os.listdir(directory)):
                os.chown(os.path.join(directory, name), NOBODY, NOBODY)
        code = f"""
import os, sys
for d in {made!r}:
    leaf = d + "/leaf" if {UNIFIED} else d
    os.makedirs(leaf, exist_ok=True)
    if {UNIFIED}:
        for name in ("", "cgroup.procs"): os.chown(leaf + "/" + name, {NOBODY}, {NOBODY})
    open(leaf + "/cgroup.procs", "w").write("0")
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
import isolate
box = isolate.Sandbox(isolate.Limits(memory="64M", pids=20), {namespaces})
for code in ({LIFT!r}, "x = bytearray(160 << 20)"):
    result = box.run([sys.executable, "-I", "-S", "-c", code], timeout=60)
    print(result.verdict.value, result.stdout.decode().strip(), result.applied["Limits"])
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    finally:
        for directory in made:
            files.remove(directory)
    if "ModuleNotFoundError" in done.stderr or "Permission denied: '/" in done.stderr:
        pytest.skip(f"uid {NOBODY} cannot read the package")
    first, second = done.stdout.splitlines() or ("", done.stderr)
    assert first.startswith("OK ["), done.stderr
    assert first.endswith(" []] True"), first
    assert second == "OOM  True"


def test_34_further_programs_are_kept_from_them_too() -> None:
    box = Sandbox(Limits(memory="64M", pids=20), PidNamespace())
    with box.spawn(["sleep", "60"]) as process, process.exec([*PYTHON, LIFT], stdout=-1) as further:
        assert further.stdout is not None
        assert json.loads(further.stdout.read())[1] == []
        assert further.wait(30) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities on the host to hand on")
def test_34_what_can_mount_is_told() -> None:
    box = Sandbox(Limits(pids=20), Capabilities({"SYS_ADMIN"}), PidNamespace())
    result = box.run(["true"])
    assert result.applied["Limits"] is False
    assert "not held against this program" in box.explain()
    assert Sandbox(Limits(pids=20), Capabilities({"CHOWN"})).run(["true"]).applied["Limits"] is True


def test_34_on_the_command_line() -> None:
    command = [sys.executable, "-m", "isolate", "run", "--preset", "bare", "--memory", "64M", "--"]
    done = subprocess.run([*command, *PYTHON, LIFT], capture_output=True, text=True, check=False, timeout=60)
    assert json.loads(done.stdout)[1] == []
    large = [*PYTHON, "x = bytearray(160 << 20)"]
    done = subprocess.run([*command, *large], capture_output=True, text=True, check=False, timeout=60)
    assert "OOM" in done.stderr


FREEZE = """
import os, time
for line in open("/proc/self/cgroup"):
    _, names, path = line.rstrip("\\n").split(":", 2)
    for target, value in (
        ("/sys/fs/cgroup/freezer%s/freezer.state" % path, "FROZEN"),
        ("/sys/fs/cgroup/unified%s/cgroup.freeze" % path, "1"), ("/sys/fs/cgroup%s/cgroup.freeze" % path, "1"),
    ):
        try: open(target, "w").write(value)
        except OSError: pass
time.sleep(60)
"""


def test_34_a_program_cannot_freeze_itself_out_of_its_deadline() -> None:
    result = python(FREEZE, Limits(), PidNamespace(), timeout=1)
    assert result.verdict is Verdict.TIMEOUT
    assert result.wall_time < 40  # it would sleep for a minute


# ---- 35: groups that live on -----------------------------------------------------------------------------------------


def test_35_a_group_that_was_killed_is_used_again() -> None:
    with Cgroup(Limits()) as group:
        with Sandbox(group).spawn(["sleep", "60"]) as process:
            group.kill()
            assert process.wait(30) == -signal.SIGKILL
        for _ in range(3):
            assert Sandbox(group).run(["true"], timeout=30).verdict is Verdict.OK


@pytest.mark.skipif(HOST.v2 is None, reason="cgroup.kill is v2's")
def test_35_also_where_somebody_else_used_its_file() -> None:
    """Linux 6.16 and later kill a birth where the counts of cgroup.kill differ: the child goes there by itself."""
    with Cgroup(Limits()) as group:
        files.write(group.directories["v2"], "cgroup.kill", b"1")
        for init in (True, False):
            result = Sandbox(group, PidNamespace(init=init)).run(["cat", "/proc/self/cgroup"], timeout=30)
            assert result.verdict is Verdict.OK
            assert os.path.basename(group.directories["v2"]) in result.stdout.decode()


@pytest.mark.skipif(HOST.v2 is None, reason="cgroup.kill is v2's")
def test_35_also_where_the_callers_own_group_was_killed_once() -> None:
    with Cgroup(Limits()) as group:
        files.write(group.directories["v2"], "cgroup.kill", b"1")
        code = f"""
open({group.directories["v2"]!r} + "/cgroup.procs", "w").write("0")
import isolate
with isolate.Cgroup(parent=None) as other:
    print(isolate.Sandbox(other).run(["true"], timeout=30).verdict.value)
print(isolate.Sandbox(isolate.Limits()).run(["true"], timeout=30).verdict.value)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    if UNIFIED and "has processes in it" in done.stderr:
        pytest.skip("on unified v2 a group with processes in it passes no controller on")
    assert done.stdout.split() == ["OK", "OK"], done.stderr


def test_35_kill_reaches_a_fork_bomb_and_leaves_the_group_as_it_was() -> None:
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    with Cgroup(Limits(pids=100)) as group:
        with Sandbox(group).spawn([*PYTHON, bomb]) as process:
            deadline = time.monotonic() + 30
            while len(group.processes()) < 50 and time.monotonic() < deadline:
                time.sleep(0.01)
            group.kill()
            process.wait(30)
        assert group.wait(30)
        assert Sandbox(group).run(["true"], timeout=30).verdict is Verdict.OK


# ---- 36: what is made below ------------------------------------------------------------------------------------------


def nest(directory: str, levels: int) -> None:
    """So many groups, each in the one before, by descriptor: their path may be longer than any path can be."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(levels):
            os.mkdir("n", dir_fd=fd)
            below = os.open("n", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
    finally:
        os.close(fd)


@pytest.mark.parametrize("levels", [70, pytest.param(1200, marks=pytest.mark.slow)])
def test_36_nested_groups_are_listed_and_removed(levels: int) -> None:
    group = Cgroup().create()
    # The deepest that v2 holds by default has no bound; one of v1's is enough, they are removed alike.
    directory = group.path
    nest(directory, levels)
    child = subprocess.Popen(["sleep", "60"])
    try:
        group.add(child.pid)
        assert child.pid in group.processes()
        start = time.monotonic()
        group.close()
        assert time.monotonic() - start < 60
        assert not os.path.exists(directory)
        assert child.wait(30) == -signal.SIGKILL
    finally:
        child.kill()


def test_36_the_launcher_removes_what_is_nested_below_its_group() -> None:
    with Sandbox(Limits(), PidNamespace()).spawn(["sleep", "60"]) as process:
        directories = process._group()
        for key, directory in directories.items():
            if key != "v2":
                nest(directory, 70)
            else:
                nest(directory, 32)
                with pytest.raises(BlockingIOError):  # EAGAIN: cgroup.max.depth
                    nest(directory + "/n" * 32, 1)
        process.kill()
        process.wait(30)
    assert not any(os.path.exists(directory) for directory in directories.values())


def test_36_wall_time_ends_with_the_program() -> None:
    """Also where somebody from outside keeps the group from being removed (v1), for as long as that is tried."""
    holder = subprocess.Popen(["sleep", "60"])
    try:
        start = time.monotonic()
        with Sandbox(Limits(pids=20), PidNamespace()).spawn(["sh", "-c", "read x; sleep 0.2"], stdin=-1) as process:
            directories = process._group()
            key = "v2" if UNIFIED else "pids"
            files.write(directories[key], "cgroup.procs", str(holder.pid).encode())
            assert process.stdin is not None
            process.stdin.close()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # that it could not be removed
                result = process.result(30)
            took = time.monotonic() - start
        assert result.wall_time > 0.1
        assert UNIFIED or took - result.wall_time > 1.5, "it was tried for two seconds, and they do not count"
    finally:
        holder.kill()
        holder.wait()
    for directory in directories.values():
        if os.path.exists(directory):
            files.remove(directory)


# ---- 20: frozen on v1 ------------------------------------------------------------------------------------------------

PURE_V1 = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(None, b"/", None, 0x4000 | 1 << 18, None) == 0
# In a mount namespace of this process's own: what the host has is as it was.
assert libc.umount2(b"/sys/fs/cgroup/unified", 2) == 0
import isolate
assert isolate.cgroups.hierarchy.discover().v2 is None
"""


def in_pure_v1(code: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run Python where v1's hierarchies are all that is mounted."""
    if UNIFIED or not os.path.ismount("/sys/fs/cgroup/unified") or os.geteuid() != 0:
        pytest.skip("needs v1 hierarchies with v2 beside them, and root")
    command = [sys.executable, "-c", PURE_V1 + code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)


def test_20_a_frozen_group_of_v1_ends_with_its_process() -> None:
    done = in_pure_v1("""
for how in ("kill", "close", "del"):
    process = isolate.Sandbox(isolate.Limits(), isolate.PidNamespace()).spawn(["sleep", "60"])
    process.freeze()
    directories = process._group()
    if how == "kill":
        process.kill()
        print(process.wait(20))
    if how == "del":
        import gc, warnings
        warnings.simplefilter("ignore")
        del process
        gc.collect()
    else:
        process.close()
    import time
    end = time.monotonic() + 20
    while any(map(os.path.exists, directories.values())) and time.monotonic() < end: time.sleep(0.01)
    assert not any(map(os.path.exists, directories.values())), how
""")
    assert (done.returncode, done.stdout) == (0, "-9\n"), done.stderr


def test_20_also_below_a_group_that_is_frozen_and_with_its_owner() -> None:
    done = in_pure_v1("""
import subprocess
group = isolate.Cgroup().create()
plain = subprocess.Popen(["sleep", "60"])
group.add(plain.pid)
process = isolate.Sandbox(isolate.Limits(parent=group), isolate.PidNamespace()).spawn(["sleep", "60"])
group.freeze()
process.close()
print("closed")
group.freeze()
print(plain.pid, *group.directories.values(), flush=True)
os.kill(os.getpid(), 9)
""")
    first, _, rest = done.stdout.partition("\n")
    assert (done.returncode, first) == (-9, "closed"), done.stderr
    pid, *directories = rest.split()
    deadline = time.monotonic() + 20
    while (any(map(os.path.exists, directories)) or _alive(int(pid))) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(os.path.exists, directories))
    assert not _alive(int(pid))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def test_20_a_group_of_v1_that_is_frozen_can_be_killed() -> None:
    done = in_pure_v1("""
with isolate.Cgroup() as group:
    with isolate.Sandbox(group).spawn(["sleep", "60"]) as process:
        group.freeze()
        group.kill()
        print(process.wait(20))
    print(isolate.Sandbox(group).run(["true"], timeout=20).verdict.value)
""")
    assert (done.returncode, done.stdout.split()) == (0, ["-9", "OK"]), done.stderr


# ---- 24: names of groups, from another time namespace ----------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="a time namespace with the caller's own ids takes root")
@pytest.mark.parametrize("made", ["outside", "inside"])
def test_24_a_sweep_from_another_time_namespace_leaves_what_lives(made: str) -> None:
    sweep = "print([d for d in isolate.Cgroup.sweep()])"
    shifted = MountNamespace(), TimeNamespace(boottime=100_000)
    hold = "g = isolate.Cgroup(name='kept24').create(); print(g.path, flush=True); input(); g.close()"
    # The root group of v2 is writable for root by CAP_DAC_OVERRIDE alone (mode 0555).
    kept = Capabilities({"DAC_OVERRIDE"})
    owner, sweeper = ((kept,), shifted) if made == "outside" else ((kept, *shifted), ())
    with Sandbox(*owner).spawn([sys.executable, "-c", f"import isolate\n{hold}"], stdin=-1, stdout=-1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        directory = process.stdout.readline().decode().strip()
        assert "kept24" in directory
        # Without a pid namespace: the numbers mean the same, the start times do not.
        done = Sandbox(*sweeper).run([sys.executable, "-c", f"import isolate\n{sweep}"], timeout=60)
        assert done.ok, done.stderr
        assert directory not in done.stdout.decode()
        assert os.path.isdir(directory)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.wait(30) == 0
    name = naming.parse(os.path.basename(directory))
    assert name is not None
    assert (name.time != naming.time_namespace()) == (made == "inside")
    gone = naming.Name(name.namespace, 4_194_000, 1, "tag", name.time)
    assert naming.abandoned(gone), "control: whose number nobody has is gone, wherever it was"


# ---- 7: what is attached ---------------------------------------------------------------------------------------------


def test_7_what_is_attached_is_within_the_limits_of_what_it_joins() -> None:
    large = [*PYTHON, "x = bytearray(160 << 20)"]
    forks = [*PYTHON, "import os\nfor _ in range(40):\n    if os.fork() == 0: import time; time.sleep(5); os._exit(0)"]
    with Sandbox(Limits(memory="64M", pids=20), PidNamespace()).spawn(["sleep", "60"]) as target:
        with attach(target) as joined:
            assert joined.run(["true"], timeout=30).verdict is Verdict.OK
            assert joined.run(forks, timeout=30).verdict in (Verdict.PIDS, Verdict.EXITED)
            free = joined.sandbox(group=False).run(large, timeout=30)
            assert free.verdict is Verdict.OK, "control: in the caller's group"
            own = joined.sandbox(Limits(memory="256M")).run(large, timeout=30)
            assert own.verdict is Verdict.OK, "limits of its own take the place of those"
            assert target.poll() is None
            assert joined.run(large, timeout=30).verdict is Verdict.OOM
        if UNIFIED:  # memory.oom.group: one group, one fate (docs/attach.rst)
            assert target.wait(timeout=30) == -9
        else:
            assert target.poll() is None
            assert target.stats().oom_kill


def test_41_a_name_that_is_no_text() -> None:
    with pytest.raises(TypeError, match="name must be a str, not 5"):
        Cgroup(name=5)  # type: ignore[arg-type]
