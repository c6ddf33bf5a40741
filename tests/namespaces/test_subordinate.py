"""Subordinate ids: what /etc/subuid may say, and what is proposed to whoever has none."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolate import IdMap, SetupError
from isolate.namespaces import ids

if TYPE_CHECKING:
    from pathlib import Path


def test_ones_own_id_and_the_same_range_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some hosts list each user's own id; a range by name and again by number is one range."""
    own = os.geteuid()
    text = f"me:{own}:1\nme:200000:1000\n{own}:200500:1000\nother:900000:5\nme:x:1\nme:5:0\n"
    read = ids.read_subordinate

    def told(path: str, *, user: str | None = None) -> list[tuple[int, int]]:
        (tmp_path / "subuid").write_text(text.replace(f"{own}:200500", "me:200500"))
        return read(str(tmp_path / "subuid"), user="me")

    assert told("/etc/subuid") == [(own, 1), (200000, 1000), (200500, 1000)]
    monkeypatch.setattr(ids, "read_subordinate", told)
    monkeypatch.setattr(os, "getegid", lambda: own)
    found = IdMap.subordinate()
    assert [(r.inside, r.outside, r.count) for r in found.uids] == [(0, own, 1), (1, 200000, 1000), (1001, 201000, 500)]


ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=6)


@given(ranges, ranges)
def test_without_takes_out_what_is_taken_and_names_no_id_twice(
    listed: list[tuple[int, int]], taken: list[tuple[int, int]]
) -> None:
    left = [n for first, count in ids._without(listed, taken) for n in range(first, first + count)]
    gone = {n for first, count in taken for n in range(first, first + count)}
    assert sorted(left) == sorted({n for first, count in listed for n in range(first, first + count)} - gone)


@pytest.mark.parametrize(
    ("text", "proposed"),
    [
        ("", "100000-165535"),
        ("other:100000:65536\n", "165536-231071"),
        ("b:165536:65536\na:100000:65536\n", "231072-296607"),
        ("a:1000:10\nb:165000:10\n", "165010-230545"),
        ("other:500000:65536\n", "100000-165535"),
        ("not a line\nother:100000:0\n", "100000-165535"),
    ],
)
def test_no_range_is_proposed_that_another_user_holds(text: str, proposed: str, tmp_path: Path) -> None:
    path = tmp_path / "subuid"
    path.write_text(text)
    with pytest.raises(SetupError) as caught:
        ids.read_subordinate(str(path), user="me")
    assert re.search(r"usermod --add-subuids (\S+) me", str(caught.value.remedy)).group(1) == proposed  # type: ignore[union-attr]
