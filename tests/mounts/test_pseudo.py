"""Proc, Sys, Dev, Mqueue: what shows, what is covered, what cannot be changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from isolate import (
    Bind,
    ConflictError,
    Dev,
    IpcNamespace,
    Mqueue,
    NetNamespace,
    PidNamespace,
    Proc,
    Root,
    Sandbox,
    SetupError,
    Sys,
    UserNamespace,
)
from tests.mounts.conftest import SYSTEM, Shell, mounts

if TYPE_CHECKING:
    from pathlib import Path

# ---- Proc ----------------------------------------------------------------------------------------------------------


def test_proc_shows_only_what_is_inside(shell: Shell) -> None:
    script = 'cd /proc; for p in [0-9]*; do read name < $p/comm && echo "$p $name"; done'
    seen = dict(line.split(" ", 1) for line in str(shell(script, Proc()).stdout).splitlines())
    assert len(seen) == 2, seen  # init and the shell
    assert str(os.getpid()) not in seen or seen[str(os.getpid())] == "sh"


def test_proc_is_masked_and_read_only(shell: Shell) -> None:
    if os.geteuid() == 0 and not os.path.exists("/proc/timer_list"):
        pytest.skip("this kernel has no /proc/timer_list")
    script = """
        wc -c < /proc/keys; wc -c < /proc/interrupts
        for f in /proc/sys/kernel/hostname /proc/sys/vm/drop_caches /proc/keys; do echo 3 > $f; done"""
    result = shell(script, Proc())
    assert str(result.stdout).split() == ["0", "0"]
    assert str(result.stderr).count("Read-only file system") == 3
    bare = shell(
        "wc -c < /proc/interrupts; test -w /proc/sys/kernel/hostname && echo writable", Proc(masked=(), read_only=())
    )
    assert int(str(bare.stdout).split()[0]) > 0


def test_proc_masks_of_ones_own(shell: Shell) -> None:
    script = "wc -c < /proc/meminfo; wc -l < /proc/cpuinfo; ls /proc/net | wc -l"
    ours = shell(script, Proc(masked=("/meminfo",)))
    assert str(ours.stdout).split()[0] == "0"
    assert int(str(ours.stdout).split()[1]) > 0
    assert int(str(shell(script, Proc()).stdout).split()[0]) > 0
    # What is not there, or not in procfs itself, is left alone.
    assert shell("true", Proc(masked=("/no/such/file",), read_only=("/nor/this",))).ok


def test_proc_subset(shell: Shell) -> None:
    assert shell("ls /proc/meminfo", Proc()).ok
    only = shell("ls /proc/meminfo; ls -d /proc/self", Proc(subset="pid"))
    assert only.stdout == "/proc/self\n"


def test_proc_hidepid(shell: Shell) -> None:
    options = str(shell("cat /proc/mounts", Proc(hidepid="invisible")).stdout)
    assert "hidepid=invisible" in options


def test_proc_attributes(shell: Shell) -> None:
    table = mounts(shell)
    assert {"nosuid", "nodev", "noexec"} <= set(table["/proc"])
    assert "ro" in table["/proc/sys"]


def nested(setup: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the host's mounts have been changed, in a mount namespace that goes with it."""
    command = f'{setup}\nexec "$0" -c "$1"'
    code = "from isolate import *\n" + code
    return subprocess.run(
        ["unshare", *(["-Ur"] if os.geteuid() else []), "-m", "sh", "-ec", command, sys.executable, code],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=60,
    )


RUN = (
    "print(Sandbox(UserNamespace(), Root(Bind('/usr'), Bind('/lib64'), Bind('/lib'), "
    "{0})).run(['/usr/bin/true']).verdict)"
)


def test_proc_where_the_hosts_is_covered() -> None:
    """As in Docker and Kubernetes: the kernel would show in the new one what the old one hides."""
    every = "for m in $(grep ' - proc ' /proc/self/mountinfo | cut -d' ' -f5); do mount -t tmpfs none $m/fs; done"
    covered = nested(every, RUN.format("Proc()"))
    assert "Root: procfs on /proc" in covered.stderr
    assert "systempaths=unconfined" in covered.stderr
    plain = nested("true", RUN.format("Proc()"))
    assert plain.stdout == "OK\n", plain.stderr


# ---- Sys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [(), (NetNamespace(),)])
def test_sys(shell: Shell, net: tuple[Any, ...], in_user_namespace: bool) -> None:
    script = """
        ls /sys/class/net; ls /sys/firmware | wc -l; ls /sys/fs/cgroup | wc -l
        echo 1 > /sys/kernel/profiling; mkdir /sys/fs/cgroup/x; ls -d /sys/kernel"""
    result = shell(script, Sys(), extra=net)
    lines = str(result.stdout).split()
    assert lines[-3:] == ["0", "0", "/sys/kernel"]
    if net:
        assert lines[:-3] == ["lo"]
    assert str(result.stderr).count("cannot create") == 2
    table = mounts(shell, Sys())
    assert "ro" in table["/sys"]
    assert all("ro" in options for name, options in table.items() if name.startswith("/sys/"))


# ---- Dev -----------------------------------------------------------------------------------------------------------


def test_dev(shell: Shell) -> None:
    script = """
        echo x > /dev/null && for d in zero urandom random; do head -c 3 /dev/$d | wc -c; done
        echo x > /dev/full; echo hello > /dev/shm/file && cat /dev/shm/file
        ls /dev; ls /dev/pts; echo out > /dev/stdout; : < /dev/tty"""
    result = shell(script, Proc(), Dev())
    assert str(result.stdout).split() == [
        "3",
        "3",
        "3",
        "hello",
        "fd",
        "full",
        "null",
        "ptmx",
        "pts",
        "random",
        "shm",
        "stderr",
        "stdin",
        "stdout",
        ("tty"),
        "urandom",
        "zero",
        "ptmx",
        "out",
    ]
    assert "I/O error" in str(result.stderr)  # as dash says it: nothing can be written to /dev/full
    assert "/dev/tty" in str(result.stderr)  # there is no terminal


def test_dev_cannot_be_changed(shell: Shell) -> None:
    """The nodes are the host's own: a mode or an owner changed inside would be changed there."""
    script = (
        "chmod 0 /dev/null; touch /dev/zero; rm /dev/full; mknod /dev/x c 1 3; mkdir /dev/y; echo x > "
        "/dev/z; : > /dev/null"
    )
    before = [os.stat(f"/dev/{name}") for name in ("null", "zero", "full")]
    result = shell(script, Dev())
    assert result.returncode == 0, result.stderr
    assert str(result.stderr).count("Read-only file system") + str(result.stderr).count("busy") >= 5
    after = [os.stat(f"/dev/{name}") for name in ("null", "zero", "full")]
    assert [(s.st_mode, s.st_uid, s.st_mtime) for s in before] == [(s.st_mode, s.st_uid, s.st_mtime) for s in after]


def test_dev_terminals_are_its_own(shell: Shell) -> None:
    if not os.path.exists("/usr/bin/python3"):
        pytest.skip("needs /usr/bin/python3")
    script = (
        "python3 -c \"import os; m, s = os.openpty(); print(os.ttyname(s)); os.write(s, b'hi'); print(os.read(m, 9))\""
    )
    result = shell(script, Dev(), Proc())
    assert result.stdout == "/dev/pts/0\nb'hi'\n", result.stderr
    assert not shell(script, Dev(pts=False), Proc()).ok


def test_dev_shm_is_bounded(shell: Shell) -> None:
    script = "head -c 128K /dev/zero > /dev/shm/file; stat -c %s /dev/shm/file"
    assert str(shell(script, Dev(shm="64K")).stdout).strip() == "65536"
    assert str(shell(script, Dev()).stdout).strip() == str(128 << 10)
    assert "shm" not in str(shell("ls /dev", Dev(shm=None)).stdout)


@pytest.mark.parametrize("entries", [(Dev(mqueue=True),), (Dev(), Mqueue("/q")), (Mqueue(),)])
def test_mqueue(shell: Shell, entries: tuple[Any, ...]) -> None:
    where = "/q" if len(entries) == 2 else "/dev/mqueue"
    result = shell(f"echo x > {where}/queue; cat {where}/queue", Proc(), *entries)
    assert "QSIZE" in str(result.stdout), result.stderr
    assert IpcNamespace() in tuple(Root(*entries).brings())


def test_more_devices_by_name(shell: Shell) -> None:
    """Dev is read-only once the root is complete, not before."""
    assert shell("ls /dev/extra", Dev(), Bind("/dev/null", "/dev/extra", dev=True)).ok


@pytest.mark.parametrize(
    ("setup", "cause"),
    [
        ("touch $d/x; mount --bind $d/x /dev/null", "is not that device"),
        ("mount --bind /dev/zero /dev/null", "is not that device"),
        (
            "touch $d/n; mount --bind /dev/null $d/n; mount -t tmpfs none /dev; touch /dev/null; "
            "mount --bind $d/n /dev/null",
            "/dev/zero does not exist",
        ),
    ],
)
def test_dev_where_the_hosts_is_not_what_it_seems(setup: str, cause: str, place: Path) -> None:
    """The class of CVE-2025-31133: what is called /dev/null is something else."""
    done = nested(f"d={place}; {setup}", RUN.format("Dev()"))
    assert "SetupError" in done.stderr, done.stdout
    assert cause in done.stderr
    assert nested("true", RUN.format("Dev()")).stdout == "OK\n"


# ---- which namespaces ----------------------------------------------------------------------------------------------


def test_what_they_bring() -> None:
    assert PidNamespace() in tuple(Root(Proc()).brings())
    box = Sandbox(Root(*SYSTEM, Proc()), UserNamespace(), PidNamespace(init=False))
    assert "execve" in box.explain()  # ours is kept, and conflicts with nothing


def test_mqueue_of_a_strangers_ipc_namespace(place: Path) -> None:
    """Without an IPC namespace of the same user namespace the kernel refuses it."""
    fd = os.open("/proc/self/ns/ipc", os.O_RDONLY)
    try:
        box = Sandbox(Root(*SYSTEM, Mqueue()), UserNamespace(), IpcNamespace(fd=fd))
        with pytest.raises((SetupError, ConflictError)):
            box.run(["/bin/true"])
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Proc("proc"), ValueError),
        (lambda: Proc(subset="all"), ValueError),
        (lambda: Proc(hidepid="2"), ValueError),
        (lambda: Proc(hidepid=2), ValueError),  # type: ignore[arg-type]
        (lambda: Proc(masked="/kcore"), TypeError),  # type: ignore[arg-type]
        (lambda: Proc(masked=("kcore",)), ValueError),
        (lambda: Proc(masked=("/../etc",)), ValueError),
        (lambda: Proc(read_only=(5,)), TypeError),  # type: ignore[arg-type]
        (lambda: Sys(masked=5), TypeError),  # type: ignore[arg-type]
        (lambda: Dev(shm="0"), ValueError),
        (lambda: Dev(shm="x"), ValueError),
        (lambda: Dev("/dev\0"), ValueError),
        (lambda: Mqueue("../q"), ValueError),
    ],
)
def test_refused(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


def test_unshare_is_there() -> None:
    assert shutil.which("unshare"), "util-linux"
