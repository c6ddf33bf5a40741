"""``spawn``: the object for a program that runs beside us; its terminal; waiting from anywhere."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from isolate import (
    DEVNULL,
    PIPE,
    STDOUT,
    PidNamespace,
    Sandbox,
    SetupError,
    TimeoutExpired,
    UserNamespace,
    Verdict,
)

if TYPE_CHECKING:
    from tests.snapshot import Snapshot

BOX = Sandbox(UserNamespace(), PidNamespace())
NO_INIT = Sandbox(UserNamespace(), PidNamespace(init=False))
BOXES = {"init": BOX, "without init": NO_INIT, "no pid namespace": Sandbox(UserNamespace())}
PYTHON = [sys.executable, "-I", "-S", "-c"]


def readable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(int(seconds * 1000)))


def read_until(file: IO[bytes], wanted: bytes) -> bytes:
    data = b""
    while wanted not in data:
        assert readable(file.fileno(), 10), data
        try:
            chunk = os.read(file.fileno(), 4096)
        except OSError as error:  # EIO: everybody has closed the terminal
            if error.errno != errno.EIO:
                raise
            break
        if not chunk:
            break
        data += chunk
    assert wanted in data, data
    return data


@pytest.mark.parametrize("name", BOXES)
def test_life(name: str, clean: Snapshot) -> None:
    with BOXES[name].spawn(["cat"], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr is None
        assert process.poll() is None
        assert process.returncode is None
        assert "runs" in repr(process)
        with pytest.raises(TimeoutExpired):
            process.wait(0.02)
        process.stdin.write(b"hello")
        process.stdin.close()
        assert process.stdout.read() == b"hello"
        assert process.wait(10) == 0
        assert process.poll() == process.returncode == 0
        result = process.result()
        assert (result.verdict, result.stdout) == (Verdict.OK, None)
        assert result.wall_time > 0.02


@pytest.mark.parametrize("name", BOXES)
def test_pid_and_pidfd_are_the_programs(name: str, clean: Snapshot) -> None:
    with BOXES[name].spawn(["sleep", "1000"]) as process:
        # Not comm: exec wakes the waiting parent a moment before it sets the name.
        assert os.path.basename(os.readlink(f"/proc/{process.pid}/exe")) in ("sleep", "coreutils", "busybox")
        assert not readable(process.pidfd, 0)
        assert not readable(process.fileno(), 0)
        signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
        assert readable(process.pidfd, 0)


@pytest.mark.parametrize("name", ["init", "no pid namespace"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGRTMIN + 3])
def test_signals_reach_it(name: str, number: int, clean: Snapshot) -> None:
    with BOXES[name].spawn(["sleep", "1000"]) as process:
        process.send_signal(number)
        assert process.wait(30) == -number
        process.send_signal(number)  # no error: it has ended


def test_init_forwards_signals(clean: Snapshot) -> None:
    """Whoever signals init from outside reaches the program."""
    script = "import signal, sys, time\nsignal.signal(signal.SIGUSR2, lambda *a: sys.exit(42))\n"
    # Not pause(): a signal just before it would be heard when another one comes.
    script += "print(1, flush=True)\nwhile True: time.sleep(0.02)"
    with BOX.spawn([*PYTHON, script], stdout=PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        launcher = process._session.pid
        (init,) = map(int, Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split())
        os.kill(init, signal.SIGUSR2)
        assert process.wait(30) == 42


def test_stopped_and_continued(clean: Snapshot) -> None:
    with BOX.spawn(["cat"], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 20
        while ") T " not in Path(f"/proc/{process.pid}/stat").read_text():
            assert time.monotonic() < deadline
        process.stdin.write(b"x\n")
        process.stdin.flush()
        assert not readable(process.stdout.fileno(), 0.1)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == b"x\n"
        process.send_signal(signal.SIGSTOP)
        process.kill()
        assert process.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize("name", BOXES)
def test_kill_takes_the_tree(name: str, clean: Snapshot) -> None:
    reading, writing = os.pipe()
    script = "trap '' TERM; setsid sh -c 'sleep 1000 & sleep 1000 & echo up; wait' & sleep 1000 & wait; sleep 1000"
    process = BOXES[name].spawn(["sh", "-c", script], stdout=PIPE, pass_fds=[writing])
    os.close(writing)
    assert process.stdout
    process.stdout.readline()
    assert not readable(reading, 0)
    process.kill()
    assert process.wait(30) == -signal.SIGKILL
    assert readable(reading, 0)
    assert os.read(reading, 1) == b"", "nobody inside holds it any more"
    os.close(reading)
    process.close()


def test_stderr_to_stdout_and_files(clean: Snapshot, tmp_path: Path) -> None:
    with BOX.spawn(["sh", "-c", "echo a; echo b >&2"], stdout=PIPE, stderr=STDOUT) as process:
        assert process.stdout
        assert process.stdout.read() == b"a\nb\n"
    with (tmp_path / "out").open("wb") as file:
        with BOX.spawn(["sh", "-c", "echo a; echo b >&2"], stdout=file, stderr=DEVNULL) as process:
            assert process.wait() == 0
        assert (tmp_path / "out").read_bytes() == b"a\n"


def test_waits_of_many_threads(clean: Snapshot) -> None:
    """Each thread is told, while another closes."""
    for _ in range(10):
        process = BOX.spawn(["sleep", "1000"])
        told: list[object] = []

        def wait(process: object = process, told: list[object] = told) -> None:
            try:
                told.append(process.wait(10))  # type: ignore[attr-defined]
            except ValueError as error:
                told.append(str(error))

        threads = [threading.Thread(target=wait) for _ in range(8)]
        for thread in threads:
            thread.start()
        process.close()
        for thread in threads:
            thread.join(10)
        assert not [t for t in threads if t.is_alive()]
        assert set(told) <= {-9, "the process is closed"}
        assert len(told) == 8


def test_a_wait_that_another_thread_closes_before_it_begins(clean: Snapshot) -> None:
    with BOX.spawn(["sleep", "1000"]) as process:
        fileno, session = process._session.fileno, process._session
        numbers = iter((fileno(), -1))  # open where it looks, closed where it waits
        session.fileno = lambda: next(numbers)  # type: ignore[method-assign]
        try:
            with pytest.raises(ValueError, match=r"^the process is closed$"):
                process.wait(10)
        finally:
            session.fileno = fileno  # type: ignore[method-assign]


def test_use_after_close(clean: Snapshot) -> None:
    process = BOX.spawn(["cat"], stdin=PIPE, stdout=PIPE)
    assert process.stdout
    process.close()
    process.close()
    process.kill()
    process.terminate()
    assert process.returncode == -signal.SIGKILL
    assert process.poll() == process.wait() == -signal.SIGKILL
    assert process.stdout.closed
    with pytest.raises(ValueError):
        process.stdout.read()


def test_a_kept_stream_outlives_the_process_object(clean: Snapshot) -> None:
    """What was written can still be read; the number is never another file's."""
    with pytest.warns(ResourceWarning):
        stream = BOX.spawn(["sh", "-c", "echo kept; exec sleep 1000"], stdout=PIPE).stdout
    assert stream
    assert stream.readline() in (b"kept\n", b"")
    stream.close()


def test_the_program_that_cannot_start(clean: Snapshot) -> None:
    with pytest.raises(SetupError) as caught:
        BOX.spawn(["/no/such"], stdin=PIPE, stdout=PIPE, stderr=PIPE)
    assert caught.value.errno == errno.ENOENT


# ---- terminal ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOXES)
def test_a_terminal_of_its_own(name: str, clean: Snapshot) -> None:
    script = "tty; stty size; ps -o tty= -p $$ 2>/dev/null; echo input please; read x; echo got $x; exit 3"
    with BOXES[name].spawn(["sh", "-c", script], pty=(31, 97)) as process:
        assert process.pty
        assert (process.stdin, process.stdout, process.stderr) == (None, None, None)
        shown = read_until(process.pty, b"please")
        assert b"/dev/pts/" in shown
        assert b"31 97" in shown
        process.pty.write(b"typed\n")
        read_until(process.pty, b"got typed")
        assert process.wait(30) == 3


def test_window_size_changes(clean: Snapshot) -> None:
    script = "import os, signal, time\n"
    script += "signal.signal(signal.SIGWINCH, lambda *a: os.write(1, str(os.get_terminal_size(0)).encode()))\n"
    script += "os.write(1, b'up')\nwhile True: time.sleep(0.02)"
    with BOX.spawn([*PYTHON, script], pty=True) as process:
        assert process.pty
        read_until(process.pty, b"up")
        process.resize(50, 132)
        assert b"lines=50" in read_until(process.pty, b"columns=132")
    for bad in ((0, 80), (80, 70000), (True, 80), ("1", 80)):
        with pytest.raises(ValueError):
            BOX.spawn(["true"], pty=bad)  # type: ignore[arg-type]


def test_control_c_on_its_terminal(clean: Snapshot) -> None:
    """It is the controlling terminal: job control works, and the signal goes to its foreground group alone."""
    # exec: a shell that gets SIGINT just before it forks goes on to wait for a child that got none.
    with BOX.spawn(["sh", "-c", "echo up; exec sleep 1000"], pty=True) as process:
        assert process.pty
        read_until(process.pty, b"up")
        process.pty.write(b"\x03")
        assert process.wait(30) in (-signal.SIGINT, 130)


def test_hang_up_ends_it(clean: Snapshot) -> None:
    with BOX.spawn(["sh", "-c", "echo up; cat"], pty=True) as process:
        assert process.pty
        read_until(process.pty, b"up")
        process.pty.close()
        assert process.wait(30) in (-signal.SIGHUP, 129, 0, 1)


TIOCSTI = f"""
import fcntl, os, sys
for fd in (0, 1, 2):
    try: fcntl.ioctl(fd, {termios.TIOCSTI}, b"\\n")
    except OSError as error: print(fd, error.errno)
    else: print(fd, "pushed")
try: os.open("/dev/tty", os.O_RDWR)
except OSError as error: print("tty", error.errno)
else: print("tty", 0)
"""

WITH_TERMINAL = """
import os, sys
os.setsid()
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
exec(sys.stdin.readline() if False else os.environ["PROGRAM"])
"""


def on_a_terminal(program: str) -> list[str]:
    """Run Python code as the leader of a session on a terminal of the test's; the lines that it shows."""
    master, slave = os.openpty()
    command = [sys.executable, "-c", WITH_TERMINAL]
    child = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "PROGRAM": program, "TIOCSTI": TIOCSTI}
    )
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(master, 4096):
            shown += chunk
    os.close(master)
    assert child.wait(30) == 0, shown
    return shown.decode().split("\r\n")


def test_no_terminal_of_the_callers() -> None:
    """Inherited as 0, 1 and 2 the program has a terminal of its own: TIOCSTI pushes nothing into the caller's."""
    typed = "\nimport select; print('typed', bool(select.select([0], [], [], 0.3)[0]))"
    inside = "import os, sys, isolate\n"
    inside += "box = isolate.Sandbox(isolate.UserNamespace(), isolate.PidNamespace())\n"
    inside += "p = box.spawn([sys.executable, '-I', '-S', '-c', os.environ['TIOCSTI']]); p.wait(); p.close()" + typed
    control = on_a_terminal(
        "import subprocess, sys, os\nsubprocess.run([sys.executable, '-c', os.environ['TIOCSTI']])" + typed
    )
    assert "tty 0" in control
    shown = on_a_terminal(inside)
    assert "typed False" in shown, shown
    sysctl = Path("/proc/sys/dev/tty/legacy_tiocsti")
    if not sysctl.exists() or sysctl.read_text().strip() == "1":
        assert "typed True" in control, control


def test_signals_to_the_group_stay_inside(clean: Snapshot) -> None:
    """kill(0) of a program reaches its own group only, also without a pid namespace."""
    seen: list[int] = []
    old = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        for name in ("init", "no pid namespace"):
            result = BOXES[name].run(["sh", "-c", "sleep 1000 & kill -USR1 0; sleep 1000"], timeout=10)
            assert result.returncode == -signal.SIGUSR1
        assert seen == []
    finally:
        signal.signal(signal.SIGUSR1, old)
