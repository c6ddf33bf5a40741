"""The output of a program as isolate collects it: bounded, kept in part or whole, passed on as it comes."""

from __future__ import annotations

import codecs
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KEEP", "Capture", "Text", "keeping"]

#: The values of ``keep=``: the part of the output that is kept if it is longer than ``max_output``.
KEEP = ("head", "tail", "both")
LINE = 1 << 20  # bytes: a longer line is passed on in pieces, so that nobody fills our memory by leaving out newlines


def keeping(value: str | None) -> str | None:
    """A value of ``keep=``, checked."""
    if value is not None and value not in KEEP:
        raise ValueError(f"keep must be None, 'head', 'tail' or 'both', not {value!r}")
    return value


class Text:
    """How bytes become text, as in :class:`io.TextIOWrapper`."""

    def __init__(self, encoding: str | None = None, errors: str | None = None) -> None:
        self.encoding: str = codecs.lookup("utf-8" if encoding is None else encoding).name
        self.errors: str = ("replace" if encoding is None else "strict") if errors is None else errors
        codecs.lookup_error(self.errors)

    def decode(self, data: bytes) -> str:
        """The text, whole."""
        return data.decode(self.encoding, self.errors)

    def encode(self, text: str) -> bytes:
        """Bytes to write."""
        return text.encode(self.encoding, "strict" if self.errors == "replace" else self.errors)


class Capture:
    """One stream of a program: what was kept of it, and who is told.

    At most ``limit`` bytes are kept. What is longer is too much if ``keep`` is None; else the program goes on, and the
    head, the tail, or half of each is kept. ``call`` is given the bytes as they come or, with ``text``, the lines with
    their ends. ``file`` is a descriptor that takes the bytes in place of memory.
    """

    def __init__(
        self,
        limit: int | None = None,
        keep: str | None = None,
        call: Callable[[Any], object] | None = None,
        text: Text | None = None,
        file: int = -1,
    ) -> None:
        self.truncated: bool = False
        self.kept: bytearray = bytearray()
        self._limit = limit
        self._keep = keep
        self._call = call
        self._text = text
        # A copy: the caller may close its own, and open something else in its place.
        self._file = os.dup(file) if file >= 0 else -1
        self._head = 0 if limit is None or keep != "both" else limit - limit // 2
        self._tail = bytearray()
        self._written = 0
        self._line = ""
        self._decoder: Any = codecs.getincrementaldecoder(text.encoding)(text.errors) if call and text else None

    def feed(self, data: bytes) -> bool:
        """Take what was read; False when that is more than may be, and the program is to be ended."""
        within = True
        if self._limit is not None and self._keep is None:
            room = self._limit - self._written
            if len(data) > room:
                data, within, self.truncated = data[:room], False, True
        self._written += len(data)
        if self.elsewhere:
            self._store(data)
        else:
            self._hold(data)
        if data:
            self._tell(data)
        return within

    def _hold(self, data: bytes) -> None:
        limit = self._limit
        if limit is None or self._keep is None:
            self.kept += data
            return
        if self._keep != "tail":
            room = max(0, (self._head if self._keep == "both" else limit) - len(self.kept))
            self.kept += data[:room]
            data = data[room:]
            if self._keep == "head":
                self.truncated = self.truncated or bool(data)
                return
        most = limit - self._head
        self._tail += data
        # Cut now and then, so that a byte is moved about once.
        if len(self._tail) > 2 * most + 65536:
            del self._tail[: len(self._tail) - most]
            self.truncated = True

    def _store(self, data: bytes) -> None:
        if self._keep is not None and self._limit is not None:  # the head: a file has no other
            room = max(0, self._limit - (self._written - len(data)))
            self.truncated = self.truncated or len(data) > room
            data = data[:room]
        while data:
            data = data[os.write(self._file, data) :]

    def _tell(self, data: bytes, *, final: bool = False) -> None:
        if self._call is None:
            return
        if self._decoder is None:
            if data:
                self._call(bytes(data))
            return
        self._line += self._decoder.decode(bytes(data), final)
        while True:
            end = self._line.find("\n", 0, LINE) + 1
            if not end and len(self._line) < LINE:
                break
            end = end or LINE
            line, self._line = self._line[:end], self._line[end:]
            self._call(line)
        if final and self._line:
            line, self._line = self._line, ""
            self._call(line)

    @property
    def elsewhere(self) -> bool:
        """Whether a file has it."""
        return self._file != -1

    def end(self) -> None:
        """There is no more: a last line without its end is told, too."""
        if self._file >= 0:
            self.close()
        if self._call is not None:
            self._tell(b"", final=True)

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -2

    def data(self) -> bytes:
        """The kept output."""
        if self._limit is None or self._keep not in ("tail", "both"):
            return bytes(self.kept)
        most = self._limit - self._head
        if len(self._tail) > most:
            self.truncated = True
            del self._tail[: len(self._tail) - most]
        return bytes(self.kept) + bytes(self._tail)
