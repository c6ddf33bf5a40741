"""A container stays, its commands end: each with a verdict of its own, and nothing of either is left."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import isolate
from isolate import (
    PIPE,
    Capabilities,
    ConflictError,
    Credentials,
    Limits,
    NetNamespace,
    PidNamespace,
    Sandbox,
    SetupError,
    TimeoutExpired,
    UserNamespace,
    Verdict,
    presets,
)
from isolate.seccomp import Seccomp, rule
from tests.boxes import SYSTEM
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from tests.snapshot import Snapshot

USER = Sandbox(UserNamespace(), PidNamespace())
BUSY = "x = bytearray(300_000_000); import time; time.sleep(20)"


def rooted(*more: Any) -> Sandbox:
    """A root of its own with /tmp to write to; root inside."""
    entries = (
        *SYSTEM,
        isolate.Proc(),
        isolate.Dev(),
        isolate.Tmpfs("/tmp", size="16M"),
    )
    return Sandbox(UserNamespace(), PidNamespace(), isolate.Root(*entries), *more)


def limited(**limits: Any) -> Sandbox:
    box = rooted(Limits(**limits))
    try:
        box.check()
    except isolate.UnsupportedError as error:
        pytest.skip(str(error))
    return box


# ---- commands ----------------------------------------------------------------------------------


def test_files_and_namespaces_stay_between_commands(clean: Snapshot) -> None:
    with rooted().open() as c:
        c.run(["sh", "-c", "echo kept > /tmp/file"]).check()
        assert c.run(["cat", "/tmp/file"], text=True).stdout == "kept\n"
        seen = {c.run(["readlink", "/proc/self/ns/mnt", "/proc/self/ns/pid"]).stdout for _ in range(3)}
        assert len(seen) == 1
        assert rooted().run(["cat", "/tmp/file"]).verdict is Verdict.EXITED  # another sandbox has another /tmp


def test_what_holds_for_a_command_holds_for_a_program_of_the_sandbox() -> None:
    box = presets.untrusted()
    told = [
        "sh",
        "-c",
        "id; grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status; ulimit -a; umask; ls /proc/self/fd",
    ]
    with box.open() as c:
        assert c.run(told).stdout == box.run(told).stdout


def test_what_a_command_started_ends_with_it() -> None:
    with rooted().open() as c:
        c.run(["sh", "-c", "setsid sleep 1000 & exit 0"]).check()
        names = c.run(["sh", "-c", "cat /proc/[0-9]*/comm"], text=True).stdout
        assert names is not None
        assert "sleep" not in names
        first = c.spawn(["sleep", "1000"])
        deadline = time.monotonic() + 20
        while "sleep" not in (c.run(["sh", "-c", "cat /proc/[0-9]*/comm"], text=True).stdout or ""):
            assert time.monotonic() < deadline  # execve has not set it yet when it closes what it closes
        first.close()


def test_a_limit_of_time_ends_the_command_alone(clean: Snapshot) -> None:
    with rooted().open() as c:
        other = c.spawn(["sleep", "1000"])
        assert c.run(["sleep", "1000"], timeout=0.1).verdict is Verdict.TIMEOUT
        assert c.run(["sh", "-c", "while :; do :; done"], cpu_time=0.1).verdict is Verdict.CPU_TIME
        assert c.run(["yes"], max_output=1000).verdict is Verdict.OUTPUT
        assert other.poll() is None
        assert c.running
        other.close()


def test_verdicts_of_the_group_are_of_the_command() -> None:
    with limited(memory="64M", pids=20).open() as c:
        assert c.run(["python3", "-c", BUSY]).verdict is Verdict.OOM
        assert c.run(["true"]).verdict is Verdict.OK
        assert c.run(["false"]).verdict is Verdict.EXITED
        assert c.run(["sh", "-c", "for i in $(seq 50); do sleep 5 & done; wait"], timeout=20).verdict is Verdict.PIDS
        assert c.run(["false"]).verdict is Verdict.EXITED
        assert c.running
        assert (c.stats().oom_kill or 0) >= 1


def test_a_filter_kills_the_command_alone() -> None:
    with (rooted() + Seccomp(rule("kill", "mkdir", "mkdirat"), otherwise="allow")).open() as c:
        assert c.run(["mkdir", "/tmp/x"]).verdict is Verdict.SECCOMP
        assert c.run(["true"]).verdict is Verdict.OK


def test_spawn_with_streams_and_a_terminal() -> None:
    with rooted().open() as c:
        with c.spawn(["cat"], stdin=PIPE, stdout=PIPE) as cat:
            assert cat.stdin is not None
            assert cat.stdout is not None
            cat.stdin.write(b"through\n")
            cat.stdin.close()
            assert cat.stdout.read() == b"through\n"
            assert cat.wait(10) == 0
        with c.spawn(["sh", "-c", "test -t 0 && exit 7"], pty=True) as shell:
            assert shell.wait(10) == 7


def test_a_program_that_is_not_there_and_bad_arguments() -> None:
    with rooted().open() as c:
        with pytest.raises(SetupError) as caught:
            c.run(["no-such-program"])
        assert caught.value.errno == errno.ENOENT
        with pytest.raises(TypeError):
            c.run(5)  # type: ignore[arg-type]
        with pytest.raises(ConflictError, match="NetNamespace holds for the container"):
            c.with_parts(NetNamespace())


def test_from_threads_and_from_an_event_loop() -> None:
    with rooted().open() as c:
        found: list[Any] = []

        def echo(n: int) -> None:
            found.append(c.run(["echo", str(n)], text=True).stdout)

        threads = [threading.Thread(target=echo, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(found) == [f"{n}\n" for n in range(8)]

        async def many() -> list[Any]:
            return await asyncio.gather(*(c.arun(["echo", str(n)], text=True) for n in range(8)))

        assert [result.stdout for result in asyncio.run(many())] == [f"{n}\n" for n in range(8)]


# ---- other parts for one command ----------------------------------------------------------------------------------


@pytest.mark.root
def test_another_user_for_a_command() -> None:
    box = rooted().replace(UserNamespace(map=isolate.IdMap.unprivileged()))
    ids = ["sh", "-c", "id -u; id -g; id -G"]
    with box.open() as c:
        assert c.run(ids).stdout == b"0\n0\n0\n"
        assert c.with_parts(Credentials(uid=1000, gid=1000)).run(ids).stdout == b"1000\n1000\n1000\n"
        assert c.run(ids).stdout == b"0\n0\n0\n"


def test_fewer_rights_for_a_command() -> None:
    with rooted(Capabilities.all()).open() as c:
        chroot = ["chroot", "/", "/usr/bin/true"]
        assert c.run(chroot).verdict is Verdict.OK
        assert c.with_parts(Capabilities.none()).run(chroot).verdict is Verdict.EXITED


def test_limits_of_a_command_are_a_group_below(clean: Snapshot) -> None:
    with limited(memory="1G").open() as c:
        small = c.with_parts(Limits(memory="64M"))
        assert small.run(["python3", "-c", BUSY]).verdict is Verdict.OOM
        assert c.run(["python3", "-c", "x = bytearray(300_000_000)"]).verdict is Verdict.OK
        result = small.run(["true"])
        assert result.verdict is Verdict.OK
        assert result.peak_memory > 0


# ---- the container ----------------------------------------------------------------------------------


def test_freeze_and_thaw() -> None:
    with limited().open() as c:
        with c.spawn(["sh", "-c", "while :; do sleep 0.01; done"]):
            c.freeze()
            with pytest.raises(SetupError) as caught:
                c.run(["true"])
            assert caught.value.errno == errno.EBUSY
            c.thaw()
            assert c.run(["true"]).verdict is Verdict.OK
        c.freeze()  # a container that is frozen ends all the same


def test_limits_change_while_it_runs() -> None:
    with limited(memory="64M").open() as c:
        assert c.run(["python3", "-c", BUSY]).verdict is Verdict.OOM
        c.update(memory="1G")
        assert c.run(["python3", "-c", "x = bytearray(300_000_000)"]).verdict is Verdict.OK
        c.update(Limits(memory="64M"))
        assert c.run(["python3", "-c", BUSY]).verdict is Verdict.OOM
    with rooted().open() as c, pytest.raises(ValueError, match=r"add Limits\(\)"):
        c.stats()


def test_kill_and_wait(clean: Snapshot) -> None:
    with rooted().open() as c:
        with pytest.raises(TimeoutExpired):
            c.wait(0.01)
        process = c.spawn(["sleep", "1000"])
        c.kill()
        c.wait(10)
        assert process.wait(10) == -signal.SIGKILL
        assert not c.running
        with pytest.raises(SetupError, match="the container has ended"):
            c.run(["true"])
        process.close()
    with pytest.raises(SetupError, match="the container has ended"):
        c.run(["true"])


def test_signals_do_not_end_it() -> None:
    with rooted().open() as c:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGCHLD):
            os.kill(c.pid, number)
        c.run(["sh", "-c", "kill -TERM 1; kill -KILL 1"])
        assert c.run(["true"]).verdict is Verdict.OK
        assert c.pidfd >= 0


def test_orphans_are_reaped() -> None:
    with rooted().open() as c:
        for _ in range(3):
            process = c.spawn(["sh", "-c", "sleep 1000 & sleep 1000"])
            process.kill()
            process.wait(10)
            process.close()
        states = c.run(["sh", "-c", "cat /proc/[0-9]*/stat"], text=True).stdout or ""
        assert ") Z " not in states


def test_what_cannot_be_a_container() -> None:
    with pytest.raises(ConflictError, match="pid namespace"):
        Sandbox(UserNamespace()).open()
    with USER.open() as c, pytest.raises(ConflictError, match="below that of the container"):
        c.with_parts(Limits())
    with pytest.raises(ConflictError, match="init=False"):
        Sandbox(UserNamespace(), PidNamespace(init=False)).open()


def test_a_failed_start_leaves_nothing(clean: Snapshot) -> None:
    box = Sandbox(UserNamespace(), PidNamespace(), isolate.Root(isolate.Bind("/no/such/directory")))
    with pytest.raises(SetupError) as caught:
        box.open()
    assert caught.value.part == "Root"


def test_nothing_is_left(clean: Snapshot) -> None:
    for _ in range(3):
        with USER.open() as c:
            c.run(["true"]).check()
            c.spawn(["sleep", "1000"]).close()


def test_it_ends_with_its_caller() -> None:
    code = (
        "import isolate, sys\n"
        "c = isolate.Sandbox(isolate.UserNamespace(), isolate.PidNamespace()).open()\n"
        "p = c.spawn(['sleep', '1000'])\n"
        "print(c.pid, p.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, text=True) as caller:
        assert caller.stdout is not None
        pids = list(map(int, caller.stdout.readline().split()))
        handles = [os.pidfd_open(pid) for pid in pids]
        caller.kill()
        caller.wait()
    import select

    for fd in handles:
        assert select.select([fd], [], [], 20)[0]
        os.close(fd)


def test_by_an_ordinary_user() -> None:
    code = (
        "import isolate\n"
        "from isolate import presets\n"
        "with presets.untrusted().open() as c:\n"
        "    c.run(['sh', '-c', 'echo kept > /tmp/file']).check()\n"
        "    assert c.run(['cat', '/tmp/file']).stdout == b'kept\\n'\n"
        "    assert c.run(['sleep', '9'], timeout=0.1).verdict == 'TIMEOUT'\n"
        "    with c.spawn(['sleep', '9']) as p:\n"
        "        assert p.poll() is None\n"
        "    print('done')\n"
    )
    assert as_ordinary_user(code) == "done\n"


def test_a_command_under_a_filter_that_refuses_prctl() -> None:
    """What a command does for itself it does before its filter."""
    strict = Seccomp.strict()
    with presets.untrusted().open() as c:
        assert c.with_parts(strict).run(["true"]).verdict is Verdict.OK
        refused = c.with_parts(strict).run(["setpriv", "--no-new-privs", "true"])  # the control: prctl is refused
        assert refused.verdict is not Verdict.OK
    box = Sandbox(*presets.untrusted(extra=[strict]).parts)
    with box.spawn(["sleep", "60"]) as process, process.exec(["true"]) as further:
        assert further.wait(20) == 0


def test_init_has_a_session_of_its_own() -> None:
    with presets.untrusted().open() as c:
        group, session = c.run(["cut", "-d ", "-f5,6", "/proc/1/stat"]).check().stdout.split()
        assert (group, session) == (b"1", b"1")
