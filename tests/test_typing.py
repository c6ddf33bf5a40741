"""The checkers, as tests: types are complete for users, and the code is clean."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(module: str, *args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a checker of this environment; skip where it is not installed (fail where everything has to be)."""
    if subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False).returncode:
        reason = f"{module} is not installed (extra: lint)"
        if os.environ.get("ISOLATE_REQUIRE_KERNEL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    command = [sys.executable, "-m", module, *args]
    # An editable installation is found by a hook, which a checker does not run: PYTHONPATH says where the package is.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def test_ruff() -> None:
    done = run("ruff", "check", "--no-cache", ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_would_say_so(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import os\n")
    done = run("ruff", "check", "--no-cache", "--config", str(ROOT / "pyproject.toml"), str(tmp_path / "bad.py"))
    assert done.returncode == 1
    assert "F401" in done.stdout


def test_mypy() -> None:
    done = run("mypy", "--cache-dir", tempfile.gettempdir() + "/isolate-mypy")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow  # what mypy passes and this does not is found in the long lane
@pytest.mark.timeout(600)
def test_pyright() -> None:
    done = run("pyright", "--pythonpath", sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_public_types_are_complete() -> None:
    """What a user's own checker sees of every name: nothing unknown, nothing that checkers infer differently."""
    done = run(
        "pyright", "--pythonpath", sys.executable, "--verifytypes", "isolate", "--ignoreexternal", "--outputjson"
    )
    report = json.loads(done.stdout)["typeCompleteness"]
    incomplete = {
        symbol["name"]: [d["message"] for d in symbol["diagnostics"]]
        for symbol in report["symbols"]
        if symbol["isExported"] and not symbol["isTypeKnown"]
    }
    assert (report["completenessScore"], incomplete) == (1, {})
    assert report["packageRootDirectory"] == str(ROOT / "isolate")
    assert report["exportedSymbolCounts"]["withKnownType"] > 1000
