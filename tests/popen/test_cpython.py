"""CPython's own tests of subprocess, through a Popen-like face over ``spawn``. ``tests/popen/make`` fetches them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .expected import EXPECTED

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("ISOLATE_POPEN_CACHE", HERE.parent.parent / ".cache/popen"))
SUITE = CACHE / "usr/lib/python3.11"


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the tests are those of CPython 3.11")
@pytest.mark.skipif(not (SUITE / "test/test_subprocess.py").exists(), reason="tests/popen/make has not been run")
def test_semantics_of_subprocess(tmp_path: Path) -> None:
    """What fails is what is expected to, each for its reason, and nothing else."""
    command = [sys.executable, str(HERE / "run.py"), str(SUITE)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=380)
    found: dict[str, str] = json.loads(done.stdout)
    failed = {name: what for name, what in found.items() if what != "passed" and not what.startswith("skipped")}
    assert len(found) > 190
    assert {name: what for name, what in failed.items() if name not in EXPECTED} == {}
    assert EXPECTED.keys() - failed.keys() == set()


def test_each_expected_failure_has_a_reason() -> None:
    assert all(EXPECTED.values())
    assert len(EXPECTED) < 40
