"""Pages whose examples are written as a session: each is run as it stands."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = ["streams.rst", "workspace.rst"]


@pytest.mark.parametrize("page", PAGES)
def test_examples_say_what_is_printed(page: str) -> None:
    failed, tried = doctest.testfile(str(DOCS / page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert tried > 0
    assert failed == 0
