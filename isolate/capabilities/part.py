"""Capabilities: root's power in 41 pieces (capabilities(7)).

:class:`Capabilities` holds the five sets that a thread has of them and is the part that puts them in force. Their names
are in :mod:`isolate.capabilities.caps`, those of files in :mod:`isolate.capabilities.files`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from isolate.attributes.privileges import NoNewPrivs
from isolate.capabilities.caps import Cap, SecureBits, bits_words, mask, unmask
from isolate.errors import IrreversibleError
from isolate.kernel.checks import is_int, keywords
from isolate.kernel.proc import status
from isolate.thread.entering import Reversible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.capabilities.caps import Caps
    from isolate.engine.plan import Context, Step
    from isolate.thread.change import Change

__all__ = ["Capabilities"]


def _set(value: object, what: str) -> frozenset[Cap]:
    if isinstance(value, (str, int)):
        raise TypeError(f"Capabilities: {what} must be a set of capabilities, such as {{{value!r}}}, not {value!r}")
    return frozenset(Cap.parse(cap) for cap in value)  # type: ignore[attr-defined]


@keywords
@dataclass(frozen=True, init=False)
class Capabilities(Reversible):
    """The five sets of capabilities: as a value, and as the part that puts them in force.

    ``effective``
        The capabilities that the kernel checks.
    ``permitted``
        The capabilities that may be made effective. Default: effective.
    ``ambient``
        The capabilities that programs without file capabilities keep over exec, whatever their user id. Default:
        permitted, so that the program has the capabilities given here. ``ambient=()`` is Docker's way: root inside
        keeps them over exec (with ``NOROOT`` unset), other users lose them.
    ``inheritable``
        Needed for ambient. Default: ambient.
    ``bounding``
        The most that exec can give. Default: permitted and inheritable.
    ``securebits``
        A :class:`SecureBits`. None: all locked (``LOCKED``) where no set holds anything; root made ordinary, and that
        locked, where every capability is ambient; else left alone.

    A sandbox has ``Capabilities()`` by default: no set holds any, and none can be gained. The bounding set is dropped
    up to number 63, whatever the kernel knows, and securebits are locked. Everything is read back before exec.

    A process without CAP_SETPCAP (an ordinary user outside of a user namespace, and some containers' root) can neither
    drop from the bounding set nor set securebits. That is harmless with ``no_new_privs``, under which exec gives
    nothing that the process does not have. So ``no_new_privs`` must be set then. It is read back, too; without it the
    start fails (EIO).

    The operators ``a | b``, ``a & b``, ``a - b`` and ``<=`` work on each of the five sets. ``str()`` is readable.

    :raises ValueError: for unknown names (with the nearest), and sets that the kernel does not admit together.

    :param effective: what the kernel checks.
    :param permitted: what may be made effective.
    :param inheritable: what the ambient set needs.
    :param ambient: what is kept over exec.
    :param bounding: the most that exec can give.
    :param securebits: a :class:`SecureBits`, or None.

    >>> box = Sandbox(UserNamespace(), Capabilities({"CHOWN"}))
    >>> box.run(["grep", "CapEff", "/proc/self/status"]).stdout
    b'CapEff:\\t0000000000000001\\n'
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
            if not is_int(securebits):
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
                Cap.CHOWN,
                Cap.DAC_OVERRIDE,
                Cap.FOWNER,
                Cap.FSETID,
                Cap.KILL,
                Cap.SETGID,
                Cap.SETUID,
                Cap.SETPCAP,
                Cap.NET_BIND_SERVICE,
                Cap.NET_RAW,
                Cap.SYS_CHROOT,
                Cap.MKNOD,
                Cap.AUDIT_WRITE,
                Cap.SETFCAP,
            ),
            ambient=(),
        )

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
    """The capabilities that the last steps of the set-up need: without no_new_privs a filter asks for CAP_SYS_ADMIN."""
    switch = context.find(NoNewPrivs)
    if not context.executes or switch is None or switch.enabled:
        return frozenset()
    filtered = any(getattr(part, "restricts", False) for part in context.parts)
    return frozenset({Cap.SYS_ADMIN}) if filtered else frozenset()


def _words(caps: frozenset[Cap]) -> str:
    if len(caps) > 20 and caps >= frozenset(Cap):
        return "all"
    return " ".join(map(str, sorted(caps))) or "none"


_FIELDS = tuple(f.name for f in fields(Capabilities))
