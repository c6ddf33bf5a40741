"""Fixtures for every room: a program that prints what holds inside, and a check that a test leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.snapshot import Snapshot, settled

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent

# Everyday runs try the same examples each time, on busy machines too. What HYPOTHESIS_PROFILE names explores.
with contextlib.suppress(ImportError):
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "everyday", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "everyday"))


@pytest.fixture(scope="session")
def audit() -> Iterator[str]:
    """A static program that prints one line for each thing that set-up is there for."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    # Not below pytest's own directory: an ordinary user runs it, too.
    with tempfile.TemporaryDirectory(prefix="isolate-audit-") as directory:
        target = os.path.join(directory, "audit")
        os.chmod(directory, 0o755)
        subprocess.run(
            [compiler, "-O1", "-static", "-Wall", "-Werror", str(HERE / "audit.c"), "-o", target], check=True
        )
        os.chmod(target, 0o755)
        yield target


@pytest.fixture(scope="session", autouse=True)
def warm() -> Iterator[None]:
    """Makes now what is made once for the whole program: the launcher's memfd, and modules that are imported late."""
    import isolate.diagnosis.setup

    isolate.Sandbox().run(["true"])
    with isolate.Sandbox().spawn(["true"]):
        pass
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """What is alive when a file begins, with all tests that were collected, is not looked through by each gc.collect().

    Otherwise ``clean`` takes half a second of every test that uses it in a run of all tests.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def monkeypatch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Replaces nothing that a thread of an earlier test still calls, on its way out."""
    settled()
    return monkeypatch


@pytest.fixture
def clean() -> Iterator[Snapshot]:
    """Fails the test if processes, descriptors, threads, mounts or cgroups are left after it."""
    before = Snapshot.take()
    yield before
    before.compare()
