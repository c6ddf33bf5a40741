"""A descriptor that closes itself when nobody has it any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isolate.engine.native import ffi, lib

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["OwnedDescriptor"]


class OwnedDescriptor(int):
    """An ``int`` that owns the descriptor it says: closed by :meth:`close`, or with the last reference.

    Parts hold it as their ``fd``, so a namespace lives as long as something refers to it.
    """

    _cell: Any

    def __new__(cls, fd: int) -> Self:
        self = super().__new__(cls, fd)
        # Closed in C with this memory: once, whatever interrupts.
        self._cell = ffi.gc(ffi.new("int32_t *", fd), lib.iso_close)
        return self

    @property
    def closed(self) -> bool:
        """Whether it has been closed; the number may be another file's by now."""
        return int(self._cell[0]) < 0

    def close(self) -> None:
        """Close it."""
        lib.iso_close(self._cell)

    def __repr__(self) -> str:
        return f"{int(self)}"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a descriptor cannot be pickled: it belongs to this process")
