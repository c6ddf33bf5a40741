"""``spawn`` as :class:`subprocess.Popen` is: buffers, text, communicate, limits, callbacks, and its end."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from isolate import PIPE, STDOUT, PidNamespace, ProgramError, Sandbox, TimeoutExpired, UserNamespace, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from tests.snapshot import Snapshot

BOX = Sandbox(UserNamespace(), PidNamespace())
PYTHON = [sys.executable, "-I", "-S", "-c"]
#: Whom nobody reads any more is killed, or ends by itself just before.
ENDED = (-signal.SIGKILL, -signal.SIGPIPE)


# ---- pipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"bufsize": 0}, {"bufsize": 1, "text": True}, {"encoding": "latin-1"}], ids=str
)
def test_files_are_those_of_subprocess(options: dict[str, Any]) -> None:
    streams: dict[str, Any] = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, **options}
    with BOX.spawn(["cat"], **streams) as ours, subprocess.Popen(["cat"], **streams) as theirs:
        for name in ("stdin", "stdout", "stderr"):
            mine, other = getattr(ours, name), getattr(theirs, name)
            for kind in (io.TextIOBase, io.BufferedReader, io.BufferedWriter, io.RawIOBase):
                assert isinstance(mine, kind) == isinstance(other, kind), (name, kind)
            if isinstance(other, io.TextIOWrapper):
                assert mine.line_buffering == other.line_buffering
                assert mine.write_through == other.write_through
        theirs.communicate()


def test_many_lines_are_read_at_once() -> None:
    """A line is no system call of its own: fewer reads than lines, by far."""
    with BOX.spawn(["seq", "20000"], stdout=PIPE, text=True) as process:
        assert process.stdout
        reads = 0
        raw = process._raw[1]
        assert raw is not None
        inner = raw.readinto

        def counted(buffer: Any) -> int | None:
            nonlocal reads
            reads += 1
            return inner(buffer)

        raw.readinto = counted  # type: ignore[method-assign]
        assert sum(1 for _ in process.stdout) == 20000
        assert 0 < reads < 200


def test_text_and_newlines() -> None:
    with BOX.spawn(["printf", r"a\r\nb\xff"], stdout=PIPE, text=True, errors="backslashreplace") as process:
        assert process.communicate() == ("a\nb\\xff", None)
    with pytest.raises(ValueError, match="unbuffered"):
        BOX.spawn(["true"], bufsize=0, text=True)
    with pytest.raises(LookupError):
        BOX.spawn(["true"], encoding="no-such")
    with BOX.spawn(["cat"], stdin=PIPE) as process, pytest.raises(TypeError, match="bytes"):
        process.communicate("text")


# ---- communicate ---------------------------------------------------------------------------------------------------


def test_communicate_more_than_any_pipe_holds(clean: Snapshot) -> None:
    data = bytes(range(256)) * 8192
    with BOX.spawn(["sh", "-c", "tee /dev/stderr"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        assert process.communicate(data) == (data, data)
        assert process.returncode == 0
        assert process.result().stdout == data


def test_communicate_after_a_timeout_loses_nothing() -> None:
    with BOX.spawn(["sh", "-c", "echo first; read l; echo $l"], stdin=PIPE, stdout=PIPE, stderr=STDOUT) as process:
        with pytest.raises(TimeoutExpired) as caught:
            process.communicate(timeout=0.05) if process.stdin is None else process.wait(0.05)
        assert isinstance(caught.value, subprocess.TimeoutExpired)
        assert process.stdin
        process.stdin.write(b"second\n")
        process.stdin.flush()
        assert process.communicate(timeout=20) == (b"first\nsecond\n", None)
    reading, writing = os.pipe()
    script = ["sh", "-c", "echo first; read l <&9; echo second"]
    with os.fdopen(writing, "wb") as go, BOX.spawn(script, stdout=PIPE, pass_fds={9: reading}) as process:
        os.close(reading)
        with pytest.raises(TimeoutExpired):
            process.communicate(timeout=0.05)
        go.close()
        assert process.communicate(timeout=20) == (b"first\nsecond\n", None)


def test_communicate_with_one_that_reads_nothing() -> None:
    with BOX.spawn(["true"], stdin=PIPE) as process:
        assert process.communicate(bytes(1 << 20)) == (None, None)
        assert process.returncode == 0


def test_communicate_does_not_wait_for_who_holds_a_pipe_outside() -> None:
    """The end of everything inside is the end, although this program holds a copy of the writing end."""
    with BOX.spawn(["sh", "-c", "echo said; read l"], stdin=PIPE, stdout=PIPE) as process:
        kept = os.open(f"/proc/{process.pid}/fd/1", os.O_WRONLY)
        try:
            assert process.communicate(b"\n", timeout=30) == (b"said\n", None)
        finally:
            os.close(kept)


# ---- limits --------------------------------------------------------------------------------------------------------


def test_limits_of_time() -> None:
    with BOX.spawn(["sleep", "60"], timeout=0.1) as process:
        assert process.wait(20) == -signal.SIGKILL
        assert process.result().verdict is Verdict.TIMEOUT
    with BOX.spawn([*PYTHON, "while 1: pass"], cpu_time=0.1) as process:
        assert process.wait(30) == -signal.SIGKILL
        assert process.result().verdict is Verdict.CPU_TIME


def test_extra_time_is_given_and_judged() -> None:
    late = BOX.run(["sh", "-c", "sleep 0.3; echo end"], timeout=(0.1, 30))
    assert (late.verdict, late.returncode, late.stdout) == (Verdict.TIMEOUT, 0, b"end\n")
    assert BOX.run(["echo"], timeout=(30, 30)).verdict is Verdict.OK
    never = BOX.run(["sleep", "60"], timeout=(0.05, 0.05))
    assert (never.verdict, never.returncode) == (Verdict.TIMEOUT, -signal.SIGKILL)
    for wrong in ((1,), (1, 2, 3), (0, 1), (1, -1)):
        with pytest.raises(ValueError):
            BOX.run(["true"], timeout=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["read", "lines", "communicate", "on_stdout"])
def test_a_flood_ends_the_program(how: str, clean: Snapshot) -> None:
    came: list[bytes] = []
    options: dict[str, Any] = {"on_stdout": came.append} if how == "on_stdout" else {"stdout": PIPE}
    with BOX.spawn(["yes"], max_output=5000, **options) as process:
        if how == "read":
            assert process.stdout
            came.append(process.stdout.read())
        elif how == "lines":
            assert process.stdout
            came += list(process.stdout)
        elif how == "communicate":
            came.append(process.communicate()[0])
        assert process.wait(30) in ENDED
        assert process.result().verdict is Verdict.OUTPUT
    assert len(b"".join(came)) == 5000


KEPT = {"head": b"1\n2\n3\n4\n5\n", "tail": b"9999\n10000\n"[-10:], "both": b"1\n2\n3" + b"0000\n"}


@pytest.mark.parametrize("keep", KEPT)
@pytest.mark.parametrize("way", ["run", "communicate", "on_stdout"])
def test_what_is_kept_of_a_long_output(keep: Any, way: str) -> None:
    """The program goes on; the head, the tail or both are kept, in bounded memory."""
    if way == "run":
        result = BOX.run(["seq", "10000"], max_output=10, keep=keep)
    else:
        options: dict[str, Any] = {"on_stdout": len} if way == "on_stdout" else {"stdout": PIPE}
        with BOX.spawn(["seq", "10000"], max_output=10, keep=keep, **options) as process:
            if way == "communicate":
                process.communicate()
            result = process.result()
    assert (result.verdict, result.stdout, result.truncated) == (Verdict.OK, KEPT[keep], {"stdout"})
    whole = BOX.run(["echo", "hello"], max_output=10, keep=keep)
    assert (whole.stdout, whole.truncated) == (b"hello\n", frozenset())
    with pytest.raises(ValueError, match="keep"):
        BOX.run(["true"], keep="middle")  # type: ignore[arg-type]


def test_memory_for_a_tail_is_bounded() -> None:
    from isolate.sandbox.capture import Capture

    capture = Capture(1000, "both")
    for _ in range(2000):
        assert capture.feed(bytes(5000))
        assert len(capture.kept) + len(capture._tail) < 100_000
    assert len(capture.data()) == 1000


def test_a_file_takes_no_more_than_it_may(tmp_path: Path, clean: Snapshot) -> None:
    path = tmp_path / "out"
    with path.open("wb") as file:
        result = BOX.run(["yes"], stdout=file, max_output=5000)
    assert (result.verdict, result.stdout, path.stat().st_size) == (Verdict.OUTPUT, None, 5000)
    with path.open("wb") as file:
        result = BOX.run(["seq", "100000"], stdout=file, max_output=5000, keep="head")
    assert (result.verdict, path.stat().st_size, result.truncated) == (Verdict.OK, 5000, {"stdout"})
    with path.open("wb") as file, BOX.spawn(["yes"], stdout=file, max_output="4K") as process:
        assert process.wait(30) in ENDED
    assert path.stat().st_size == 4096
    with path.open("wb") as file:  # the control: without a limit it is the program's own
        BOX.run(["head", "-c", "70000000", "/dev/zero"], stdout=file)
    assert path.stat().st_size == 70_000_000


# ---- as it comes ---------------------------------------------------------------------------------------------------


def test_lines_and_bytes_as_they_come() -> None:
    lines: list[str] = []
    script = "printf 'a\\nb'; echo err >&2; printf 'c\\n\\303'; printf '\\251'"
    errors: list[str] = []
    result = BOX.run(["sh", "-c", script], on_stdout=lines.append, on_stderr=errors.append, text=True)
    assert (lines, errors) == (["a\n", "bc\n", "é"], ["err\n"])
    assert result.stdout == "a\nbc\né"
    chunks: list[bytes] = []
    with BOX.spawn(["sh", "-c", "echo one; read l; echo two"], stdin=PIPE, on_stdout=chunks.append) as process:
        assert process.stdin
        assert process.stdout is None
        deadline = time.monotonic() + 20
        while not chunks:  # it is told before the program goes on
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert chunks == [b"one\n"]
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(20) == 0
    assert b"".join(chunks) == b"one\ntwo\n"


@pytest.mark.parametrize("way", ["run", "spawn"])
def test_a_callback_that_raises_ends_the_program(way: str, clean: Snapshot) -> None:
    def wrong(data: bytes) -> None:
        raise ZeroDivisionError

    if way == "run":
        with pytest.raises(ZeroDivisionError):
            BOX.run(["yes"], on_stdout=wrong)
        return
    with BOX.spawn(["yes"], on_stdout=wrong) as process:
        with pytest.raises(ZeroDivisionError):
            process.wait(20)
        assert process.wait(20) == -signal.SIGKILL


def test_a_line_without_an_end_fills_no_memory() -> None:
    lengths: list[int] = []
    BOX.run(["head", "-c", "3000000", "/dev/zero"], on_stdout=lambda line: lengths.append(len(line)), text=True)
    assert lengths == [1 << 20, 1 << 20, 3_000_000 - (2 << 20)]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="on_stdout"):
        BOX.run(["true"], stdout=-3, on_stdout=print)
    with pytest.raises(ValueError, match="on_stderr"):
        BOX.spawn(["true"], stderr=STDOUT, on_stderr=print)
    with pytest.raises(TypeError, match="callable"):
        BOX.run(["true"], on_stdout=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="spawn: there is no keyword 'max_outptu'; did you mean 'max_output'"):
        BOX.spawn(["true"], max_outptu=3)  # type: ignore[call-arg]
    with pytest.raises(ProgramError):
        BOX.run(["false"], check=True)


# ---- the end -------------------------------------------------------------------------------------------------------


def test_terminate_with_grace(clean: Snapshot) -> None:
    caught = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.02; done"
    with BOX.spawn(["sh", "-c", caught], stdout=PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        assert process.terminate(grace=20) == 3
        assert process.stdout.read() == b"bye\n"
    with BOX.spawn(["sh", "-c", "trap '' TERM; echo up; sleep 1000"], stdout=PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert process.terminate() is None
        assert process.terminate(grace=0.05) == -signal.SIGKILL
    with BOX.spawn(["sleep", "1000"]) as process:
        process.send_signal(signal.SIGSTOP)
        assert process.terminate(grace=20) == -signal.SIGTERM
        with pytest.raises(ValueError, match="grace"):
            process.terminate(grace=-1)


def test_another_name_for_the_program() -> None:
    result = BOX.run(["called", "-c", "echo $0"], executable="sh")
    assert result.stdout == b"called\n"
    with pytest.raises(ValueError, match="executable"):
        BOX.run(["sh"], executable="")
    with pytest.raises(FileNotFoundError):
        BOX.run(["sh"], executable="/no/such")


def test_what_came_before_a_timeout_is_told() -> None:
    with BOX.spawn(["sh", "-c", "echo early; sleep 1000"], stdout=PIPE) as process:
        assert process.stdout
        while not select.select([process.stdout], [], [], 1)[0]:
            pass
        with pytest.raises(TimeoutExpired) as caught:
            process.communicate(timeout=0.1)
        assert caught.value.output == b"early\n"
