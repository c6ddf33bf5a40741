"""Soft resource limits, and back. They belong to the process: every thread of it is under them (getrlimit(2))."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from isolate.engine import native
from isolate.engine.native import ffi
from isolate.engine.plan import number
from isolate.errors import IrreversibleError, SetupError
from isolate.thread.change import Change

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RlimitsChange"]


def _get(resource: int) -> tuple[int, int]:
    old = ffi.new("uint64_t[2]")
    result = native.call(number("prlimit64"), 0, resource, 0, old)
    if result < 0:
        raise OSError(-result, f"{os.strerror(-result)}: read limit {resource}")
    return int(old[0]), int(old[1])


def _set(resource: int, soft: int, hard: int) -> int:
    return native.call(number("prlimit64"), 0, resource, ffi.new("uint64_t[2]", [soft, hard]), 0)


class RlimitsChange(Change):
    """Soft limits. A hard limit, once lowered, has no way back without CAP_SYS_RESOURCE: it is left alone.

    ``wanted``: name to number, soft limit, and hard limit where the part names one by itself.
    """

    __slots__ = ("_before", "_wanted")

    text = "the soft limits of this process"
    order = 40

    def __init__(self, wanted: Mapping[str, tuple[int, int, int | None]]) -> None:
        self._wanted = wanted
        self._before: dict[str, tuple[int, int]] = {}

    def check(self) -> None:
        """A soft limit stays within the hard one; another hard limit is refused."""
        for name, (resource, soft, hard) in self._wanted.items():
            ceiling = _get(resource)[1]
            if hard is not None and hard != ceiling:
                raise IrreversibleError(
                    f"with Rlimits: {name} names the hard limit {hard}, this process has {ceiling}: a hard limit has no"
                    f" way back. Give the soft limit alone, or use Sandbox(Rlimits(...)) or .enter()"
                )
            if soft > ceiling:
                raise SetupError(
                    errno.EINVAL,
                    f"soft limit {name} {soft}",
                    part="Rlimits",
                    syscall="prlimit64",
                    cause=f"the hard limit of this process is {ceiling}",
                    remedy="ask for no more than that, or have it raised before this program starts",
                )

    def apply(self) -> None:
        """Each soft limit; what was is kept."""
        for name, (resource, soft, _) in self._wanted.items():
            before, hard = _get(resource)
            self._before[name] = resource, before
            result = _set(resource, soft, hard)
            if result < 0:
                raise SetupError(-result, f"soft limit {name} {soft}", part="Rlimits", syscall="prlimit64")

    def undo(self) -> None:
        """The soft limits as they were, beneath what the hard ones are now."""
        failed: OSError | None = None
        for name, (resource, before) in reversed(self._before.items()):
            hard = _get(resource)[1]
            result = _set(resource, min(before, hard), hard)
            if result < 0 or before > hard:
                error = -result if result < 0 else errno.EPERM
                why = f"soft limit {name} {before} again (the hard one is {hard} now)"
                failed = OSError(error, f"{os.strerror(error)}: {why}")
        if failed is not None:
            raise failed

    def now(self) -> str:
        """The limits, soft and hard."""
        return ", ".join(f"{name} {_get(row[0])}" for name, row in self._wanted.items())


def wanted(values: Mapping[str, tuple[int, int]], numbers: Mapping[str, Any], pairs: frozenset[str]) -> RlimitsChange:
    """The change for a part's values; ``pairs`` are the names whose hard limit the part gives by itself."""
    return RlimitsChange(
        {n.rstrip("_"): (numbers[n][0], soft, hard if n in pairs else None) for n, (soft, hard) in values.items()}
    )
