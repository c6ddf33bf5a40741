"""Run a function of the tests in a process of its own: one that does to the interpreter what others must not meet.

An exception raised by a tracer at any opcode may come where the compiler knows of none: between the push and the pop of
the exception that is being handled. Python 3.11 then never pops it: it is the context of all that are raised later on
that thread, with all the frames that it holds.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def apart(module: str, function: str, *arguments: str, timeout: float = 110) -> None:
    """Call it there; fails with what it printed if it raised anything."""
    code = f"from tests.apart import call; call({module!r}, {function!r}, {arguments!r})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert done.stdout.endswith("called\n"), done.stdout[-5000:]


def call(module: str, function: str, arguments: tuple[str, ...]) -> None:
    """What the process does."""
    # A destructor's exception cannot be raised: Python tells of it and goes on. It is the one that was injected.
    sys.unraisablehook = lambda unraisable: None
    getattr(importlib.import_module(module), function)(*arguments)
    print("called", flush=True)
