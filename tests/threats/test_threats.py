"""Attempts on the host that no other test makes, each beside the control that it succeeds without the part.

docs/threats.rst says for every row of the threat model which test makes the attempt.
"""

from __future__ import annotations

import ast
import ctypes
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolate
from isolate import (
    Bind,
    Capabilities,
    IpcNamespace,
    MountNamespace,
    NetNamespace,
    NoNewPrivs,
    PidNamespace,
    Proc,
    Rlimits,
    Root,
    Sandbox,
    Seccomp,
    Symlink,
    UserNamespace,
)
from isolate.engine import native
from isolate.kernel import syscalls
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root has what is taken away here")
SYSTEM = (
    Bind("/usr"),
    Symlink("usr/bin", "/bin"),
    Symlink("usr/lib", "/lib"),
    Symlink("usr/lib64", "/lib64"),
    Bind("/etc/alternatives", optional=True),
)
PYTHON = ["/usr/bin/python3", "-I", "-S", "-c"]


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that everybody can reach."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="isolate-threat-") as made:
        os.chmod(made, 0o755)
        yield Path(made)


def test_pid_1_shows_nothing_of_the_callers() -> None:
    """Its environment, memory and descriptors are closed to the program, whose own are not."""
    code = """
import os
for pid in ("1", "self"):
    for name in ("fd", "environ", "mem", "maps", "exe", "cwd"):
        path = f"/proc/{pid}/{name}"
        try:
            if name == "fd": os.listdir(path)[0]
            elif name in ("exe", "cwd"): os.readlink(path)
            else: os.close(os.open(path, os.O_RDONLY))
            print(pid, name, "open")
        except IndexError: print(pid, name, 13)  # root inside may open the directory, and finds nothing
        except OSError as error: print(pid, name, error.errno)
"""
    told = Sandbox(UserNamespace(), Root(*SYSTEM, Proc())).run([*PYTHON, code], check=True, text=True).stdout
    rows = [line.split() for line in (told or "").splitlines()]
    assert {row[2] for row in rows if row[0] == "self"} == {"open"}
    assert {row[2] for row in rows if row[0] == "1"} <= {"1", "13"}  # EPERM, EACCES
    assert len(rows) == 12


def test_an_abstract_socket_of_the_hosts_cannot_be_reached() -> None:
    """Abstract names belong to the network namespace, whatever the root (CVE-2020-15257)."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0isolate-test-{os.getpid()}")
        server.listen()
        code = f"import socket; print(socket.socket(socket.AF_UNIX).connect_ex({server.getsockname()!r}))"
        assert Sandbox(UserNamespace(), NetNamespace()).run([sys.executable, "-I", "-c", code]).stdout == b"111\n"
        assert Sandbox(UserNamespace()).run([sys.executable, "-I", "-c", code]).stdout == b"0\n"


HANDLE = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
mount = os.open("/", os.O_RDONLY)
libc.open_by_handle_at.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
fd = libc.open_by_handle_at(mount, bytes.fromhex(sys.argv[1]), os.O_RDONLY)
print(os.read(fd, 99).decode() if fd >= 0 else ctypes.get_errno())
"""


@root_only
def test_no_file_is_opened_by_its_handle(open_directory: Path) -> None:
    """The "shocker": with CAP_DAC_READ_SEARCH a handle leads to any file of the file system, whatever the root."""
    secret = open_directory / "secret"
    secret.write_text("found")
    libc = ctypes.CDLL(None, use_errno=True)
    handle = ctypes.create_string_buffer(b"\x80\0\0\0", 136)
    if libc.name_to_handle_at(-100, str(secret).encode(), handle, ctypes.byref(ctypes.c_int()), 0):
        pytest.skip("the file system of the temporary directory has no handles")
    plain = [sys.executable, "-I", "-S", "-c", HANDLE, handle.raw.hex()]
    assert Sandbox().run(plain).stdout == b"1\n"  # EPERM
    assert Sandbox(Capabilities({"DAC_READ_SEARCH"})).run(plain).stdout == b"found\n"


SET_UID = """
import os, sys
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
os.execv(sys.argv[1], [sys.argv[1], "-u"])
"""


@root_only
@pytest.mark.parametrize("guard", ["no_new_privs", "nosuid", "neither"])
def test_a_set_uid_program_gives_nothing(guard: str, open_directory: Path) -> None:
    """no_new_privs is enough, and a bind's nosuid is; without both the program is root again."""
    program = open_directory / "id"
    shutil.copy("/usr/bin/id", program)
    program.chmod(0o4755)
    box = Sandbox(
        Root(*SYSTEM, Bind(open_directory, "/there", suid=guard != "nosuid")),
        NoNewPrivs(enabled=guard == "no_new_privs"),
        Capabilities({"SETUID", "SETGID", "SYS_ADMIN"}),  # a filter without no_new_privs needs the last
    )
    result = box.run([*PYTHON, SET_UID, "/there/id"], check=True)
    assert result.stdout == (b"0\n" if guard == "neither" else b"65534\n")


@root_only
def test_untrusted_programs_of_roots_are_nobodys_on_the_host() -> None:
    def host_uid(box: Sandbox) -> str:
        with box.spawn(["sleep", "60"]) as process:
            status = Path(f"/proc/{process.pid}/status").read_text()
        return re.findall(r"^Uid:\t(.*)$", status, re.M)[0].replace("\t", " ")

    assert host_uid(isolate.presets.untrusted()) == "65534 65534 65534 65534"
    assert host_uid(Sandbox(UserNamespace())) == "0 0 0 0"


@root_only
def test_no_program_gets_ahead_of_others() -> None:
    code = "import os\ntry: print(os.nice(-5))\nexcept PermissionError as e: print(e.errno)"
    assert Sandbox().run([sys.executable, "-I", "-c", code]).stdout == b"1\n"
    assert Sandbox(Capabilities({"SYS_NICE"})).run([sys.executable, "-I", "-c", code]).stdout == b"-5\n"


@root_only
@pytest.mark.parametrize("kind", ["device", "mount", "chroot"])
def test_what_root_may_do_is_not_given_to_root_inside(kind: str, open_directory: Path) -> None:
    """mknod(2), mount(2) and chroot(2) with uid 0 and no capability; each with the capability as the control."""
    attempt = {
        "device": f"os.mknod({str(open_directory / 'null')!r}, 0o20666, os.makedev(1, 3))",
        "mount": "print(ctypes.CDLL(None, use_errno=True).mount(b'none', b'/tmp', b'tmpfs', 0, None) and 1/0)",
        "chroot": f"os.chroot({str(open_directory)!r})",
    }[kind]
    capability = {"device": "MKNOD", "mount": "SYS_ADMIN", "chroot": "SYS_CHROOT"}[kind]
    command = [sys.executable, "-I", "-c", f"import ctypes, os\n{attempt}"]
    assert Sandbox(MountNamespace()).run(command).returncode == 1
    assert Sandbox(MountNamespace(), Capabilities({capability})).run(command).returncode == 0


def test_kill_of_everybody_stays_inside() -> None:
    """kill(-1) ends what is in the pid namespace, and not a process of the same user outside."""
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        inside = "sleep 60 & kill -9 -1; echo still here"
        assert Sandbox(UserNamespace(), PidNamespace()).run(["sh", "-c", inside], timeout=20).returncode == 0
        assert bystander.poll() is None
        # The control reaches it by its number, and only it: kill(-1) would end the tests.
        assert Sandbox(UserNamespace()).run(["kill", "-9", str(bystander.pid)]).returncode == 0
        assert bystander.wait(10) == -9
    finally:
        bystander.kill()
        bystander.wait()


def test_the_callers_working_directory_is_not_inside(open_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither as the current directory nor by "..": CVE-2024-21626 left it open."""
    (open_directory / "secret").write_text("x")
    monkeypatch.chdir(open_directory)
    look = ["sh", "-c", "pwd; cat secret /proc/self/cwd/secret ../../../../..$0/secret", str(open_directory)]
    result = Sandbox(UserNamespace(), Root(*SYSTEM, Proc())).run(look)
    assert (result.returncode, result.stdout) == (1, b"/\n")
    assert b"x" in (Sandbox(UserNamespace()).run(look, cwd=open_directory).stdout or b"")


KILL_GROUP = """
import os, signal, subprocess, sys
from isolate import PidNamespace, Sandbox, UserNamespace
os.setsid()
seen = []
signal.signal(signal.SIGUSR1, lambda *arguments: seen.append(1))
attempt = ["sh", "-c", "trap '' USR1; kill -USR1 0"]
boxes = {"init": Sandbox(UserNamespace(), PidNamespace()), "no pid namespace": Sandbox(UserNamespace())}
if sys.argv[1] in boxes: boxes[sys.argv[1]].run(attempt)
else: subprocess.run(attempt)
print(len(seen))
"""


@pytest.mark.parametrize(("how", "reached"), [("init", "0"), ("no pid namespace", "0"), ("nothing", "1")])
def test_kill_of_the_group_stays_inside(how: str, reached: str) -> None:
    """kill(0); "nothing", a plain child of the same program, is the control."""
    done = subprocess.run([sys.executable, "-c", KILL_GROUP, how], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == reached


ALLOW = Seccomp(otherwise="allow")


@pytest.mark.parametrize(
    ("parts", "made"),
    [
        ((UserNamespace(), ALLOW), False),  # the sysctl alone
        ((NetNamespace(),), False),  # the filter alone
        ((UserNamespace(nested=True),), True),
    ],
    ids=["sysctl", "filter", "neither"],
)
def test_each_guard_against_user_namespaces_is_enough(parts: tuple[isolate.Part, ...], made: bool) -> None:
    if os.geteuid() and not any(isinstance(part, UserNamespace) for part in parts):
        parts = ()
    code = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.unshare(0x10000000), ctypes.get_errno(), open('/proc/sys/user/max_user_namespaces').read())"
    )
    result, error, highest = Sandbox(*parts).run([sys.executable, "-I", "-c", code], check=True).stdout.split()
    if ALLOW in parts:
        assert (result, error, highest) == (b"-1", b"28", b"0")  # ENOSPC
    else:
        assert (result, error) == ((b"0", b"0") if made else (b"-1", b"1"))
        assert highest != b"0"


@root_only
def test_groups_that_deny_something_cannot_be_dropped() -> None:
    """CVE-2014-8989: whoever drops a group gets at what is denied to that group. Written by root, the map allows it."""
    code = """
import os, sys
from isolate import Capabilities, Sandbox, UserNamespace
look = "import os; print(open('/proc/self/setgroups').read().strip());"
look += "\\ntry: os.setgroups([]); print(len(os.getgroups()))"
look += "\\nexcept OSError as e: print(e.errno, len(os.getgroups()))"
box = Sandbox(UserNamespace(), Capabilities({"SETGID"}))
print(box.run([sys.executable, "-I", "-S", "-c", look], text=True, check=True).stdout)
"""
    assert as_ordinary_user(code, groups=(100,)).split() == ["deny", "1", "1"]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["allow", "0"]


KEYS = f"""
import os, sys
from isolate import SessionKeyring, Sandbox
from isolate.engine import native
from isolate.kernel import syscalls
number, session = syscalls.number("keyctl"), -3
assert native.call(number, 1, 0) > 0  # a session keyring of this program's own: the key goes with it
assert native.call(syscalls.number("add_key"), b"user", b"isolate-test", b"secret", 6, session) > 0
look = '''
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
key = libc.syscall(NUMBER, 10, -3, b"user", b"isolate-test", 0)  # KEYCTL_SEARCH
data = ctypes.create_string_buffer(20)
print(data.raw[:6] if key > 0 and libc.syscall(NUMBER, 11, key, data, 20) == 6 else ctypes.get_errno())
'''.replace("NUMBER", str(number))
for keyring in SessionKeyring(), SessionKeyring(enabled=False):
    print(Sandbox(keyring).run([{sys.executable!r}, "-I", "-S", "-c", look], text=True).stdout.strip())
"""


@pytest.mark.skipif(not os.path.exists("/proc/keys"), reason="this kernel has no keyrings")
def test_no_key_of_the_callers_session_is_read() -> None:
    done = subprocess.run([sys.executable, "-c", KEYS], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["126", "b'secret'"]  # ENOKEY


def test_a_message_queue_of_the_hosts_cannot_be_opened() -> None:
    """POSIX queues belong to the IPC namespace, whatever the root."""
    name = f"isolate-test-{os.getpid()}".encode()
    queue = native.call(syscalls.number("mq_open"), name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600, 0)
    assert queue >= 0
    try:
        code = (
            "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
            f"print(libc.syscall({syscalls.number('mq_open')}, {name!r}, 0, 0, 0) >= 0 or ctypes.get_errno())"
        )
        command = [sys.executable, "-I", "-S", "-c", code]
        assert Sandbox(UserNamespace(), IpcNamespace()).run(command).stdout == b"2\n"  # ENOENT
        assert Sandbox(UserNamespace()).run(command).stdout == b"True\n"
    finally:
        os.close(queue)
        native.call(syscalls.number("mq_unlink"), name)


@root_only
def test_no_limit_is_raised() -> None:
    code = (
        "import resource\ntry: resource.setrlimit(resource.RLIMIT_NOFILE, (65, 65)); print('raised')\n"
        "except (OSError, ValueError): print('refused')"
    )
    command = [sys.executable, "-I", "-c", code]
    assert Sandbox(Rlimits(nofile=64)).run(command).stdout == b"refused\n"
    assert Sandbox(Rlimits(nofile=(32, 65))).run(command).stdout == b"raised\n"


@root_only
def test_no_address_of_the_kernels_is_told() -> None:
    """/proc/kallsyms and the kernel's log, of the host's /proc: what is not there is the capability."""
    if int(Path("/proc/sys/kernel/perf_event_paranoid").read_text()) <= 1:
        pytest.skip("kernel.perf_event_paranoid tells everybody (and kernel.kptr_restrict may not)")
    if Path("/proc/sys/kernel/kptr_restrict").read_text().strip() == "2":
        pytest.skip("kernel.kptr_restrict tells nobody: no control")
    code = "print(sum(int(line.split()[0], 16) != 0 for line, _ in zip(open('/proc/kallsyms'), range(500))) > 400)"
    command = [sys.executable, "-I", "-S", "-c", code]
    assert Sandbox().run(command).stdout == b"False\n"
    assert Sandbox(Capabilities({"SYSLOG"})).run(command).stdout == b"True\n"
    log = [sys.executable, "-I", "-S", "-c", "import ctypes; print(ctypes.CDLL(None).klogctl(3, None, 0))"]
    assert Sandbox(isolate.presets.untrusted().parts[-2]).run(log).stdout == b"-1\n"


def test_what_comes_back_is_never_an_object() -> None:
    """Nothing in the library can make objects of bytes: not pickle, marshal or shelve, not eval, exec or compile."""

    def makers(text: str) -> set[str]:
        found = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                found.add(node.func.id)
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module or "")
        return found & {"pickle", "marshal", "shelve", "multiprocessing", "eval", "exec", "compile"}

    assert makers("import pickle\nfrom marshal import loads\neval(compile(''))") == {
        "pickle",
        "marshal",
        "eval",
        "compile",
    }
    sources = list(Path(isolate.__file__).parent.rglob("*.py"))
    assert len(sources) > 50
    # The records of detached containers lie in a directory that nobody but their user enters; what is read there is
    # values of this library's classes alone.
    found = {path.name: names for path in sources if (names := makers(path.read_text()))}
    assert found == {"written.py": {"pickle"}}
