"""The programs of the page "Twelve small programs" run, as root and as an ordinary user; agent.py in test_howto."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .ordinary import as_ordinary_user

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SHOWN = {
    "output_files": [
        "right    accepted",
        "wrong    wrong answer",
        "silent   no answer (there is no such file)",
        "link     no answer (a symbolic link is on the way",
        "fifo     no answer (it is no regular file but a fifo)",
        "endless  failed (",
    ],
    "container": [
        "files     ['/tmp/project/test_words.py', '/tmp/project/words.py']",
        "tests     1 passed",
        "endless   TIMEOUT",
        "too much  SIGNALED",
        "piped     still there",
        "archive   b'PK' True",
    ],
    "streaming_server": ["verdicts  ['OK']", "lines     100", "in order  True"],
    "build_root": ["  D /etc/unwanted", "  C /srv/app/main.py", "the same digest again: True", "thrown away: A /x"],
    "restrict": [
        "read /etc/passwd           done",
        "write here                 done",
        "write elsewhere            Permission denied",
        "open a socket              Operation not permitted",
    ],
    "live_figures": [],  # below
    "docker_profile": ["who          0", "chown        done", "chmod        chmod:", "Operation not permitted"],
    "one_port": [
        "its port      the database",
        "another port  Connection refused",
        "another host  Network is unreachable",
        "connections   1",
    ],
    "oci_layout": ["layout    blobs index.json oci-layout", "OK        hello from a layout, in /srv"],
}


def check(name: str, out: str) -> None:
    assert [line for line in SHOWN[name] if line not in out] == [], out
    if name == "live_figures":
        assert "frozen: True" in out or "remedy: " in out, out


@pytest.mark.parametrize("name", SHOWN)
def test_program(name: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check(name, done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_program_as_an_ordinary_user(name: str) -> None:
    path = EXAMPLES / f"{name}.py"
    code = (
        f"import os, runpy, shutil, sys, tempfile\nsys.argv = ['x']\nwork = tempfile.mkdtemp()\nos.chdir(work)\n"
        f"def run():\n    try: runpy.run_path({str(path)!r}, run_name='__main__')\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
    )
    # One that executes another program in its place does so in a child, which leaves the directory to us.
    code += (
        "pid = os.fork()\nif pid == 0:\n    run()\n    sys.stdout.flush()\n    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\nshutil.rmtree(work)\n"
        if name == "restrict"
        else "run()\nos.chdir('/')\nshutil.rmtree(work)\n"
    )
    check(name, as_ordinary_user(code))


@pytest.mark.slow
def test_two_networks() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLES / "test_two_networks.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def read_until(fd: int, wanted: bytes, seconds: float = 30.0) -> bytes:
    found, deadline = b"", time.monotonic() + seconds
    while wanted not in found:
        assert select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0], found
        try:
            data = os.read(fd, 65536)
        except OSError:
            data = b""
        assert data, found
        found += data
    return found


def test_shell() -> None:
    """On a terminal: what is typed goes inside, the terminal there is the sandbox's own, the end is told."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, str(EXAMPLES / "shell.py")])
    try:
        read_until(fd, b"isolate$ ")
        os.write(fd, b"tty; hostname; echo $((6 * 7))\n")
        found = read_until(fd, b"42\r\n")
        assert b"/dev/pts/0\r\nsandbox\r\n" in found
        os.write(fd, b"exit 3\n")
        read_until(fd, b"ended with 3")
    finally:
        os.close(fd)
        os.waitpid(pid, 0)


def test_the_page_names_each_of_them() -> None:
    page = (ROOT / "docs/how-to/programs.rst").read_text()
    for name in (*SHOWN, "agent", "shell", "test_two_networks"):
        assert f"``{name}.py``" in page
        assert (EXAMPLES / f"{name}.py").is_file()
