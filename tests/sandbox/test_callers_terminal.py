"""The caller's terminal is never handed to a program: it has one of its own, and the user notices nothing of it."""

from __future__ import annotations

import os
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from .desk import ISOLATE, KILL, PROMPT, RUN, Desk

LFLAG = 3


def stty(desk: Desk, line: str) -> tuple[bool, bool]:
    """Whether the terminal echoes before a command and after it."""
    desk.wait_for(PROMPT)
    before = bool(desk.settings()[LFLAG] & termios.ECHO)
    desk.type(line + "; echo done=$?\n")
    desk.wait_for(rb"done=0\r?\n")
    desk.wait_for(PROMPT)
    return before, bool(desk.settings()[LFLAG] & termios.ECHO)


def test_6_settings_stay_the_callers() -> None:
    with Desk() as desk:
        assert stty(desk, f"{RUN} stty -echo") == (True, True)
        desk.type("\n")
        assert stty(desk, "stty -echo") == (True, False)  # the control: who has the terminal changes it for good


def test_6_only_stderr_is_a_terminal(tmp_path: Path) -> None:
    elsewhere = f"</dev/null >{tmp_path}/out"
    with Desk() as desk:
        assert stty(desk, f"{RUN} sh -c 'stty -echo <&2; stty -a <&2 >&2' {elsewhere}") == (True, True)
        desk.type("\n")
        assert stty(desk, f"sh -c 'stty -echo <&2' {elsewhere}") == (True, False)


WHICH = "import os,sys; print(*[os.fstat(n).st_rdev for n in range(3)], file=open('{}', 'w'))"
SPAWN = (
    "import isolate; box = isolate.Sandbox(isolate.UserNamespace());\n"
    "with box.spawn(['{}', '-c', '''{}''']) as p: p.wait()"
)


@pytest.mark.parametrize("how", ["run", "attach", "spawn", "control"])
def test_6_nobody_inside_has_the_terminal(how: str, tmp_path: Path) -> None:
    """Its device is another one; a descriptor that is kept or sent on leads to nothing of the caller's."""
    out = tmp_path / "out"
    code = WHICH.format(out)
    line = {
        "run": f'{RUN} {sys.executable} -c "{code}"',
        "attach": f'sleep 60 & {ISOLATE} attach $! -- {sys.executable} -c "{code}"; kill $!',
        "spawn": f"{sys.executable} {tmp_path / 'spawn.py'}",
        "control": f'{sys.executable} -c "{code}"',
    }[how]
    (tmp_path / "spawn.py").write_text(SPAWN.format(sys.executable, code))
    with Desk() as desk:
        desk.wait_for(PROMPT)
        own = os.stat(f"/proc/{desk.process.pid}/fd/0").st_rdev
        desk.type(line + "; echo done=$?\n")
        desk.wait_for(rb"done=\d+\r?\n")
        found = set(map(int, out.read_text().split()))
    assert (own in found) == (how == "control")
    assert len(found) == 1
    assert 0 not in found


LINES = "sh -c 'echo ready; while read l; do echo GOT:$l; done; echo over'"


@pytest.mark.parametrize("how", ["isolated", "control"])
def test_6_stop_and_go_on(how: str) -> None:
    """Ctrl-Z, what is typed then is the shell's, and fg."""
    line = f"{RUN} {LINES}" if how == "isolated" else LINES
    with Desk() as desk:
        desk.wait_for(PROMPT)
        before = desk.settings()
        desk.type(line + "\n")
        desk.wait_for(b"ready\r+\n")
        desk.type("one\n")
        desk.wait_for("GOT:one")
        desk.type(b"\x1a")
        desk.wait_for("Stopped")
        desk.wait_for(PROMPT)
        assert desk.settings() == before
        desk.type("echo shell$((1+1))\n")
        assert b"GOT" not in desk.wait_for(b"shell2\r?\n")
        desk.wait_for(PROMPT)
        desk.type("fg\n")
        desk.wait_for(rb"echo over.*\r?\n")
        desk.type("two\n")
        desk.wait_for("GOT:two")
        desk.type(b"\x04")
        desk.wait_for(b"over\r+\n")
        desk.wait_for(PROMPT)
        assert desk.settings() == before


def test_6_in_the_background_it_reads_nothing() -> None:
    with Desk() as desk:
        desk.wait_for(PROMPT)
        before = desk.settings()
        desk.type(f"{RUN} {LINES} &\n")
        desk.wait_for(b"ready\r*\n")
        assert desk.settings() == before
        desk.type("echo shell$((1+1))\n")
        assert b"GOT" not in desk.wait_for(b"shell2\r?\n")
        desk.type("fg\n")
        desk.wait_for(b"echo over'\r?\n")
        desk.type("mine\n")
        desk.wait_for("GOT:mine")
        desk.type(b"\x04")
        desk.wait_for(b"over\r+\n")


def test_an_interrupt_is_the_programs() -> None:
    program = "sh -c 'trap \"echo caught; exit 7\" INT; echo ready; while :; do sleep 0.05; done'"
    with Desk() as desk:
        desk.wait_for(PROMPT)
        desk.type(f"{RUN} {program}; echo done=$?\n")
        desk.wait_for(b"ready\r+\n")
        desk.type(b"\x03")
        desk.wait_for("caught")
        desk.wait_for("done=7")
        # Without a trap it ends by the signal, and the shell is told so.
        desk.type(f"{RUN} sh -c 'echo ready; exec sleep 60'; echo done=$?\n")
        desk.wait_for(b"ready\r+\n")
        desk.type(b"\x03")
        desk.wait_for("done=130")


def test_the_window() -> None:
    program = "sh -c 'trap \"stty size\" WINCH; stty size; while :; do sleep 0.05; done'"
    with Desk() as desk:
        desk.wait_for(PROMPT)
        desk.type(f"{RUN} {program}\n")
        desk.wait_for(b"24 80\r+\n")
        desk.resize(33, 99)
        desk.wait_for(b"33 99\r+\n")
        desk.type(b"\x03")
        desk.wait_for(PROMPT)


def test_a_killed_caller_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    """Nobody of the program is left to do so: SIGKILL. Its shell is one that does not either."""
    code = "import subprocess, sys; subprocess.run(sys.argv[1].split()); print('back'); sys.stdin.read()"
    with Desk(sys.executable, "-c", code, f"{RUN} cat") as desk:
        before = desk.settings()
        deadline = time.monotonic() + 20
        while desk.settings() == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        desk.type("hello\n")
        desk.wait_for(b"hello\r+\nhello\r+\n")  # the echo inside, and the program: all is set up
        children = Path(f"/proc/{desk.process.pid}/task/{desk.process.pid}/children").read_text().split()
        os.kill(int(children[0]), KILL)
        desk.wait_for("back")
        desk.wait_for_settings(before)


def test_a_terminal_that_the_caller_made_is_handed_on() -> None:
    """Whoever gives a descriptor by name, and not the own terminal, means it."""
    ours, theirs = os.openpty()
    try:
        import isolate

        with isolate.Sandbox(isolate.UserNamespace()).spawn(["stty", "-echo"], stdin=theirs, stdout=-3) as process:
            assert process.wait(20) == 0
        assert not termios.tcgetattr(ours)[LFLAG] & termios.ECHO
    finally:
        os.close(ours)
        os.close(theirs)


def test_in_a_pipeline_keys_for_signals_stay_the_callers(tmp_path: Path) -> None:
    with Desk() as desk:
        desk.wait_for(PROMPT)
        before = desk.settings()
        desk.type(f"{RUN} sh -c 'echo ready; read l; echo GOT:$l' | cat; echo done=$?\n")
        desk.wait_for(b"ready\r?\n")
        assert desk.settings() == before
        desk.type("line\n")
        desk.wait_for("GOT:line")
        desk.wait_for("done=0")


def test_control_subprocess_hands_it_over() -> None:
    """What the tests above attempt, without isolate: the device is the caller's."""
    with Desk(
        sys.executable, "-c", "import subprocess; subprocess.run(['stty', '-echo']); print('back'); input()"
    ) as desk:
        desk.wait_for("back")
        assert not desk.settings()[LFLAG] & termios.ECHO
    assert subprocess.run(["true"], check=True).returncode == 0
