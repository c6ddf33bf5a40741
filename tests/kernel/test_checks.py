"""The one reader of values: each kind, its one grammar and its one form of sentence."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import isolate
from isolate.attributes import rlimits
from isolate.kernel import checks

FORM = re.compile(r"^[\w.() ]+ must (be|have) .+, not .+")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("17", 17),
        ("64K", 65536),
        ("64k", 65536),
        ("64KB", 65536),
        ("64KiB", 65536),
        (" 1 G ", 1 << 30),
        ("1.5G", 3 << 29),
        ("1.3K", 1331),
        ("2T", 2 << 40),
        ("1P", 1 << 50),
        ("12B", 12),
    ],
)
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


# ---- sizes as they are written -----------------------------------------------------------------------------------

UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}


@given(st.integers(0, 1 << 20), st.sampled_from(sorted(UNITS)), st.sampled_from(["", "B", "iB"]), st.booleans())
def test_size_as_written(number: int, unit: str, ending: str, lower: bool) -> None:
    if not unit and ending == "iB":
        ending = "B"
    text = f"{number}{unit}{ending}"
    expected = number << UNITS[unit]
    if expected > checks.LARGEST:
        with pytest.raises(ValueError):
            checks.size("x", text)
    else:
        assert checks.size("x", text.lower() if lower else text) == expected


@given(st.integers())
def test_size_as_int(number: int) -> None:
    if 0 <= number <= checks.LARGEST:
        assert checks.size("x", number) == number
    else:
        with pytest.raises(ValueError, match="must be at least"):
            checks.size("x", number)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        number = checks.size("x", text)
    except ValueError:
        return
    assert 0 <= number <= checks.LARGEST
    assert any(c in "0123456789" for c in text)


@pytest.mark.parametrize(
    "wrong",
    ["", " ", "-1", "+1", "1e3", "0x10", "1,5K", "K", "1KK", "1 2", "1Q", "nan", "inf", "٣", ".5M", "1.M5"],
)
def test_not_a_size(wrong: str) -> None:
    with pytest.raises(ValueError):
        checks.size("x", wrong)


@pytest.mark.parametrize("wrong", [None, True, 1.5, b"1M", [1]])
def test_not_a_size_at_all(wrong: object) -> None:
    with pytest.raises(TypeError):
        checks.size("x", wrong)


def test_smallest() -> None:
    assert checks.size("x", "4K", 4096) == 4096
    with pytest.raises(ValueError, match="tmpfs must be at least 4096 bytes"):
        checks.size("tmpfs", 4095, 4096)
    assert checks.size("x", "1.5K") == 1536


# ---- keywords of the public parts -----------------------------------------------------------------------------------

PARTS = [
    value
    for name in isolate.__all__
    if isinstance(value := getattr(isolate, name), type)
    and dataclasses.is_dataclass(value)
    and name not in ("Result", "IdMap", "IdRange", "Learned")
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_part_names_its_keywords(part: Any) -> None:
    with pytest.raises(TypeError, match=f"{part.__name__}: there is no keyword 'nonsense'"):
        part(nonsense=1)


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: isolate.Limits(mem="1G"), "did you mean 'memory'"),
        (lambda: isolate.Bind("/usr", readonly=False), "did you mean 'read_only'"),
        (lambda: isolate.Rlimits(nofiles=5), "did you mean 'nofile'"),
    ],
)
def test_the_nearest_keyword(make: Any, hint: str) -> None:
    with pytest.raises(TypeError, match=hint):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda half: isolate.UtsNamespace(hostname=half),
        lambda half: isolate.Bind("/" + half),
        lambda half: isolate.Sandbox().run([half]),
        lambda half: isolate.Sandbox().run(["true"], cwd="/" + half),
        lambda half: isolate.Sandbox().run(["true"], env={"A": half}),
    ],
)
def test_text_without_bytes(make: Any) -> None:
    with pytest.raises(ValueError, match=r"must be text that has bytes, not .* \(half of a surrogate pair\)"):
        make("\ud800")


def test_bytes_where_megabytes_were_meant() -> None:
    with pytest.raises(ValueError, match="did you mean '256M'"):
        isolate.Limits(memory=256)


@pytest.mark.parametrize("text", ["64MiB", "1.5G", "1.3K", "64M"])
def test_one_grammar_everywhere(text: str) -> None:
    expected = checks.size("x", text)
    assert isolate.Limits(memory="2G", swap=text).swap == expected
    assert rlimits._value("as_", text) == expected
    isolate.Tmpfs("/tmp", size="1G" if expected < 4096 else text)


@pytest.mark.parametrize("word", ["max", "unlimited", " MAX "])
def test_no_limit_is_both_words(word: str) -> None:
    assert isolate.Limits(memory=word) == isolate.Limits(memory="max")
    assert rlimits._value("nofile", word) == rlimits.UNLIMITED


def test_there_is_one_reader() -> None:
    """No other module looks for the nearest word by itself, but where more than one is told."""
    package = Path(isolate.__file__).parent
    own = [path for path in package.rglob("*.py") if "get_close_matches" in path.read_text()]
    known = {"kernel/checks.py", "kernel/syscalls.py", "images/holding.py", "seccomp/sets.py", "build/mount_words.py"}
    assert {str(path.relative_to(package)) for path in own} <= known
