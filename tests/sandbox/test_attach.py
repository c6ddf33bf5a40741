"""Joining the namespaces of a process that runs."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys

import pytest

import isolate

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def net() -> str:
    return os.readlink("/proc/thread-self/ns/net")


def descriptors() -> set[str]:
    gc.collect()
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture(scope="module", autouse=True)
def _opened_once() -> None:
    isolate.Sandbox().run(["true"])


BOX = isolate.Sandbox(isolate.NetNamespace(), isolate.UtsNamespace(hostname="there"), isolate.MountNamespace())


def test_reversible_one_by_one() -> None:
    before, host = net(), socket.gethostname()
    with BOX.spawn(["sleep", "100"]) as process, isolate.attach(process.pid) as there:
        theirs = os.readlink(f"/proc/{process.pid}/ns/net")
        with there.net:
            assert net() == theirs != before
        with there.uts:
            assert socket.gethostname() == "there"
        with there.mount:
            assert os.readlink("/proc/thread-self/ns/mnt") == os.readlink(f"/proc/{process.pid}/ns/mnt")
        with isolate.Sandbox(there.net, there.uts):
            assert (net(), socket.gethostname()) == (theirs, "there")
    assert (net(), socket.gethostname()) == (before, host)


def test_namespaces_outlive_the_process_and_go_with_the_part() -> None:
    before = descriptors()
    with BOX.spawn(["sleep", "100"]) as process:
        theirs = os.readlink(f"/proc/{process.pid}/ns/net")
        part = isolate.attach(process).net
        there = isolate.attach(process)
        assert there.alive
    assert not there.alive
    with part:
        assert net() == theirs
    assert isolate.Sandbox(part).run(["readlink", "/proc/self/ns/net"], text=True).stdout.strip() == theirs
    there.close()
    del part, there, process
    assert descriptors() <= before  # a thread of an earlier test may close some


def test_a_plain_process_of_somebody_else() -> None:
    script = "hostname plain; echo; exec sleep 100"
    child = subprocess.Popen(["unshare", "--uts", "sh", "-c", script], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        with isolate.attach(child.pid) as there:
            assert there.run(["hostname"], text=True).stdout == "plain\n"
            result = there.run(["grep", "CapEff", "/proc/self/status"], text=True)
            assert result.stdout.split()[1] == "0" * 16
    finally:
        child.kill()
        child.communicate()


def test_from_another_terminal() -> None:
    """Another program, which only knows the pid."""
    with BOX.spawn(["sleep", "100"]) as process:
        code = f"import isolate; print(isolate.attach({process.pid}).run(['hostname'], text=True).stdout)"
        assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "there"


def test_the_command_line() -> None:
    isolate_ = [sys.executable, "-m", "isolate", "attach"]
    with BOX.spawn(["sleep", "100"]) as process:
        theirs = os.readlink(f"/proc/{process.pid}/ns/net")
        show = ["sh", "-c", "hostname; readlink /proc/self/ns/net; exit 3"]
        done = subprocess.run([*isolate_, str(process.pid), "--", *show], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.split()) == (3, ["there", theirs]), done.stderr
        only = [*isolate_, "--only", "uts", str(process.pid), "--", *show]
        done = subprocess.run(only, capture_output=True, text=True, check=False)
        assert done.stdout.split() == ["there", net()]
        wrong = [*isolate_, "--only", "utz", str(process.pid), "--", "true"]
        done = subprocess.run(wrong, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "did you mean 'uts'" in done.stderr


def test_refused() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(isolate.SetupError, match="no such process"):
        isolate.attach(child.pid)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="pid"):
            isolate.attach(wrong)
    with pytest.raises(TypeError):
        isolate.attach("1")  # type: ignore[arg-type]


def test_a_process_that_ended_meanwhile_is_not_taken_for_another() -> None:
    """The pidfd is of one process, the number of another: as after a reuse of the number."""
    from isolate.sandbox.attach import Attached

    ended = subprocess.Popen(["true"])
    pidfd = os.pidfd_open(ended.pid)
    ended.wait()
    before = descriptors()
    with pytest.raises(isolate.SetupError, match="ended"):
        Attached(os.getpid(), pidfd)
    assert descriptors() <= before  # a thread of an earlier test may close some
    os.close(pidfd)


def test_joined_user_namespace_keeps_the_ids_of_the_process() -> None:
    box = isolate.Sandbox(isolate.UserNamespace(uid=5, gid=6), isolate.UtsNamespace(hostname="five"))
    with box.spawn(["sleep", "100"]) as process, isolate.attach(process) as there:
        assert there.run(["sh", "-c", "id -u; id -g; hostname"], text=True).stdout.split() == ["5", "6", "five"]
