"""A further program in a running sandbox: confined as the first one, and nothing of ours within reach of it."""

from __future__ import annotations

import os
import select
import signal
import sys
import time

import pytest

import isolate
from isolate.sandbox import exec as further
from tests.boxes import SYSTEM
from tests.ordinary import as_ordinary_user

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

FIELDS = "Uid:|Gid:|Groups:|Cap|NoNewPrivs|Seccomp:|Umask"
SHOW = (
    f"grep -E '{FIELDS}' /proc/$P/status; cat /proc/$P/cgroup /proc/$P/limits;"
    " for n in cgroup ipc mnt net pid user uts; do readlink /proc/$P/ns/$n; done; ls /"
)


def root(*more: isolate.Tmpfs) -> isolate.Root:
    return isolate.Root(
        *SYSTEM,
        isolate.Proc(),
        isolate.Dev(),
        isolate.Tmpfs("/tmp"),
        *more,
    )


def box(*parts: isolate.Part, tree: isolate.Root | None = None) -> isolate.Sandbox:
    return isolate.Sandbox(
        isolate.UserNamespace(),
        isolate.PidNamespace(),
        isolate.NetNamespace(),
        isolate.IpcNamespace(),
        isolate.UtsNamespace(hostname="first"),
        tree or root(),
        *parts,
    )


def output(process: isolate.Process, script: str, **options: object) -> str:
    with process.exec(["/bin/sh", "-c", script], stdout=isolate.PIPE, **options) as further:  # type: ignore[arg-type]
        assert further.stdout is not None
        data = further.stdout.read()
        further.wait(10)
    return data.decode()


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (isolate.Limits(pids=30, memory="64M"), isolate.Rlimits(nofile=77), isolate.Credentials(umask=0o027)),
        (isolate.Capabilities({"NET_BIND_SERVICE"}), isolate.Seccomp.default(), isolate.CgroupNamespace()),
    ],
    ids=["plain", "limits", "filter"],
)
def test_confined_as_the_first(parts: tuple[isolate.Part, ...]) -> None:
    with box(*parts).spawn(["sleep", "100"]) as first:
        for _ in range(2):
            other = output(first, f"P=2; {SHOW}")
            mine = output(first, f"P=$$; {SHOW}")
            assert mine == other
            assert "NoNewPrivs:\t1" in mine


def test_without_namespaces_of_users() -> None:
    with isolate.Sandbox(isolate.PidNamespace(), isolate.UtsNamespace(hostname="first"), root()).spawn(
        ["sleep", "100"]
    ) as first:
        assert output(first, "hostname; ls /").split() == ["first", "bin", "dev", "lib", "lib64", "proc", "tmp", "usr"]
        assert output(first, f"P=$$; {SHOW}") == output(first, f"P=2; {SHOW}")


def test_as_an_ordinary_user() -> None:
    code = """
import isolate
from isolate.sandbox import exec as further
from isolate import MountNamespace, NetNamespace, PidNamespace, UserNamespace
box = isolate.Sandbox(UserNamespace(uid=7), PidNamespace(), NetNamespace(), MountNamespace())
with box.spawn(["sleep", "100"]) as first:
    with first.exec(["sh", "-c", "id -u; readlink /proc/self/ns/net"], stdout=isolate.PIPE) as further:
        print(further.stdout.read().decode().split()[0])
    with isolate.attach(first) as there:
        print(there.run(["sh", "-c", "echo $$"], text=True).verdict)
"""
    assert as_ordinary_user(code).split() == ["7", "OK"]


def test_environment_streams_and_directory() -> None:
    with box().spawn(["sleep", "100"]) as first:
        assert output(first, "pwd; echo $A", env={"A": "b"}, cwd="/tmp") == "/tmp\nb\n"
        with first.exec(["cat"], stdin=isolate.PIPE, stdout=isolate.PIPE) as further:
            assert further.stdin is not None
            assert further.stdout is not None
            further.stdin.write(b"through")
            further.stdin.close()
            assert further.stdout.read() == b"through"
        with first.exec(["sh", "-c", "test -t 0"], pty=True) as further:
            assert further.wait(10) == 0
        with pytest.raises(isolate.SetupError, match=r"nowhere|not found|no such"):
            first.exec(["nowhere"])


def test_it_ends_when_closed_and_with_the_sandbox() -> None:
    with box().spawn(["sleep", "100"]) as first:
        with first.exec(["sleep", "101"]) as further:
            deadline = time.monotonic() + 20
            while "sleep 101" not in output(first, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"):
                assert time.monotonic() < deadline  # execve has not set it yet when it closes what it closes
        assert further.returncode == -signal.SIGKILL
        assert "sleep 101" not in output(first, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        further = first.exec(["sleep", "102"])
    assert further.wait(10) == -signal.SIGKILL
    further.close()


def test_after_the_end() -> None:
    with box().spawn(["true"]) as first:
        first.wait(10)
        with pytest.raises(isolate.SetupError, match="ended"):
            first.exec(["true"])


# ---- against the sandbox --------------------------------------------------------------------------------------------

WATCH = r"""
import os, sys, ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
print("ready", flush=True)
def descriptor(path):
    numbers = os.listdir(path)  # the names, at least, are for whom the kernel takes for the owner
    if not numbers:
        raise OSError
    os.stat(f"{path}/{numbers[0]}")
seen, reached = set(), set()
def told():
    if {"fd", "launcher"} <= seen and not os.path.exists("/tmp/seen"):
        open("/tmp/seen", "w").close()
while not os.path.exists("/tmp/stop"):
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            comm = open(f"/proc/{name}/comm").read().strip()
            for what, look in (
                ("fd", lambda: descriptor(f"/proc/{name}/fd")), ("root", lambda: os.listdir(f"/proc/{name}/root")),
                ("cwd", lambda: os.listdir(f"/proc/{name}/cwd")), ("mem", lambda: open(f"/proc/{name}/mem", "rb")),
                ("environ", lambda: open(f"/proc/{name}/environ", "rb").read()),
                ("exe", lambda: open(f"/proc/{name}/exe", "r+b")),
            ):
                try:
                    look()
                except OSError:
                    continue
                if open(f"/proc/{name}/comm").read().strip() == comm:
                    (reached if comm.startswith("isolate") else seen).add(what)
            if comm.startswith("isolate") and int(name) != 1:
                seen.add("launcher")
                if libc.ptrace(16, int(name), 0, 0) == 0:
                    os.waitpid(int(name), 0x40000000)
                    seen.add("ptrace")
                    if open(f"/proc/{name}/comm").read().startswith("isolate"):
                        reached.add("ptrace")
                    libc.ptrace(17, int(name), 0, 0)
                    os.kill(int(name), 18)  # the SIGSTOP of attaching may be pending behind the SIGTRAP of exec
        except OSError:
            pass
    told()
print(sorted(seen), sorted(reached))
"""


def test_nothing_of_ours_is_within_reach() -> None:
    """Root inside, with every capability there, looks at whatever turns up while programs are executed."""
    prefix = os.path.realpath(sys.base_prefix)
    tree = root(isolate.Bind(prefix)) if not prefix.startswith("/usr") else root()  # type: ignore[arg-type]
    powers = (isolate.Capabilities.all(), isolate.NoNewPrivs(enabled=False))
    with box(*powers, tree=tree).spawn(
        [os.path.realpath(sys.executable), "-I", "-c", WATCH], stdout=isolate.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"ready\n"
        start = time.monotonic()
        # A second at least; on a busy machine until it has seen the control's.
        while (spent := time.monotonic() - start) < 1 or (spent < 60 and "seen" not in output(first, "ls /tmp")):
            with first.exec(["sleep", "0.01"]) as further:
                further.wait(10)
        output(first, "touch /tmp/stop")
        told = first.stdout.read().decode()
    # The control: programs that have been executed are within reach of root inside, and our processes were seen.
    assert "'fd'" in told
    assert "'launcher'" in told
    assert told.strip().endswith("[]"), told


def test_no_working_directory_leads_out() -> None:
    """A working directory such as /proc/self/fd/7 finds no directory of the host's (the class of CVE-2024-21626)."""
    outside = os.stat("/").st_ino
    with box().spawn(["sleep", "100"]) as first:
        for number in range(3, 20):
            try:
                found = output(first, "ls -di . ; ls -di ../../..", cwd=f"/proc/self/fd/{number}")
            except isolate.SetupError:
                continue
            assert str(outside) not in found.split(), number


def test_a_file_in_the_place_of_proc_is_not_believed() -> None:
    """What stands at /proc/thread-self/children in a sandbox of somebody's making is nothing to the supervisor."""
    victim = isolate.Sandbox().spawn(["sleep", "100"])
    tree = isolate.Root(
        *SYSTEM,
        isolate.Dev(),
        isolate.File("/proc/thread-self/children", f"{victim.pid} ".encode()),
    )
    with victim, isolate.Sandbox(isolate.PidNamespace(), tree).spawn(["sleep", "100"]) as first:
        assert output(first, "cat /proc/thread-self/children").strip() == str(victim.pid)
        with isolate.attach(first) as there:
            assert there.run(["true"]).returncode == 0
        assert victim.poll() is None


def test_the_program_is_pinned_by_its_own_pidfd() -> None:
    """Its supervisor has not noticed the end yet, so the whole has not ended; the number may be anybody's."""
    with isolate.Cgroup() as group, isolate.Sandbox(group).spawn(["sleep", "100"]) as process:
        assert further._groups(process)
        with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
            parent = int(file.read().split("PPid:")[1].split()[0])
        assert parent != os.getpid()
        os.kill(parent, signal.SIGSTOP)
        try:
            process.send_signal(signal.SIGKILL)
            poller = select.poll()
            poller.register(process.pidfd, select.POLLIN)
            assert poller.poll(30_000)
            assert process.poll() is None
            with pytest.raises(isolate.SetupError, match="ended"):
                further._groups(process)
        finally:
            os.kill(parent, signal.SIGCONT)


SEEN = "grep -lxz '[4]000' /proc/[0-9]*/cmdline | wc -l"
LEAVES = f"setsid sh -c 'setsid sleep 4000 &' < /dev/null > /tmp/left; until [ $({SEEN}) = 1 ]; do sleep 0.01; done; "


def test_what_a_command_leaves_ends_with_it() -> None:
    """Also what has left its session: init of the further program inherits it, and is followed by nobody else."""
    with box().spawn(["/bin/sleep", "1000"]) as process:
        assert output(process, LEAVES + SEEN).strip() == "1"  # control: it is there as long as the command runs
        assert output(process, SEEN).strip() == "0"
    with box().open() as container:
        assert container.run(["sh", "-c", LEAVES + SEEN]).stdout.strip() == b"1"
        assert container.run(["sh", "-c", SEEN]).stdout.strip() == b"0"
