"""Digests: ``sha256:…`` (and ``sha512:…`` where a registry uses it), parsed, computed, compared."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from isolate.images.errors import DigestError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DIGEST", "check_digest", "digest_of", "hasher", "is_digest", "split", "verify"]

_LENGTHS = {"sha256": 64, "sha512": 128}
DIGEST = re.compile(r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})", re.ASCII)


def is_digest(text: object) -> bool:
    """Whether this is a digest of a kind that can be verified."""
    return isinstance(text, str) and DIGEST.fullmatch(text) is not None


def check_digest(text: object, what: str = "digest") -> str:
    """The text, if it is a digest that can be verified.

    :raises ValueError: it is none; the message says what a digest looks like.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str such as 'sha256:…', not {text!r}")
    if DIGEST.fullmatch(text) is None:
        algorithm = text.partition(":")[0]
        known = " and ".join(_LENGTHS)
        why = f"has {_LENGTHS[algorithm]} lower-case hexadecimal digits" if algorithm in _LENGTHS else f"is of {known}"
        raise ValueError(f"{what} {why}, not {text[:200]!r}")
    return text


def split(digest: str) -> tuple[str, str]:
    """Algorithm and hexadecimal digits."""
    algorithm, _, digits = check_digest(digest).partition(":")
    return algorithm, digits


def hasher(digest: str) -> Any:
    """A hash object of the digest's algorithm."""
    return hashlib.new(split(digest)[0])


def digest_of(data: bytes | Iterable[bytes], algorithm: str = "sha256") -> str:
    """The digest of bytes, or of chunks one after the other."""
    if algorithm not in _LENGTHS:
        raise ValueError(f"algorithm must be one of {', '.join(_LENGTHS)}, not {algorithm!r}")
    state = hashlib.new(algorithm)
    for chunk in (data,) if isinstance(data, (bytes, bytearray, memoryview)) else data:
        state.update(chunk)
    return f"{algorithm}:{state.hexdigest()}"


def verify(data: bytes, digest: str, what: str) -> bytes:
    """The data, if that is its digest.

    :raises DigestError: it is not.
    """
    got = digest_of(data, split(digest)[0])
    if got != digest:
        raise DigestError(digest, got, what)
    return data
