"""The one reader of values: each kind, its one grammar and its one form of sentence."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolate.kernel import checks

FORM = re.compile(r"^[\w.() ]+: .+ (is|are) wanted, not .+")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0), ("17", 17), ("64K", 65536), ("64k", 65536), ("64KB", 65536), ("64KiB", 65536), (" 1 G ", 1 << 30),
        ("1.5G", 3 << 29), ("1.3K", 1331), ("2T", 2 << 40), ("1P", 1 << 50), ("12B", 12),
    ],
)  # fmt: skip
def test_size(text: str, expected: int) -> None:
    assert checks.size("memory", text) == expected
    assert checks.limit("memory", text) == expected


@pytest.mark.parametrize("word", ["max", "unlimited", " MAX "])
def test_no_limit(word: str) -> None:
    assert checks.limit("memory", word) is None
    with pytest.raises(ValueError, match=FORM):
        checks.size("memory", word)


@pytest.mark.parametrize(
    "value", ["", "M", "-1", "1,5G", "1Q", "0x10", "1e9", "1.G", "1..5G", "\u0661K", "1" * 50, "iB"]
)
def test_no_size(value: str) -> None:
    with pytest.raises(ValueError, match=FORM):
        checks.size("memory", value)


@given(st.integers(0, 1 << 62))
def test_an_int_is_itself(value: int) -> None:
    assert checks.size("x", value) == checks.size("x", str(value)) == value


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda: checks.integer("pids", True, 1), TypeError),
        (lambda: checks.integer("pids", "5", 1), TypeError),
        (lambda: checks.integer("pids", 0, 1), ValueError),
        (lambda: checks.integer("port", 70000, 0, 65535), ValueError),
        (lambda: checks.number("cpu", float("nan"), 0, 9), ValueError),
        (lambda: checks.number("cpu", "1", 0, 9), TypeError),
        (lambda: checks.size("memory", 1.5), TypeError),
        (lambda: checks.size("memory", -1), ValueError),
        (lambda: checks.flag("read_only", 1), TypeError),
        (lambda: checks.choice("policy", "fife", ["fifo", "rr"]), ValueError),
        (lambda: checks.choice("policy", 3, ["fifo", "rr"]), TypeError),
        (lambda: checks.absolute("source", "a/b"), ValueError),
        (lambda: checks.absolute("source", 5), TypeError),
        (lambda: checks.absolute("source", "/a\0b"), ValueError),
        (lambda: checks.inside("target", "/a/../b"), ValueError),
        (lambda: checks.text("name", "a\nb"), ValueError),
        (lambda: checks.text("name", "a" * 300, longest=255), ValueError),
        (lambda: checks.of_type("part", int, str, "a part"), TypeError),
    ],
)
def test_one_form_of_sentence(call: object, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=FORM):
        call()  # type: ignore[operator]


def test_the_nearest_word() -> None:
    with pytest.raises(ValueError, match="did you mean 'fifo'"):
        checks.choice("policy", "FIFA", ["fifo", "rr"])
    with pytest.raises(TypeError, match=r"did you mean str\(\)"):
        checks.of_type("part", str, object if False else str, "a part")


def test_keywords() -> None:
    @checks.keywords
    @dataclasses.dataclass(frozen=True)
    class Limits:
        memory: int = 0
        pids: int = 0

        def __post_init__(self) -> None:
            if self.memory < 0:
                raise TypeError("memory: an unexpected keyword of its own")

    assert Limits(memory=1) == Limits(1)
    assert list(inspect.signature(Limits).parameters) == ["memory", "pids"]
    with pytest.raises(TypeError, match=r"^Limits: there is no keyword 'mem'; did you mean 'memory'\?$"):
        Limits(mem=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="it takes memory, pids"):
        Limits(zzz=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="of its own"):
        Limits(memory=-1)
    with pytest.raises(TypeError, match="positional"):
        Limits(1, 2, 3)  # type: ignore[call-arg]
