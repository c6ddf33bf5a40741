"""Terminals of the sandbox's own: they have a name inside, job control works, their end is an end of file."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from isolate import Bind, Credentials, Dev, PidNamespace, Pool, Proc, Root, Sandbox, Symlink, UserNamespace, presets

from .desk import ISOLATE, KILL, PROMPT, Desk

if TYPE_CHECKING:
    from pathlib import Path

    from tests.snapshot import Snapshot

LIBRARIES = [Symlink(f"usr/{name}", f"/{name}") for name in ("bin", "lib", "lib64")]
ROOT = Root(Bind("/usr"), *LIBRARIES, Proc(), Dev())
BOXES = {
    "own devpts": Sandbox(UserNamespace(), PidNamespace(), ROOT),
    "without init": Sandbox(UserNamespace(), PidNamespace(init=False), ROOT),
    "preset": presets.untrusted(),
    "host's devpts": Sandbox(UserNamespace(), PidNamespace()),
}
WHO = "tty && stty size && test -O $(tty) && echo mine && echo again >/dev/tty && cat </dev/tty"


@pytest.mark.parametrize("name", BOXES)
def test_it_has_a_name(name: str, clean: Snapshot) -> None:
    """``tty``, ``test -O`` and /dev/tty; the size is there from the start."""
    if name == "host's devpts" and os.geteuid():
        pytest.skip("the host's devpts gives its multiplexer to root alone")
    for box in (BOXES[name], Pool(BOXES[name]) if name != "without init" else BOXES[name]):
        with box.spawn(["sh", "-c", WHO], pty=(30, 90)) as process:
            assert process.pty
            process.pty.write(b"typed\n\x04")
            shown = process.pty.read()
            assert shown is not None
            lines = shown.decode().split("\r\n")
            assert lines[0].startswith("/dev/pts/") or lines[1].startswith("/dev/pts/"), lines
            assert {"30 90", "mine", "again"} <= set(lines), lines
            assert lines.count("typed") == 2  # its echo, and what cat says
            assert process.wait(20) == 0
        if isinstance(box, Pool):
            box.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else inside")
def test_it_belongs_to_the_program() -> None:
    box = Sandbox(PidNamespace(), ROOT, Credentials(uid=1234, gid=1234))
    with box.spawn(["sh", "-c", "stat -c '%u %a' $(tty); : >$(tty) && echo open"], pty=True) as process:
        assert process.pty
        assert process.pty.read() == b"1234 620\r\nopen\r\n"


def test_the_end_is_an_end_of_file() -> None:
    with BOXES["own devpts"].spawn(["echo", "last"], pty=True) as process:
        assert process.pty
        assert process.pty.readline() == b"last\r\n"
        assert process.pty.read(9) == b""
        assert process.pty.read() == b""
        assert process.pty.readinto(bytearray(9)) == 0


def test_job_control_of_a_shell_inside() -> None:
    """The shell inside has jobs: Ctrl-Z stops one, and not the sandbox."""
    line = f"{ISOLATE} run -t -- bash --norc --noprofile --noediting -i"
    with Desk() as desk:
        desk.wait_for(PROMPT)
        before = desk.settings()
        desk.type(f"{line}; echo done=$?\n")
        desk.wait_for(rb"bash-\S*[$#] ")
        desk.type("tty\n")
        desk.wait_for(b"/dev/pts/0")
        desk.type("sh -c 'echo up; exec sleep 1000'\n")
        desk.wait_for(b"up\r+\n")  # the terminal echoes the line ("up;") before or after the shell's prompt
        desk.type(b"\x1a")
        desk.wait_for("Stopped")
        desk.wait_for(rb"bash-\S*[$#] ")
        desk.type("kill %1; fg; echo inside\n")
        desk.wait_for(b"inside\r?\n")
        desk.type("exit 5\n")
        desk.wait_for("done=5")
        desk.wait_for(PROMPT)
        assert desk.settings() == before


def test_isolate_shell() -> None:
    with Desk() as desk:
        desk.wait_for(PROMPT)
        desk.type(f"{ISOLATE} shell; echo done=$?\n")
        desk.wait_for(rb"[$#] ")
        desk.type("echo $TERM-$(id -u); exit 3\n")
        desk.wait_for("dumb-65534")
        desk.wait_for("done=3")


def test_a_terminal_where_input_is_none(tmp_path: Path) -> None:
    """``-t``: the program is at a terminal although isolate is not."""
    with Desk() as desk:
        desk.wait_for(PROMPT)
        desk.type(f"echo line | {ISOLATE} run -t -- sh -c 'tty; cat; exit 4' >{tmp_path}/out; echo done=$?\n")
        desk.wait_for("done=4")
    shown = (tmp_path / "out").read_bytes()
    assert shown.startswith(b"/dev/pts/0\r\n") or b"\n/dev/pts/0\r\n" in shown
    assert shown.count(b"line\r\n") == 2


INTERACT = """
import isolate
box = isolate.Sandbox(isolate.UserNamespace(), isolate.PidNamespace())
loop = "while read l || [ $again ]; do again=; echo GOT:$l; done; exit 6"
with box.spawn(["sh", "-c", "trap 'again=1; echo caught' INT; echo ready; " + loop], pty=True) as p:
    print("ended", p.interact())
    input("go on? ")
    print("again", p.interact())
input()
"""


def test_interact(tmp_path: Path) -> None:
    """Keys, the escape key, and settings that are restored."""
    (tmp_path / "program.py").write_text(INTERACT)
    with Desk(sys.executable, str(tmp_path / "program.py")) as desk:
        before = desk.settings()
        desk.wait_for(b"ready\r+\n")
        desk.type("one\n")
        desk.wait_for("GOT:one")
        desk.press_until(b"\x03", b"caught")
        desk.type(b"\x1d")
        desk.wait_for("ended None")
        desk.wait_for_settings(before)
        desk.wait_for("go on? ")
        desk.type("\n")
        desk.wait_for_other_settings(before)
        desk.type("two\n\x04")
        desk.wait_for("GOT:two")
        desk.wait_for("again 6")
        desk.wait_for_settings(before)


LATE = """
import contextlib, os, select, signal, threading, time
import isolate
from isolate.sandbox import guard
before, watch, first = guard.settings(0), guard.watch, []
def watched(*args):
    found = watch(*args)
    if not first:  # the first one is told that it may go, and does not run for a while
        first.append(os.dup(found.pidfd))
        found.kill = lambda: os.kill(found.pid, signal.SIGSTOP)
    return found
guard.watch = watched
def late():
    while guard.settings(0) == before:
        time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(first[0], signal.SIGCONT)
    select.select(first, [], [])
    print("restored" if guard.settings(0) == before else "kept", flush=True)
box = isolate.Sandbox(isolate.UserNamespace(), isolate.PidNamespace())
with box.spawn(["sh", "-c", "echo ready; while read l; do echo GOT:$l; done; exit 6"], pty=True) as p:
    print("left", p.interact())
    threading.Thread(target=late).start()
    print("again", p.interact())
input()
"""


def test_the_guard_of_an_earlier_call_does_not_restore_settings_of_a_later_one(tmp_path: Path) -> None:
    """Both calls have made the same settings, by which a guard that comes late cannot tell them apart."""
    (tmp_path / "program.py").write_text(LATE)
    with Desk(sys.executable, str(tmp_path / "program.py")) as desk:
        before = desk.settings()
        desk.wait_for(b"ready\r+\n")
        desk.type(b"\x1d")
        desk.wait_for("left None")
        desk.wait_for(b"kept")
        desk.type("two\n\x04")
        desk.wait_for("GOT:two")
        desk.wait_for("again 6")
        desk.wait_for_settings(before)


LEAVE = """
import threading, time
import isolate
box = isolate.Sandbox(isolate.UserNamespace(), isolate.PidNamespace())
with box.spawn(["sh", "-c", "echo ready; read l; echo GOT:$l; exec yes flood"], pty=True) as p:
    print("left", p.interact())
    print("left", p.interact())
    while threading.active_count() > 1:
        time.sleep(0.01)
    input("silent")
"""


def test_the_escape_key_ends_it_at_once_and_loses_nothing(tmp_path: Path) -> None:
    """What was typed before it, in the same breath, is the program's; a program that is never silent is left, too."""
    (tmp_path / "program.py").write_text(LEAVE)
    with Desk(sys.executable, str(tmp_path / "program.py")) as desk:
        desk.wait_for("ready")
        desk.type(b"one\n\x1d")
        desk.wait_for("left None")
        desk.wait_for("GOT:one")
        desk.wait_for("flood")
        desk.type(b"\x1d")
        desk.wait_for("left None")
        desk.wait_for("silent")


BEHIND = """
import isolate
box = isolate.Sandbox(isolate.UserNamespace(), isolate.PidNamespace())
with box.spawn(["sh", "-c", "echo ready; while read l; do echo GOT:$l; done"], pty=True) as p:
    print("left", p.interact())
    print("mine", input())
    print("left", p.interact())
    print("last", input())
"""


def test_what_is_typed_behind_the_escape_key_is_for_the_next_reader(tmp_path: Path) -> None:
    """In one breath: a line for the program, the key, a line for the caller, then both once more."""
    (tmp_path / "program.py").write_text(BEHIND)
    with Desk(sys.executable, str(tmp_path / "program.py")) as desk:
        desk.wait_for("ready")
        desk.type(b"one\n\x1dtwo\n")
        desk.wait_for("left None")
        desk.wait_for("mine two")
        desk.wait_for("GOT:one")  # the next call has begun
        desk.type(b"three\n\x1dfour\n")
        desk.wait_for("left None")
        desk.wait_for("last four")


def test_nothing_is_read_behind_the_escape_key_from_a_pipe() -> None:
    read, write = os.pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.write(write, b"one\n" * 1000 + b"\x1dtwo\n")
        with Sandbox(UserNamespace()).spawn(["sh", "-c", "stty -echo; read l; exec sleep 1000"], pty=True) as process:
            assert process.interact(stdin=read, stdout=null) is None
            assert os.read(read, 100) == b"two\n"
            os.write(write, b"\x1d")  # the control: with another key nothing ends the call but the program's end
            os.close(write)
            write = -1
            process.kill()
            assert process.interact(escape=b"\x1e", stdin=read, stdout=null) is not None
    finally:
        for fd in (read, write, null):
            if fd >= 0:
                os.close(fd)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, KILL])
def test_settings_are_restored_whatever_ends_the_caller(number: int, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(INTERACT)
    runner = "import subprocess, sys; subprocess.run([sys.executable, sys.argv[1]]); print('back'); sys.stdin.read()"
    with Desk(sys.executable, "-c", runner, str(tmp_path / "program.py")) as desk:
        before = desk.settings()
        desk.wait_for(b"ready\r+\n")
        desk.type("one\n")
        desk.wait_for("GOT:one")
        assert desk.settings() != before
        with open(f"/proc/{desk.process.pid}/task/{desk.process.pid}/children") as file:
            os.kill(int(file.read().split()[0]), number)
        desk.wait_for("back")
        desk.wait_for_settings(before)


def test_interact_without_a_terminal() -> None:
    with Sandbox(UserNamespace()).spawn(["true"]) as process, pytest.raises(ValueError, match="pty=True"):
        process.interact()
