"""Any file system, devices by number, a root that is read-only last, settings of namespaces, programs of the host."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

import isolate
from isolate import (
    Bind,
    Capabilities,
    ConflictError,
    Dev,
    Device,
    Dir,
    FileSystem,
    HostProgram,
    IpcNamespace,
    MountNamespace,
    NetNamespace,
    PidNamespace,
    Proc,
    ReadOnly,
    Root,
    Sandbox,
    Seccomp,
    SetupError,
    Symlink,
    Sysctl,
    Tmpfs,
    UnsupportedError,
    UserNamespace,
    UtsNamespace,
)
from tests.ordinary import as_ordinary_user

SYSTEM = (Bind("/usr"), Symlink("usr/bin", "/bin"), Symlink("usr/lib", "/lib"), Symlink("usr/lib64", "/lib64"))


def rooted(*entries: isolate.mounts.Entry, parts: tuple[isolate.Part, ...] = ()) -> Sandbox:
    return Sandbox(UserNamespace(), PidNamespace(), Root(*SYSTEM, Proc(), *entries), *parts)


def out(box: Sandbox, text: str) -> str:
    result = box.run(["sh", "-c", text], text=True)
    assert result.ok, result
    return result.stdout or ""


# ---- any file system ----------------------------------------------------------------------------------


def test_a_file_system_by_its_type() -> None:
    entry = FileSystem("ramfs", "/scratch", options={"mode": "711"}, exec=False)
    told = out(
        rooted(entry),
        "stat -f -c %T /scratch; stat -c %a /scratch; grep ' /scratch ' /proc/self/mountinfo; echo x > /scratch/f",
    )
    assert told.startswith("ramfs\n711\n")
    assert {"nosuid", "nodev", "noexec"} <= set(told.split()[-5].split(",")) or "nosuid,nodev,noexec" in told
    assert isolate.Sandbox(Root(entry)) == isolate.Sandbox(Root(entry))
    assert hash(entry) == hash(FileSystem("ramfs", "/scratch", options={"mode": "711"}, exec=False))
    read_only = FileSystem("tmpfs", "/scratch", options={"size": 65536}, read_only=True)
    assert rooted(read_only).run(["touch", "/scratch/x"]).verdict is isolate.Verdict.EXITED


def test_a_file_system_as_the_root() -> None:
    box = Sandbox(
        UserNamespace(), PidNamespace(), Root(FileSystem("tmpfs", "/", options={"size": "1M"}), *SYSTEM, Proc())
    )
    assert out(box, "grep ' / ' /proc/self/mountinfo | grep -c tmpfs") == "1\n"


def test_what_the_kernel_refuses_is_named() -> None:
    with pytest.raises(SetupError) as caught:
        rooted(FileSystem("nosuchfs", "/x")).run(["true"])
    assert (caught.value.errno, caught.value.part) == (errno.ENODEV, "Root")
    with pytest.raises(SetupError) as caught:
        rooted(FileSystem("tmpfs", "/x", options={"nosuchoption": "1"})).run(["true"])
    assert caught.value.errno == errno.EINVAL
    for wrong in (
        {"type": ""},
        {"type": "a/b"},
        {"options": {"source": "x"}},
        {"options": {"a": False}},
        {"options": 5},
    ):
        words = {"type": "tmpfs", "target": "/x", **wrong}
        with pytest.raises((ValueError, TypeError), match="FileSystem"):
            FileSystem(**words)  # type: ignore[arg-type]


# ---- devices ----------------------------------------------------------------------------------


def test_a_device_by_its_number_in_a_user_namespace() -> None:
    box = rooted(Dev(), Device("/dev/other", (1, 5)), Device("/zero", (1, 5)))
    assert out(box, "head -c 3 /zero | od -An -tx1; stat -c '%t:%T' /dev/other") == " 00 00 00\n1:5\n"
    assert box.run(["chmod", "0", "/zero"]).verdict is isolate.Verdict.EXITED  # the host's node stays as it is
    assert os.stat("/dev/zero").st_mode & 0o777
    with pytest.raises(UnsupportedError, match="no char device of that number"):
        rooted(Device("/x", (4095, 1048575))).run(["true"])
    for wrong in ((1,), (1, -1), "1:5", (True, 1), [1, 5]):
        with pytest.raises(ValueError, match="major, minor"):
            Device("/x", wrong)  # type: ignore[arg-type]


# ---- read-only ----------------------------------------------------------------------------------


def test_read_only_may_be_missing() -> None:
    assert rooted(ReadOnly("/nothing", optional=True)).run(["true"]).ok
    with pytest.raises(SetupError) as caught:
        rooted(ReadOnly("/nothing")).run(["true"])
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("recursive", [False, True])
def test_a_root_that_is_made_read_only_last(recursive: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        top = Bind(directory, "/", read_only=False)
        box = Sandbox(
            UserNamespace(),
            PidNamespace(),
            Root(top, ReadOnly("/", recursive=recursive), *SYSTEM, Proc(), Tmpfs("/tmp"), Dir("/made")),
        )
        told = out(box, "touch /x 2>/dev/null && echo root; touch /tmp/x 2>/dev/null && echo tmp; ls -d /made")
        assert told == "/made\n" if recursive else "tmp\n/made\n"
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        top = Bind(directory, "/", read_only=False)
        writable = Sandbox(UserNamespace(), PidNamespace(), Root(top, *SYSTEM, Proc(), Tmpfs("/tmp")))
        assert out(writable, "touch /x && echo root") == "root\n"  # the control


# ---- propagation ----------------------------------------------------------------------------------


def test_what_is_mounted_inside_shows_in_namespaces_that_are_made_inside() -> None:
    inside = (
        "unshare --mount --propagation unchanged sleep 100 & "
        "while [ $(readlink /proc/$!/ns/mnt) = $(readlink /proc/$$/ns/mnt) ]; do :; done; "
        "mount -t tmpfs none /tmp; echo x > /tmp/mark; "
        "cat /proc/$!/root/tmp/mark 2>/dev/null || echo nothing; kill $!"
    )
    found = {}
    for propagation in ("private", "shared"):
        box = Sandbox(
            UserNamespace(),
            PidNamespace(),
            MountNamespace(propagation=propagation),
            Root(*SYSTEM, Proc(), Dev(), Tmpfs("/tmp")),
            Capabilities.all(),
            Seccomp(otherwise="allow", foreign="allow"),
        )
        before = set(Path("/proc/self/mountinfo").read_text().splitlines())
        found[propagation] = out(box, inside)
        after = set(Path("/proc/self/mountinfo").read_text().splitlines())
        assert not [line for line in after - before if " - tmpfs none " in line]  # others mount, too
    assert found == {"private": "nothing\n", "shared": "x\n"}
    with pytest.raises(ValueError, match="'shared'"):
        MountNamespace(propagation="x")


# ---- settings ----------------------------------------------------------------------------------


def test_settings_of_namespaces() -> None:
    path = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
    before = Path(path).read_text()
    box = rooted(
        parts=(NetNamespace(), Sysctl({"net.ipv4.ip_unprivileged_port_start": 7, "net/ipv4/conf/lo/log_martians": "1"}))
    )
    assert out(box, f"cat {path} /proc/sys/net/ipv4/conf/lo/log_martians") == "7\n1\n"
    assert Path(path).read_text() == before
    with pytest.raises(ConflictError, match=r"without a new NetNamespace\(\)"):
        rooted(parts=(Sysctl({"net.ipv4.ip_forward": 1}),))
    for name in ("kernel.panic", "vm.swappiness", "../x", "net..x", "", "/net/x"):
        with pytest.raises(ValueError, match="Sysctl"):
            Sysctl({name: 1})
    with pytest.raises(TypeError):
        Sysctl({"net.x": None})  # type: ignore[dict-item]
    with pytest.raises(SetupError) as caught:
        rooted(parts=(NetNamespace(), Sysctl({"net.no.such": 1}))).run(["true"])
    assert (caught.value.errno, caught.value.part) == (errno.ENOENT, "Sysctl")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_settings_of_other_namespaces() -> None:
    box = Sandbox(
        IpcNamespace(),
        UtsNamespace(),
        PidNamespace(),
        Root(*SYSTEM, Proc()),
        Sysctl({"kernel.msgmax": 4321, "kernel.domainname": "example"}),
    )
    assert out(box, "cat /proc/sys/kernel/msgmax /proc/sys/kernel/domainname") == "4321\nexample\n"
    assert Path("/proc/sys/kernel/msgmax").read_text() != "4321\n"


# ---- programs of the host ----------------------------------------------------------------------------------


def test_a_program_of_the_host_before_the_root_is_entered() -> None:
    write = HostProgram(["/bin/sh", "-c", "echo made > /../tmp/mark; test -d /proc/1"])
    box = rooted(Tmpfs("/tmp"), parts=(write,))
    assert out(box, "cat /tmp/mark") == "made\n"
    assert not os.path.exists("/tmp/mark")
    assert "run the host's /bin/sh, and wait for it" in box.explain()
    for program, number in ((["/bin/false"], errno.ECHILD), (["/no/such"], errno.ENOENT)):
        with pytest.raises(SetupError) as caught:
            rooted(parts=(HostProgram(program),)).run(["true"])
        assert (caught.value.errno, caught.value.part) == (number, "HostProgram")
    for wrong in ([], "sh", ["sh"], ["/bin/sh", "a\0b"]):
        with pytest.raises((TypeError, ValueError)):
            HostProgram(wrong)


def test_by_an_ordinary_user() -> None:
    code = (
        "from isolate import *\n"
        "from isolate import presets\n"
        "box = presets.untrusted(Device('/dev/other', (1, 5)), FileSystem('ramfs', '/scratch'),\n"
        "    Sysctl({'net.ipv4.ip_unprivileged_port_start': 7}), ReadOnly('/nothing', optional=True))\n"
        "print(box.run(['cat', '/proc/sys/net/ipv4/ip_unprivileged_port_start']).stdout)\n"
    )
    assert as_ordinary_user(code) == "b'7\\n'\n"
