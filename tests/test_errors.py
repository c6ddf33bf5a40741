"""The family of errors: what each is, what it says, and that it travels whole."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import struct
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING

import pytest

import isolate
from isolate import (
    Bind,
    ConflictError,
    IrreversibleError,
    IsolateError,
    MountNamespace,
    PidNamespace,
    ProgramError,
    RestoreError,
    Root,
    Sandbox,
    SetupError,
    ThreadedError,
    UnsupportedError,
    Verdict,
)
from isolate.errors import __all__ as family
from isolate.errors import printable, printable_lines
from tests.snapshot import Snapshot

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = {
    "part": "Root",
    "syscall": "open_tree",
    "path": "/srv/a b",
    "cause": "it is not there",
    "remedy": "make it",
}


def whole(kind: type[SetupError] = SetupError) -> SetupError:
    return kind(errno.ENOENT, "open the source", **WHOLE)


@pytest.mark.parametrize(
    ("kind", "also"),
    [
        (ConflictError, ValueError),
        (SetupError, OSError),
        (UnsupportedError, SetupError),
        (IrreversibleError, TypeError),
        (ThreadedError, RuntimeError),
        (RestoreError, RuntimeError),
        (ProgramError, IsolateError),
    ],
)
def test_the_family(kind: type[Exception], also: type[Exception]) -> None:
    assert issubclass(kind, IsolateError)
    assert issubclass(kind, also)
    assert kind.__name__ in family
    assert getattr(isolate, kind.__name__) is kind


def test_a_setup_error_says_everything() -> None:
    error = whole()
    assert str(error) == (
        "Root: open the source (open_tree) [/srv/a b]: No such file or directory (errno 2)\n"
        "  cause: it is not there\n"
        "  remedy: make it"
    )
    assert (error.errno, error.strerror, error.filename) == (errno.ENOENT, "No such file or directory", "/srv/a b")
    assert isinstance(error, SetupError)
    bare = SetupError(errno.EPERM, "do it")
    assert str(bare) == "do it: Operation not permitted (errno 1)"


def test_a_path_that_the_step_names_is_not_said_twice() -> None:
    error = SetupError(errno.EROFS, "mount tmpfs on /tmp", path="/tmp")
    assert str(error).count("/tmp") == 1


@pytest.mark.parametrize("kind", [SetupError, UnsupportedError])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_it_is_whole(kind: type[SetupError], protocol: int) -> None:
    error = whole(kind)
    same = pickle.loads(pickle.dumps(error, protocol))
    assert type(same) is type(error)
    assert isinstance(same, kind)
    assert (str(same), same.errno, same.filename, same.args) == (str(error), error.errno, error.filename, error.args)
    assert {name: getattr(same, name) for name in WHOLE} == WHOLE


def test_notes_go_along() -> None:
    error = whole()
    error.__notes__ = ["tried twice"]
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["tried twice"]


def test_copied_it_is_whole() -> None:
    for same in (copy.copy(whole()), copy.deepcopy(whole())):
        assert (type(same), str(same)) == (type(whole()), str(whole()))


def test_a_real_one_travels() -> None:
    with pytest.raises(SetupError) as caught:
        Sandbox().run(["no-such-program"])
    same = pickle.loads(pickle.dumps(caught.value))
    assert str(same) == str(caught.value)
    assert (same.part, same.step, same.cause) == (caught.value.part, caught.value.step, caught.value.cause)


FAILS = """
import multiprocessing
from isolate import Sandbox, SetupError
def fails():
    Sandbox().run(["no-such-program"])
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            pool.apply(fails)
        except SetupError as error:
            print(error.errno, "searched inside" in error.cause)
"""


def test_it_comes_out_of_another_process(tmp_path: Path) -> None:
    """In a program of its own: multiprocessing's tracker of resources stays as long as the one that has started it."""
    (tmp_path / "fails.py").write_text(FAILS)
    done = subprocess.run(
        [sys.executable, tmp_path / "fails.py"], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.stdout.split() == [str(int(errno.ENOENT)), "True"], done.stderr


def test_chained_both_are_told() -> None:
    def outer() -> None:
        try:
            Sandbox().run(["no-such-program"])
        except SetupError as error:
            raise LookupError("no solution") from error

    with pytest.raises(LookupError) as caught:
        outer()
    assert isinstance(caught.value.__cause__, SetupError)
    told = "".join(traceback.format_exception(caught.value))
    assert "searched inside" in told
    assert "direct cause" in told
    again = pickle.loads(pickle.dumps(caught.value.__cause__))
    assert str(again) == str(caught.value.__cause__)


def test_a_conflict_is_told_before_anything_starts() -> None:
    with pytest.raises(ConflictError, match="two parts say PidNamespace") as caught:
        Sandbox(PidNamespace(), PidNamespace(init=False))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_program_error_has_the_result() -> None:
    with pytest.raises(ProgramError) as caught:
        Sandbox().run(["sh", "-c", "echo out; exit 3"], check=True)
    error = caught.value
    assert (error.result.verdict, error.result.returncode, error.result.stdout) == (Verdict.EXITED, 3, b"out\n")
    assert "sh ended with EXITED (returncode 3)" in str(error)
    same = pickle.loads(pickle.dumps(error))
    assert (str(same), same.result.stdout) == (str(error), b"out\n")


def test_a_failed_start_leaves_nothing() -> None:
    box = Sandbox()
    box.run(["true"])
    before = Snapshot.take()
    for _ in range(5):
        with pytest.raises(SetupError):
            box.run(["no-such-program"])
        with pytest.raises(SetupError):
            box.spawn(["no-such-program"])
    before.compare()


# ---- what cannot be printed ----------------------------------------------------------------------------------------

EVIL = "x\x1b]0;title\x07\u202e\u2028\r\nisolate: all is well \udcff"
SHOWN = "x\\x1b]0;title\\x07\\u202e\\u2028\\r\\nisolate: all is well \\xff"


def harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_8_one_place_escapes() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("plain Ümlaut 名前 [1;31m") == "plain Ümlaut 名前 [1;31m"  # the control: what prints stays
    assert printable_lines("a\tb\nc") == "a\\tb\nc"


def test_8_errors() -> None:
    error = SetupError(errno.ENOENT, f"open {EVIL}", part="Root", path=EVIL, cause=EVIL, remedy=EVIL)
    assert harmless(str(error))
    assert str(error).count("\n") == 2
    assert error.path == EVIL
    assert (error.cause, error.remedy, error.step) == (SHOWN, SHOWN, f"open {SHOWN}")
    for kind in (ConflictError, IrreversibleError, ThreadedError, RestoreError, IsolateError):
        assert harmless(str(kind(EVIL)))


def elf(interpreter: bytes) -> bytes:
    """An ELF program whose loader has that name."""
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    )
    at = 64 + 56
    size = len(interpreter) + 1
    return header + struct.pack("<IIQQQQQQ", 3, 4, at, at, at, size, size, 1) + interpreter + b"\0"


@pytest.mark.parametrize("kind", ["name", "script", "loader", "directory"])
def test_8_names_that_a_program_chose(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "program"
    if kind == "script":
        path.write_bytes(b"#!/no/" + os.fsencode(EVIL.replace("\n", "")) + b"\n")
    elif kind == "loader":
        if os.uname().machine != "x86_64":
            pytest.skip("the program is one for x86-64")
        path.write_bytes(elf(b"/no/" + os.fsencode(EVIL)))
    elif kind == "directory":
        path = tmp_path / EVIL
        path.mkdir()
    if kind != "name":
        path.chmod(0o755)
    args = [EVIL] if kind == "name" else [path]
    with pytest.raises(SetupError) as caught:
        Sandbox().run(args)
    assert harmless(str(caught.value))
    assert "\\x1b]0;title\\x07\\u202e" in str(caught.value)
    formatted = "".join(traceback.format_exception_only(type(caught.value), caught.value))
    assert harmless(formatted)


def test_8_explain() -> None:
    text = Sandbox(MountNamespace(), Root(Bind(f"/{EVIL}", f"/{EVIL}".replace("\n", "")))).explain()
    assert harmless(text)
    assert "\\x1b]0;title" in text


def test_8_what_ran_out_and_what_failed() -> None:
    with Sandbox().spawn(["/bin/sh", "-c", "sleep 60"]) as process:
        process._args = (os.fsencode(EVIL),)
        with pytest.raises(subprocess.TimeoutExpired) as ran_out:
            process.wait(0.01)
    assert harmless(str(ran_out.value))
    script = "printf 'one\\n\\033[2Jtwo\\377\\n' >&2; exit 3"
    with pytest.raises(ProgramError) as failed:
        Sandbox().run(["/bin/sh", "-c", script], check=True)
    assert harmless(str(failed.value))
    assert str(failed.value).endswith("stderr:\n  one\n  \\x1b[2Jtwo\ufffd")


@pytest.mark.parametrize(
    "arguments", [["run", "--preset", "bare", "--", EVIL], ["explain", "--bind", f"/{EVIL}", "/x"]]
)
def test_8_the_command_line(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "isolate", *arguments]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "PYTHONUTF8": "1"})
    text = (done.stdout + done.stderr).decode()
    assert harmless(text)
    assert "\\x1b]0;title" in text


# ---- as the standard library's -------------------------------------------------------------------------------------


def test_33_an_error_is_also_that_of_its_errno() -> None:
    with pytest.raises(FileNotFoundError) as missing:
        Sandbox().run(["/no/such/program"])
    assert isinstance(missing.value, SetupError)
    with pytest.raises(PermissionError):
        Sandbox().run(["/etc/passwd"])
    with pytest.raises(FileNotFoundError):
        Sandbox(MountNamespace(), Root(Bind("/no/such/source"))).run(["true"])
    for kind in (SetupError, UnsupportedError):
        for number, also in (
            (errno.EPERM, PermissionError),
            (errno.EAGAIN, BlockingIOError),
            (errno.ESRCH, ProcessLookupError),
        ):
            error = kind(number, "do it", path="/x")
            assert isinstance(error, kind)
            assert isinstance(error, also)
            assert type(error).__name__ == kind.__name__
            for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
                assert type(copied) is type(error)
                assert (str(copied), copied.filename) == (str(error), "/x")
    plain = SetupError(errno.EINVAL, "do it")  # the control: an errno without a class of its own
    assert type(plain) is SetupError


def test_33_a_timeout_is_also_that_of_subprocess() -> None:
    with Sandbox().spawn(["sleep", "60"]) as process, pytest.raises(subprocess.TimeoutExpired) as caught:
        process.wait(0.01)
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.cmd, caught.value.timeout) == ((b"sleep", b"60"), 0.01)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value) == "sleep still runs after 0.01 s"
