"""The programs of the how-to pages run, as root and as an ordinary user, and print what the pages show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .ordinary import as_ordinary_user

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SHOWN = {
    "agent": ["useful   OK       the total is 42", "curious  EXITED   FileNotFoundError", "endless "],
    "build_tool": ["sort      {'sorted.txt': 'ff4fcf711f92'}", "same      {'sorted.txt': 'ff4f", "refused"],
    "asyncio_server": ["OK        42", "CPU_TIME", "No such file or directory: '/etc/shadow'"],
}


# As root two of them are for the long lane: most of their time is that of programs that run into their limits.
@pytest.mark.parametrize(
    "name", ["build_tool", *(pytest.param(name, marks=pytest.mark.slow) for name in ("agent", "asyncio_server"))]
)
def test_program_of_a_page(name: str) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [line for line in SHOWN[name] if line not in done.stdout] == []


@pytest.mark.parametrize("name", ["build_tool", "asyncio_server", pytest.param("agent", marks=pytest.mark.slow)])
def test_program_of_a_page_as_an_ordinary_user(name: str) -> None:
    path = str(EXAMPLES / f"{name}.py")
    code = f"import runpy, sys; sys.argv = ['x']\nrunpy.run_path({path!r}, run_name='m')\nprint('begins', flush=True)\n"
    code += f"try: runpy.run_path({path!r}, run_name='__main__')\n"
    out = as_ordinary_user(code + "except SystemExit as end: assert not end.code, end.code")
    assert out.startswith("begins\n")  # importing alone does nothing
    assert [line for line in SHOWN[name] if line not in out] == []


def test_the_pages_show_what_the_programs_print() -> None:
    pages = {"agent": "agent", "build_tool": "build-tool", "asyncio_server": "asyncio-server"}
    for name, page in pages.items():
        text = (ROOT / f"docs/how-to/{page}.rst").read_text()
        assert f"examples/{name}.py" in text
        assert SHOWN[name][0] in text
