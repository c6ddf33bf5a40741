"""Paths and sizes: what is taken, what is refused, for any input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolate.kernel.paths import absolute, inside

NAMES = st.binary(min_size=1, max_size=40).filter(lambda name: b"/" not in name and b"\0" not in name)
SLASHES = st.sampled_from([b"/", b"//", b"/./", b"///"])


@given(st.lists(st.tuples(SLASHES, NAMES), max_size=8), SLASHES)
def test_inside_is_normal(pieces: list[tuple[bytes, bytes]], end: bytes) -> None:
    path = b"".join(slash + name for slash, name in pieces) + end
    names = [name for _, name in pieces if name != b"."]
    if b".." in names:
        with pytest.raises(ValueError, match=r"must not contain '\.\.'"):
            inside(path)
        return
    assert inside(path) == b"/" + b"/".join(names)
    assert inside(inside(path)) == inside(path)
    assert inside(os.fsdecode(path)) == inside(path)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_path_or_refused(data: bytes) -> None:
    if data.startswith(b"/") and b"\0" not in data:
        assert absolute(data) == data
    else:
        with pytest.raises(ValueError, match="path must"):
            absolute(data)


@given(st.text(max_size=80))
def test_any_text_is_a_path_or_refused(text: str) -> None:
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:
        with pytest.raises(ValueError):
            absolute(text)
        return
    if data.startswith(b"/") and b"\0" not in data:
        assert absolute(text) == data
    else:
        with pytest.raises(ValueError, match="path must"):
            absolute(text)


@pytest.mark.parametrize("wrong", [None, 5, True, 1.5, ["/a"], object(), bytearray(b"/a")])
def test_not_a_path(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"must be a str, bytes or os[.]PathLike"):
        absolute(wrong)


def test_lengths() -> None:
    assert absolute("/" + "x" * 4094)
    with pytest.raises(ValueError, match="shorter than 4096"):
        absolute("/" + "x" * 4095)
    assert inside("/" + "x" * 255)
    with pytest.raises(ValueError, match="at most 255"):
        inside("/" + "x" * 256)
    assert inside(Path("/a")) == b"/a"
