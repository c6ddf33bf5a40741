"""Records of detached containers in a directory of a test's own."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolate
from isolate import SetupError
from isolate.sandbox.containers import records

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["own_records", "settled"]


@contextlib.contextmanager
def own_records() -> Iterator[Path]:
    """``ISOLATE_CONTAINERS`` names a new directory; what runs there at the end is ended.

    It is not below /tmp, where others write: such a place is refused.
    """
    above = "/run" if os.geteuid() == 0 else os.path.expanduser("~")
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="isolate-test-", dir=above) as name:
        directory = Path(name) / "containers"
        patch.setenv("ISOLATE_CONTAINERS", str(directory))
        directory.mkdir(mode=0o700)
        try:
            yield directory
        finally:
            for record in records.read_records():
                if record.state == "running":
                    with contextlib.suppress(SetupError):  # it is ending
                        isolate.reopen(record.name).kill()
                    settled(record.name)


def settled(name: str) -> records.Record:
    """The record of a container that is ending, once its keeper has gone."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = next(r for r in records.read_records() if r.name == name)
        if found.state != "running":
            return found
        time.sleep(0.01)
    raise AssertionError(f"{name} still runs")
