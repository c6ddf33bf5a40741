"""What must not outlive or hang: another pid namespace's /proc, stops from inside, frozen groups, lost launchers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import PIPE, Limits, PidNamespace, Sandbox, SetupError, UtsNamespace, Verdict
from isolate.engine.proc import children
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate import Process
    from tests.snapshot import Snapshot

root = pytest.mark.root
HEAD = "from isolate import *\nimport os, signal, subprocess, sys, time\n"


def in_another(code: str, *options: str, check: bool = True) -> str:
    """What the code prints where unshare(1) has put it: with -pf and no /proc of its own, /proc is another's."""
    command = ["unshare", *options, sys.executable, "-c", HEAD + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout + ("" if check else done.stderr)


# ---- /proc -----------------------------------------------------------------------------------------------------------

ENDS = """
from isolate.engine import proc
print(proc.is_ours())
for parts in ([], [PidNamespace()], [Limits(pids=20)]):
    start = time.monotonic()
    result = Sandbox(*parts).run(["sh", "-c", "sleep 30 & sleep 30"], timeout=.3)
    print(result.verdict, time.monotonic() - start < 20)
"""
HELD = ["TIMEOUT", "True"] * 3


@root
@pytest.mark.parametrize(("options", "ours"), [(("-pf",), "False"), (("-pf", "--mount-proc"), "True")])
def test_another_s_proc(options: tuple[str, ...], ours: str, clean: Snapshot) -> None:
    assert in_another(ENDS, *options).split() == [ours, *HELD]


@root
def test_no_proc(clean: Snapshot) -> None:
    """An empty directory where it should be."""
    mount = "subprocess.run(['mount', '-t', 'tmpfs', 'none', '/proc'], check=True)\n"
    without = ENDS.replace(", [Limits(pids=20)]", "")  # groups are found by /proc
    assert in_another(mount + without, "-m").split() == ["False", *HELD[:4]]


@root
def test_refused_by_name(clean: Snapshot) -> None:
    """Id maps are written to files of the child's; and an ordinary user may not make a /proc to find children by."""
    code = """
def tried(*parts):
    try: print(Sandbox(*parts).run(["true"]).verdict)
    except UnsupportedError as error: print("another pid namespace" in error.cause, bool(error.remedy))
tried(UserNamespace(), PidNamespace())
os.setgroups([]); os.setgid(65534); os.setuid(65534)
tried()
tried(UserNamespace(), PidNamespace())
"""
    assert in_another(code, "-pf").split() == ["True", "True"] * 3
    assert in_another(code, "-pf", "--mount-proc").split() == ["OK"] * 3, "the control"


@root
def test_who_has_init_s_number_there_is_left_alone(clean: Snapshot) -> None:
    """A process above with children of its own, whose number init gets here: by that /proc they look like init's."""
    with Sandbox().spawn(["sh", "-c", "sleep 100 & sleep 100 & echo up; wait"], stdout=PIPE) as victim:
        assert victim.stdout is not None
        victim.stdout.readline()
        before = set(children(victim.pid))
        assert len(before) == 2
        # The count of the new namespace is set, a few below, so that one of the starts gives init that number.
        code = f"""
for below in range(1, 8):
    with open("/proc/sys/kernel/ns_last_pid", "w") as file: file.write(str({victim.pid} - below))
    Sandbox().run(["sh", "-c", "sleep 9 & exec sleep 9"], timeout=.05)
    with open("/proc/sys/kernel/ns_last_pid") as file: print(int(file.read()) >= {victim.pid})
"""
        assert "True" in in_another(code, "-pf"), "the control: the number came up"
        assert set(children(victim.pid)) == before


@root
def test_cpu_time_is_held_or_refused(clean: Snapshot) -> None:
    code = """
for parts in ([], [PidNamespace()], [PidNamespace(), Limits()]):
    try: print(Sandbox(*parts).run(["sh", "-c", "while :; do :; done"], cpu_time=.2, timeout=20).verdict)
    except UnsupportedError as error: print("refused" if "cpu_time" in str(error) else error)
"""
    assert in_another(code, "-pf").split() == ["refused", "refused", "CPU_TIME"]
    assert in_another(code, "-pf", "--mount-proc").split() == ["CPU_TIME"] * 3, "the control"


@root
@pytest.mark.parametrize("hidden", ["1", "2", pytest.param("ptraceable", marks=pytest.mark.slow)])
def test_hidden_proc(hidden: str, clean: Snapshot) -> None:
    """An ordinary user sees nothing of init there: everything ends all the same, and no limit is held by nobody."""
    user = "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    mount = f"subprocess.run(['mount', '-t', 'proc', '-o', 'hidepid={hidden}', 'none', '/proc'], check=True)\n"
    code = """
start = time.monotonic()
result = Sandbox().run(["sh", "-c", "setsid sleep 4321 & sleep 30"], timeout=.3)
print(result.verdict, time.monotonic() - start < 20)
try: print(Sandbox().run(["sh", "-c", "while :; do :; done"], cpu_time=.2, timeout=20).verdict)
except UnsupportedError as error: print("refused" if "cpu_time" in str(error) else error)
"""
    assert in_another(mount + user + code, "-pfm").split() == ["TIMEOUT", "True", "refused"]
    assert in_another(mount + code, "-pfm").split() == ["TIMEOUT", "True", "CPU_TIME"], "the control: root sees all"
    assert not running("sleep\0004321")


def running(line: str) -> bool:
    for name in os.listdir("/proc"):
        try:
            if line.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                return True
        except OSError:
            continue
    return False


# ---- stops and losses ------------------------------------------------------------------------------------------------


def test_a_stopped_launcher(clean: Snapshot) -> None:
    """By a program with our uid, without a pid namespace, again and again: closing ends that one first."""
    script = (
        "import os, signal, sys\n"
        "launcher = int(sys.stdin.readline())\n"
        "print('begins', flush=True)\n"
        "while True:\n"
        "    try: os.kill(launcher, signal.SIGSTOP)\n"
        "    except OSError: pass\n"
    )
    process = Sandbox().spawn([sys.executable, "-S", "-c", script], stdin=PIPE, stdout=PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"%d\n" % process._session.pid)
    process.stdin.flush()
    assert process.stdout.readline() == b"begins\n"
    process.close()
    assert process._session.end is not None


def test_a_lost_launcher_whose_socket_lives_on(clean: Snapshot) -> None:
    """A process forked in the middle of a start holds the launcher's end: there is no end of file."""
    process = Sandbox(PidNamespace()).spawn(["sleep", "100"])
    held = _take(process._session.pid, 3)
    os.kill(process._session.pid, signal.SIGKILL)
    with pytest.raises(SetupError, match="launcher"):
        process.wait(20)
    process.close()
    os.close(held)


def test_a_lost_launcher_of_a_run(clean: Snapshot) -> None:
    held: list[int] = []

    def lose() -> None:
        end = time.monotonic() + 20
        while not held and time.monotonic() < end:  # on a busy machine it may come later
            time.sleep(0.3)
            for name in filter(str.isdigit, os.listdir("/proc")):
                try:
                    if Path(f"/proc/{name}/cmdline").read_bytes() == b"isolate-launcher\0" and _owner(int(name)):
                        held.append(_take(int(name), 3))
                        os.kill(int(name), signal.SIGKILL)
                except OSError:
                    continue

    thread = threading.Thread(target=lose)
    thread.start()
    with pytest.raises(SetupError, match="launcher"):
        Sandbox(PidNamespace()).run(["sleep", "100"], timeout=30)
    thread.join()
    assert len(held) == 1
    os.close(held[0])


def _owner(pid: int) -> bool:
    """Whether it is a launcher of this very process: its descriptor 5 is the owner's pidfd."""
    return f"Pid:\t{os.getpid()}\n" in Path(f"/proc/{pid}/fdinfo/5").read_text()


def _take(pid: int, fd: int) -> int:
    """A copy of another process's descriptor, as a child that was forked at the wrong moment has it."""
    from isolate.engine import native
    from isolate.kernel.syscalls import number

    pidfd = os.pidfd_open(pid)
    try:
        copy = native.call(number("pidfd_getfd"), pidfd, fd, 0)
        assert copy >= 0, os.strerror(-copy)
        return copy
    finally:
        os.close(pidfd)


@root
@pytest.mark.slow
def test_exec_beside_a_program_that_stops_whoever_comes(clean: Snapshot) -> None:
    script = (
        "import os, signal\n"
        "print('begins', flush=True)\n"
        "while True:\n"
        "    for name in os.listdir('/proc'):\n"
        "        if name.isdigit() and int(name) > 2:\n"
        "            try: os.kill(int(name), signal.SIGSTOP)\n"
        "            except OSError: pass\n"
    )
    from isolate import Bind, Proc, Root

    box = Sandbox(PidNamespace(), Root(Bind("/usr"), Bind("/lib"), Bind("/lib64", optional=True), Bind("/bin"), Proc()))
    with box.spawn(["/usr/bin/python3", "-S", "-c", script], stdout=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begins\n"
        for _ in range(3):
            start = time.monotonic()
            with contextlib.suppress(SetupError), process.exec(["/bin/true"]):
                pass
            assert time.monotonic() - start < 15


@root
def test_exec_whose_init_is_killed_from_inside(clean: Snapshot) -> None:
    """What it had started would be the sandbox's own PID 1's from then on."""
    with Sandbox(PidNamespace()).spawn(["sh", "-c", "while read pid; do kill -9 $pid; done"], stdin=PIPE) as process:
        assert process.stdin is not None
        further = process.exec(["sh", "-c", "sleep 86421 & sleep 86421 & echo up; wait"], stdout=PIPE)
        assert further.stdout is not None
        further.stdout.readline()
        (init,) = children(further._session.pid)
        inside = Path(f"/proc/{init}/status").read_text().partition("NSpid:")[2].split("\n")[0].split()[-1]
        end = time.monotonic() + 20
        while not running("sleep\00086421") and time.monotonic() < end:  # forked, and not yet executed
            time.sleep(0.002)
        assert running("sleep\00086421"), "the control"
        process.stdin.write(f"{inside}\n".encode())
        process.stdin.flush()
        further.wait(20)
        further.close()
        assert not running("sleep\00086421")
        assert process.poll() is None


# ---- frozen ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def grouped(clean: Snapshot) -> Iterator[Process]:
    with Sandbox(PidNamespace(), Limits(memory="64M", pids=10)).spawn(["sleep", "100"]) as process:
        yield process


@root
def test_exec_into_a_frozen_sandbox(grouped: Process) -> None:
    grouped.freeze()
    with pytest.raises(SetupError, match="frozen"):
        grouped.exec(["true"])
    grouped.thaw()
    with grouped.exec(["true"]) as further:
        assert further.wait(10) == 0, "the control"


ONLY_V1 = "subprocess.run(['umount', '-l', '/sys/fs/cgroup/unified'], check=False)\n"


@root
@pytest.mark.parametrize("how", ["p.kill(); p.wait(20)", "p.close()", "del p", "sys.exit()", "os.kill(os.getpid(), 9)"])
def test_frozen_by_v1(how: str, clean: Snapshot) -> None:
    code = f"""
box = Sandbox(PidNamespace(), Limits(pids=10))
p = box.spawn(["sleep", "87654"])
p.freeze()
import warnings; warnings.simplefilter("ignore")
print("frozen", flush=True)
{how}
"""
    assert in_another(ONLY_V1 + code, "-m", check=False).startswith("frozen")
    end = time.monotonic() + 10
    while running("sleep\00087654") and time.monotonic() < end:
        time.sleep(0.02)
    assert not running("sleep\00087654")


# ---- further programs ------------------------------------------------------------------------------------------------


@root
def test_the_group_s_counters_are_a_further_program_s_too(grouped: Process) -> None:
    code = "x = bytearray(200 << 20)"
    with grouped.exec([sys.executable, "-S", "-c", "pass"]) as further:
        result = further.result(20)
        assert (result.verdict, result.stats is not None) == (Verdict.OK, True), "the control"
    with grouped.exec(
        ["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; wait"], stderr=-3
    ) as further:
        result = further.result(20)
        assert (result.verdict, result.stats.pids_max > 0) == (Verdict.PIDS, True)
    with grouped.exec(["false"]) as further:
        assert further.result(20).verdict is Verdict.EXITED, "what was counted before is not its own affair"
    with grouped.exec([sys.executable, "-S", "-c", code]) as further:
        result = further.result(20)
        assert (result.verdict, result.stats.oom_kill > 0) == (Verdict.OOM, True)


# ---- names -----------------------------------------------------------------------------------------------------------


@root
def test_a_name_whose_launcher_was_killed(clean: Snapshot) -> None:
    from isolate.namespaces import making

    name = f"lost-{os.getpid()}"
    made = UtsNamespace.create(name=name)
    path = f"/run/isolate/uts/{name}"
    assert os.stat(path).st_ino == made.identity.inode
    assert made.fd is not None
    session = making._names[int(made.fd)][1]
    os.kill(session.pid, signal.SIGKILL)
    assert session.wait_gone(10)
    assert os.path.exists(path)
    made.close()
    assert not os.path.lexists(path)


@root
def test_a_refused_name_with_many_descriptors(clean: Snapshot) -> None:
    """Above 1023 select(2) knows no descriptor; the error is the one that it is about."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
held = [os.dup(2) for _ in range(1500)]
name = f"twice-{os.getpid()}"
first = UtsNamespace.create(name=name)
try: UtsNamespace.create(name=name)
except SetupError as error: print(error.errno)
first.close()
"""
    done = subprocess.run([sys.executable, "-c", HEAD + code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "17\n", done.stderr


def test_as_an_ordinary_user() -> None:
    """What holds without privileges: a user namespace, a pid namespace, limits of time."""
    code = (
        HEAD + "for parts in ([], [UserNamespace(), PidNamespace()]):\n"
        "    print(Sandbox(*parts).run(['sh', '-c', 'sleep 30 & sleep 30'], timeout=.2).verdict)\n"
        "    print(Sandbox(*parts).run(['sh', '-c', 'while :; do :; done'], cpu_time=.2, timeout=20).verdict)\n"
        "    with Sandbox(*parts).spawn(['true']) as p: p.wait(); print(p.pid > 1)\n"
    )
    assert as_ordinary_user(code).split() == ["TIMEOUT", "CPU_TIME", "True"] * 2
