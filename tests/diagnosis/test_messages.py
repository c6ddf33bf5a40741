"""What a user does wrong, and what cannot be, is said in words that help, before anything starts."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from isolate import Limits, Root, Sandbox, Seccomp, UserNamespace, attach
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize(
    ("do", "kind", "words"),
    [
        (
            lambda: Sandbox().run("echo hi"),
            FileNotFoundError,
            "a single string is a program's name, not a command line",
        ),
        (lambda: Sandbox([UserNamespace()]), TypeError, r"one by one: Sandbox\(\*parts\)"),
        (lambda: Root(Limits(pids=5)), TypeError, "it is a part"),
        (lambda: Sandbox().spawn(["true"], pty=24), TypeError, r"pty must be True, False or \(rows, columns\)"),
        (lambda: Sandbox().spawn(["true"], pty=(24,)), TypeError, r"pty must be True, False or \(rows, columns\)"),
        (lambda: Sandbox().spawn(["true"], pty=(24, "x")), ValueError, "rows and columns must"),
        (lambda: Sandbox().spawn(["true"], pty=(24, 1 << 16)), ValueError, "rows and columns must"),
        (lambda: Seccomp.from_oci("/etc/profile.json"), ValueError, "looks like a path"),
        (lambda: Sandbox().run(["true"], cwd="/" + "a/" * 3000), ValueError, "cwd must be shorter than 4096 bytes"),
    ],
)
def test_33_what_was_meant(do: Callable[[], Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        do()


@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("capture_output", "are captured"),
        ("shell", '"sh", "-c"'),
        ("max_ouput", "did you mean 'max_output'"),
        ("umask", "Credentials"),
    ],
)
def test_33_keywords_of_run(keyword: str, words: str) -> None:
    with pytest.raises(TypeError, match=f"there is no keyword {keyword!r}.*{words}"):
        Sandbox().run(["true"], **{keyword: True})  # type: ignore[call-overload]


def test_33_a_closed_process() -> None:
    process = Sandbox().spawn(["sleep", "60"])
    process.close()
    with pytest.raises(ValueError, match="the process is closed"):
        process.exec(["true"])


def test_33_a_failed_check_shows_the_end_of_stderr() -> None:
    lines = "; ".join(f"echo line {n} >&2" for n in range(20))
    with pytest.raises(Exception, match="line 19") as caught:
        Sandbox().run(["sh", "-c", lines + "; exit 1"], check=True)
    assert "line 15" in str(caught.value)
    assert "line 3\n" not in str(caught.value)


@pytest.mark.parametrize("pid", [1 << 31, 1 << 32, 1 << 70, 2**31 - 1])
def test_41_no_process_has_that_number(pid: int) -> None:
    with pytest.raises(ProcessLookupError, match="there is no such process"):
        attach(pid)


def test_41_more_descriptors_than_can_be_passed() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        with pytest.raises(ValueError, match="pass_fds: at most 1017 descriptors"):
            Sandbox().run(["true"], pass_fds=dict.fromkeys(range(3, 1023), fd))
        most = dict.fromkeys(range(3, 1020), fd)
        count = Sandbox().run(["sh", "-c", "ls /proc/self/fd | wc -l"], pass_fds=most, text=True)
        assert int(count.stdout) >= 1017 + 3
    finally:
        os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_41_a_working_directory_beyond_path_max(tmp_path: Path) -> None:
    """It works with subprocess, so here. (That a directory outside of a new root is refused has its own tests.)"""
    code = f"""
import os
os.chdir({str(tmp_path)!r})
for _ in range(30):
    os.mkdir("x" * 200); os.chdir("x" * 200)
from isolate import Sandbox
try:
    print(Sandbox().run(["true"]).verdict)
finally:
    for _ in range(30):
        os.chdir(".."); os.rmdir("x" * 200)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "OK\n", done.stderr


def test_41_explain_needs_nothing() -> None:
    """Also of limits that this user cannot have; a start says so, as does the end of the text."""
    code = """
from isolate import Limits, Sandbox, UserNamespace
for parts in ((Limits(pids=5),), (UserNamespace(), Limits(memory="64M"))):
    box = Sandbox(*parts)
    text = box.explain()
    print("execve(program)" in text, "Limits(" in text)
    try:
        print(box.run(["true"]).verdict, "limit" in text)
    except OSError as error:
        print(type(error).__name__, "not to be had here" in text and error.cause in text)
"""
    lines = as_ordinary_user(code).splitlines()
    assert lines[0::2] == ["True True", "True True"]
    assert all(line in ("UnsupportedError True", "OK True") for line in lines[1::2]), lines
    # The control: where they can be had they are steps.
    if os.geteuid() == 0 and "OK" in str(Sandbox(Limits(pids=9)).run(["true"]).verdict):
        assert "not to be had" not in Sandbox(Limits(pids=9)).explain()


@pytest.mark.parametrize(
    "command", [["explain"], ["explain", "--memory", "64M"], ["probe", "start"], ["run", "--help"]]
)
def test_41_an_ascii_terminal(command: list[str]) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "isolate", *command], capture_output=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert b"codec" not in done.stderr
    assert (done.stdout + done.stderr).isascii()
