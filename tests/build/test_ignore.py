"""``.dockerignore``: the rows of Docker's own matcher, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolate.build import ignore
from isolate.build.ignore import Ignore, IgnoreError
from tests.build.corpora import ROOT

_FILE = ROOT / "dockerignore.json"
ROWS: list[dict[str, Any]] = json.loads(_FILE.read_text()) if _FILE.exists() else []


def test_the_data_is_there() -> None:
    if not _FILE.exists():
        pytest.skip("shared/corpora is not beside the checkout")
    assert len(ROWS) > 50


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['patterns']} {row['path']}")
def test_row_of_docker(row: dict[str, Any]) -> None:
    assert Ignore(row["patterns"]).matches(row["path"]) == row["matches"]


def test_a_file_of_patterns() -> None:
    ignore = Ignore.parse(b"# comment\n\n  *.pyc \n/build/\n!build/keep\r\ndocs/**/*.txt\n\xff\n")
    assert ignore.has_exceptions
    left_out = ["a.pyc", "build", "build/x", "docs/a.txt", "docs/a/b.txt", "\udcff"]
    kept = ["src/a.pyc", "build/keep", "docs/a", "comment", "a"]
    assert [p for p in left_out if not ignore.matches(p)] == []
    assert [p for p in kept if ignore.matches(p)] == []


@pytest.mark.parametrize("pattern", ["!", "[", "[]", "[a", "[-]", "[z-a]", "a\\"])
def test_refused(pattern: str) -> None:
    with pytest.raises(IgnoreError):
        Ignore([pattern])


def test_brackets() -> None:
    assert Ignore(["[a-c]x"]).matches("bx")
    assert not Ignore(["[^a-c]x"]).matches("bx")
    assert Ignore(["[[]xyz]"]).matches("[xyz]")
    assert Ignore(["a\\*b"]).matches("a*b")
    assert not Ignore(["a\\*b"]).matches("axb")


def test_time_is_bounded() -> None:
    """Many stars against a path that they almost match."""
    assert not Ignore(["**/" * 200 + "x"]).matches("a/" * 100 + "y")
    assert not Ignore(["*a" * 20 + "b"]).matches("a" * 200)
    assert Ignore(["*a" * 20 + "b"]).matches("a" * 200 + "b"), "control"
    assert not Ignore(["**/x*/" * 20 + "b"]).matches("x/" * 200 + "a")


@given(st.text(alphabet="ab*?/", max_size=12), st.text(alphabet="ab/", max_size=10))
def test_both_ways_of_matching_agree(pattern: str, path: str) -> None:
    compiled = ignore._compile(pattern)
    whole = compiled._whole
    if whole is not None:
        assert compiled._linear(path) == (whole.fullmatch(path) is not None)


@given(st.text(alphabet="ab*?[]^-\\!/.", max_size=12), st.text(alphabet="ab/", min_size=1, max_size=8))
def test_any_pattern_is_compiled_or_refused(pattern: str, path: str) -> None:
    try:
        Ignore([pattern]).matches(path)
    except IgnoreError:
        pass
