"""Namespaces as objects: made, used any number of times, named, looked at, gone."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import isolate

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

KINDS = [
    isolate.NetNamespace,
    isolate.UtsNamespace,
    isolate.IpcNamespace,
    isolate.MountNamespace,
    isolate.CgroupNamespace,
    isolate.UserNamespace,
    isolate.TimeNamespace,
]


@pytest.fixture(autouse=True)
def _no_descriptor_left() -> object:
    isolate.Sandbox().run(["true"])
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_made_used_twice_closed(kind: type[isolate.NetNamespace]) -> None:
    handle = kind.create()
    file = {"network": "net", "mount": "mnt"}.get(kind.kind, kind.kind)
    ours = os.stat(f"/proc/self/ns/{file}").st_ino
    for _ in range(2):
        seen = isolate.Sandbox(handle).run(["readlink", f"/proc/self/ns/{file}"], text=True).stdout.strip()
        assert seen == f"{file}:[{handle.identity.inode}]"
        assert handle.identity.inode != ours
    # A launcher ends a little after its program, and is in its user namespace until PID 1 has reaped it.
    deadline = time.monotonic() + 30
    while handle.processes() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert handle.processes() == []
    with isolate.Sandbox(handle).spawn(["sleep", "100"]) as process:
        assert process.pid in handle.processes()
        assert handle.same(process.pid)
        assert not handle.same(os.getpid())
    handle.close()
    with pytest.raises(ValueError, match="closed"):
        _ = handle.identity


def test_with_is_this_thread() -> None:
    handle = isolate.UtsNamespace.create(hostname="handle")
    for _ in range(2):
        with handle:
            assert os.uname().nodename == "handle"
    assert os.uname().nodename != "handle"


def test_a_network_of_two_sandboxes() -> None:
    net = isolate.NetNamespace.create()
    code = "import socket; s = socket.create_server(('127.0.0.1', 7777)); print(1, flush=True)"
    args = [sys.executable, "-c", f"{code}; s.accept()[0].send(b'hello')"]
    with isolate.Sandbox(net, isolate.PidNamespace()).spawn(args, stdout=isolate.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        client = "import socket; print(socket.create_connection(('127.0.0.1', 7777)).recv(9))"
        done = isolate.Sandbox(net, isolate.UtsNamespace()).run([sys.executable, "-c", client])
        assert done.stdout == b"b'hello'\n"


def test_owner_and_parent() -> None:
    user = isolate.UserNamespace.create()
    here = os.stat("/proc/self/ns/user")
    assert user.parent == user.owner == (here.st_dev, here.st_ino)
    assert user.owner_uid == 0
    assert isolate.NetNamespace.create().owner == (here.st_dev, here.st_ino)
    assert isolate.NetNamespace.create().parent is None
    box = isolate.Sandbox(isolate.UserNamespace(), isolate.NetNamespace())
    with box.spawn(["sleep", "100"]) as process, isolate.attach(process) as there:
        assert there.net.owner == there.user.identity
        assert there.user.parent == (here.st_dev, here.st_ino)


@pytest.mark.skipif(shutil.which("lsns") is None, reason="needs lsns")
def test_as_lsns_says() -> None:
    with (
        isolate.Sandbox(isolate.NetNamespace(), isolate.PidNamespace(), isolate.UtsNamespace()).spawn(
            ["sleep", "100"]
        ) as process,
        isolate.attach(process) as there,
    ):
        told = json.loads(subprocess.check_output(["lsns", "--json", "--output", "NS,TYPE,NPROCS,PID"]))["namespaces"]
        rows = {str(row["ns"]): row for row in told}
        for handle, kind in ((there.net, "net"), (there.uts, "uts"), (there.pid_namespace, "pid")):
            row = rows[str(handle.identity.inode)]
            assert row["type"] == kind
            assert int(row["nprocs"]) == len(handle.processes())
            assert int(row["pid"]) in handle.processes()


def test_a_name_that_ip_netns_sees() -> None:
    name = f"isolate-test-{os.getpid()}"
    path = Path("/run/netns") / name
    net = isolate.NetNamespace.create(name=name)
    try:
        assert path.stat().st_ino == net.identity.inode
        with pytest.raises(isolate.SetupError, match="taken"):
            isolate.NetNamespace.create(name=name)
        assert path.stat().st_ino == net.identity.inode
        if shutil.which("ip"):
            assert name in subprocess.check_output(["ip", "netns", "list"], text=True)
        joined = isolate.Sandbox(isolate.NetNamespace(path=path)).run(["readlink", "/proc/self/ns/net"], text=True)
        assert str(net.identity.inode) in joined.stdout
    finally:
        net.close()
    assert not path.exists()
    assert name not in Path("/proc/self/mountinfo").read_text()


def test_a_name_goes_when_its_owner_is_killed() -> None:
    name = f"isolate-test-{os.getpid()}"
    path = Path("/run/netns") / name
    code = f"import isolate, time; n = isolate.NetNamespace.create(name={name!r}); print(1, flush=True)"
    code += "; time.sleep(100)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert path.exists()
    child.send_signal(signal.SIGKILL)
    child.communicate()
    deadline = time.monotonic() + 20
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert not path.exists()


def test_refused() -> None:
    with pytest.raises(isolate.UnsupportedError, match="PID 1"):
        isolate.PidNamespace.create()
    for name in ("", "a/b", "..", "-x", "a\0b", "x" * 65):
        with pytest.raises(ValueError, match="name"):
            isolate.NetNamespace.create(name=name)
    with pytest.raises(ValueError, match="new one"):
        isolate.NetNamespace.create(pid=1)
    with pytest.raises(ValueError, match="no handle"):
        isolate.NetNamespace().processes()


@pytest.fixture
def odd_run() -> str:
    """A program's beginning: a /run of its own in a mount namespace of its own, and a umask of 0."""
    if os.geteuid() != 0:
        pytest.skip("names need CAP_SYS_ADMIN")
    return """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(None, b"/", None, 0x4000 | 1 << 18, None) == 0
assert libc.mount(b"tmpfs", b"/run", b"tmpfs", 0, b"mode=755") == 0
os.umask(0)
import isolate
def make(name="n"):
    try:
        return isolate.UtsNamespace.create(name=name)
    except isolate.SetupError as error:
        print(error.cause)
"""


def ran(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def test_38_directories_of_names_have_explicit_modes(odd_run: str) -> None:
    code = """
with make():
    for path in ("/run/isolate", "/run/isolate/uts"): print(oct(os.stat(path).st_mode))
    print(os.path.exists("/run/isolate/uts/n"))
os.mkdir("/run/control", 0o777)
print(oct(os.stat("/run/control").st_mode))  # what the umask lets through
"""
    code = code.replace("with make():", "h = make()\nif h:")
    assert ran(odd_run + code) == ["0o40755", "0o40755", "True", "0o40777"]


@pytest.mark.parametrize(
    ("setting", "cause"),
    [
        ("os.mkdir('/run/isolate', 0o777)", "/run/isolate can be written by others (mode 777)"),
        (
            "os.mkdir('/run/isolate'); os.chmod('/run/isolate', 0o755); os.chown('/run/isolate', 1000, 1000)",
            "/run/isolate belongs to uid 1000",
        ),
        (
            "os.mkdir('/run/e', 0o755); os.symlink('/run/e', '/run/isolate')",
            "/run/isolate is a symbolic link, or no directory",
        ),
        (
            "os.mkdir('/run/isolate', 0o755); os.chmod('/run/isolate', 0o755); os.symlink('/tmp', '/run/isolate/uts')",
            "/run/isolate/uts is a symbolic link, or no directory",
        ),
    ],
    ids=["written by all", "another's", "a link", "a link below"],
)
def test_38_who_else_could_lead_names_elsewhere(odd_run: str, setting: str, cause: str) -> None:
    assert ran(f"{odd_run}\n{setting}\nmake()") == [f"{cause}: others could lead the name elsewhere"]
    assert ran(f"{odd_run}\nprint(make() is not None)") == ["True"], "control: without that"


def test_38_a_foreign_link_in_the_place_of_a_name(odd_run: str) -> None:
    code = """
make().close()
open("/run/target", "w").close()
os.symlink("/run/target", "/run/isolate/uts/n")
print(make())
print(os.path.islink("/run/isolate/uts/n"), os.path.ismount("/run/target"))
"""
    assert ran(odd_run + code) == ["the name is taken", "None", "True False"]


def test_38_a_name_is_removed_only_if_it_is_still_ours(odd_run: str) -> None:
    code = """
first = make()
path = b"/run/isolate/uts/n"
assert libc.umount2(path, 2) == 0
os.unlink(path)
second = make()  # the same name, another's
first.close()
print(second.identity.inode == os.stat(path).st_ino)
second.close()
print(os.path.exists(path))
"""
    assert ran(odd_run + code) == ["True", "False"]
