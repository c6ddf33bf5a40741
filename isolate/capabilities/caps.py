"""The words of capabilities: :class:`Cap` names them, :class:`SecureBits` says what root is (capabilities(7))."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, TypeAlias

from isolate.kernel.checks import is_int, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Cap", "Caps", "SecureBits", "bits_words", "mask", "unmask"]

_MAX = 64  # the kernel's sets have 64 bits


class Cap(enum.IntEnum):
    """A capability; ``allows`` tells what it is for. Those of later kernels go by number: ``Cap(41)``.

    >>> Cap.parse("net_admin")
    Cap.NET_ADMIN
    """

    CHOWN = 0
    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    FOWNER = 3
    FSETID = 4
    KILL = 5
    SETGID = 6
    SETUID = 7
    SETPCAP = 8
    LINUX_IMMUTABLE = 9
    NET_BIND_SERVICE = 10
    NET_BROADCAST = 11
    NET_ADMIN = 12
    NET_RAW = 13
    IPC_LOCK = 14
    IPC_OWNER = 15
    SYS_MODULE = 16
    SYS_RAWIO = 17
    SYS_CHROOT = 18
    SYS_PTRACE = 19
    SYS_PACCT = 20
    SYS_ADMIN = 21
    SYS_BOOT = 22
    SYS_NICE = 23
    SYS_RESOURCE = 24
    SYS_TIME = 25
    SYS_TTY_CONFIG = 26
    MKNOD = 27
    LEASE = 28
    AUDIT_WRITE = 29
    AUDIT_CONTROL = 30
    SETFCAP = 31
    MAC_OVERRIDE = 32
    MAC_ADMIN = 33
    SYSLOG = 34
    WAKE_ALARM = 35
    BLOCK_SUSPEND = 36
    AUDIT_READ = 37
    PERFMON = 38
    BPF = 39
    CHECKPOINT_RESTORE = 40

    @classmethod
    def _missing_(cls, value: object) -> Cap | None:
        if isinstance(value, str):
            return cls.parse(value)
        if not is_int(value) or not 0 <= value < _MAX:
            return None
        # A later kernel's: a member without a line in the table, one object per number.
        member = int.__new__(cls, value)
        member._name_ = str(value)
        member._value_ = value
        return cls._value2member_map_.setdefault(value, member)  # type: ignore[return-value]

    @classmethod
    def parse(cls, text: str | int) -> Cap:
        """From a name, with or without ``CAP_`` and in either case, or from a number, also as a string.

        :raises ValueError: for a name that there is not, with the nearest one.
        """
        if isinstance(text, bool):
            raise TypeError(f"not a capability: {text!r}")
        if not isinstance(text, str):
            return cls(text)
        name = text.strip().upper().removeprefix("CAP_")
        found = cls.__members__.get(name)
        if found is not None:
            return found
        if name.isascii() and name.isdigit() and int(name) < _MAX:
            return cls(int(name))
        raise ValueError(
            f"no capability is named {text!r}{nearest('CAP_' + name, [f'CAP_{n}' for n in cls.__members__])}"
        )

    @property
    def allows(self) -> str:
        """The rights that it gives, in a line."""
        from isolate.capabilities.table import ALLOWS

        return ALLOWS.get(int(self), "unknown to this version of isolate")

    def __str__(self) -> str:
        return f"CAP_{self._name_}"

    def __repr__(self) -> str:
        return f"Cap.{self._name_}" if self._name_ in type(self).__members__ else f"Cap({int(self)})"

    def __reduce_ex__(self, protocol: object) -> tuple[type[Cap], tuple[int]]:
        return Cap, (int(self),)


Caps: TypeAlias = "Iterable[Cap | str | int]"


class SecureBits(enum.IntFlag):
    """Whether uid 0 is special to the kernel (capabilities(7)); ``_LOCKED``: the bit can never be changed again.

    >>> SecureBits.LOCKED & SecureBits.NOROOT == SecureBits.NOROOT
    True
    """

    NOROOT = 1
    NOROOT_LOCKED = 2
    NO_SETUID_FIXUP = 4
    NO_SETUID_FIXUP_LOCKED = 8
    KEEP_CAPS = 0x10
    KEEP_CAPS_LOCKED = 0x20
    NO_CAP_AMBIENT_RAISE = 0x40
    NO_CAP_AMBIENT_RAISE_LOCKED = 0x80
    #: Root is a user like any other, forever.
    LOCKED = 0xEF


def mask(caps: Iterable[Cap]) -> int:
    """The set as the kernel's 64 bits."""
    return sum(1 << cap for cap in caps)


def unmask(bits: int) -> frozenset[Cap]:
    """The 64 bits as a set."""
    return frozenset(Cap(i) for i in range(_MAX) if bits >> i & 1)


def bits_words(bits: SecureBits) -> str:
    """The bits by name."""
    names = [b.name or "" for b in SecureBits if bits & b and b.value & (b.value - 1) == 0]
    return " ".join(names) or "none"
