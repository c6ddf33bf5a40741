"""Rows of the table: each part in force inside of its block, gone after, on this thread alone; exits in every way."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import isolate
from tests.ordinary import as_ordinary_user
from tests.snapshot import SOON, alone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

KINDS = ("net", "uts", "ipc", "cgroup", "mnt", "pid", "pid_for_children", "time", "time_for_children", "user")


def namespaces() -> dict[str, str]:
    """This thread's namespaces; those for children only are there as soon as a child is."""
    return {kind: os.readlink(f"/proc/thread-self/ns/{kind}") for kind in KINDS}


BASE = ["/nowhere"]


def status(field: str) -> str:
    """A line of this thread's."""
    return Path("/proc/thread-self/status").read_text().split(f"{field}:")[1].split("\n")[0]


def uptime_of_a_child() -> int:
    """Seconds by the clock that a child sees."""
    return int(subprocess.check_output(["cut", "-d.", "-f1", "/proc/uptime"]))


def state() -> dict[str, Any]:
    """Everything that a block may change."""
    status = Path("/proc/thread-self/status").read_text().splitlines()
    wanted = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp:", "Umask", "Cpus_allowed:")
    return {
        "namespaces": namespaces(),
        "status": [line for line in status if line.startswith(wanted)],
        "limits": Path("/proc/self/limits").read_text(),
        # Others mount things on this machine too: only those of these tests.
        "mounts": [line for line in Path("/proc/thread-self/mountinfo").read_text().splitlines() if BASE[0] in line],
        "cwd": os.getcwd(),
        "root": os.stat("/").st_ino,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "policy": os.sched_getscheduler(0),
        "oom": Path("/proc/self/oom_score_adj").read_text(),
        "fds": set(os.listdir("/proc/self/fd")),
        "cgroup": Path("/proc/thread-self/cgroup").read_text(),
        "host": socket.gethostname(),
    }


@pytest.fixture(scope="session", autouse=True)
def _opened_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The launcher's descriptor, made with the first sandbox, is not a leak."""
    BASE[0] = str(tmp_path_factory.getbasetemp())
    isolate.Sandbox().run(["true"])


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = state()

    def now() -> dict[str, Any]:
        """A thread of an earlier test may close a descriptor that was open then."""
        gc.collect()
        found = state()
        found["fds"] |= before["fds"]
        return found

    yield
    deadline = time.monotonic() + SOON
    while now() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert now() == before


#: The first processor that this process may use.
FIRST = frozenset({min(os.sched_getaffinity(0))})

PARTS: dict[str, tuple[Any, Callable[[], object]]] = {
    "net": (isolate.NetNamespace(), lambda: namespaces()["net"]),
    "uts": (isolate.UtsNamespace(hostname="inside"), socket.gethostname),
    "ipc": (isolate.IpcNamespace(), lambda: namespaces()["ipc"]),
    "cgroup": (isolate.CgroupNamespace(), lambda: namespaces()["cgroup"]),
    "mount": (isolate.MountNamespace(), lambda: namespaces()["mnt"]),
    "capabilities": (
        isolate.Capabilities({"NET_ADMIN"}),
        lambda: isolate.Capabilities.of("thread-self").effective,
    ),
    "credentials": (isolate.Credentials(uid=65534, gid=65534), lambda: (os.geteuid(), os.getegid())),
    "umask": (isolate.Credentials(umask=0o077), lambda: status("Umask")),
    "rlimits": (isolate.Rlimits(nofile=500), lambda: subprocess.check_output(["sh", "-c", "ulimit -Sn"])),
    "nice": (isolate.Scheduling(nice=7), lambda: os.getpriority(os.PRIO_PROCESS, 0)),
    "affinity": (isolate.Scheduling(affinity=FIRST), lambda: os.sched_getaffinity(0)),
    "batch": (isolate.Scheduling(policy="batch"), lambda: os.sched_getscheduler(0)),
    "oom": (isolate.Scheduling(oom_score_adj=321), lambda: Path("/proc/self/oom_score_adj").read_text()),
    "time": (isolate.TimeNamespace(boottime=10**6), lambda: uptime_of_a_child() // 10**5),
    "pid": (isolate.PidNamespace(), lambda: subprocess.check_output(["sh", "-c", "echo $$"]) == b"1\n"),
}
if len(os.sched_getaffinity(0)) == 1:
    del PARTS["affinity"]  # there is no other
PROCESS_WIDE = {"umask", "rlimits", "oom"}


@pytest.mark.parametrize("name", PARTS)
def test_holds_inside_and_is_gone_after(name: str) -> None:
    part, look = PARTS[name]
    if name == "time":
        alone()
    outside = look()
    with part as entered:
        assert entered is part
        assert look() != outside
    if name != "time":  # the clock goes on
        assert look() == outside


@pytest.mark.parametrize("name", sorted(set(PARTS) - {"time", "pid"}))
def test_other_threads_are_not_touched(name: str) -> None:
    part, look = PARTS[name]
    ask, answer, stop = threading.Event(), threading.Event(), []
    seen: list[object] = []

    def other() -> None:
        while ask.wait() and not stop:
            ask.clear()
            seen.append(look())
            answer.set()

    thread = threading.Thread(target=other)
    thread.start()
    try:
        with part:
            inside = look()
            ask.set()
            answer.wait()
        outside = look()
        assert inside != outside
        assert seen == [inside if name in PROCESS_WIDE else outside]
    finally:
        stop.append(True)
        ask.set()
        thread.join()


def test_exceptions_pass_through() -> None:
    with pytest.raises(ZeroDivisionError), isolate.NetNamespace():
        1 / 0  # noqa: B018


def test_keyboard_interrupt_passes_through() -> None:
    with pytest.raises(KeyboardInterrupt), isolate.Sandbox(isolate.NetNamespace(), isolate.Capabilities()):
        raise KeyboardInterrupt


def test_exit_stack_and_nesting_of_one_part() -> None:
    part = isolate.NetNamespace()
    seen = [namespaces()["net"]]
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(part)
            seen.append(namespaces()["net"])
    assert len(set(seen)) == 4
    assert namespaces()["net"] == seen[0]


def test_generator() -> None:
    def inside() -> Iterator[str]:
        with isolate.NetNamespace():
            yield namespaces()["net"]

    outer = namespaces()["net"]
    generator = inside()
    assert next(generator) != outer
    assert namespaces()["net"] != outer  # the thread is inside for as long as the generator stands there
    generator.close()


def test_leaving_on_another_thread() -> None:
    part, raised = isolate.NetNamespace(), []
    with part:

        def leave() -> None:
            try:
                part.__exit__(None, None, None)
            except isolate.RestoreError as error:
                raised.append(str(error))

        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
        assert "not entered by this thread" in raised[0]


def test_leaving_out_of_order() -> None:
    outer, inner = isolate.NetNamespace(), isolate.UtsNamespace()
    before = namespaces()
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(isolate.RestoreError, match="reverse order"):
        outer.__exit__(None, None, None)
    assert namespaces()["net"] != before["net"]
    inner.__exit__(None, None, None)  # takes the other along
    assert namespaces() == before


def test_leaving_twice() -> None:
    part = isolate.UtsNamespace()
    with part:
        pass
    with pytest.raises(isolate.RestoreError, match="not entered"):
        part.__exit__(None, None, None)


def test_leaving_in_a_forked_child() -> None:
    part = isolate.UtsNamespace(hostname="inside")
    with part:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                part.__exit__(None, None, None)
            except isolate.RestoreError as error:
                os.write(write, f"{socket.gethostname()}: {error}".encode())
            finally:
                os._exit(0)
        os.close(write)
        with open(read, encoding="utf-8") as file:
            told = file.read()
        os.waitpid(pid, 0)
    assert told.startswith("inside: ")
    assert "fork" in told


def test_await_inside() -> None:
    async def other(seen: list[str]) -> None:
        seen.append(namespaces()["net"])

    async def main() -> list[str]:
        seen: list[str] = []
        task = asyncio.ensure_future(other(seen))
        with pytest.raises(isolate.RestoreError, match="await"), isolate.NetNamespace():
            await task
        return seen

    outside = namespaces()["net"]
    assert asyncio.run(main()) != [outside]  # that is why it is an error
    assert namespaces()["net"] == outside


def test_no_await_inside_of_a_coroutine_is_fine() -> None:
    async def main() -> str:
        with isolate.NetNamespace():
            found = namespaces()["net"]
        await asyncio.sleep(0)
        return found

    assert asyncio.run(main()) != namespaces()["net"]


def test_sandbox_as_a_block() -> None:
    box = isolate.Sandbox(
        isolate.Capabilities({"NET_ADMIN", "SETUID"}),
        isolate.UtsNamespace(hostname="together"),
        isolate.Credentials(uid=65534),
        isolate.NetNamespace(),
        isolate.Rlimits(nofile=100),
    )
    before = namespaces()
    with box:
        assert socket.gethostname() == "together"
        assert namespaces()["net"] != before["net"]
        assert os.geteuid() == 65534
        assert isolate.Capabilities.of("thread-self").effective == {isolate.Cap.NET_ADMIN, isolate.Cap.SETUID}


def test_sandbox_with_an_irreversible_part_changes_nothing() -> None:
    before = namespaces()
    box = isolate.Sandbox(isolate.NetNamespace(), isolate.NoNewPrivs())
    with pytest.raises(isolate.IrreversibleError, match="NoNewPrivs"), box:
        pytest.fail("entered")
    assert namespaces() == before


def test_a_part_that_fails_takes_the_others_back() -> None:
    box = isolate.Sandbox(isolate.NetNamespace(), isolate.UtsNamespace(path="/dev/null"))
    with pytest.raises(isolate.SetupError, match="join the uts"), box:
        pytest.fail("entered")


def test_failed_undo_says_what_the_thread_is_now() -> None:
    """A thread without CAP_SYS_ADMIN, taken away inside for good, has no way back."""

    def body() -> str:
        before = namespaces()["net"]
        with pytest.raises(isolate.RestoreError) as raised, isolate.NetNamespace():
            isolate.Capabilities().enter()
        now = namespaces()["net"]
        assert now != before
        assert now in str(raised.value)
        return now

    assert isolate.in_thread(body)


@pytest.mark.parametrize(
    "part",
    [
        isolate.Seccomp.default(),
        isolate.Landlock(read=["/"]),
        isolate.NoNewPrivs(),
        isolate.SessionKeyring(),
        isolate.UserNamespace(),
        isolate.Root(),
    ],
    ids=lambda part: type(part).__name__,
)
def test_irreversible(part: Any) -> None:
    with pytest.raises(isolate.IrreversibleError, match=r"in_thread|Sandbox"):
        part.__enter__()
    with pytest.raises(TypeError), part:
        pytest.fail("entered")


def test_threads_and_time() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(isolate.ThreadedError, match="threads"), isolate.TimeNamespace():
            pytest.fail("entered")
    finally:
        stop.set()
        thread.join()


def test_pid_namespace_holds_no_threads_and_one_tree() -> None:
    with isolate.PidNamespace():
        thread = threading.Thread(target=int)
        with pytest.raises(RuntimeError):
            thread.start()
        assert subprocess.check_output(["sh", "-c", "echo $$"]) == b"1\n"
        with pytest.raises(OSError) as raised:  # its first process has ended: no more can be made (ENOMEM)
            subprocess.check_output(["true"])
        assert raised.value.errno == 12


def test_sandbox_run_inside_of_blocks() -> None:
    box = isolate.Sandbox(isolate.Credentials(groups=None))
    with isolate.UtsNamespace(hostname="outer"), isolate.NetNamespace():
        mine = namespaces()["net"]
        assert box.run(["uname", "-n"]).stdout == b"outer\n"
        assert box.run(["readlink", "/proc/self/ns/net"]).stdout.decode().strip() == mine
    with isolate.PidNamespace():
        done = box.run(["sh", "-c", "echo $$"])
        assert int(done.stdout) < 10


# ---- mounts, cgroups -----------------------------------------------------------------------------------------------


def test_mounts(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    (b / "file").write_text("b")
    with isolate.Tmpfs(a, size="1M"):
        (a / "inside").write_text("x")
        busy = (a / "inside").open()
    assert list(a.iterdir()) == []
    assert busy.read() == "x"  # detached, not torn away
    busy.close()
    with isolate.Bind(b, a):
        assert (a / "file").read_text() == "b"
        with pytest.raises(OSError, match="Read-only"):
            (a / "file").write_text("no")
    with isolate.Overlay(a, lower=(b,)):
        (a / "new").write_text("x")
        assert sorted(os.listdir(a)) == ["file", "new"]
    assert list(a.iterdir()) == []
    assert os.listdir(b) == ["file"]


def test_a_mount_in_a_mount_namespace_does_not_show_outside(tmp_path: Path) -> None:
    with isolate.MountNamespace(), isolate.Tmpfs(tmp_path):
        (tmp_path / "x").write_text("")
        seen: list[object] = []
        os.chdir(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not seen


def test_mount_target_must_exist(tmp_path: Path) -> None:
    with pytest.raises(isolate.SetupError, match="does not exist"), isolate.Tmpfs(tmp_path / "none"):
        pytest.fail("entered")


def test_threads_started_inside_of_a_mount_namespace_do_not_bar_the_way_back() -> None:
    stop = threading.Event()
    with isolate.MountNamespace():
        thread = threading.Thread(target=stop.wait)
        thread.start()
    stop.set()
    thread.join()


def test_cgroup_process_and_thread() -> None:
    with isolate.Cgroup() as group:
        before = Path("/proc/thread-self/cgroup").read_text()
        with group.inside():
            assert os.getpid() in group.processes()
            assert Path("/proc/thread-self/cgroup").read_text() != before
        assert group.processes() == []
        if set(group.directories) - {"v2"}:
            with group.inside("thread"):
                child = subprocess.Popen(["sleep", "100"])
                assert child.pid in group.processes()
            assert Path("/proc/thread-self/cgroup").read_text() == before
            child.kill()
            child.wait()
        with pytest.raises(ValueError, match="process"):
            group.inside("everybody")


# ---- what is refused beforehand -------------------------------------------------------------------------------------


def test_hard_limits_have_no_way_back() -> None:
    with pytest.raises(isolate.IrreversibleError, match="hard limit"), isolate.Rlimits(nofile=(10, 11)):
        pytest.fail("entered")


def test_capabilities_not_permitted() -> None:
    with isolate.Sandbox(isolate.Credentials(uid=65534, gid=65534)):
        pass
    with pytest.raises(isolate.SetupError, match="permitted"), isolate.Capabilities({"SYS_RESOURCE"}):
        pytest.fail("entered")


def test_unprivileged() -> None:
    """As an ordinary user: refused with the remedy; and, having followed it, all of it works."""
    code = """
import os, isolate
for part in (isolate.NetNamespace(), isolate.MountNamespace(), isolate.Tmpfs("/mnt")):
    try:
        with part:
            raise SystemExit("entered")
    except isolate.SetupError as error:
        assert error.errno == 1 and "UserNamespace" in str(error), error
try:
    with isolate.Scheduling(nice=10): raise SystemExit("entered")
except isolate.IrreversibleError as error:
    assert "give back" in str(error)
isolate.UserNamespace().enter()
old = os.readlink("/proc/thread-self/ns/net")
try:
    with isolate.NetNamespace():
        raise SystemExit("entered")
except isolate.SetupError as error:
    assert error.errno == 1 and "way back" in str(error) and "NetNamespace().enter()" in str(error), error
assert os.readlink("/proc/thread-self/ns/net") == old
for kind in (isolate.NetNamespace, isolate.UtsNamespace, isolate.MountNamespace):
    kind().enter()
old = os.readlink("/proc/thread-self/ns/net")
for part in (isolate.NetNamespace(), isolate.UtsNamespace(), isolate.Sandbox(isolate.MountNamespace())):
    for _ in range(3):
        with part:
            pass
with isolate.MountNamespace(), isolate.Tmpfs("/mnt"):
    open("/mnt/x", "w")
for part in (isolate.Capabilities({"NET_ADMIN"}), isolate.Rlimits(nofile=64), isolate.Credentials(umask=0o77)):
    with part:
        pass
assert os.readlink("/proc/thread-self/ns/net") == old and not os.path.exists("/mnt/x")
print("fine", os.getuid())
"""
    assert as_ordinary_user(code) == "fine 0\n"


#: A part, and what it shows: in a user namespace that an ordinary user has entered, with threads where they may be.
UNPRIVILEGED = {
    "net": ("isolate.NetNamespace()", "ns('net')"),
    "uts": ("isolate.UtsNamespace(hostname='inside')", "socket.gethostname()"),
    "ipc": ("isolate.IpcNamespace()", "ns('ipc')"),
    "cgroup": ("isolate.CgroupNamespace()", "ns('cgroup')"),
    "mount": ("isolate.MountNamespace()", "ns('mnt')"),
    "pid": ("isolate.PidNamespace()", "subprocess.check_output(['sh', '-c', 'echo $$']) == b'1\\n'"),
    "time": (
        "isolate.TimeNamespace(boottime=10**6)",
        "subprocess.check_output(['cut', '-d.', '-f1', '/proc/uptime']).__len__() > 6",
    ),
    "capabilities": (
        "isolate.Capabilities({'NET_ADMIN'})",
        "isolate.Capabilities.of('thread-self').effective == frozenset({isolate.Cap.NET_ADMIN})",
    ),
    "umask": ("isolate.Credentials(umask=0o077)", "status('Umask')"),
    "rlimits": ("isolate.Rlimits(nofile=64)", "subprocess.check_output(['sh', '-c', 'ulimit -Sn'])"),
    "affinity": ("isolate.Scheduling(affinity=first)", "os.sched_getaffinity(0)"),
    "tmpfs": ("isolate.Tmpfs(home + '/a')", "os.path.exists(home + '/a/file')"),
    "bind": ("isolate.Bind(home + '/b', home + '/a')", "os.path.exists(home + '/a/other')"),
    "overlay": (
        "isolate.Overlay(home + '/a', lower=[home + '/a', home + '/b'])",
        "os.path.exists(home + '/a/other') and os.path.exists(home + '/a/file')",
    ),
    "together": (
        "isolate.Sandbox(isolate.UtsNamespace(hostname='inside'), isolate.NetNamespace())",
        "(ns('net'), socket.gethostname())",
    ),
}
if len(os.sched_getaffinity(0)) == 1:
    del UNPRIVILEGED["affinity"]


@pytest.mark.parametrize("name", UNPRIVILEGED)
def test_unprivileged_rows(name: str) -> None:
    """Each in both directions, in a user namespace that an ordinary user has entered."""
    part, look = UNPRIVILEGED[name]
    code = f"""
import os, socket, subprocess, sys, tempfile, threading, isolate
inner = len(sys.argv) > 1
ns = lambda kind: os.readlink("/proc/thread-self/ns/" + kind)
status = lambda field: open("/proc/thread-self/status").read().split(field + ":")[1].split("\\n")[0].strip()
first = frozenset({{min(os.sched_getaffinity(0))}})
if not inner:
    isolate.UserNamespace().enter()
    for kind in ("Net", "Uts", "Ipc", "Cgroup", "Mount"):
        getattr(isolate, kind + "Namespace")().enter()  # from the host's there would be no way back
if {name!r} in ("pid", "time") and not inner:
    try:
        with {part}:
            raise SystemExit("entered")
    except isolate.SetupError as error:
        assert error.errno == 1 and "way back" in str(error), error
        assert ("executed" in str(error)) == ({name!r} == "pid"), error
    # The remedy: both for good, and a program that is executed inside.
    type({part})().enter()
    this = open("/proc/self/cmdline").read().split(chr(0))[2]
    raise SystemExit(subprocess.run([sys.executable, "-c", this, "inside"]).returncode)
stop = threading.Event()
if {name!r} != "time":  # refused with threads
    threading.Thread(target=stop.wait).start()
home = tempfile.mkdtemp()
isolate.Sandbox().run(["true"])
try:
    for at in "ab":
        os.mkdir(home + "/" + at)
    open(home + "/a/file", "w").close()
    open(home + "/b/other", "w").close()
    mounts = lambda: [line for line in open("/proc/thread-self/mountinfo") if home in line]
    state = lambda: (ns("net"), ns("uts"), ns("ipc"), ns("cgroup"), ns("mnt"), ns("pid_for_children"), status("CapEff"),
                     mounts(), sorted(os.listdir("/proc/self/fd")), os.getcwd())
    before, outside = state(), {look}
    for _ in range(3):
        with {part}:
            assert ({look}) != outside
        assert ({look}) == outside
        assert {name!r} in ("pid", "time") or state() == before, (before, state())
    print("fine", os.getuid())
finally:
    stop.set()
    import shutil
    shutil.rmtree(home)
"""
    assert as_ordinary_user(code) == "fine 0\n"


def test_user_namespace_with_threads() -> None:
    code = """
import threading, isolate
stop = threading.Event(); threading.Thread(target=stop.wait).start()
try:
    isolate.UserNamespace().enter()
except isolate.ThreadedError as error:
    print("refused")
finally:
    stop.set()
"""
    assert subprocess.check_output([sys.executable, "-c", code]) == b"refused\n"


# ---- a question of the engine -------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_whether_children_get_another_pid_namespace() -> None:
    """Asked of this thread alone, by a flag that whatever puts a part in force sets, whatever its module is named."""
    from isolate.thread import blocks

    assert not blocks.children_get_another_pid_namespace()
    with isolate.PidNamespace():
        assert blocks._ever
        assert blocks.children_get_another_pid_namespace()
        with isolate.Sandbox().spawn(["true"]) as process:
            assert process._session.direct, "or a middle process that ends at once is PID 1 of the namespace"
            assert process.wait(10) == 0
    assert not blocks.children_get_another_pid_namespace()
    with isolate.Sandbox().spawn(["true"]) as process:
        assert process.wait(10) == 0


def test_a_fresh_program_does_not_ask() -> None:
    code = "import isolate; isolate.Sandbox().run(['true']); from isolate.thread import blocks; print(blocks._ever)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
