"""Packages that only some features need: extras of the distribution."""

from __future__ import annotations

import shlex
import sys

__all__ = ["install"]


def install(extra: str) -> str:
    """The command that installs an extra, to be pasted: for this interpreter, whatever ``pip`` is the first in PATH."""
    return f"{shlex.quote(sys.executable or 'python3')} -m pip install 'isolate-linux[{extra}]'"
