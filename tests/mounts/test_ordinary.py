"""All of these tests once more as an ordinary user."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.ordinary import NOBODY, as_ordinary_user

HERE = Path(__file__).parent


@pytest.mark.timeout(400)
@pytest.mark.skipif(os.geteuid() != 0, reason="they run as an ordinary user already")
@pytest.mark.parametrize(
    ("files", "least"),
    [
        pytest.param(("test_root.py", "test_null.py"), 30, id="a sample"),
        pytest.param((".",), 200, id="all", marks=pytest.mark.slow),
    ],
)
def test_as_an_ordinary_user(files: tuple[str, ...], least: int) -> None:
    as_ordinary_user("pass")  # skips where such a user cannot read the package
    with tempfile.TemporaryDirectory(prefix="isolate-test-") as home:
        os.chown(home, NOBODY, NOBODY)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "--rootdir",
                HERE.parent.parent,
                "-c",
                HERE.parent.parent / "pyproject.toml",
                *(HERE / file for file in files),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=home,
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            env={**os.environ, "HOME": home, "PYTHONDONTWRITEBYTECODE": "1"},
            timeout=380,
        )
    assert done.returncode == 0, done.stdout[-6000:]
    counts = re.search(r"(\d+) passed(?:, (\d+) skipped)?", done.stdout)
    assert counts
    assert int(counts[1]) > least
