"""Patterns of ``.dockerignore``: which files of a context are left out.

The rules are those of Docker (moby/patternmatcher), which differ from gitignore's: patterns are relative to the root
of the context, ``**`` matches any number of directories, ``!`` takes a file back in, and the last pattern that matches
decides.
"""

from __future__ import annotations

import posixpath
import re
from typing import Final

__all__ = ["IgnoreError", "Ignore"]

LARGEST: Final = 1 << 20
_MOST: Final = 10_000


class IgnoreError(ValueError):
    """A pattern that is refused."""


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
        self._compiled: list[tuple[bool, re.Pattern[str]]] = []
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
            if exception == matched and any(pattern.fullmatch(each) for each in (path, *parents)):
                matched = not exception
        return matched

    def __repr__(self) -> str:
        return f"Ignore({list(self.patterns)!r})"


def _clean(path: str) -> str:
    """As Go's filepath.Clean: without ``.``, ``..`` where it can be, and doubled or trailing slashes."""
    cleaned = posixpath.normpath(path)
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def _compile(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression over the whole path."""
    found: list[str] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "*":
            if pattern.startswith("*", at):
                at += 1
                at += pattern.startswith("/", at)
                # What a run of "**/" says again adds nothing but time to match.
                piece = ".*" if at == len(pattern) else "(?:.*/)?"
                if at == len(pattern) and not found:
                    return re.compile(r"(?s:.*)")
                if not found or found[-1] != piece:
                    found.append(piece)
            else:
                found.append("[^/]*")
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
    return re.compile("".join(found), re.S)


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
