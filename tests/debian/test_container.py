"""A Debian root file system as a container: its own programs run in it, its own compiler compiles in it.

Marked ``debian``: ``tests/debian/make`` makes the root first (it takes minutes), and these find it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import isolate
from isolate import Bind, Sandbox, presets

CACHE = Path(os.environ.get("ISOLATE_DEBIAN_CACHE", Path(__file__).resolve().parents[2] / ".cache" / "debian"))
ROOT = CACHE / "root"

pytestmark = [
    pytest.mark.debian,
    pytest.mark.skipif(not (ROOT / ".complete").exists(), reason="no Debian root: run tests/debian/make first"),
]

HELLO = '#include <stdio.h>\\nint main(void) { puts("compiled inside"); return 0; }\\n'
COMPILE = f"printf '{HELLO}' > /tmp/hello.c && gcc -O2 -o /tmp/hello /tmp/hello.c && /tmp/hello"


def run(box: Sandbox, *args: str) -> isolate.Result[str]:
    return box.run(args, text=True, timeout=60)


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return presets.container(ROOT)


def test_programs_of_the_root_run(box: Sandbox) -> None:
    apt = run(box, "apt-get", "--version")
    assert apt.ok, apt
    assert apt.stdout is not None
    assert apt.stdout.startswith("apt ")
    code = "import sys, os; print(sys.version_info >= (3, 9), os.path.exists('/.complete'))"
    version = run(box, "python3", "-c", code)
    assert version.stdout == "True True\n", version


def test_a_compiler_compiles_and_the_result_runs(box: Sandbox) -> None:
    result = run(box, "sh", "-c", COMPILE)
    assert result.stdout == "compiled inside\n", result


def test_the_root_is_the_containers_own(box: Sandbox) -> None:
    """The host's files are not there; its own change only if that is asked for."""
    assert not run(box, "test", "-e", str(Path(__file__).resolve())).ok
    assert Path(__file__).resolve().exists()
    write = ("sh", "-c", "echo x > /etc/isolate-was-here && rm /etc/debian_version && cat /etc/isolate-was-here")
    assert run(box, *write).stdout == "x\n"
    assert not (ROOT / "etc/isolate-was-here").exists()
    assert (ROOT / "etc/debian_version").exists()
    denied = run(presets.container(ROOT, writes="deny"), *write)
    assert denied.returncode == 2
    assert "Read-only file system" in (denied.stderr or "")
    assert run(presets.container(ROOT, writes="keep"), "sh", "-c", "echo x > /etc/isolate-was-here").ok
    try:
        assert (ROOT / "etc/isolate-was-here").read_text() == "x\n"
    finally:
        (ROOT / "etc/isolate-was-here").unlink()


def test_data_goes_in_by_a_bind(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text("print(6 * 7)\n")
    box = presets.container(ROOT, Bind(str(tmp_path), "/task"))
    assert run(box, "python3", "/task/task.py").stdout == "42\n"
