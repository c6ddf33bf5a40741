"""Run Python code as an ordinary user (uid 65534), for tests that run as root themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = 65534
_known: list[bool] = []  # whether that user can, looked at once


def _reachable(run: Callable[[str], subprocess.CompletedProcess[str]]) -> bool:
    if not _known:
        try:
            _known.append(run("import isolate.engine.native").returncode == 0)
        except PermissionError:
            _known.append(False)
    return _known[0]


def as_ordinary_user(code: str, *, groups: tuple[int, ...] = (), check: bool = True) -> str:
    """What the code prints. It must raise nothing. Skipped where nobody but root can read this Python."""
    who: dict[str, object] = {}
    if os.geteuid() == 0:
        who = {"user": NOBODY, "group": NOBODY, "extra_groups": list(groups)}
    elif groups:
        pytest.skip("only root can give a process groups")

    def run(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, cwd="/", **who)  # type: ignore[call-overload,no-any-return]

    if not _reachable(run):
        reason = f"uid {NOBODY} cannot read {sys.executable} or the package"
        if os.environ.get("ISOLATE_REQUIRE_KERNEL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    done = run(code)
    if check:
        assert done.returncode == 0, done.stderr
    return done.stdout
