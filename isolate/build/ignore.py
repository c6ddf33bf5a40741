"""Patterns of ``.dockerignore``: which files of a context are left out.

The rules are those of Docker (moby/patternmatcher), which differ from gitignore's: patterns are relative to the root
of the context, ``**`` matches any number of directories, ``!`` takes a file back in, and the last pattern that matches
decides.
"""

from __future__ import annotations

import posixpath
import re
from typing import Final

from isolate.kernel.checks import keywords

__all__ = ["IgnoreError", "Ignore"]

LARGEST: Final = 1 << 20
_MOST: Final = 10_000


class IgnoreError(ValueError):
    """A pattern that is refused."""


@keywords
class Ignore:
    """The patterns of one file, compiled.

    >>> Ignore.parse("*.pyc\\n!keep.pyc\\n").matches("a.pyc")
    True

    :param patterns: in order; a leading ``!`` is an exception.
    :raises IgnoreError: a pattern is malformed, or there are more than 10,000.
    """

    __slots__ = ("_compiled", "patterns")

    def __init__(self, patterns: tuple[str, ...] | list[str] = ()) -> None:
        if len(patterns) > _MOST:
            raise IgnoreError(f"{len(patterns)} patterns; at most {_MOST} are read")
        self.patterns: tuple[str, ...] = tuple(patterns)
        self._compiled: list[tuple[bool, _Pattern]] = []
        for pattern in self.patterns:
            text = pattern.strip()
            if not text:
                continue
            exception = text.startswith("!")
            text = text[exception:].strip()
            if not text:
                raise IgnoreError("the pattern '!' names no file")
            self._compiled.append((exception, _compile(_clean(text))))

    @classmethod
    def parse(cls, text: str | bytes) -> Ignore:
        """Read the text of a ``.dockerignore`` file: one pattern a line, ``#`` begins a comment.

        :raises IgnoreError: a pattern is malformed, or the text is larger than 1 MiB.
        """
        if isinstance(text, bytes):
            text = text.decode(errors="surrogateescape")
        if len(text) > LARGEST:
            raise IgnoreError(f"{len(text)} characters; at most {LARGEST} are read")
        patterns: list[str] = []
        for raw in text.removeprefix("\ufeff").split("\n"):
            line = raw.removesuffix("\r")
            if line.startswith("#"):
                continue
            line = line.strip()
            exception = line.startswith("!")
            body = line[exception:].strip()
            if body:
                body = _clean(body)
                body = body[1:] if len(body) > 1 and body.startswith("/") else body
            if line:
                patterns.append("!" * exception + body)
        return cls(patterns)

    @property
    def has_exceptions(self) -> bool:
        """Whether a file in an ignored directory may come back: then every directory has to be looked into."""
        return any(exception for exception, _ in self._compiled)

    def matches(self, path: str) -> bool:
        """Whether a file is left out, for itself or with a directory that it lies in.

        :param path: relative to the context, with ``/`` between its parts.
        """
        parts = posixpath.dirname(path).split("/")
        parents = ["/".join(parts[: n + 1]) for n in range(len(parts))] if parts != [""] else []
        matched = False
        for exception, pattern in self._compiled:
            # One that could change nothing is not looked at.
            if exception == matched and any(pattern.matches(each) for each in (path, *parents)):
                matched = not exception
        return matched

    def __repr__(self) -> str:
        return f"Ignore({list(self.patterns)!r})"


def _clean(path: str) -> str:
    """As Go's filepath.Clean: without ``.``, ``..`` where it can be, and doubled or trailing slashes."""
    cleaned = posixpath.normpath(path)
    return cleaned[1:] if cleaned.startswith("//") else cleaned


#: How many steps a regular expression may need; what may need more is matched in linear time.
_STEPS: Final = 100_000


class _Pattern:
    """A pattern as pieces of regular expressions, each of one character or a wildcard."""

    __slots__ = ("_pieces", "_singles", "_whole", "_wild")

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces
        self._wild = sum(piece in (_ANY, _DIRECTORIES, _SEGMENT) for piece in pieces)
        self._whole: re.Pattern[str] | None = re.compile("".join(pieces), re.S) if self._wild < 8 else None
        self._singles: list[re.Pattern[str]] | None = None

    def matches(self, path: str) -> bool:
        """Whether it matches the whole path. The time grows with the product of both lengths, not with its powers."""
        if self._whole is not None and len(path) ** self._wild <= _STEPS:
            return self._whole.fullmatch(path) is not None
        return self._linear(path)

    def _linear(self, path: str) -> bool:
        """All positions in the pattern that can be reached, one character after the other."""
        if self._singles is None:
            self._singles = [re.compile(piece, re.S) for piece in self._pieces]
        pieces = self._pieces

        def closed(places: set[int]) -> set[int]:
            """Also those behind wildcards, which may match nothing."""
            found: set[int] = set()
            for place in places:
                while place not in found:
                    found.add(place)
                    if place < len(pieces) and pieces[place] in (_ANY, _DIRECTORIES, _SEGMENT):
                        place += 1
            return found

        # Inside of "**/", before its slash: a place of its own, written as a negative number.
        places = closed({0})
        for character in path:
            following: set[int] = set()
            for place in places:
                at = ~place if place < 0 else place
                if at == len(pieces):
                    continue
                piece = pieces[at]
                if piece == _DIRECTORIES:
                    following.add(~at)
                    if character == "/":
                        following.add(at + 1)
                elif piece == _ANY or (piece == _SEGMENT and character != "/"):
                    following.add(at)
                elif piece != _SEGMENT and self._singles[at].fullmatch(character):
                    following.add(at + 1)
            places = closed({place for place in following if place >= 0}) | {p for p in following if p < 0}
            if not places:
                return False
        return len(pieces) in places


_ANY: Final = ".*"
_DIRECTORIES: Final = "(?:.*/)?"
_SEGMENT: Final = "[^/]*"


def _compile(pattern: str) -> _Pattern:
    """A pattern as the pieces of a regular expression over the whole path."""
    found: list[str] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "*":
            if pattern.startswith("*", at):
                at += 1
                at += pattern.startswith("/", at)
                # A repeated "**/" adds only time to match.
                piece = _ANY if at == len(pattern) else _DIRECTORIES
                if at == len(pattern) and not found:
                    return _Pattern([_ANY])
                if not found or found[-1] != piece:
                    found.append(piece)
            else:
                found.append(_SEGMENT)
        elif character == "?":
            found.append("[^/]")
        elif character == "\\":
            if at == len(pattern):
                raise IgnoreError(f"the pattern {pattern!r} ends in a backslash")
            found.append(re.escape(pattern[at]))
            at += 1
        elif character == "[":
            piece, at = _class(pattern, at)
            found.append(piece)
        else:
            found.append(re.escape(character))
    return _Pattern(found)


def _class(pattern: str, at: int) -> tuple[str, int]:
    """``[a-z]`` or ``[^a-z]``, from behind its bracket; also the position behind it."""
    negated = pattern.startswith("^", at)
    at += negated
    ranges: list[str] = []
    first = True
    while first or not pattern.startswith("]", at):
        low, at = _class_character(pattern, at)
        high = low
        if pattern.startswith("-", at):
            high, at = _class_character(pattern, at + 1)
        if high < low:
            raise IgnoreError(f"the pattern {pattern!r} has a range that ends before it begins")
        ranges.append(f"{re.escape(low)}-{re.escape(high)}")
        first = False
    return f"[{'^' * negated}{''.join(ranges)}]", at + 1


def _class_character(pattern: str, at: int) -> tuple[str, int]:
    if pattern.startswith("\\", at):
        at += 1
    elif pattern[at : at + 1] in ("-", "]"):
        raise IgnoreError(f"the pattern {pattern!r} has a bracket that is empty or misplaced")
    if at >= len(pattern):
        raise IgnoreError(f"the pattern {pattern!r} has a bracket that is not closed")
    return pattern[at], at + 1
