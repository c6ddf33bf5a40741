"""The protocol of a confined child and its parent: descriptors by number, and bytes as text."""

from __future__ import annotations

__all__ = ["CONTENTS", "FACTS", "KNOWN", "LOWER", "OUT", "TARGET", "data", "text"]

#: Descriptors by number: the directory to work on, where facts go, where the contents of outlines are, and the facts of
#: the trees below. The archive is standard input.
TARGET, FACTS, OUT, CONTENTS, KNOWN, LOWER = 3, 4, 5, 6, 7, 10


def text(data: bytes) -> str:
    """Bytes of any kind as text for JSON, whatever the locale."""
    return data.decode("utf-8", "surrogateescape")


def data(text: str) -> bytes:
    """The way back."""
    return text.encode("utf-8", "surrogateescape")
