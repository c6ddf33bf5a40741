"""Expansion of variables and splitting into words, as BuildKit does both in a Dockerfile.

The grammar is that of a POSIX shell, reduced: quotes, the escape character, ``$name``, ``${name}`` and the modifiers
``:-``, ``-``, ``:+``, ``+``, ``:?``, ``?``, ``#``, ``##``, ``%``, ``%%``, ``/`` and ``//``. Nothing is ever executed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["Expansion", "WordError", "process_word", "process_words"]

_SPECIAL: Final = frozenset("@*#?-$!0")
_END: Final = ""
#: ``${a:-${b:-…}}``: nobody writes more, and each level is a level of Python's stack.
_DEEPEST: Final = 100
#: Characters that an expansion may give. Linux gives a program no variable of more than 128 KiB.
_LONGEST: Final = 1 << 20
#: Steps that the pattern of a substitution may take.
_PATIENCE: Final = 2_000_000


class WordError(ValueError):
    """A word that the grammar does not allow."""


class Expansion:
    """An expanded text: the string, its words, and the names of the variables that were asked for."""

    __slots__ = ("names", "text", "words")

    def __init__(self, text: str, words: tuple[str, ...], names: frozenset[str]) -> None:
        self.text: str = text
        self.words: tuple[str, ...] = words
        #: Every variable that the text mentions, also one that is not set.
        self.names: frozenset[str] = names


def process_word(
    text: str, env: Mapping[str, str], *, escape: str = "\\", quotes: bool = True, keep_unset: bool = False
) -> Expansion:
    """Expand a text. The ``text`` of the result is one word, whatever blanks it has; ``words`` has it split.

    :param env: the variables that are set.
    :param escape: the escape character, ``\\`` or a backquote.
    :param quotes: whether quotes are taken off; False leaves them alone, as in the content of a here-document.
    :param keep_unset: a variable that is not set stays as it is written; otherwise it becomes nothing.
    :raises WordError: a quote or a brace that is not closed, a bad substitution, or ``${name:?}`` without a value.
    """
    return _Scanner(text, env, escape, quotes=quotes, keep_unset=keep_unset).run()


def process_words(text: str, env: Mapping[str, str], *, escape: str = "\\") -> tuple[str, ...]:
    """Expand a text and split it at blanks that are not quoted."""
    return process_word(text, env, escape=escape).words


def raw_words(text: str) -> tuple[str, ...]:
    """Split at blanks that are not quoted; quotes, escapes and variables stay as they are written."""
    return _Scanner(text, {}, "\\", raw=True, keep_unset=True).run().words


class _Words:
    """Collects words: blanks from unquoted text and from variables split, all others do not."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self._word: list[str] = []
        self._inside = False

    def split(self, text: str) -> None:
        for character in text:
            if not character.isspace():
                self.join(character)
            elif self._inside and self._word:
                self.done.append("".join(self._word))
                self._word, self._inside = [], False

    def join(self, text: str) -> None:
        if text:
            self._word.append(text)
        self._inside = True

    def all(self) -> tuple[str, ...]:
        if self._word:
            self.done.append("".join(self._word))
            self._word = []
        return tuple(self.done)


class _Scanner:
    def __init__(
        self,
        text: str,
        env: Mapping[str, str],
        escape: str,
        *,
        quotes: bool = True,
        raw: bool = False,
        keep_unset: bool = False,
    ) -> None:
        self._text = text
        self._at = 0
        self._env = env
        self._escape = escape
        self._quotes = quotes
        self._raw = raw  # quotes stay
        self._raw_escapes = raw
        self._keep_unset = keep_unset
        self._names: set[str] = set()
        self._depth = 0
        self._given = 0

    def run(self) -> Expansion:
        text, words = self._until(_END)
        self._bounded(text)
        return Expansion(text, words, frozenset(self._names))

    def _peek(self) -> str:
        return self._text[self._at] if self._at < len(self._text) else _END

    def _next(self) -> str:
        character = self._peek()
        self._at += len(character)
        return character

    def _until(self, stop: str, *, raw_escapes: bool = False) -> tuple[str, tuple[str, ...]]:
        outer = self._raw_escapes
        self._raw_escapes = outer or raw_escapes
        self._depth += 1
        if self._depth > _DEEPEST:
            raise WordError(f"more than {_DEEPEST} substitutions inside of one another")
        result: list[str] = []
        words = _Words()
        special: dict[str, Callable[[], str]] = {"$": self._dollar}
        if self._quotes:
            special |= {"'": self._single, '"': self._double}
        try:
            while (character := self._peek()) != _END:
                if stop and character == stop:
                    self._next()
                    return "".join(result), words.all()
                if character in special:
                    piece = special[character]()
                    (words.split if character == "$" else words.join)(piece)
                    result.append(piece)
                    continue
                self._next()
                if character != self._escape:
                    words.split(character)
                    result.append(character)
                    continue
                if self._raw_escapes:
                    words.join(character)
                    result.append(character)
                character = self._next()
                if character == _END:
                    break
                words.join(character)
                result.append(character)
        finally:
            self._raw_escapes = outer
            self._depth -= 1
        if stop:
            raise WordError(f"the text ends before the {stop!r} that it needs")
        return "".join(result), words.all()

    def _single(self) -> str:
        quote = self._next()
        result = [quote] if self._raw else []
        while True:
            character = self._next()
            if character == _END:
                raise WordError("the text ends inside single quotes")
            if character == "'":
                return "".join([*result, "'"] if self._raw else result)
            result.append(character)

    def _double(self) -> str:
        quote = self._next()
        result = [quote] if self._raw else []
        while True:
            character = self._peek()
            if character == _END:
                raise WordError("the text ends inside double quotes")
            if character == '"':
                self._next()
                return "".join([*result, quote] if self._raw else result)
            if character == "$":
                result.append(self._dollar())
                continue
            self._next()
            if character == self._escape:
                if self._raw_escapes:
                    result.append(character)
                following = self._peek()
                if following == _END:
                    continue
                if following in ('"', "$", self._escape):
                    character = self._next()
                elif self._raw_escapes:
                    continue
            result.append(character)

    def _name(self) -> str:
        start = self._at
        first = self._peek()
        if first.isdecimal():
            while self._peek().isdecimal():
                self._next()
        elif first in _SPECIAL and first:
            self._next()
        else:
            while (character := self._peek()) and (character.isalnum() or character == "_"):
                self._next()
        return self._text[start : self._at]

    def _value(self, name: str) -> str | None:
        self._names.add(name)
        value = self._env.get(name)
        return self._bounded(value) if value else value

    def _bounded(self, text: str) -> str:
        """The text, which counts: a few variables inside of one another would else fill the memory."""
        self._given += len(text)
        if self._given > 2 * _LONGEST:
            raise WordError(f"it becomes longer than {_LONGEST} characters")
        return text

    def _dollar(self) -> str:
        start = self._at
        self._next()
        if self._peek() != "{":
            name = self._name()
            if not name:
                return "$"
            value = self._value(name)
            return self._unset(start) if value is None else value
        self._next()
        if self._peek() == _END:
            raise WordError("'${' without a '}'")
        if self._peek() in "{}:":
            raise WordError(f"bad substitution at {self._text[start:][:40]!r}")
        name = self._name()
        kind = self._next()
        if kind == "}":
            value = self._value(name)
            return self._unset(start) if value is None else value
        if kind == "/":
            return self._replace(start, name)
        null_is_unset = kind == ":"
        if null_is_unset:
            kind = self._next()
        if not kind or kind not in ("-+?" if null_is_unset else "-+?#%"):
            raise WordError(f"modifier {kind!r} of ${{{name}}} is not supported" if kind else "'${' without a '}'")
        word = self._braced("}", raw_escapes=kind in "#%")
        value = self._value(name)
        if value is None and self._keep_unset:
            return self._text[start : self._at]
        return _modified(name, value, kind, word, null_is_unset=null_is_unset)

    def _unset(self, start: int) -> str:
        return self._text[start : self._at] if self._keep_unset else ""

    def _braced(self, stop: str, *, raw_escapes: bool) -> str:
        try:
            return self._until(stop, raw_escapes=raw_escapes)[0]
        except WordError:
            if self._peek() == _END:
                raise WordError("'${' without a '}'") from None
            raise

    def _replace(self, start: int, name: str) -> str:
        everywhere = self._peek() == "/"
        if everywhere:
            self._next()
        pattern = self._braced("/", raw_escapes=True)
        replacement = self._braced("}", raw_escapes=True)
        value = self._value(name)
        if value is None:
            return self._unset(start)
        return self._bounded(_substitute(value, pattern, replacement, everywhere=everywhere))


def _modified(name: str, value: str | None, kind: str, word: str, *, null_is_unset: bool) -> str:
    missing = value is None or (null_is_unset and not value)
    if kind == "-":
        return word if missing else value or ""
    if kind == "+":
        return "" if missing else word
    if kind == "?":
        if missing:
            raise WordError(f"{name}: {word or ('it is not set' if value is None else 'it is empty')}")
        return value or ""
    longest = word.startswith(kind)
    return _trimmed(value or "", word[longest:], at_end=kind == "%", longest=longest)


class _Glob:
    """A pattern of ``*``, ``?`` and literal characters, and all places in it that a text leads to, as bits."""

    def __init__(self, pattern: str, *, backwards: bool = False) -> None:
        items = _items(pattern)
        if backwards:
            items.reverse()
        self._end = 1 << len(items)
        self._star = sum(1 << n for n, item in enumerate(items) if item is None)
        self._any = sum(1 << n for n, item in enumerate(items) if item == "")
        self._literal: dict[str, int] = {}
        for n, item in enumerate(items):
            if item:
                self._literal[item] = self._literal.get(item, 0) | 1 << n
        self._cost = 1 + len(items) // 512
        self.steps = 0

    def _closed(self, places: int) -> int:
        """Also the places behind stars, which may match nothing."""
        return places | (places & self._star) << 1

    def sizes(self, text: str, start: int = 0, *, backwards: bool = False) -> Iterator[int]:
        """How many characters from ``start`` on it matches, each size that does, the smallest first.

        :raises WordError: it takes too long.
        """
        places = self._closed(1)
        if places & self._end:
            yield 0
        for n, at in enumerate(range(start - 1, -1, -1) if backwards else range(start, len(text)), 1):
            self.steps += self._cost
            if self.steps > _PATIENCE:
                raise WordError("a pattern that takes too long with this value")
            moved = places & (self._any | self._literal.get(text[at], 0))
            places = self._closed(moved << 1 | places & self._star)
            if not places:
                return
            if places & self._end:
                yield n


def _items(pattern: str) -> list[str | None]:
    """None for ``*``, "" for ``?``, else the character. Stars in a row are one."""
    items: list[str | None] = []
    characters = iter(pattern)
    for character in characters:
        if character == "\\":
            items.append(next(characters, "\\"))
        elif character != "*":
            items.append("" if character == "?" else character)
        elif not items or items[-1] is not None:
            items.append(None)
    return items


def _last(sizes: Iterator[int]) -> int | None:
    found = None
    for size in sizes:
        found = size
    return found


def _trimmed(value: str, pattern: str, *, at_end: bool, longest: bool) -> str:
    sizes = _Glob(pattern, backwards=at_end).sizes(value, len(value) if at_end else 0, backwards=at_end)
    size = (_last(sizes) if longest else next(sizes, None)) or 0
    return value[: len(value) - size] if at_end else value[size:]


def _substitute(value: str, pattern: str, replacement: str, *, everywhere: bool) -> str:
    glob = _Glob(pattern)
    result: list[str] = []
    at = length = 0
    while at <= len(value):
        size = _last(glob.sizes(value, at))
        if size is None or (size == 0 and at == len(value) and at):
            result.append(value[at : at + 1])
            at += 1
            continue
        result.append(replacement)
        length += len(replacement)
        if length > _LONGEST:
            raise WordError(f"it becomes longer than {_LONGEST} characters")
        if not everywhere:
            return "".join([*result, value[at + size :]])
        if size == 0:
            result.append(value[at : at + 1])
        at += size or 1
    return "".join(result)
