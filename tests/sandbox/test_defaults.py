"""What holds in a sandbox that says nothing: each with the control that the same attempt succeeds without it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile

import pytest

import isolate
from isolate import (
    Capabilities,
    Credentials,
    IpcNamespace,
    NetNamespace,
    NoNewPrivs,
    PidNamespace,
    Rlimits,
    Sandbox,
    SessionKeyring,
    UserNamespace,
)
from tests.ordinary import as_ordinary_user

FACTS = """
import json, os, signal
status = dict(l.split(":", 1) for l in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "caps": [status[k].strip() for k in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "nnp": status["NoNewPrivs"].strip(), "seccomp": status["Seccomp"].strip(), "groups": os.getgroups(),
    "blocked": status["SigBlk"].strip(), "ignored": status["SigIgn"].strip(), "umask": status["Umask"].strip(),
    "session": os.getsid(0) == os.getpid(), "group": os.getpgrp() == os.getpid(), "env": dict(os.environ),
    "fds": sorted(int(f) for f in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + f)),
    "core": open("/proc/self/limits").read().split("Max core file size")[1].split()[:2],
    "keyring": [l.split()[8] for l in open("/proc/keys").read().splitlines()] if os.path.exists("/proc/keys") else None,
}))
"""


def facts(*parts: isolate.Part, **options: object) -> dict[str, object]:
    """What a Python program says of itself inside. Its own start-up ignores SIGPIPE and SIGXFSZ."""
    result = Sandbox(*parts).run([sys.executable, "-I", "-S", "-c", FACTS], **options)  # type: ignore[call-overload]
    assert result.verdict is isolate.Verdict.OK, result
    return json.loads(result.stdout)  # type: ignore[no-any-return]


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root has what is taken away here")


@root_only
def test_no_capability_is_left_and_none_can_be_had() -> None:
    assert facts()["caps"] == ["0" * 16] * 5
    kept = facts(Capabilities({"CHOWN"}))
    assert kept["caps"][2] == f"{1:016x}"  # type: ignore[index]


def test_no_new_privileges() -> None:
    assert facts()["nnp"] == "1"
    # Without it a process that has given up its capabilities may install no filter: so none is there.
    assert facts(NoNewPrivs(enabled=False), UserNamespace(nested=True))["nnp"] == "0"


def test_a_filter_is_present() -> None:
    assert facts()["seccomp"] == "2"
    assert facts(UserNamespace(nested=True))["seccomp"] == "0"


def test_supplementary_groups_are_dropped() -> None:
    code = (
        "import os, isolate\n"
        "print(os.getgroups(), isolate.Sandbox().run(['id', '-G']).stdout)\n"
        "print(isolate.Sandbox(isolate.Credentials(groups=None)).run(['id', '-G']).stdout)"
    )
    if os.geteuid() != 0:
        pytest.skip("only root can give a process groups")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, extra_groups=[3, 5], group=0
    )
    first, second = done.stdout.splitlines()
    assert first == "[3, 5] b'0\\n'"
    assert second == "b'0 3 5\\n'"


def test_signals_are_as_at_boot() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
    old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        inside = facts()
        control = json.loads(subprocess.run([sys.executable, "-I", "-S", "-c", FACTS], stdout=-1, check=False).stdout)
    finally:
        signal.signal(signal.SIGCHLD, old)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert inside["blocked"] == "0" * 16
    assert not int(str(inside["ignored"]), 16) & 1 << signal.SIGCHLD - 1
    assert int(control["blocked"], 16) & 1 << signal.SIGUSR1 - 1
    assert int(control["ignored"], 16) & 1 << signal.SIGCHLD - 1


def test_descriptors_are_closed() -> None:
    with tempfile.TemporaryFile() as secret:
        number = secret.fileno()
        os.set_inheritable(number, True)
        inside = facts()["fds"]
        passed = facts(pass_fds=[number])["fds"]
    assert inside == [0, 1, 2]
    assert passed == [0, 1, 2, number]


def test_environment_is_clean() -> None:
    os.environ["ISOLATE_TEST_SECRET"] = "x"
    try:
        assert set(facts()["env"]) - {"LC_CTYPE"} == {"PATH"}  # type: ignore[call-overload]
        assert "ISOLATE_TEST_SECRET" in facts(env=dict(os.environ))["env"]  # type: ignore[operator]
    finally:
        del os.environ["ISOLATE_TEST_SECRET"]
    assert set(facts(env={})["env"]) - {"LC_CTYPE"} == set()  # type: ignore[call-overload]


def test_session_and_process_group_are_its_own() -> None:
    inside = facts()
    assert inside["session"]
    assert inside["group"]
    with Sandbox().spawn(["sleep", "60"]) as process:
        assert os.getsid(process.pid) != os.getsid(0)


def test_umask_and_core_files() -> None:
    old = os.umask(0)
    try:
        inside = facts()
        assert facts(Credentials(umask=0o077))["umask"] == "0077"
    finally:
        os.umask(old)
    assert inside["umask"] == "0022"
    assert inside["core"] == ["0", "0"]
    if os.geteuid() == 0:
        assert facts(Rlimits(core=4096))["core"] == ["4096", "4096"]


def test_session_keyring_is_new() -> None:
    if not os.path.exists("/proc/keys"):
        pytest.skip("this kernel has no keyrings")
    show = "keyctl = __import__('ctypes').CDLL(None).syscall; print(keyctl(250, 0, -3, 0))"
    if os.uname().machine != "x86_64":
        pytest.skip("the number of keyctl is that of x86-64")
    command = [sys.executable, "-I", "-c", show]
    first, second = (Sandbox().run(command).stdout for _ in range(2))
    kept = [Sandbox(SessionKeyring(enabled=False)).run(command).stdout for _ in range(2)]
    assert first != second
    assert kept[0] == kept[1]


UNSHARE = ["unshare", "--user", "true"]


@pytest.mark.parametrize("parts", [(), (UserNamespace(),)], ids=["host", "user namespace"])
def test_no_user_namespaces_inside(parts: tuple[isolate.Part, ...]) -> None:
    assert Sandbox(*parts).run(UNSHARE).returncode == 1
    assert Sandbox(UserNamespace(nested=True)).run(UNSHARE).returncode == 0


def test_loopback_is_up_and_nothing_else_is() -> None:
    code = "import socket; print(socket.if_nameindex()); s = socket.create_server(('127.0.0.1', 0)); print('up')"
    # The socket asks the kernel: /proc is the host's here.
    command = [sys.executable, "-I", "-c", code]
    assert Sandbox(UserNamespace(), NetNamespace()).run(command).stdout == b"[(1, 'lo')]\nup\n"
    down = Sandbox(UserNamespace(), NetNamespace(loopback=False))
    probe = "import socket; s = socket.socket(); s.settimeout(5); print(s.connect_ex(('127.0.0.1', 9)))"
    assert down.run([sys.executable, "-I", "-c", probe]).stdout == b"101\n"  # ENETUNREACH


def test_a_listener_of_the_host_cannot_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; s = socket.socket(); s.settimeout(5); print(s.connect_ex(('127.0.0.1', {port})))"
        command = [sys.executable, "-I", "-c", code]
        assert Sandbox(UserNamespace(), NetNamespace()).run(command).stdout == b"111\n"  # ECONNREFUSED
        assert Sandbox(UserNamespace()).run(command).stdout == b"0\n"


def test_shared_memory_of_the_host_is_not_there() -> None:
    made = subprocess.run(["ipcmk", "-M", "4096"], capture_output=True, text=True, check=True).stdout
    number = made.split()[-1]
    try:
        assert f" {number} ".encode() not in Sandbox(UserNamespace(), IpcNamespace()).run(["ipcs", "-m"]).stdout
        assert f" {number} ".encode() in Sandbox().run(["ipcs", "-m"]).stdout
    finally:
        subprocess.run(["ipcrm", "-m", number], check=True)


def test_setup_processes_cannot_be_traced_from_inside() -> None:
    attempt = (
        "import ctypes, sys; libc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.ptrace(16, {pid}, None, None), ctypes.get_errno())"
    )
    box = Sandbox(UserNamespace(), PidNamespace())
    # With every capability of its own user namespace too: the memory is not of it. (Without, CAP_KILL alone keeps init
    # from being traced.)
    for who in (box, box + Capabilities.all()):
        # A time limit: whoever traces init has stopped it.
        tried = who.run([sys.executable, "-I", "-c", attempt.format(pid=1)], timeout=10)
        assert tried.stdout == b"-1 1\n"  # EPERM
    control = (
        "import subprocess, sys, ctypes; p = subprocess.Popen(['sleep', '9'])\n"
        "libc = ctypes.CDLL(None, use_errno=True); print(libc.ptrace(16, p.pid, None, None)); p.kill()"
    )
    assert box.run([sys.executable, "-I", "-c", control]).stdout == b"0\n"


def test_the_same_as_an_ordinary_user() -> None:
    """The defaults that need no privilege hold for everybody; the bounding set is harmless under no_new_privs."""
    code = f"""
import isolate, sys
box = isolate.Sandbox(isolate.UserNamespace(), isolate.PidNamespace())
result = box.run([sys.executable, "-I", "-S", "-c", {FACTS!r}])
assert result.verdict is isolate.Verdict.OK, result
print(result.stdout.decode())
"""
    inside = json.loads(as_ordinary_user(code))
    assert inside["caps"] == ["0" * 16] * 5
    assert (inside["nnp"], inside["seccomp"], inside["fds"]) == ("1", "2", [0, 1, 2])


UNDISTURBED = """
import os, signal, threading
import isolate
before = {s: signal.getsignal(s) for s in signal.valid_signals()}
assert isolate.Sandbox(isolate.UserNamespace(), isolate.PidNamespace()).run(["true"]).ok
assert threading.active_count() == 1
assert {s: signal.getsignal(s) for s in signal.valid_signals()} == before
try: os.waitpid(-1, os.WNOHANG)
except ChildProcessError: print("no child")
"""


def test_threads_and_signals_of_the_host_are_left_alone() -> None:
    """In a process of its own: other tests may have children."""
    done = subprocess.run([sys.executable, "-c", UNDISTURBED], capture_output=True, text=True, check=False)
    assert done.stdout == "no child\n", done.stderr


def test_a_working_directory_beyond_the_longest_path() -> None:
    """It has no name that the kernel could tell (ENAMETOOLONG); a program of subprocess runs there as well."""
    code = """
import os, subprocess, tempfile
from isolate import Sandbox, UserNamespace
top = tempfile.mkdtemp()
os.chdir(top)
name, depth = "d" * 250, 20
for _ in range(depth):
    os.mkdir(name); os.chdir(name)
print(subprocess.run(["cat", "/proc/self/comm"], capture_output=True).stdout.decode().strip())
for box in (Sandbox(), Sandbox(UserNamespace())):
    print(box.run(["sh", "-c", "echo here > f; cat f"], text=True).stdout.strip())
print(os.path.exists("f"))
os.unlink("f")
for _ in range(depth):
    os.chdir(".."); os.rmdir(name)
os.chdir("/"); os.rmdir(top)
"""
    assert as_ordinary_user(code).split() == ["cat", "here", "here", "True"]
