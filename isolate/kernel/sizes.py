"""Sizes: ``"256M"`` or an int of bytes."""

from __future__ import annotations

__all__ = ["size"]

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
_LARGEST = 1 << 60


def size(value: int | str, what: str = "size", *, smallest: int = 0) -> int:
    """Bytes from an int, or from a str such as ``"64K"``, ``"256M"``, ``"1.5G"`` (powers of 1024; ``B`` or ``iB`` may
    follow).

    :raises ValueError: negative, absurd (above 2**60) or not a number. :raises TypeError: neither int nor str.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(f"{what} must be an int of bytes or a str such as '256M', not {value!r}")
    number = value if isinstance(value, int) else _parse(value, what)
    if not smallest <= number <= _LARGEST:
        raise ValueError(f"{what} must be from {smallest} to 2**60 bytes, not {value!r}")
    return number


def _parse(text: str, what: str) -> int:
    word = text.strip().upper()
    for ending in ("IB", "B"):
        if word.endswith(ending) and (ending == "B" or word[-3:-2] in "KMGTP"):
            word = word[: -len(ending)]
            break
    unit = word[-1:] if word[-1:] in _UNITS and word[-1:] else ""
    digits = word[: len(word) - len(unit)].strip()
    whole, point, part = digits.partition(".")
    if not (whole.isdecimal() and whole.isascii()) or (point and not (part.isdecimal() and part.isascii())):
        raise ValueError(f"{what} must look like '256M' (K, M, G, T, P: powers of 1024), not {text!r}")
    scaled = int(whole + part) << _UNITS[unit]
    number, rest = divmod(scaled, int(10 ** len(part)))
    if rest:
        raise ValueError(f"{what} is no whole number of bytes: {text!r}")
    return number
