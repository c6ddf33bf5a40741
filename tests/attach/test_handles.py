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
    isolate.NetNamespace, isolate.UtsNamespace, isolate.IpcNamespace, isolate.MountNamespace, isolate.CgroupNamespace,
    isolate.UserNamespace, isolate.TimeNamespace,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_descriptor_left() -> object:
    isolate.Sandbox().run(["true"])
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_made_used_twice_closed(kind: type[isolate.NetNamespace]) -> None:
    handle = kind.create()
    file = {"network": "net", "mount": "mnt"}.get(kind.kind, kind.kind)
    ours = os.stat(f"/proc/self/ns/{file}").st_ino
    for _ in range(2):
        seen = isolate.Sandbox(handle).run(["readlink", f"/proc/self/ns/{file}"], text=True).stdout.strip()
        assert seen == f"{file}:[{handle.identity.inode}]"
        assert handle.identity.inode != ours
    deadline = time.monotonic() + 5
    while handle.processes() and time.monotonic() < deadline:  # a launcher ends a little after its program
        os.sched_yield()
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
    deadline = time.monotonic() + 5
    while path.exists() and time.monotonic() < deadline:
        os.sched_yield()
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
