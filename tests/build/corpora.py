"""Data that others published: beside the checkout, where there is such a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3] / "shared/corpora"


def folder(name: str) -> Path:
    """The folder of that name; the module skips where it is not."""
    path = ROOT / name
    if not path.exists():
        pytest.skip("shared/corpora is not beside the checkout", allow_module_level=True)
    return path
