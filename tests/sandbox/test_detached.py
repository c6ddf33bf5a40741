"""Detached containers outlive who opened them, are found by name, and leave nothing that is not recognised."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import isolate
from isolate import (
    Bind,
    Dev,
    IsolateError,
    Limits,
    Overlay,
    PidNamespace,
    Root,
    Sandbox,
    SetupError,
    Symlink,
    UnsupportedError,
    UserNamespace,
    Verdict,
    presets,
)
from isolate.engine.descriptors import OwnedDescriptor
from isolate.sandbox.containers import records
from isolate.sandbox.containers.log import Log, read_log
from isolate.sandbox.containers.written import from_bytes, to_bytes
from tests.kept import own_records, settled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.engine.leaks import Snapshot

BOX = presets.untrusted()


@pytest.fixture(autouse=True)
def own_directory() -> Iterator[Path]:
    """A directory of records of this test's own, without containers afterwards."""
    with own_records() as directory:
        yield directory


def elsewhere(code: str) -> str:
    """What another program prints."""
    whole = f"import isolate\n{code}"
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "isolate", *args], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def test_it_goes_on_without_who_opened_it(clean: Snapshot) -> None:
    told = elsewhere(
        "with isolate.presets.untrusted().open(name='web', detached=True) as c:\n"
        "    c.run(['sh', '-c', 'echo kept > /tmp/file']).check()\n"
        "    print(c.pid)\n"
    )
    with isolate.reopen("web") as c:
        assert c.pid == int(told)
        assert c.run(["cat", "/tmp/file"]).stdout == b"kept\n"
        assert c.run(["sleep", "9"], timeout=0.1).verdict is Verdict.TIMEOUT
        assert c.name == "web"
        assert c.running
        with c.spawn(["sleep", "9"]) as process:
            assert process.poll() is None
        c.stop()
        assert not c.running
    assert [r.state for r in records.read_records()] == ["ended"]
    with pytest.raises(SetupError, match="it has ended"):
        isolate.reopen("web")
    records.remove("web")
    with pytest.raises(SetupError, match="no detached container has this name"):
        isolate.reopen("web")


def test_modes_and_names(own_directory: Path) -> None:
    with BOX.open(name="web", detached=True) as c:
        for path in [own_directory / "web", *(own_directory / "web").iterdir()]:
            if not stat.S_ISSOCK(path.stat().st_mode):
                assert path.stat().st_mode & 0o077 == 0, path
        with pytest.raises(SetupError, match="a container of this name runs"):
            BOX.open(name="web", detached=True)
        with pytest.raises(SetupError, match="it runs"):
            records.remove("web")
        c.kill()
        c.wait(20)
    with BOX.open(name="web", detached=True) as c:  # one that has ended gives way
        c.kill()
    for bad in ("", "../x", "a/b", ".x", "x" * 65, "a\n"):
        with pytest.raises(ValueError, match="name of a container"):
            BOX.open(name=bad, detached=True)
    with pytest.raises(ValueError, match="detached=True"):
        BOX.open(name="web")  # type: ignore[call-overload]


def test_wait_is_for_the_keeper_too() -> None:
    """It writes the last of the output and the record after the container's end: until then the name is taken."""
    with BOX.open(name="web", detached=True) as c:
        (record,) = records.read_records()
        waiting = threading.Thread(target=c.wait, args=(60,))
        os.kill(record.keeper, signal.SIGSTOP)
        try:
            c.kill()
            waiting.start()
            assert select.select([c.fileno()], [], [], 20)[0]  # all inside has ended
            assert not c.running
            with pytest.raises(SetupError, match="a container of this name runs"):
                BOX.open(name="web", detached=True)
            waiting.join(0.2)
            assert waiting.is_alive()
        finally:
            os.kill(record.keeper, signal.SIGCONT)
        waiting.join(60)
        assert not waiting.is_alive()
    assert [r.state for r in records.read_records()] == ["ended"]


def test_links_are_not_followed(own_directory: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (own_directory / "web").symlink_to(other)
    with pytest.raises(SetupError, match="no detached container"):
        isolate.reopen("web")
    with pytest.raises(SetupError, match="no container's record"):
        BOX.open(name="web", detached=True)
    assert list(other.iterdir()) == []


def test_the_record_of_a_keeper_that_was_killed_is_dead() -> None:
    with BOX.open(name="web", detached=True) as c:
        (record,) = records.read_records()
        assert record.state == "running"
        os.kill(record.keeper, signal.SIGKILL)
        c.wait(20)  # it ends with its keeper
    assert settled("web").state == "dead"
    with pytest.raises(SetupError, match="it has ended"):
        isolate.reopen("web")
    with BOX.open(name="web", detached=True) as c:  # the name is free
        c.kill()


def test_programs_that_are_kept_and_their_log() -> None:
    with BOX.open(name="web", detached=True, log_size=8192) as c:
        pid = c.keep(["sh", "-c", "echo started $WHO; exec sleep 1000"], env={"WHO": "me", "PATH": "/usr/bin"})
        assert pid > 0
        deadline = time.monotonic() + 20
        while b"started me\n" not in c.logs() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert b"started me\n" in c.logs()
        with pytest.raises(SetupError) as caught:
            c.keep(["no-such-program"])
        assert caught.value.errno == 2
        c.keep(["sh", "-c", "yes | head -c 100000; echo last"])
        while b"ended with 0" not in c.logs() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(c.logs()) <= 8192
        assert b"last\n" in c.logs()
        start = time.monotonic()
        c.stop(grace=60)  # sleep takes the SIGTERM
        assert time.monotonic() - start < 30


def test_a_log_that_cannot_be_opened_again_is_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program writes goes into no file that got the descriptor's number meanwhile."""
    fd = os.open(tmp_path, os.O_RDONLY)
    log = Log(fd, 100)
    log.write(b"a" * 50)
    before = log._file

    def refused() -> int:
        raise OSError(errno.EMFILE, "no descriptors are left")

    with monkeypatch.context() as patch:
        patch.setattr(log, "_open", refused)
        log.write(b"lost")
        other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT, 0o600)
        if other != before:  # a lower one is free by now
            lower, other = other, os.dup2(other, before)
            os.close(lower)
        assert other == before, "control: it has the number"
        log.write(b"lost, too")
    log.write(b"kept")
    assert (tmp_path / "other").read_bytes() == b""
    assert read_log(fd).endswith(b"kept"), "control: it goes on"
    log.close()
    for each in (fd, other):
        os.close(each)


def test_the_log_is_bounded(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    log = Log(fd, 100)
    for n in range(1000):
        log.write(b"%d\n" % n)
    assert len(read_log(fd)) <= 100
    assert read_log(fd).endswith(b"998\n999\n")
    log.write(b"x" * 1000)
    assert set(read_log(fd)) == {ord("x")}
    assert 50 <= len(read_log(fd)) <= 100
    assert sorted(os.listdir(tmp_path))[-2:] == ["log", "log.1"]
    os.close(fd)


def test_an_error_of_the_set_up_is_told_as_it_is(own_directory: Path) -> None:
    box = presets.untrusted(isolate.Bind("/no/such/file", "/x"))
    with pytest.raises(SetupError) as caught:
        box.open(name="web", detached=True)
    assert caught.value.part == "Root"
    assert list(own_directory.iterdir()) == []


def test_what_cannot_be_written_down() -> None:
    net = isolate.NetNamespace(fd=OwnedDescriptor(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)))
    with pytest.raises(TypeError, match="cannot have NetNamespace"):
        presets.untrusted(extra=[net]).open(name="web", detached=True)
    for box in (BOX, presets.untrusted(network=True, limits=Limits(memory="1G")), presets.container("/")):
        assert from_bytes(to_bytes(box.parts)) == box.parts
    with pytest.raises(ValueError, match=r"os.system|posix.system"):
        from_bytes(pickle.dumps(os.system))
    with pytest.raises(ValueError, match="is no value"):
        from_bytes(b"\x80\x04\x8c\x15isolate.engine.native\x94\x8c\x07os.open\x94\x93.")


def test_limits_and_stats() -> None:
    box = presets.untrusted(limits=Limits(memory="128M"))
    try:
        box.check()
    except UnsupportedError as error:
        pytest.skip(str(error))
    with box.open(name="web", detached=True) as c:
        burst = "x = bytearray(300_000_000)"
        assert c.run(["python3", "-c", burst]).verdict is Verdict.OOM
        elsewhere("isolate.reopen('web').update(memory='1G')")
        assert c.run(["python3", "-c", burst]).verdict is Verdict.OK
        c.freeze()
        with pytest.raises(SetupError, match="frozen"):
            c.run(["true"])
        c.kill()
        c.wait(20)


def test_the_command_line() -> None:
    done = command("open", "--memory", "256M", "web", "--", "sh", "-c", "echo begun; exec sleep 1000")
    assert done.returncode == 0, done.stderr
    assert json.loads(command("ps", "--json").stdout)[0]["state"] == "running"
    assert "web" in command("ps").stdout
    done = command("exec", "web", "--", "sh", "-c", "echo out; exit 7")
    assert (done.returncode, done.stdout) == (7, "out\n")
    for words in (
        ["web", "sh", "-c", "exit 8"],
        ["--quiet", "web", "sh", "-c", "exit 8"],
        ["web", "--quiet", "--", "sh", "-c", "exit 8"],
    ):
        assert command("exec", *words).returncode == 8
    assert command("exec", "--timeout", "0.1", "web", "--", "sleep", "9").returncode == 124
    assert command("attach", "web", "--", "echo", "inside").stdout == "inside\n"
    assert command("exec", "--keep", "web", "--", "echo", "into the log").returncode == 0
    deadline = time.monotonic() + 20
    while "into the log" not in command("logs", "web").stdout and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "begun" in command("logs", "web").stdout
    assert json.loads(command("stats", "--json", "web").stdout)["pids"] >= 2
    assert command("rm", "web").returncode == 125
    assert command("stop", "web").returncode == 0
    assert "ended" in command("ps").stdout
    assert command("rm", "web").returncode == 0
    assert command("exec", "web", "--", "true").returncode == 125


def test_many_ask_at_once() -> None:
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            with isolate.reopen("web") as c:
                c.run(["true"]).check()
        except BaseException as error:
            errors.append(error)

    with BOX.open(name="web", detached=True) as c:
        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        c.kill()
    assert errors == []


def test_a_client_that_says_nothing_or_nonsense_keeps_nobody_waiting(own_directory: Path) -> None:
    with BOX.open(name="web", detached=True) as c:
        silent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        silent.connect(str(own_directory / "web/sock"))
        for data in (b"\xff", b"[]", b'{"do": "x"}', b'{"do": "keep"}', b"{" * 100000):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as noisy:
                noisy.connect(str(own_directory / "web/sock"))
                noisy.send(data)
                assert b"refused" in noisy.recv(65536)
        assert isolate.reopen("web").run(["true"]).verdict is Verdict.OK
        silent.close()
        c.kill()


def test_errors_are_of_the_library() -> None:
    with pytest.raises(IsolateError):
        isolate.reopen("nothing")
    values: list[Any] = [5, None, b"x"]
    for value in values:
        with pytest.raises(TypeError):
            isolate.reopen(value)


def test_changes_of_an_overlay(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    programs = [
        Symlink(os.readlink(p), p) if os.path.islink(p) else Bind(p) for p in ("/usr", "/bin", "/lib", "/lib64")
    ]
    box = Sandbox(UserNamespace(), PidNamespace(), Root(Overlay("/", lower=[tmp_path]), *programs, Dev()))
    with box.open(name="web", detached=True) as c:
        c.run(["sh", "-c", "echo A > /a; echo > \"$(printf '/l\\nx')\""]).check()
        with isolate.reopen("web") as again:
            assert [str(change) for change in again.changes() or ()] == ["C /a", "A /l\\nx"]
        c.kill()
        c.wait(20)
    with BOX.open(name="other", detached=True) as c:
        assert c.changes() is None


# ---- what another process of the same user does to the records -------------------------------------------------------


def test_a_held_lock_keeps_nobody_waiting(own_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """flock(2) has no deadline: whoever may open the directory may hold its lock for ever."""
    monkeypatch.setattr(records, "_PATIENCE", 0.1)
    monkeypatch.setattr(records, "_LOOKING", 0.1)
    with BOX.open(name="web", detached=True) as c:
        holder = os.open(own_directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(holder, fcntl.LOCK_EX)
            assert [(r.name, r.state) for r in records.read_records()] == [("web", "running")]
            with pytest.raises(SetupError, match="lslocks") as caught:
                records.remove("web")
            assert caught.value.errno == errno.EBUSY
            fcntl.flock(holder, fcntl.LOCK_UN)
            with pytest.raises(SetupError, match="it runs"):  # the control
                records.remove("web")
        finally:
            os.close(holder)
        c.kill()
        c.wait(20)


def test_a_fifo_in_a_record_keeps_nobody_waiting(own_directory: Path) -> None:
    for name in ("lock", "record.json", "parts", "log", "log.1", "sock"):
        (own_directory / name).mkdir(mode=0o700)
        os.mkfifo(own_directory / name / name, 0o600)
    assert {r.state for r in records.read_records()} == {"dead"}
    with records.opened("log") as directory:
        assert read_log(directory) == b""
    for name in ("parts", "sock"):
        with pytest.raises(SetupError, match="it has ended"):
            isolate.reopen(name)
    for record in records.read_records():
        records.remove(record.name)
    assert records.read_records() == []


@pytest.mark.parametrize("created", ["Infinity", "NaN", "1e999", '"x"', "[" * 100_000])
def test_a_record_of_nonsense_is_dead(own_directory: Path, created: str) -> None:
    (own_directory / "web").mkdir(mode=0o700)
    (own_directory / "web" / "record.json").write_text(
        f'{{"state": "ended", "ended": null, "pid": 1, "keeper": 1, "command": [], "created": {created}'
    )
    assert [r.state for r in records.read_records()] == ["dead"]
    text = f'{{"state": "ended", "ended": null, "pid": 1, "keeper": 1, "command": [], "created": {created}}}'
    (own_directory / "web" / "record.json").write_text(text)
    (record,) = records.read_records()
    assert (record.state, record.created) == ("dead", 0.0)
    done = command("ps")
    assert (done.returncode, done.stdout.splitlines()[1].split()[:2]) == (0, ["web", "dead"]), done.stderr
