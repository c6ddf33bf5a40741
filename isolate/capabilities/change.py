"""The effective, inheritable and ambient capabilities of the calling thread, and back (capabilities(7))."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from isolate.capabilities.caps import unmask
from isolate.engine.native import ffi, lib
from isolate.engine.plan import number
from isolate.errors import SetupError
from isolate.kernel.constants import (
    LINUX_CAPABILITY_VERSION_3,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAP_AMBIENT_IS_SET,
    PR_CAP_AMBIENT_RAISE,
)
from isolate.thread.change import Change

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CapabilitiesChange", "Sets"]

_CAPGET, _CAPSET, _PRCTL = number("capget"), number("capset"), number("prctl")
_AMBIENT = int(PR_CAP_AMBIENT)
_HEADER = ffi.new("uint32_t[2]", [int(LINUX_CAPABILITY_VERSION_3), 0])  # only read: 0 is the calling thread
_HEADER_AT = int(ffi.cast("intptr_t", _HEADER))
_call = lib.iso_call


class Sets:
    """The sets that capget and capset exchange: effective, permitted and inheritable, low words then high words."""

    __slots__ = ("address", "data")

    def __init__(self) -> None:
        self.data: Any = ffi.new("uint32_t[6]")
        self.address: int = int(ffi.cast("intptr_t", self.data))

    def read(self) -> None:
        """As they are on this thread."""
        _call(_CAPGET, _HEADER_AT, self.address, 0, 0, 0, 0)

    def write(self) -> int:
        """Put in force on this thread; 0 or -errno."""
        return _call(_CAPSET, _HEADER_AT, self.address, 0, 0, 0, 0)

    def mask(self, which: int) -> int:
        """One of the three as 64 bits."""
        return int(self.data[which] | self.data[which + 3] << 32)


def _ambient(operation: int, cap: int = 0) -> int:
    return _call(_PRCTL, _AMBIENT, operation, cap, 0, 0, 0)


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _names(mask: int) -> str:
    return ", ".join(map(str, sorted(unmask(mask)))) or "none"


class CapabilitiesChange(Change):
    """Three sets changed; permitted, bounding and securebits, which have no way back, are left alone."""

    __slots__ = ("_ambient", "_before", "_changed", "_wanted")

    text = "the capabilities"
    order = 70

    def __init__(self, effective: int, inheritable: int, ambient: int) -> None:
        self._wanted = effective, inheritable, ambient
        self._before: Sets | None = None
        self._ambient = 0
        self._changed = False

    def apply(self) -> None:
        """capset, then the ambient set."""
        effective, inheritable, ambient = self._wanted
        before = Sets()
        before.read()
        data = before.data
        permitted, old = before.mask(1), before.mask(2)
        # The kernel keeps the ambient set within these two.
        for cap in _bits(permitted & old):
            if _ambient(PR_CAP_AMBIENT_IS_SET, cap) == 1:
                self._ambient |= 1 << cap
        if effective & ~permitted:
            raise _refused(f"effective: {_names(effective & ~permitted)} is not in this thread's permitted set")
        if old & ~inheritable & ~permitted:
            lost = _names(old & ~inheritable & ~permitted)
            raise _refused(f"inheritable: {lost}, once taken away, could not be given back: it is not permitted")
        if self._ambient & ~ambient and _ambient(PR_CAP_AMBIENT_RAISE, next(_bits(self._ambient))) < 0:
            raise _refused("the ambient set could not be given back: securebits (NO_CAP_AMBIENT_RAISE) forbid it")
        now = Sets()
        new = now.data
        new[0], new[3] = effective & 0xFFFFFFFF, effective >> 32
        new[1], new[4] = data[1], data[4]
        new[2], new[5] = inheritable & 0xFFFFFFFF, inheritable >> 32
        self._before = before
        result = now.write()
        if result < 0:
            raise _refused("inheritable needs what is permitted, or CAP_SETPCAP and the bounding set", error=-result)
        if self._ambient & ~ambient:
            self._changed = True
            _ambient(PR_CAP_AMBIENT_CLEAR_ALL)
        for cap in _bits(ambient):
            result = _ambient(PR_CAP_AMBIENT_RAISE, cap)
            if result < 0:
                raise _refused(f"ambient: {_names(1 << cap)} is not permitted, or securebits forbid it", error=-result)

    def undo(self) -> None:
        """The sets as they were: the kernel takes from the ambient set what is not inheritable any more."""
        before = self._before
        if before is None:
            return
        result = before.write()
        if result < 0:
            raise OSError(-result, "capset: the capabilities as they were")
        if self._ambient or self._wanted[2] & before.mask(2):
            _ambient(PR_CAP_AMBIENT_CLEAR_ALL)
            for cap in _bits(self._ambient):
                result = _ambient(PR_CAP_AMBIENT_RAISE, cap)
                if result < 0:
                    raise OSError(-result, f"prctl: {_names(1 << cap)} ambient again")

    def now(self) -> str:
        """The three sets of this thread."""
        now = Sets()
        now.read()
        return f"effective {_names(now.mask(0))}; inheritable {_names(now.mask(2))}"


def _refused(cause: str, *, error: int = errno.EPERM) -> SetupError:
    return SetupError(
        error,
        "effective, inheritable and ambient capabilities of this thread",
        part="Capabilities",
        syscall="capset",
        cause=cause,
    )
