"""The command line as a user has it: another process, its output and its exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import isolate
from isolate.tools.cli import main
from isolate.tools.cli.code import code

ISOLATE = [sys.executable, "-m", "isolate"]
BARE = ["--preset", "bare", "--new", "user,mount,pid"]


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ISOLATE, "run", *words], capture_output=True, text=True, check=False, timeout=60, **options)


# ---- what it runs --------------------------------------------------------------------------------------------------


def test_the_main_job() -> None:
    """Input, output and status are the program's; it is nobody, sees no host, and has no privileges."""
    script = "cat; id -u; ls /; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; echo error >&2; exit 7"
    done = run("--", "sh", "-c", script, input="question\n")
    assert (done.returncode, done.stderr) == (7, "error\n")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["question", "65534"]
    assert not {"root", "home", "var"} & set(lines)
    assert lines[-3:] == ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]


def test_entries_of_the_root_in_their_order(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "file").write_text("data\n")
    (tmp_path / "file").chmod(0o666)
    script = (
        "cat /data/file; echo more >> /write/file && echo no >> /data/file;"
        "ls -d /empty; readlink /link; stat -f -c %T /scratch"
    )
    done = run(
        "--ro-bind",
        str(tmp_path),
        "/data",
        "--bind",
        ".",
        "/write",
        "--dir",
        "/empty",
        "--symlink",
        "/data/file",
        "/link",
        "--tmpfs",
        "/scratch",
        "--",
        "sh",
        "-c",
        script,
        cwd=tmp_path,
    )
    assert done.stdout.splitlines() == ["data", "/empty", "/data/file", "tmpfs"]
    assert "Read-only file system" in done.stderr
    assert (tmp_path / "file").read_text() == "data\nmore\n"


def test_an_overlay_throws_changes_away(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o666)
    base = ["--preset", "bare", "--new", "user,pid,mount", "--ro-bind", "/", "/"]
    done = run(*base, "--overlay", str(tmp_path), "/mnt", "--", "sh", "-c", "echo new > /mnt/file; cat /mnt/file")
    assert (done.stdout, done.stderr) == ("new\n", "")
    assert (tmp_path / "file").read_text() == "old"


def test_environment_and_directory() -> None:
    done = run(
        *BARE,
        "--env",
        "A=1=2",
        "--env",
        "HERE",
        "--cwd",
        "/usr",
        "--",
        "sh",
        "-c",
        "echo $A $HERE $HOME; pwd",
        env={**os.environ, "HERE": "there"},
    )
    assert done.stdout == "1=2 there\n/usr\n"
    missing = run(*BARE, "--env", "NO_SUCH_VARIABLE", "--", "true")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "there is no such variable here" in missing.stderr


def test_identity() -> None:
    done = run("--hostname", "box", "--uid", "1234", "--", "sh", "-c", "id -u; id -g; cat /proc/sys/kernel/hostname")
    assert done.stdout.split() == ["1234", "1234", "box"]
    caps = run("--cap", "net_raw", "--", "grep", "CapEff", "/proc/self/status")
    assert caps.stdout.split() == ["CapEff:", "0000000000002000"]


def test_what_is_behind_the_dashes_is_the_programs() -> None:
    assert run(*BARE, "--", "echo", "--timeout", "--", "--help").stdout == "--timeout -- --help\n"
    assert run(*BARE, "echo", "-n", "x").stdout == "x", "without dashes: from the first word that is no option"


# ---- exit status -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "status", "stderr"),
    [
        (["--", "sh", "-c", "exit 127"], 127, ""),
        (["--", "sh", "-c", "kill -SEGV $$"], 139, "SIGNALED: ended by SIGSEGV"),
        (["--quiet", "--", "sh", "-c", "kill -KILL $$"], 137, ""),
        (["--timeout", "0.2", "--", "sleep", "60"], 124, "TIMEOUT"),
        (["--cpu-time", "0.2", "--", "sh", "-c", "while :; do :; done"], 124, "CPU_TIME"),
        (["--", "no-such-program"], 127, "searched inside"),
        (["--", "/etc"], 126, "is a directory"),
        (["--ro-bind", "/no/such/source", "/x", "--", "true"], 125, "the source /no/such/source does not exist"),
    ],
)
def test_exit_status(words: list[str], status: int, stderr: str) -> None:
    done = run(*BARE, *words)
    assert done.returncode == status, done.stderr
    assert stderr in done.stderr
    assert bool(done.stderr) == bool(stderr), done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user may have no cgroup here")
def test_memory() -> None:
    bomb = [sys.executable, "-c", "bytearray(200 << 20)"]
    assert run(*BARE, "--", *bomb).returncode == 0
    done = run(*BARE, "--memory", "40M", "--", *bomb)
    assert done.returncode == 137
    assert "OOM" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which program?"),
        (["--timeout", "-1", "--", "true"], "timeout must be more than 0"),
        (["--timeout", "soon", "--", "true"], "invalid float value"),
        (["--preset", "bare", "--new", "usr", "--", "true"], "did you mean 'user'?"),
        (["--new", "pid", "--", "true"], "--new goes with --preset bare"),
        (["--memory", "lots", "--", "true"], "lots"),
        (["--rlimit", "nofiles=3", "--", "true"], "did you mean 'nofile'?"),
        (["--rlimit", "nofile", "--", "true"], "NAME=N"),
        (["--time", "3", "--", "true"], "did you mean '--timeout'?"),
        (["--alow", "example.org", "--", "true"], "did you mean '--allow'?"),
        (["--seccomp", "strickt", "--", "true"], "did you mean 'strict'?"),
        (["true", "--", "true"], "stands before --"),
        (["-v", "/srv:/data", "--", "true"], "here: --bind SRC DST"),
        (["--chdir", "/", "--", "true"], "here: --cwd DIR"),
        (["--rm", "--", "true"], "it is so already"),
    ],
)
def test_wrong_options(words: list[str], said: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["biuld", "."], "did you mean 'build'?"),
        (["inspect", "a"], "here: ps --json"),
        (["pull", "x"], "here: image"),
        (["exec", "web", "--json", "id"], "-- stands before the program"),
        (["exec", "web", "--jsn"], "did you mean '--json'?"),
        (["image", "pul", "x"], "did you mean 'pull'?"),
        (["image", "pull", "--plattform=x", "x"], "did you mean '--platform'?"),
        (["doctor", "--jsn"], "did you mean '--json'?"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    assert main(["doctor", "usr"]) == 2
    assert "did you mean 'user'?" in capsys.readouterr().err


def test_remedies_are_those_of_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--store", str(tmp_path / "store"), "--image", "none:1", "--", "true"]) == 125
    assert "add --pull, or isolate image pull none:1" in capsys.readouterr().err


def test_json() -> None:
    done = run(*BARE, "--json", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    result = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (3, "")
    assert (result["verdict"], result["returncode"], result["stdout"], result["stderr"]) == (
        "EXITED",
        3,
        "out\n",
        "err\n",
    )
    flood = run(*BARE, "--json", "--max-output", "1K", "--", "sh", "-c", "while :; do echo yes; done")
    told = json.loads(flood.stdout)
    assert (flood.returncode, told["verdict"], len(told["stdout"])) == (137, "OUTPUT", 1024)
    failed = run(*BARE, "--json", "--", "no-such-program")
    told = json.loads(failed.stdout)
    assert (failed.returncode, told["verdict"], told["error"]["errno"]) == (127, None, 2)
    assert "searched inside" in told["error"]["cause"]


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="exec -a is bash's")
def test_an_interrupt_takes_everything_down() -> None:
    mark = f"isolate-interrupt-{os.getpid()}"
    child = subprocess.Popen(
        [*ISOLATE, "run", *BARE, "--", "bash", "-c", f"echo started; exec -a {mark} sleep 60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A script's background job has it ignored, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "started\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 130
    finally:
        child.kill()  # what it started goes with it, and no other test finds it
        _, stderr = child.communicate()
    assert "Traceback" not in stderr
    deadline = time.monotonic() + 20
    while mark in subprocess.run(["ps", "ax"], capture_output=True, text=True, check=True).stdout:
        assert time.monotonic() < deadline, "the program still runs"


def test_43_the_interrupt_where_the_suite_has_it_ignored() -> None:
    """As any background job of a script has."""
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    one = f"{__file__}::test_an_interrupt_takes_everything_down"
    script = 'trap "" INT; exec "$@"'
    done = subprocess.run(["sh", "-c", script, "sh", *pytest_, one], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- explain and probe -----------------------------------------------------------------------------------------------


def test_explain_needs_nothing_and_runs_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert (
        main(["explain", "--calls", "--timeout", "5", "--bind", str(tmp_path / "no"), "/x", "--", "no-such-program"])
        == 0
    )
    shown = capsys.readouterr().out
    assert "clone3(" in shown
    assert "pivot_root" in shown
    assert str(tmp_path / "no") in shown


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--ro-bind", "/srv", "/data", "--tmpfs", "/x", "--hostname", "h", "--rlimit", "nofile=64:128", "--net"],
        ["--preset", "bare", "--new", "user,pid,uts,net", "--hostname", "h"],
        ["--uid", "3", "--cap", "net_raw", "--seccomp", "strict"],
    ],
)
def test_code_makes_the_same_sandbox(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from isolate.tools.cli.assemble import sandbox
    from isolate.tools.cli.options import parser

    assert main(["explain", "--code", *words]) == 0
    shown = capsys.readouterr().out
    made = eval(shown, {name: getattr(isolate, name) for name in isolate.__all__})
    assert made == sandbox(parser().parse_args(["explain", *words]))
    assert code(made) + "\n" == shown


def test_probe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe"]) == 0
    table = capsys.readouterr().out
    assert os.uname().release in table
    words = [line.split() for line in table.splitlines() if line.startswith("  ") and not line.startswith("   ")]
    rows = {word[0]: word[1] for word in words if len(word) > 1 and word[1] in ("ok", "no")}
    assert rows["start"] == "ok"
    assert main(["probe", "--json", "start"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["ok"]) == ("start", True)
    assert main(["probe", "no-such-row"]) == 2
    assert "no ability is named" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    bare = capsys.readouterr().out
    for command in ("run", "explain", "probe"):
        assert command in bare
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: isolate {command}")
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"isolate {isolate.__version__}\n"


def test_exit_codes_are_in_the_help_and_in_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = capsys.readouterr().out
    page = (Path(__file__).parents[2] / "docs" / "cli.rst").read_text()
    for status in ("124", "125", "126", "127", "128+N"):
        assert status in shown
        assert status in page


def test_the_package_does_not_import_argparse() -> None:
    script = "import isolate, sys; isolate.Sandbox; print('argparse' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
    )
