"""Capabilities: root's power in 41 pieces (capabilities(7)).

:class:`Cap` names them, :class:`Capabilities` holds the five sets that a thread has of them and is the part that puts
them in force. Those of files are in :mod:`isolate.capabilities.files`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeAlias

from isolate.attributes.privileges import NoNewPrivs
from isolate.errors import IrreversibleError
from isolate.kernel.proc import status
from isolate.thread.entering import Change, Reversible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.engine.plan import Context, Step

__all__ = ["Cap", "Capabilities", "SecureBits"]

_MAX = 64  # the kernel's sets have 64 bits


class Cap(enum.IntEnum):
    """A capability; ``allows`` tells what it is for. Those of later kernels go by number: ``Cap(41)``."""

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
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX:
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
        import difflib

        near = difflib.get_close_matches(name, cls.__members__, n=1)
        raise ValueError(f"no capability is named {text!r}" + (f"; did you mean CAP_{near[0]}?" if near else ""))

    @property
    def allows(self) -> str:
        """What it allows, in a line."""
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
    """Whether uid 0 is special to the kernel (capabilities(7)); ``_LOCKED``: the bit can never be changed again."""

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


def _set(value: object, what: str) -> frozenset[Cap]:
    if isinstance(value, (str, int)):
        raise TypeError(f"Capabilities: {what} must be a set of capabilities, such as {{{value!r}}}, not {value!r}")
    return frozenset(Cap.parse(cap) for cap in value)  # type: ignore[attr-defined]


def mask(caps: Iterable[Cap]) -> int:
    """The set as the kernel's 64 bits."""
    return sum(1 << cap for cap in caps)


def unmask(bits: int) -> frozenset[Cap]:
    """The 64 bits as a set."""
    return frozenset(Cap(i) for i in range(_MAX) if bits >> i & 1)


@dataclass(frozen=True, init=False)
class Capabilities(Reversible):
    """The five sets of capabilities: as a value, and as the part that puts them in force.

    ``effective``
        What the kernel checks.
    ``permitted``
        What may be made effective. Default: effective.
    ``ambient``
        What programs without file capabilities keep over exec, whoever they are. Default: permitted, so that what is
        given here is what the program has. ``ambient=()`` is Docker's way: root inside keeps them over exec
        (with ``NOROOT`` unset), others lose them.
    ``inheritable``
        Needed for ambient. Default: ambient.
    ``bounding``
        What exec can give at most. Default: permitted and inheritable.
    ``securebits``
        A :class:`SecureBits`. None: all locked (``LOCKED``) where no set holds anything; root made ordinary, and that
        locked, where every capability is ambient; else left alone.

    ``Capabilities()`` is what a sandbox has by default: nothing in any set, and nothing to be had again: the bounding
    set is dropped, up to number 63 whatever the kernel knows; securebits are locked. All is read back before exec.

    A process without CAP_SETPCAP (an ordinary user outside of a user namespace, and some containers' root) can neither
    drop from the bounding set nor set securebits. That is harmless with ``no_new_privs``, under which exec gives
    nothing that the process has not: it must be set then, which is read back too; without it, the start fails (EIO).

    Sets have arithmetic: ``a | b``, ``a & b``, ``a - b``, ``<=``, each of the five with its own. ``str()`` is readable.

    :raises ValueError: for unknown names (with the nearest), and sets that the kernel does not admit together.
    """

    effective: frozenset[Cap]
    permitted: frozenset[Cap]
    inheritable: frozenset[Cap]
    ambient: frozenset[Cap]
    bounding: frozenset[Cap]
    securebits: SecureBits | None

    def __init__(
        self,
        effective: Caps = (),
        permitted: Caps | None = None,
        inheritable: Caps | None = None,
        ambient: Caps | None = None,
        bounding: Caps | None = None,
        securebits: SecureBits | int | None = None,
    ) -> None:
        e = _set(effective, "effective")
        p = e if permitted is None else _set(permitted, "permitted")
        a = p if ambient is None else _set(ambient, "ambient")
        i = a if inheritable is None else _set(inheritable, "inheritable")
        b = p | i if bounding is None else _set(bounding, "bounding")
        if securebits is not None:
            if isinstance(securebits, bool) or not isinstance(securebits, int):
                raise TypeError(f"Capabilities: securebits must be SecureBits, not {securebits!r}")
            if securebits & ~0xFF:
                raise ValueError(f"Capabilities: securebits beyond the kernel's eight: {int(securebits):#x}")
            securebits = SecureBits(securebits)
        for name, inner, outer_name, outer in (
            ("effective", e, "permitted", p),
            ("ambient", a, "permitted", p),
            ("ambient", a, "inheritable", i),
            ("permitted", p, "bounding", b),
            ("inheritable", i, "bounding", b),
        ):
            if inner - outer:
                missing = ", ".join(map(str, sorted(inner - outer)))
                raise ValueError(f"Capabilities: {missing}: in {name} but not in {outer_name}, which must hold it too")
        for name, value in zip(_FIELDS, (e, p, i, a, b, securebits), strict=True):
            object.__setattr__(self, name, value)

    # ---- presets -------------------------------------------------------------------------------------------------

    @classmethod
    def none(cls) -> Capabilities:
        """No capability in any set."""
        return cls()

    @classmethod
    def docker(cls) -> Capabilities:
        """The 14 that Docker gives to root in a container; a program with another uid has none of them after exec."""
        return cls(
            (
                Cap.CHOWN, Cap.DAC_OVERRIDE, Cap.FOWNER, Cap.FSETID, Cap.KILL, Cap.SETGID, Cap.SETUID, Cap.SETPCAP,
                Cap.NET_BIND_SERVICE, Cap.NET_RAW, Cap.SYS_CHROOT, Cap.MKNOD, Cap.AUDIT_WRITE, Cap.SETFCAP,
            ),
            ambient=(),
        )  # fmt: skip

    @classmethod
    def all(cls) -> Capabilities:
        """The 41 of Linux 5.9 and later, in all five sets: in a user namespace, all power over what that owns."""
        return cls(tuple(Cap))

    @classmethod
    def of(cls, pid: int | str = "self") -> Capabilities:
        """The sets of a process (its main thread), from /proc; securebits are not shown there and None.

        :raises OSError: if there is no such process.
        """
        rows = status(pid)
        self = object.__new__(cls)  # a live process may have what a plan should not ask for
        for name, row in zip(_FIELDS, ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"), strict=False):
            object.__setattr__(self, name, unmask(int(rows[row], 16)))
        object.__setattr__(self, "securebits", None)
        return self

    # ---- arithmetic ----------------------------------------------------------------------------------------------

    def _pairs(self, other: Capabilities) -> Iterator[tuple[frozenset[Cap], frozenset[Cap]]]:
        for name in _FIELDS[:5]:
            yield getattr(self, name), getattr(other, name)

    def _made(self, sets: Iterable[frozenset[Cap]], other: Capabilities) -> Capabilities:
        e, p, i, a, b = sets
        return Capabilities(e, p, i, a, b, self.securebits if self.securebits == other.securebits else None)

    def __or__(self, other: object) -> Capabilities:
        if not isinstance(other, Capabilities):
            return NotImplemented
        return self._made((a | b for a, b in self._pairs(other)), other)

    def __and__(self, other: object) -> Capabilities:
        if not isinstance(other, Capabilities):
            return NotImplemented
        return self._made((a & b for a, b in self._pairs(other)), other)

    def __sub__(self, other: object) -> Capabilities:
        """Without the other's: what is taken from a set is also taken from those that need it there."""
        if isinstance(other, Capabilities):
            e, p, i, a, b = (x - y for x, y in self._pairs(other))
        else:
            gone = _set(other, "what is taken away")
            e, p, i, a, b = (getattr(self, name) - gone for name in _FIELDS[:5])
        p, i = p & b, i & b
        return Capabilities(e & p, p, i, a & p & i, b, self.securebits)

    def __le__(self, other: Capabilities) -> bool:
        """Whether each of the five sets is a subset of the other's."""
        return all(a <= b for a, b in self._pairs(other))

    def __bool__(self) -> bool:
        """Whether any set holds anything."""
        return any(getattr(self, name) for name in _FIELDS[:5])

    def __str__(self) -> str:
        rows = [f"{name:11} {_words(getattr(self, name))}" for name in _FIELDS[:5]]
        bits = self.securebits if self.securebits is not None else self._securebits()
        rows.append(f"{'securebits':11} " + ("left as they are" if bits is None else bits_words(bits)))
        return "\n".join(rows)

    def __repr__(self) -> str:
        if not self and self.securebits is None:
            return "Capabilities()"
        sets = [(name, sorted(getattr(self, name))) for name in _FIELDS[:5]]
        parts = [f"{name}=({''.join(f'{cap!r}, ' for cap in caps).rstrip() if caps else ''})" for name, caps in sets]
        if self.securebits is not None:
            parts.append(f"securebits={int(self.securebits):#x}")
        return f"Capabilities({', '.join(parts)})"

    def after_exec(self, *, root: bool, no_new_privs: bool = True) -> Capabilities:
        """The sets after exec of a file without file capabilities: the kernel's own rule (capabilities(7)).

        ``root`` is whether the effective uid is 0 in the user namespace.
        """
        bits = self.securebits if self.securebits is not None else (self._securebits() or SecureBits(0))
        a, i, b = self.ambient, self.inheritable, self.bounding
        p = frozenset(a)
        if root and not bits & SecureBits.NOROOT:
            p = i | b | a
            if no_new_privs:
                p &= self.permitted
        return Capabilities(p, p, i, a, b, self.securebits)

    # ---- the part ------------------------------------------------------------------------------------------------

    def _securebits(self) -> SecureBits | None:
        if self.securebits is not None:
            return self.securebits
        if not self:
            return SecureBits.LOCKED
        if self.ambient == self.permitted:
            return SecureBits.NOROOT | SecureBits.NOROOT_LOCKED
        return None

    def here(self) -> Change:
        """``with``: effective, inheritable and ambient on this thread; the rest has no way back and stays."""
        from isolate.capabilities.change import CapabilitiesChange

        if self.securebits is not None:
            raise IrreversibleError("with Capabilities(securebits=...): use .enter(), isolate.in_thread or Sandbox")
        return CapabilitiesChange(mask(self.effective), mask(self.inheritable), mask(self.ambient))

    def steps(self, context: Context) -> Iterator[Step]:
        """Bounding set, capset, ambient set, securebits; then all of it read back."""
        from isolate.capabilities.steps import steps

        return steps(self, self._securebits(), installing=_installing(context))


def _installing(context: Context) -> frozenset[Cap]:
    """What the last steps of the set-up need: without no_new_privs a filter asks for CAP_SYS_ADMIN."""
    switch = context.find(NoNewPrivs)
    if not context.executes or switch is None or switch.enabled:
        return frozenset()
    filtered = any(getattr(part, "restricts", False) for part in context.parts)
    return frozenset({Cap.SYS_ADMIN}) if filtered else frozenset()


def _words(caps: frozenset[Cap]) -> str:
    if len(caps) > 20 and caps >= frozenset(Cap):
        return "all"
    return " ".join(map(str, sorted(caps))) or "none"


def bits_words(bits: SecureBits) -> str:
    """The bits by name."""
    names = [b.name or "" for b in SecureBits if bits & b and b.value & (b.value - 1) == 0]
    return " ".join(names) or "none"


_FIELDS = tuple(f.name for f in fields(Capabilities))
