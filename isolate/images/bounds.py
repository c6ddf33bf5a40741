"""How much an archive may be made into: a bomb ends at its bound, not at a full disk."""

from __future__ import annotations

from dataclasses import dataclass

from isolate.kernel import checks
from isolate.kernel.checks import is_int, keywords

__all__ = ["Bounds"]


@keywords
@dataclass(frozen=True)
class Bounds:
    """Limits for one layer.

    ``bytes``
        Bytes of the decompressed archive, headers and padding included: an int or ``"10G"``.
    ``entries``
        Files, directories, links and whiteouts, with the parents that the archive leaves out.
    ``file``
        Bytes of the largest file; None: as many as ``bytes``.
    ``ratio``
        How many times larger than its compressed form the archive may become, once it is above 64 MiB. The highest
        that deflate can reach is 1,032; archives of zeros are the only ones that get near.

    :raises ValueError: a limit below one, or not a size.
    """

    bytes: int | str = "16G"
    entries: int = 2_000_000
    file: int | str | None = None
    ratio: int | None = None

    def __post_init__(self) -> None:
        checks.size("Bounds: bytes", self.bytes, 1)
        if self.file is not None:
            checks.size("Bounds: file", self.file, 1)
        for name in ("entries", "ratio"):
            value = getattr(self, name)
            if value is None and name == "ratio":
                continue
            if not is_int(value):
                raise TypeError(f"Bounds: {name} must be an int, not {value!r}")
            if value < 1:
                raise ValueError(f"Bounds: {name} must be from 1 on, not {value}")

    def limits(self) -> tuple[int, int, int, int]:
        """Bytes, entries, bytes of a file, and the ratio (0: none), as numbers."""
        whole = checks.size("size", self.bytes)
        return whole, self.entries, whole if self.file is None else checks.size("size", self.file), self.ratio or 0
