"""The syntax of Dockerfiles: BuildKit's own parser data, here-documents, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolate.build.forms import read
from isolate.build.syntax import DockerfileError, HereDocument, Instruction, parse_syntax
from tests.build.corpora import ROOT

PARSER = sorted(path.name for path in (ROOT / "dockerfile-parser").glob("*"))
NEGATIVE = sorted(path.name for path in (ROOT / "dockerfile-negative").glob("*"))
OFFICIAL = sorted(path.name for path in (ROOT / "dockerfiles-official").glob("*"))

_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


def quoted(text: str) -> str:
    """As Go's %q."""
    body = "".join(
        _ESCAPES.get(c) or (f"\\{c}" if c in '"\\' else c if c.isprintable() else f"\\x{ord(c):02x}") for c in text
    )
    return f'"{body}"'


def dump(instruction: Instruction) -> str:
    """As BuildKit's dump of its tree."""
    words = [instruction.name.lower()]
    if instruction.flags:
        words.append(f"[{' '.join(map(quoted, instruction.flags))}]")
    if instruction.child is not None:
        words.append(f"({dump(instruction.child)})")
    words += map(quoted, instruction.arguments)
    return " ".join(words)


def test_the_data_is_there() -> None:
    if not ROOT.exists():
        pytest.skip("shared/corpora is not beside the checkout")
    assert len(PARSER) == 33
    assert len(NEGATIVE) == 4


@pytest.mark.parametrize("name", PARSER)
def test_parser_file_of_buildkit(name: str) -> None:
    folder = ROOT / "dockerfile-parser" / name
    found = "\n".join(f"({dump(i)})" for i in parse_syntax((folder / "Dockerfile").read_bytes()).instructions)
    assert found.strip() == (folder / "result").read_text().strip()


@pytest.mark.parametrize("name", NEGATIVE)
def test_refused_by_buildkit(name: str) -> None:
    with pytest.raises(DockerfileError):
        parse_syntax((ROOT / "dockerfile-negative" / name / "Dockerfile").read_bytes())


@pytest.mark.parametrize("name", OFFICIAL)
def test_official(name: str) -> None:
    known = {
        "FROM",
        "RUN",
        "ENV",
        "COPY",
        "CMD",
        "ENTRYPOINT",
        "WORKDIR",
        "VOLUME",
        "EXPOSE",
        "STOPSIGNAL",
        "USER",
        "SHELL",
        "ARG",
    }
    found = {i.name for i in parse_syntax((ROOT / "dockerfiles-official" / name).read_bytes()).instructions}
    assert found <= known
    assert "FROM" in found


def only(text: str) -> Instruction:
    (instruction,) = parse_syntax(text).instructions
    return instruction


def test_here_documents() -> None:
    instruction = only("COPY <<one <<-'two' /x\na $b\none\n\tc $d\n\ttwo\n")
    assert instruction.documents == (HereDocument("one", "a $b\n"), HereDocument("two", "\tc $d\n", False, True))
    assert instruction.documents[1].text == "c $d\n"
    assert instruction.arguments == ("<<one", "<<-'two'", "/x")
    assert instruction.last_line == 5
    script = only("RUN python3 <<EOF && 3<<B cat\nprint(1)\nEOF\nx\nB\n")
    assert [(d.name, d.content, d.descriptor) for d in script.documents] == [("EOF", "print(1)\n", 0), ("B", "x\n", 3)]
    assert only('RUN ["cat", "<<EOF"]').documents == ()
    assert only("CMD cat <<EOF").documents == ()
    assert only("ONBUILD RUN <<EOF\nls\nEOF\n").child.documents[0].content == "ls\n"  # type: ignore[union-attr]
    with pytest.raises(DockerfileError, match=r"line 1: RUN: the here-document 'EOF' is not ended"):
        parse_syntax("RUN <<EOF\nls\n")


def test_directives() -> None:
    text = "# syntax=docker/dockerfile:1\n# escape=`\n\nFROM a`\nb\n"
    syntax = parse_syntax(text)
    assert syntax.directives == (("syntax", "docker/dockerfile:1"), ("escape", "`"))
    assert syntax.instructions[0].arguments == ("ab",)
    for wrong in ("# escape=x\nFROM a", "# escape=`\n# escape=\\\nFROM a"):
        with pytest.raises(DockerfileError, match="line"):
            parse_syntax(wrong)


def test_lines_are_counted_and_split_at_newlines_only() -> None:
    syntax = parse_syntax("FROM a\n\nRUN a\x0cb\u2028c \\\n # comment\n  d\nCMD e\n")
    assert [(i.name, i.line, i.last_line) for i in syntax.instructions] == [
        ("FROM", 1, 1),
        ("RUN", 3, 5),
        ("CMD", 6, 6),
    ]
    assert syntax.instructions[1].arguments == ("a\x0cb\u2028c   d",)


def test_what_is_too_large_or_no_text_is_refused() -> None:
    with pytest.raises(DockerfileError, match="not UTF-8"):
        parse_syntax(b"FROM a\nRUN \xff")
    with pytest.raises(DockerfileError, match="at most"):
        parse_syntax("#" * (5 << 20))
    with pytest.raises(DockerfileError, match="65535"):
        parse_syntax("RUN " + "a" * 70_000)
    with pytest.raises(DockerfileError, match="more than 10000 instructions"):
        parse_syntax("FROM a\n" + "ENV a=b\n" * 10_000)
    assert len(parse_syntax("FROM a\n" + "ENV a=b\n" * 9_999).instructions) == 10_000


def test_time_grows_with_the_length_alone() -> None:
    """Texts that took minutes to hours: ends of directives, a million continued lines, durations."""
    assert parse_syntax("#a=x" + " " * 60_000 + "y\nFROM a\n").instructions[0].name == "FROM"
    assert len(parse_syntax("FROM a\nRUN " + "a\\\n" * 500_000 + "\n").instructions[1].text) == 500_004
    (health,) = parse_syntax("HEALTHCHECK --interval=" + "1" * 60_000 + " CMD a").instructions
    with pytest.raises(DockerfileError, match="not a duration"):
        read(health)


@given(st.text(alphabet="FROMRUN <>\"'\\[]{},-=#\n\t", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_syntax(text)
    except DockerfileError:
        pass
