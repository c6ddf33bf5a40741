"""Nobody inside gets at what sets a sandbox up, nor through it at the host (issue: host root through a dumpable init).

The attacker is root of the host without a capability and without a user namespace, in a container of its own. The
caller starts something in that container's pid namespace: each new process there is tried at once, over and over.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolate import (
    Bind,
    Capabilities,
    IdMap,
    IpcNamespace,
    MountNamespace,
    PidNamespace,
    Proc,
    Root,
    Sandbox,
    Symlink,
    UserNamespace,
    attach,
)
from isolate.sandbox.expired import TimeoutExpired
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolate import Process

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="the host's root is what is at stake")

ATTACK = r"""
import ctypes, json, os, select, sys
libc = ctypes.CDLL(None, use_errno=True)
proof = sys.argv[1]
own, granted, seen = {1, os.getpid()}, {}, set()
told = False
def won(what, pid):
    granted.setdefault(what, pid)
print("ready", flush=True)
while not select.select([0], [], [], 0)[0]:
    if seen and not told:
        print("seen", flush=True)
        told = True
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in own:
            continue
        pid = int(name)
        seen.add(pid)
        try:
            with open(f"/proc/{pid}/root{proof}", "w") as file:
                file.write("was here")
            won("root", pid)
        except OSError:
            pass
        for what in ("mem", "environ", "maps"):
            try:
                fd = os.open(f"/proc/{pid}/{what}", os.O_RDWR if what == "mem" else os.O_RDONLY)
            except OSError:
                continue
            try:
                # One that has just ended can be opened and is empty; of a memory nothing is known but that it is open.
                if what == "mem" or os.read(fd, 1):
                    won(what, pid)
            except OSError:
                pass
            os.close(fd)
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            continue
        for number in range(8):
            got = libc.syscall(438, fd, number, 0)
            if got >= 0:
                won("pidfd_getfd", pid)
                os.close(got)
        os.close(fd)
        # Seized, not attached to: the SIGSTOP of the latter may come after the stop of an exec, and stay for ever.
        if libc.ptrace(0x4206, pid, 0, 0) == 0:
            won("ptrace", pid)
            libc.ptrace(0x4207, pid, 0, 0)
            try:
                os.waitpid(pid, 0x40000000)
            except OSError:
                pass
            libc.ptrace(17, pid, 0, 0)
print(json.dumps({"granted": granted, "seen": len(seen)}))
"""
SYSTEM = (Bind("/usr"), Symlink("usr/bin", "/bin"), Symlink("usr/lib", "/lib"), Symlink("usr/lib64", "/lib64"))


@pytest.fixture
def attacker() -> Iterator[Callable[..., Any]]:
    """Starts the attacker. What it returns waits until it has seen a process, and ends it and says what was granted."""
    running: list[Process] = []

    def start(proof: Path, *parts: Any) -> tuple[Process, Callable[[float], bool], Callable[[], dict[str, Any]]]:
        # As uid 0 of the host, with no capability, and no filter that would refuse a call in place of the kernel.
        box = Sandbox(PidNamespace(), MountNamespace(), IpcNamespace(), Root(*SYSTEM, Proc()), *parts)
        process = box.spawn(
            ["/usr/bin/python3", "-I", "-S", "-c", ATTACK, str(proof)], stdin=-1, stdout=-1, stderr=None
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"

        def sees(seconds: float) -> bool:
            return bool(select.select([process.stdout], [], [], seconds)[0])

        def result() -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
            found: dict[str, Any] = json.loads(process.stdout.readline() if line == b"seen\n" else line)
            process.wait(20)
            return found

        return process, sees, result

    yield start
    for process in running:
        process.close()


@root_only
def test_01_control_a_process_of_a_user_namespace_that_root_owns_is_granted(
    attacker: Callable[..., Any], tmp_path: Path
) -> None:
    """The attack works: on a process that takes no care it writes a file on the host as root."""
    proof = tmp_path / "proof"
    process, _, result = attacker(proof)
    order = ["nsenter", f"--pid=/proc/{process.pid}/ns/pid", "unshare", "--user", "--map-root-user", "sleep", "60"]
    with subprocess.Popen(order) as victim:
        for _ in range(3000):
            if proof.exists() or victim.poll() is not None:
                break
            time.sleep(0.01)
        found = result()
        process.close()  # the victim, in its pid namespace, ends with it
    assert found["granted"].keys() >= {"root", "pidfd_getfd"}, found
    assert proof.read_text() == "was here"


VICTIMS = {
    "a new user namespace": (UserNamespace(),),
    "one that maps to nobody": (UserNamespace(map=IdMap.single(0, 0, host_uid=65534, host_gid=65534)),),
    "one with a root of its own": (UserNamespace(), Root(*SYSTEM)),
    "capabilities": (UserNamespace(), Capabilities.all()),
}


@root_only
@pytest.mark.parametrize("parts", VICTIMS.values(), ids=VICTIMS)
def test_01_a_joined_pid_namespace_with_a_new_user_namespace(
    attacker: Callable[..., Any], tmp_path: Path, parts: tuple[Any, ...]
) -> None:
    """Neither the set-up nor the program can be traced, and nothing of the host is reached through them."""
    proof = tmp_path / "proof"
    process, sees, result = attacker(proof)
    with attach(process.pid) as target:
        box = Sandbox(target.pid_namespace, *parts)
        for _ in range(15):
            assert box.run(["true"], timeout=20).ok
        for _ in range(100):
            assert box.run(["sleep", ".2"], timeout=20).ok
            if sees(0):
                break
    found = result()
    assert found["seen"] > 0, "the attacker saw the processes come"
    assert found["granted"] == {}
    assert not proof.exists()


@root_only
def test_01_further_programs_and_joining_without_a_user_namespace(attacker: Callable[..., Any], tmp_path: Path) -> None:
    """While it sets up: the program itself is then an equal of the attacker's, with the same root."""
    proof = tmp_path / "proof"
    process, sees, result = attacker(proof)
    for _ in range(5):
        # The attacker is an equal of the program and may stop it.
        with process.exec(["/usr/bin/true"]) as further, contextlib.suppress(TimeoutExpired):
            further.wait(0.3)
    with process.exec(["/usr/bin/sleep", "60"]):
        sees(30)
    found = result()
    assert found["seen"] > 0
    assert not proof.exists()


def init_of(launcher: int) -> int:
    """The launcher's one child."""
    return int(Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()[0])


def test_01_an_ordinary_users_set_up_is_not_dumpable_once_the_maps_are_written() -> None:
    """Launcher and init of a running sandbox: their files are root's."""
    out = as_ordinary_user(
        "import os\n"
        "from isolate import PidNamespace, Sandbox, UserNamespace\n"
        "for parts in ((), (UserNamespace(), PidNamespace())):\n"
        "    box = Sandbox(*parts) if parts else None\n"
        "    if box is None:\n"
        "        from isolate import Credentials\n"
        "        box = Sandbox(Credentials(groups=None))\n"
        "    with box.spawn(['sleep', '9']) as p:\n"
        "        ours = [p._session.pid]\n"
        "        ours += [int(n) for n in open(f'/proc/{ours[0]}/task/{ours[0]}/children').read().split()]\n"
        "        print([os.stat(f'/proc/{pid}/environ').st_uid for pid in ours])\n"
        "print(os.stat('/proc/self/environ').st_uid)  # control\n"
    )
    assert out.splitlines() == ["[0, 0]", "[0, 0]", "65534"]


@root_only
def test_01_id_maps_that_only_the_traceable_have_are_refused_among_strangers() -> None:
    """A caller with CAP_SYS_ADMIN alone could not write the maps of what cannot be traced: an error says so."""
    code = (
        "import os\n"
        "from isolate import PidNamespace, Sandbox, SetupError, UserNamespace\n"
        "fd = int(os.environ['PIDNS'])\n"
        "try:\n"
        "    Sandbox(PidNamespace(fd=fd), UserNamespace()).run(['true'])\n"
        "except SetupError as error:\n"
        "    print(error.errno, error.part, 'cannot be traced' in str(error))\n"
        "print(Sandbox(PidNamespace(), UserNamespace()).run(['true']).verdict)  # control\n"
    )
    with Sandbox(PidNamespace()).spawn(["sleep", "9"]) as process:
        fd = os.open(f"/proc/{process.pid}/ns/pid", os.O_RDONLY)
        as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        rights = ["--inh-caps=-all,+sys_admin", "--ambient-caps=-all,+sys_admin", "--bounding-set=-all,+sys_admin"]
        done = subprocess.run(
            [*as_user, *rights, sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            pass_fds=[fd],
            env={"PIDNS": str(fd)},
            cwd="/",
        )
        os.close(fd)
    assert done.stdout.splitlines() == ["13 UserNamespace True", "OK"], done.stderr


def test_01_the_tape_is_sealed_and_closed(tmp_path: Path) -> None:
    """No process of a sandbox has a descriptor of the tape, and nobody can write to it any more."""
    with Sandbox(UserNamespace(), PidNamespace()).spawn(["sleep", "9"]) as process:
        launcher = process._session.pid
        init = init_of(launcher)
        for pid in (launcher, init):
            names = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            assert not [name for name in names if "isolate-tape" in name or "isolate-run" in name]


def test_01_the_tape_cannot_be_written() -> None:
    """What the launcher is given has every seal, so nothing that it has mapped changes under it."""
    trace = shutil.which("strace")
    if trace is None:
        pytest.skip("strace shows the seals")
    code = "from isolate import *; print(Sandbox(PidNamespace(), UserNamespace()).run(['true']).verdict)"
    done = subprocess.run(
        [trace, "-e", "trace=memfd_create,fcntl", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "OK\n"
    fd = re.search(r'memfd_create\("isolate-tape".*\) = (\d+)', done.stderr)
    assert fd is not None
    assert re.search(rf"fcntl\({fd[1]}, F_ADD_SEALS, .*F_SEAL_WRITE.*\) = 0", done.stderr)


def test_init_has_a_process_group_of_its_own() -> None:
    """What is sent to the launcher's process group is not for init."""
    with Sandbox(UserNamespace(), PidNamespace()).spawn(["sleep", "9"]) as process:
        launcher = process._session.pid
        init = init_of(launcher)
        assert os.getpgid(init) == init
        assert os.getpgid(launcher) == launcher
        assert os.getsid(launcher) == launcher
        assert os.getsid(process.pid) == process.pid
