"""Attempts on the host that no other test makes, each beside the control that it succeeds without the part.

docs/threats.rst says for every row of the threat model which test makes the attempt.
"""

from __future__ import annotations

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
    MountNamespace,
    NetNamespace,
    NoNewPrivs,
    PidNamespace,
    Proc,
    Root,
    Sandbox,
    Symlink,
    UserNamespace,
)

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
    print(pid, "fd", "open" if os.listdir(f"/proc/{pid}/fd") else "13")
    for name in ("environ", "mem", "maps", "exe", "cwd"):
        path = f"/proc/{pid}/{name}"
        try:
            if name in ("exe", "cwd"): os.readlink(path)
            else: os.close(os.open(path, os.O_RDONLY))
            print(pid, name, "open")
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
