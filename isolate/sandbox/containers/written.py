"""Parts as bytes, for a keeper and for who opens a container again: values of this library alone, never code."""

from __future__ import annotations

import enum
import importlib
import io
import pickle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isolate.engine.plan import Part

__all__ = ["from_bytes", "to_bytes"]

_VALUES = {
    ("builtins", name): None for name in ("frozenset", "set", "tuple", "list", "dict", "bytes", "bytearray", "object")
} | {
    ("copyreg", "_reconstructor"): None,
    ("fractions", "Fraction"): None,
    ("pathlib", "PosixPath"): None,
    ("pathlib", "PurePosixPath"): None,
    ("pathlib._local", "PosixPath"): None,
    ("ipaddress", "IPv4Address"): None,
    ("ipaddress", "IPv4Network"): None,
    ("ipaddress", "IPv6Address"): None,
    ("ipaddress", "IPv6Network"): None,
}


class _Reader(pickle.Unpickler):
    """Makes values of this library's classes, and of a few of the standard library's."""

    def find_class(self, module: str, name: str) -> Any:
        """A class that may stand in a part."""
        if (module, name) in _VALUES:
            return getattr(importlib.import_module(module), name)
        if module.partition(".")[0] == "isolate" and "." not in name:
            found = getattr(importlib.import_module(module), name, None)
            if isinstance(found, type) and found.__module__.partition(".")[0] == "isolate":
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is no value that a part is made of")


class _Writer(pickle.Pickler):
    """Writes an enumeration's member by its value: how else differs between Python's versions."""

    def reducer_override(self, value: Any) -> Any:
        """The hook that pickle asks first."""
        return (type(value), (value.value,)) if isinstance(value, enum.Enum) else NotImplemented


def _dumped(parts: tuple[Part, ...]) -> bytes:
    file = io.BytesIO()
    _Writer(file, protocol=4).dump(parts)
    return file.getvalue()


def to_bytes(parts: tuple[Part, ...]) -> bytes:
    """Parts as bytes.

    :raises TypeError: one that holds a descriptor, or is not of this library: nobody else could make it again.
    """
    for part in parts:
        try:
            if from_bytes(_dumped((part,))) != (part,):
                raise pickle.PicklingError("it is not equal to what it is read back as")
        except Exception as error:  # whatever a part's own reduction raises
            raise TypeError(
                f"a detached container cannot have {type(part).__name__}: {error}. It outlives this program, so its "
                "parts are values of this library, without descriptors and handles"
            ) from None
    return _dumped(parts)


def from_bytes(data: bytes) -> tuple[Part, ...]:
    """Parts from bytes.

    :raises ValueError: they are none.
    """
    try:
        found = _Reader(io.BytesIO(data)).load()
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"no parts of a sandbox: {error}") from None
    if not isinstance(found, tuple):
        raise TypeError(f"no parts of a sandbox: {type(found).__name__}")
    return found
