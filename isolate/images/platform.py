"""The kind of machine that an image is for (the ``platform`` of an index, in the words of Go)."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from isolate.kernel.checks import keywords

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Platform"]

_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "i586": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}
_ALIASES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "i686": "386",
    "armhf": "arm",
    "armel": "arm",
}


@keywords
@dataclass(frozen=True)
class Platform:
    """``architecture`` and ``os`` as Go names them, such as ``amd64`` and ``linux``, and the variant (``v8``).

    :raises ValueError: a word that no registry would take.
    """

    architecture: str
    os: str = "linux"
    variant: str = ""
    os_version: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str):
                raise TypeError(f"Platform: {field.name} must be a str, not {value!r}")
            if (not value and field.name in ("architecture", "os")) or not value.isprintable() or len(value) > 128:
                raise ValueError(f"Platform: {field.name} must be a word, not {value!r}")

    @staticmethod
    def host() -> Platform:
        """This machine's."""
        machine = os.uname().machine
        if sys.maxsize <= 2**32:
            # A 32-bit Python on a 64-bit kernel: uname speaks of the kernel.
            machine = {"x86_64": "i686", "aarch64": "armv7l"}.get(machine, machine)
        architecture, variant = _MACHINES.get(machine, (machine, ""))
        return Platform(architecture, "linux", variant)

    @staticmethod
    def parse(text: str | Platform) -> Platform:
        """From ``linux/amd64``, ``linux/arm/v7`` or ``arm64``.

        :raises ValueError: it is not of that form.
        """
        if isinstance(text, Platform):
            return text
        if not isinstance(text, str):
            raise TypeError(f"platform must be a str such as 'linux/amd64', not {text!r}")
        words = text.split("/")
        if not 1 <= len(words) <= 3 or not all(words):
            raise ValueError(f"platform must look like 'linux/amd64' or 'linux/arm/v7', not {text!r}")
        if len(words) == 1:
            words.insert(0, "linux")
        system, architecture, *variant = (word.lower() for word in words)
        architecture = _ALIASES.get(architecture, architecture)
        return Platform(architecture, system, variant[0] if variant else "")

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    def runs(self, other: Platform) -> bool:
        """Whether a machine of this platform runs images for the other."""
        return bool(self.rank(other))

    def rank(self, other: Platform) -> int:
        """How well an image for the other fits this machine: 0 not at all, higher is better.

        The same variant is best; an arm64 image without a variant is v8; of arm, a lower variant runs on a higher.
        """
        if (self.os, self.architecture) != (other.os, other.architecture):
            return 0
        own, its = self._level(), other._level()
        if own is None or its is None:
            return 1 if self.variant == other.variant or not self.variant else 0
        if its > own:
            return 0
        return 100 - (own - its) if its <= own else 0

    def _level(self) -> int | None:
        variant = self.variant or {"arm64": "v8", "arm": "v7", "amd64": "v1"}.get(self.architecture, "v0")
        digits = variant[1:].partition(".")[0]
        return int(digits) if variant[:1] == "v" and digits.isdecimal() and digits.isascii() else None

    def choose(self, others: Iterable[Platform]) -> int | None:
        """The index of the best fitting of the others; None if none fits. If several fit equally, the first."""
        best: tuple[int, int] | None = None
        for index, other in enumerate(others):
            rank = self.rank(other)
            if rank and (best is None or rank > best[0]):
                best = rank, index
        return None if best is None else best[1]

    def document(self) -> dict[str, Any]:
        """As it stands in an index."""
        found: dict[str, Any] = {"architecture": self.architecture, "os": self.os}
        if self.os_version:
            found["os.version"] = self.os_version
        if self.variant:
            found["variant"] = self.variant
        return found
