"""The examples run, as root and as an ordinary user; the part from outside the library holds."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import _cffi_backend
import pytest

import isolate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
HARD = os.environ.get("ISOLATE_REQUIRE_KERNEL") == "1"
NOBODY = 65534


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def check_table(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if line and line[0] != " "}
    assert (rows["honest"], rows["endless"], rows["hostile"]) == ("OK", "TIMEOUT", "OK")
    assert "SUCCEEDED" not in done.stdout
    for attempt in ("read_secret", "open_socket", "signal_process", "write_outside"):
        assert f"{attempt} failed:" in done.stdout
    assert "outside: the secret unread" in done.stdout


def judged(*command: str, cwd: Path = ROOT) -> None:
    """The judge's table. On a busy machine the honest one may need more than a second."""
    for seconds in ("1", "20"):
        words = [*command, "--seconds", seconds]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd)
        if done.returncode == 0:
            break
    check_table(done)


def test_judge() -> None:
    judged(sys.executable, str(EXAMPLES / "judge.py"))


def test_judge_in_an_image() -> None:
    """The same, in a root that is an image made of the host's own files."""
    judged(sys.executable, str(EXAMPLES / "judge.py"), "--image")


def test_judge_without_the_container() -> None:
    """The control: the same submission reaches all four when nothing holds it."""
    command = [sys.executable, str(EXAMPLES / "judge.py"), "--control"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SUCCEEDED") == 4
    assert "connected" in done.stdout
    assert "killed" in done.stdout
    assert "written outside" in done.stdout


@pytest.fixture
def as_nobody() -> Iterator[list[str]]:
    """A command line for Python as uid 65534, with a copy of the package that this user may read."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        shutil.copytree(Path(isolate.__file__).parent, place / "isolate")
        shutil.copy(_cffi_backend.__file__, place)
        for path in (place, *place.rglob("*")):
            path.chmod(0o755)
        user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        yield ["env", f"PYTHONPATH={place}", "setpriv", *user, "--", python_for_all(place)]


def python_for_all(place: Path) -> str:
    """An interpreter that everybody may execute and that the compiled modules fit: ours may stand in root's home."""
    for candidate in (sys.executable, f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"):
        script = f"import sys; sys.path.insert(0, {str(place)!r}); import isolate.engine.native"
        command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--", candidate, "-c", script]
        if subprocess.run(command, capture_output=True, check=False, cwd="/").returncode == 0:
            return candidate
    reason = "no Python of this version that uid 65534 may execute"
    if HARD:
        pytest.fail(reason)
    pytest.skip(reason)


def test_judge_as_an_ordinary_user(as_nobody: list[str]) -> None:
    script = EXAMPLES.joinpath("judge.py").read_text()
    judged(*as_nobody, "-c", script, cwd=Path("/"))
    who = [*as_nobody, "-c", "import os; print(os.geteuid())"]
    uid = subprocess.run(who, capture_output=True, text=True, check=True)
    assert uid.stdout == f"{NOBODY}\n"


def test_a_part_of_ones_own() -> None:
    part = load("own_part").NoHugePages()
    command = ["grep", "THP_enabled", "/proc/self/status"]
    without = isolate.Sandbox().run(command, text=True, check=True)
    within = isolate.Sandbox(part, isolate.UserNamespace(), isolate.PidNamespace()).run(command, text=True, check=True)
    assert without.stdout == "THP_enabled:\t1\n"
    assert within.stdout == "THP_enabled:\t0\n"
    assert isinstance(part, isolate.Part)
    assert "no transparent huge pages" in isolate.Sandbox(part).explain()
