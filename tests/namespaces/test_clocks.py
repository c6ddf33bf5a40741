"""Offsets of clocks are rounded, not cut off, and can be said exactly."""

from __future__ import annotations

import math
from typing import Any

import pytest

from isolate import Sandbox, TimeNamespace, UserNamespace

SHOW = ["sh", "-c", "tr -s ' ' < /proc/self/timens_offsets"]


@pytest.mark.parametrize(
    ("given", "monotonic", "boottime"),
    [
        ({"monotonic": 1.9}, "1 900000000", "0 0"),
        ({"boottime": 0.1, "monotonic": 2}, "2 0", "0 100000000"),
        ({"monotonic": 0.9999999999}, "1 0", "0 0"),
        ({"monotonic": (5, 7), "boottime": (86400, 999_999_999)}, "5 7", "86400 999999999"),
        ({"monotonic": -0.25}, "-1 750000000", "0 0"),
        ({"monotonic": 1234567.000000001}, "1234567 1", "0 0"),
    ],
    ids=str,
)
def test_19_offsets(given: dict[str, Any], monotonic: str, boottime: str) -> None:
    found = Sandbox(UserNamespace(), TimeNamespace(**given)).run(SHOW, text=True).stdout
    assert found.splitlines() == [f"monotonic {monotonic}", f"boottime {boottime}"]


@pytest.mark.parametrize(
    "wrong",
    [(1,), (1, 2, 3), (1.5, 0), (1, -1), (1, 10**9), (2**31, 0), 2**31, math.nan, math.inf, "1", True, (True, 0)],
    ids=str,
)
def test_19_what_is_no_offset(wrong: Any) -> None:
    with pytest.raises(ValueError, match="monotonic"):
        TimeNamespace(monotonic=wrong)


def test_19_explain_shows_what_was_said() -> None:
    text = Sandbox(UserNamespace(), TimeNamespace(monotonic=(1, 5), boottime=1.5)).explain()
    assert "clocks shifted by 1 s 5 ns and 1.5 s" in text
