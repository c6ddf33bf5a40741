"""What the plugin does where this host cannot do what a fixture or the marker wants."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

__all__ = ["cannot", "flag", "refused"]


def flag(config: pytest.Config, name: str) -> bool:
    return bool(config.getoption(f"isolate_{name}") or config.getini(f"isolate_{name}"))


def cannot(config: pytest.Config, reason: str) -> NoReturn:
    """Skip the test, or fail it with ``--isolate-strict``."""
    if flag(config, "strict"):
        pytest.fail(f"isolate: {reason}", pytrace=False)
    pytest.skip(f"isolate: {reason}")


def refused(config: pytest.Config, error: Exception) -> NoReturn:
    """The same, for an error of this library's."""
    hint = "" if os.geteuid() == 0 else " (as an ordinary user: --isolate-user)"
    cannot(config, f"{str(error).splitlines()[0]}{hint}")
