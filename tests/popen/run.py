"""Run CPython's tests of subprocess against the face, and print what became of each as JSON.

``python run.py SUITE``: SUITE is the directory that holds ``test/test_subprocess.py``.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import unittest
from typing import Any

CLASSES = ("ProcessTestCase", "RunFuncTestCase", "POSIXProcessTestCase", "ContextManagerTests", "CommandsWithSpaces")
LIMIT = 60  # seconds for one test


class Outcomes(unittest.TestResult):
    """One line for each test that did not pass."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def startTest(self, test: Any) -> None:
        super().startTest(test)
        signal.alarm(LIMIT)
        self.found[test.id().removeprefix("test.test_subprocess.")] = "passed"

    def stopTest(self, test: Any) -> None:
        signal.alarm(0)
        super().stopTest(test)

    def _say(self, test: Any, error: Any) -> None:
        kind, value, _ = error
        words = " ".join(str(value).split())[:200]
        self.found[test.id().removeprefix("test.test_subprocess.")] = f"{kind.__name__}: {words}"

    def addError(self, test: Any, err: Any) -> None:
        self._say(test, err)

    def addFailure(self, test: Any, err: Any) -> None:
        self._say(test, err)

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self._say(test, err)

    def addSkip(self, test: Any, reason: str) -> None:
        self.found[test.id().removeprefix("test.test_subprocess.")] = f"skipped: {reason}"


def late(*_: object) -> None:
    raise TimeoutError(f"longer than {LIMIT} s")


def main(suite: str) -> None:
    sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)), os.path.join(suite, "test"), suite]
    import test

    test.__path__.insert(0, os.path.join(suite, "test"))
    import face

    face.install()
    from test import test_subprocess

    signal.signal(signal.SIGALRM, late)
    loader, outcomes = unittest.TestLoader(), Outcomes()
    out, sys.stdout = sys.stdout, io.TextIOWrapper(io.BytesIO())
    for name in CLASSES:
        for case in loader.loadTestsFromTestCase(getattr(test_subprocess, name)):
            case.run(outcomes)
    sys.stdout = out
    print(json.dumps(outcomes.found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
