"""Loggers by module: silent by default; a start, its plan and its verdict at debug."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from isolate import Rlimits, Sandbox

if TYPE_CHECKING:
    import pytest


def test_a_start_its_plan_and_its_verdict(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="isolate"):
        Sandbox(Rlimits(nofile=61)).run(["sh", "-c", "exit 3"], env={"SECRET": "secret-value", "PATH": "/usr/bin:/bin"})
    told = {record.name: record.getMessage() for record in caplog.records}
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert "nofile=61" in told["isolate.sandbox.planned"]
    assert told["isolate.sandbox.starting"] == "start (b'sh', b'-c', b'exit 3')"
    assert told["isolate.sandbox.outcome"].startswith("verdict EXITED, status 3 after ")
    assert "secret-value" not in caplog.text


def test_silent_by_default() -> None:
    run = "import isolate; isolate.Sandbox().run(['true']); import sys; "
    for script in (run + "print('logging' in sys.modules)", "import logging; logging.basicConfig(); " + run):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stderr == ""


def test_a_start_that_nobody_logs_takes_no_lock_of_loggings() -> None:
    """An interrupt may leave it taken by a thread that is elsewhere by then: the others start things all the same."""
    box, done = Sandbox(), threading.Event()

    def start() -> None:
        assert box.run(["true"]).ok
        done.set()

    with logging._lock:  # type: ignore[attr-defined]
        thread = threading.Thread(target=start, daemon=True)
        thread.start()
        assert done.wait(30)
        other = threading.Thread(target=logging.getLogger, args=("isolate.one that is new",), daemon=True)
        other.start()
        other.join(0.05)
        assert other.is_alive(), "the control: it is waited for"
    thread.join()
    other.join()
