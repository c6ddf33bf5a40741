"""The syntax of a Dockerfile: its text becomes instructions with flags, arguments and here-documents.

Nothing is expanded here, and no instruction is judged by its meaning. The grammar is BuildKit's
(frontend/dockerfile/parser); the tests compare with its published parser data.
"""

from __future__ import annotations

import json
import posixpath
import re
from dataclasses import dataclass, replace
from typing import Final

from isolate.build.words import WordError, process_word, raw_words

__all__ = ["DockerfileError", "HereDocument", "Instruction", "Syntax", "parse_syntax"]

#: The longest text, in characters: the largest published ones have some tens of thousands.
LARGEST: Final = 4 << 20
_LONGEST_LINE: Final = 65535  # BuildKit's
#: Each step of a build keeps the history of all before it.
_MOST: Final = 10_000

_COMMENT = re.compile(r"^#.*$", re.S)
_DIRECTIVE = re.compile(r"^#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(\S.*)$")
_DIRECTIVES = frozenset({"syntax", "escape", "check"})
_BLANKS = re.compile(r"[\t\v\f\r ]+")
_HERE = re.compile(r"^(\d*)<<(-?)([^<]*)$")


class DockerfileError(ValueError):
    """A Dockerfile that is refused: the line, the instruction, and the rule.

    ``line`` counts from 1; 0 where the file as a whole is meant.
    """

    def __init__(self, message: str, line: int = 0, instruction: str = "") -> None:
        where = f"line {line}: " if line else ""
        super().__init__(f"Dockerfile, {where}{instruction + ': ' if instruction else ''}{message}")
        self.message: str = message
        self.line: int = line
        self.instruction: str = instruction

    def __reduce__(self) -> tuple[object, ...]:
        return DockerfileError, (self.message, self.line, self.instruction)


@dataclass(frozen=True)
class HereDocument:
    """The text between ``<<NAME`` and a line that is ``NAME``."""

    name: str
    content: str
    #: Variables in it are expanded: so unless a part of the name was quoted.
    expand: bool = True
    #: ``<<-``: tabs at the beginning of its lines are taken off.
    chomp: bool = False
    descriptor: int = 0

    @property
    def file_name(self) -> str:
        """The name of the file that COPY makes of it, ``x`` also for ``../x`` or ``/x``; ``""`` where it is none."""
        name = posixpath.normpath("/" + self.name).lstrip("/")
        return "" if "/" in name or "\0" in name else name

    @property
    def text(self) -> str:
        """The content as its reader gets it."""
        return re.sub(r"(?m)^\t+", "", self.content) if self.chomp else self.content


@dataclass(frozen=True)
class Instruction:
    """One instruction: ``RUN --network=none ["make"]``."""

    #: In upper case.
    name: str
    flags: tuple[str, ...] = ()
    #: For ENV, LABEL: name, value, separator (``=`` or nothing) in turn.
    arguments: tuple[str, ...] = ()
    #: The arguments were a JSON array ("exec form").
    is_json: bool = False
    documents: tuple[HereDocument, ...] = ()
    #: The instruction that an ONBUILD holds.
    child: Instruction | None = None
    line: int = 0
    last_line: int = 0
    #: The text as it stands in the file, continuation lines joined.
    text: str = ""


@dataclass(frozen=True)
class Syntax:
    """A whole file."""

    instructions: tuple[Instruction, ...]
    escape: str = "\\"
    directives: tuple[tuple[str, str], ...] = ()


def parse_syntax(text: str | bytes) -> Syntax:
    """Read the text of a Dockerfile.

    :raises DockerfileError: it has no instruction, is too large, is not UTF-8, or breaks a rule of the grammar.
    """
    if not isinstance(text, (str, bytes)):
        raise TypeError(f"the text of a Dockerfile must be str or bytes, not {text!r}: open(path).read()")
    if isinstance(text, bytes):
        raw = text
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise DockerfileError(f"byte {error.start} is not UTF-8", raw[: error.start].count(b"\n") + 1) from None
    if len(text) > LARGEST:
        raise DockerfileError(f"{len(text)} characters; at most {LARGEST} are read")
    reader = _Reader(text.removeprefix("\ufeff"))
    instructions = tuple(reader.instructions())
    if not instructions:
        raise DockerfileError("the file has no instruction")
    return Syntax(instructions, reader.escape, tuple(reader.directives.items()))


class _Reader:
    """Lines to instructions."""

    def __init__(self, text: str) -> None:
        # At newlines only: other characters that split lines in Unicode may stand in a string.
        self._lines: list[str] = re.findall(r"[^\n]*\n|[^\n]+", text)
        self._at = 0
        self._directives_done = False
        self.directives: dict[str, str] = {}
        self.escape = "\\"

    def _line(self) -> str:
        line = self._lines[self._at]
        self._at += 1
        if len(line) > _LONGEST_LINE:
            raise DockerfileError(f"a line of {len(line)} characters; at most {_LONGEST_LINE} are read", self._at)
        return line

    def instructions(self) -> list[Instruction]:
        found: list[Instruction] = []
        while self._at < len(self._lines):
            line = self._line().rstrip("\r\n").lstrip()
            self._directive(line)
            joined, complete = self._continued(_COMMENT.sub("", line))
            first = self._at
            if complete and not joined:
                continue
            pieces = [joined]
            while not complete and self._at < len(self._lines):
                raw = self._line()
                following = raw.rstrip("\r\n")
                if following.lstrip().startswith("#") or not following.strip():
                    continue
                more, complete = self._continued(following)
                pieces.append(more)
            if len(found) == _MOST:
                raise DockerfileError(f"more than {_MOST} instructions", first)
            found.append(self._instruction("".join(pieces), first))
        return found

    def _directive(self, line: str) -> None:
        """``# escape=`` and the like: only before the first line that is none."""
        if self._directives_done:
            return
        match = _DIRECTIVE.match(line)
        if match is None:
            self._directives_done = True
            return
        key, value = match[1].lower(), match[2].rstrip()
        if key not in _DIRECTIVES:
            return
        if key in self.directives:
            raise DockerfileError(f"only one {key} directive can be used", self._at)
        self.directives[key] = value
        if key == "escape":
            if value not in ("\\", "`"):
                raise DockerfileError(f"escape={value!r}: it must be \\ or a backquote", self._at)
            self.escape = value

    def _continued(self, line: str) -> tuple[str, bool]:
        """The line without its continuation character, and whether it is complete."""
        bare = line.rstrip(" \t")
        if bare.endswith(self.escape) and not bare[:-1].endswith(self.escape):
            return bare[:-1], False
        return line, True

    def _instruction(self, text: str, line: int) -> Instruction:
        instruction = _parse(text, line, self.escape)
        holder = instruction.child or instruction
        if holder.name in ("ADD", "COPY", "RUN") and not holder.is_json and "<<" in text:
            documents = tuple(self._document(d, line, holder.name) for d in _documents(text))
            if instruction.child is not None:
                instruction = replace(instruction, child=replace(holder, documents=documents))
            else:
                instruction = replace(instruction, documents=documents)
        return replace(instruction, line=line, last_line=self._at, text=text.strip())

    def _document(self, document: HereDocument, line: int, instruction: str) -> HereDocument:
        content: list[str] = []
        while self._at < len(self._lines):
            raw = self._lines[self._at]
            self._at += 1
            bare = raw.rstrip("\r\n")
            if (bare.lstrip("\t") if document.chomp else bare) == document.name:
                return replace(document, content="".join(content))
            content.append(raw)
        raise DockerfileError(f"the here-document {document.name!r} is not ended", line, instruction)


def _documents(text: str) -> list[HereDocument]:
    try:
        words = raw_words(text)
    except WordError:
        return []
    return [document for word in words if (document := here_document(word)) is not None]


def here_document(word: str) -> HereDocument | None:
    """The here-document that ``<<NAME``, ``<<-NAME`` or ``3<<"NAME"`` begins; None for another word."""
    match = _HERE.match(word)
    if match is None or not match[3]:
        return None
    try:
        bare, written = process_word(match[3], {}, keep_unset=True).words, raw_words(match[3])
    except WordError:
        return None
    if len(bare) != 1 or len(written) != 1:
        return None
    return HereDocument(bare[0], "", bare == written, bool(match[2]), int(match[1][:9] or 0))


# ---- one instruction -----------------------------------------------------------------------------------------------


def _parse(text: str, line: int, escape: str) -> Instruction:
    parts = _BLANKS.split(text.strip(), maxsplit=1)
    name = parts[0].upper()
    flags, rest = _flags(parts[1]) if len(parts) > 1 else ((), "")
    rest = rest.strip()
    bare = Instruction(name, flags, line=line)
    if name in ("CMD", "ENTRYPOINT", "RUN", "SHELL"):
        return _json_or(bare, rest, (rest,) if rest else ())
    if name in ("ADD", "COPY", "VOLUME"):
        return _json_or(bare, rest, _split(rest))
    if name in ("EXPOSE", "FROM"):
        return replace(bare, arguments=_split(rest))
    if name in ("ENV", "LABEL"):
        return replace(bare, arguments=_names_and_values(rest, escape, bare))
    if name == "ARG":
        return replace(bare, arguments=tuple(_words(rest, escape)))
    if name == "HEALTHCHECK":
        kind = re.match(r"\S+", rest)
        if kind is None:
            return bare
        command = rest[kind.end() :].lstrip()
        inner = _json_or(bare, command, (command,) if command else ())
        return replace(inner, arguments=(kind[0], *inner.arguments))
    if name == "ONBUILD":
        return replace(bare, child=_parse(rest, line, escape) if rest else None)
    return replace(bare, arguments=(rest,) if rest else ())


def _split(rest: str) -> tuple[str, ...]:
    return tuple(_BLANKS.split(rest)) if rest else ()


def _flags(line: str) -> tuple[tuple[str, ...], str]:
    """The words at the beginning that start with ``--``, and what stands behind them."""
    flags: list[str] = []
    at = 0
    while True:
        while at < len(line) and line[at].isspace():
            at += 1
        if not line.startswith("--", at):
            return tuple(flags), line[at:]
        word: list[str] = []
        quote = ""
        while at < len(line) and (quote or not line[at].isspace()):
            character = line[at]
            at += 1
            if quote and character == quote:
                quote = ""
            elif not quote and character in "'\"":
                quote = character
            elif character == "\\":
                word.append(line[at : at + 1])
                at += 1
            else:
                word.append(character)
        flag = "".join(word)
        if flag == "--":
            return tuple(flags), line[at:]
        flags.append(flag)


def _json_or(bare: Instruction, rest: str, otherwise: tuple[str, ...]) -> Instruction:
    """Arguments as a JSON array of strings; what is not JSON is taken literally, as Docker does."""
    if rest.startswith("["):
        try:
            value, _ = json.JSONDecoder(parse_constant=_no_constant).raw_decode(rest)
        except (ValueError, RecursionError):
            return replace(bare, arguments=otherwise)
        if not all(isinstance(item, str) for item in value):
            raise DockerfileError("an array in brackets may have strings only", bare.line, bare.name)
        # A half of a surrogate pair is no character: Go, and so Docker, puts U+FFFD in its place.
        words = (item.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for item in value)
        return replace(bare, arguments=tuple(words), is_json=True)
    return replace(bare, arguments=otherwise)


def _no_constant(name: str) -> object:
    raise ValueError(name)  # NaN and Infinity are Python's, not JSON's


def _names_and_values(rest: str, escape: str, bare: Instruction) -> tuple[str, ...]:
    words = _words(rest, escape)
    if not words:
        return ()
    if "=" not in words[0]:
        parts = _BLANKS.split(rest, maxsplit=1)
        if len(parts) < 2:
            raise DockerfileError(f"{parts[0]!r} has no value: it must be name=value", bare.line, bare.name)
        return parts[0], parts[1], ""
    found: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise DockerfileError(f"there is no = in {word!r}: it must be name=value", bare.line, bare.name)
        found += name, value, equals
    return tuple(found)


def _words(rest: str, escape: str) -> list[str]:
    """Split at blanks that are neither quoted nor escaped; everything stays as it is written."""
    words: list[str] = []
    at = 0
    while at < len(rest):
        if rest[at].isspace():
            at += 1
            continue
        word: list[str] = []
        quote = ""
        while at < len(rest) and (quote or not rest[at].isspace()):
            character = rest[at]
            at += 1
            if character == escape and quote != "'":
                if at == len(rest):
                    break  # an escape character at the end of the line is left out
                character += rest[at]
                at += 1
            elif quote:
                quote = "" if character == quote else quote
            elif character in "'\"":
                quote = character
            word.append(character)
        if word:
            words.append("".join(word))
    return words
