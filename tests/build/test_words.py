"""Expansion and word splitting: BuildKit's own rows, and what they leave out."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolate.build.words import WordError, process_word, process_words, raw_words
from tests.build.corpora import ROOT

ENV = {"PWD": "/home", "SHELL": "bash", "KOREAN": "한국어", "NULL": ""}


def rows() -> list[tuple[str, str]]:
    path = ROOT / "dockerfile-words/envVarTest"
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.strip() and not line.startswith("#"):
            platform, word, expected = (field.strip() for field in line.split("|"))
            if platform in "AU":
                found.append((word, expected))
    return found


@pytest.mark.parametrize(("word", "expected"), rows())
def test_row_of_buildkit(word: str, expected: str) -> None:
    if expected == "error":
        with pytest.raises(WordError):
            process_word(word, ENV)
    else:
        assert process_word(word, ENV).text == expected


def test_words_of_buildkit() -> None:
    path = ROOT / "dockerfile-words/wordsTest"
    if not path.exists():
        pytest.skip("shared/corpora is not beside the checkout")
    env: dict[str, str] = {}
    tried = 0
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            continue
        if line.startswith("ENV "):
            name, _, value = line[4:].partition("=")
            env[name] = value
            continue
        text, _, expected = line.partition(" | ")
        expected = expected.lstrip()
        if expected == "error":
            with pytest.raises(WordError):
                process_words(text.strip(), env)
        else:
            assert process_words(text.strip(), env) == tuple(expected.split(",")), text
        tried += 1
    assert tried > 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${V#*/}", "b/c.tar.gz"),
        ("${V##*/}", "c.tar.gz"),
        ("${V%.*}", "a/b/c.tar"),
        ("${V%%.*}", "a/b/c"),
        ("${V/b/X}", "a/X/c.tar.gz"),
        ("${V//a/X}", "X/b/c.tXr.gz"),
        ("${V/\\//-}", "a-b/c.tar.gz"),
        ("${V/?\\//}", "b/c.tar.gz"),
        ("${U#x}", ""),
        ("${V#z}", "a/b/c.tar.gz"),
        ("${V//zz/X}", "a/b/c.tar.gz"),
    ],
)
def test_patterns(text: str, expected: str) -> None:
    assert process_word(text, {"V": "a/b/c.tar.gz"}).text == expected


def test_names_that_were_asked_for() -> None:
    assert process_word("$A ${B:-$C} '$D' \\$E", {"A": "1"}).names == {"A", "B", "C"}


def test_unset_variables_can_stay() -> None:
    assert process_word("$A ${B} ${C:-x}", {}, keep_unset=True).text == "$A ${B} ${C:-x}"


def test_raw_words_keep_their_quotes() -> None:
    assert raw_words("cat <<'EOF' \"a b\" c\\ d $x") == ("cat", "<<'EOF'", '"a b"', "c\\ d", "$x")


def test_nesting_is_bounded() -> None:
    with pytest.raises(WordError, match="inside of one another"):
        process_word("${a:-" * 5000 + "}" * 5000, {})


def expression(pattern: str) -> str:
    """The regular expression that a glob stands for."""
    found, at = "", 0
    while at < len(pattern):
        character = pattern[at]
        if character == "\\" and at + 1 < len(pattern):
            at += 1
            found += re.escape(pattern[at])
        else:
            found += {"*": ".*", "?": "."}.get(character, re.escape(character))
        at += 1
    return found


@given(st.text(alphabet="ab*?\\", max_size=8), st.text(alphabet="ab*?\\", max_size=8))
def test_globs_as_a_regular_expression_matches(pattern: str, text: str) -> None:
    def matches(part: str) -> bool:
        return re.fullmatch(expression(pattern), part, re.S) is not None

    heads = [n for n in range(len(text) + 1) if matches(text[:n])] or [0]
    tails = [n for n in range(len(text) + 1) if matches(text[len(text) - n :])] or [0]
    written = pattern.replace("\\", "\\\\") if pattern.endswith("\\") else pattern
    if written != pattern or pattern.startswith(("*", "#", "%")):
        return  # it would be read as another pattern or another modifier
    for modifier, left in (
        ("#", text[heads[0] :]),
        ("##", text[heads[-1] :]),
        ("%", text[: len(text) - tails[0]]),
        ("%%", text[: len(text) - tails[-1]]),
    ):
        assert process_word(f"${{A{modifier}{pattern}}}", {"A": text}).text == left


def test_what_becomes_too_long_or_takes_too_long_is_refused() -> None:
    """A few lines of a Dockerfile would else take the memory or the time of whoever builds it."""
    value = "x" * 50_000
    with pytest.raises(WordError, match="longer than"):
        process_word("$A" * 50, {"A": value})
    with pytest.raises(WordError, match="longer than"):
        process_word("${A//x/$A}", {"A": value})
    with pytest.raises(WordError, match="too long"):
        process_word("${A//*b/y}", {"A": value})
    assert process_word("${A//x/yy}", {"A": value}).text == "y" * 100_000, "control"
    assert process_word("${A##*b*b}", {"A": value}).text == value, "control"


@given(st.text(alphabet="a$ {}:-+?#%/\\'\"", max_size=20))
def test_any_text_is_expanded_or_refused(text: str) -> None:
    for keep in (False, True):
        try:
            process_word(text, {"a": "b"}, keep_unset=keep)
        except WordError:
            pass
