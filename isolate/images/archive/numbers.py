"""Numbers in headers: octal, base-256, and decimal in PAX records. Whole fields, and nothing that tools read apart."""

from __future__ import annotations

from isolate.images.errors import LayerError

__all__ = ["MAX_ID", "field", "pax_number", "pax_time"]

MAX_ID = 2**32 - 2
_MOST = 1 << 62


def field(data: bytes, name: bytes, what: str) -> int:
    """A numeric field of a header.

    :raises LayerError: not octal, or a negative or absurd base-256 number.
    """
    first = data[0]
    if first & 0x80:
        if first & 0x40:
            raise LayerError(name, f"a negative {what}")
        number = int.from_bytes(data, "big") ^ (0x80 << 8 * (len(data) - 1))
        if number >= _MOST:
            raise LayerError(name, f"an absurd {what}: {number}")
        return number
    digits = data.rstrip(b" \0").lstrip(b" ")
    if not digits:
        return 0
    # int() alone would take signs, underscores and prefixes.
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            pass
    raise LayerError(name, f"the {what} is no octal number: {data!r}")


def pax_number(value: bytes, name: bytes, what: str) -> int:
    """A decimal number of a PAX record."""
    if not value.isdigit() or len(value) > 20:
        raise LayerError(name, f"PAX: the {what} is no number: {value[:40]!r}")
    number = int(value)
    if number >= _MOST:
        raise LayerError(name, f"PAX: an absurd {what}: {number}")
    return number


def pax_time(value: bytes, name: bytes, what: str) -> int:
    """Seconds with a fraction, as whole nanoseconds; what is beyond them is dropped."""
    if value[:1] == b"-":
        raise LayerError(name, f"PAX: a negative {what}")
    whole, point, part = value.partition(b".")
    if not whole.isdigit() or len(whole) > 12 or (part and not part.isdigit()) or (point and len(part) > 40):
        raise LayerError(name, f"PAX: the {what} is no time: {value[:40]!r}")
    return int(whole) * 1_000_000_000 + int((part + b"000000000")[:9])
