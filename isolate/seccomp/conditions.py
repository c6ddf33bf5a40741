"""Conditions on a system call's arguments, as data.

    (arg(0) & CLONE_NEWUSER) == 0
    arg32(1) != TIOCSTI
    arg32(0).among(AF_UNIX, AF_INET, AF_INET6) & (arg(2) == 0)

An argument is a register. ``arg(n)`` is all of it, 64 bits on a 64-bit architecture; ``arg32(n)`` is its lower half,
which is all that the kernel looks at where the parameter is an ``int`` or ``unsigned int`` (commands of ioctl, socket
families, flags of many calls). Comparing such a parameter with ``arg`` is a hole: a program can set the upper half,
the filter sees another value, the kernel the same. A pointer's target cannot be compared: another thread could change
it after.

Comparisons are unsigned. A negative number stands for its bits (-1 is all ones, of 64 or of 32 bits) and may be tested
for equality; ``<``, ``<=``, ``>`` and ``>=`` with a negative number are refused, since "less than -1" would mean nearly
everything. ``arg32(0) > 0x7fffffff`` says "negative" for an ``int``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from isolate.kernel.checks import is_int

__all__ = ["All", "Any_", "Arg", "Compare", "Condition", "any_of", "arg", "arg32", "every"]

MASK64 = 0xFFFFFFFFFFFFFFFF
MASK32 = 0xFFFFFFFF

_NEGATED = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


class Condition:
    """A condition; ``&``, ``|`` and ``~`` combine. It has no truth value of its own."""

    __slots__ = ()

    def __and__(self, other: object) -> Condition:
        return every(self, other) if isinstance(other, Condition) else NotImplemented

    def __or__(self, other: object) -> Condition:
        return any_of(self, other) if isinstance(other, Condition) else NotImplemented

    def __invert__(self) -> Condition:
        raise NotImplementedError

    def __bool__(self) -> bool:
        raise TypeError("a condition has no truth value here; combine with & | ~ instead of and, or, not")

    def holds(self, args: tuple[int, ...], *, wide: bool = True) -> bool:
        """Whether it holds for six argument values; ``wide=False`` for an ABI of 32 bits."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Compare(Condition):
    """One comparison: ``(argument & mask) op value``."""

    index: int
    op: str
    value: int
    mask: int = MASK64

    def __post_init__(self) -> None:
        _check_int("an argument's index", self.index)
        if not 0 <= self.index <= 5:
            raise ValueError(f"a system call has arguments 0 to 5, not {self.index}")
        if self.op not in _NEGATED:
            raise ValueError(f"unknown comparison {self.op!r}; known are {' '.join(_NEGATED)}")
        _check_int("a mask", self.mask)
        if not 0 < self.mask <= MASK64:
            raise ValueError(f"a mask is from 1 to 2**64-1, not {self.mask:#x}")
        _check_int("a compared value", self.value)
        width = 32 if self.mask <= MASK32 else 64
        if not -(2 ** (width - 1)) <= self.value < 2**width:
            raise ValueError(f"{self.value:#x} does not fit the {width} bits that are compared")
        if self.value < 0 and self.op not in ("==", "!="):
            raise ValueError(f"comparisons are unsigned: {self.op} {self.value} would not mean what it says")
        if self.value < 0 and self.mask not in (MASK32, MASK64):
            raise ValueError(f"a negative value under the mask {self.mask:#x} is unclear; write the bits")
        if self.op in ("==", "!=") and self.value > 0 and self.value & ~self.mask:
            raise ValueError(f"impossible condition: {self!r} compares bits that the mask takes away")
        if (self.op in ("<", ">=") and self.value == 0) or (
            self.op in (">", "<=") and self.value >= self.mask and self.value >= 0
        ):
            truth = "always" if self.op in (">=", "<=") else "never"
            raise ValueError(f"impossible condition: {self!r} {truth} holds")

    def __invert__(self) -> Condition:
        return Compare(self.index, _NEGATED[self.op], self.value, self.mask)

    def holds(self, args: tuple[int, ...], *, wide: bool = True) -> bool:
        full = MASK64 if wide else MASK32
        mask = self.mask & full
        left = args[self.index] & mask
        right = self.value & (mask if self.value < 0 else MASK64)
        if self.op == "==":
            return left == right
        if self.op == "!=":
            return left != right
        if self.op == "<":
            return left < right
        if self.op == "<=":
            return left <= right
        if self.op == ">":
            return left > right
        return left >= right

    def __repr__(self) -> str:
        value = repr(self.value) if -10 < self.value < 10 else hex(self.value)
        if self.mask == MASK64:
            return f"arg({self.index}) {self.op} {value}"
        if self.mask == MASK32:
            return f"arg32({self.index}) {self.op} {value}"
        return f"(arg({self.index}) & {self.mask:#x}) {self.op} {value}"


@dataclass(frozen=True, slots=True)
class All(Condition):
    """Every one of the conditions."""

    conditions: tuple[Condition, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditions", _flat(self.conditions, All))

    def __invert__(self) -> Condition:
        return any_of(*(~c for c in self.conditions))

    def holds(self, args: tuple[int, ...], *, wide: bool = True) -> bool:
        return all(c.holds(args, wide=wide) for c in self.conditions)

    def __repr__(self) -> str:
        return " & ".join(f"({c!r})" for c in self.conditions)


@dataclass(frozen=True, slots=True)
class Any_(Condition):
    """At least one of the conditions."""

    conditions: tuple[Condition, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditions", _flat(self.conditions, Any_))

    def __invert__(self) -> Condition:
        return every(*(~c for c in self.conditions))

    def holds(self, args: tuple[int, ...], *, wide: bool = True) -> bool:
        return any(c.holds(args, wide=wide) for c in self.conditions)

    def __repr__(self) -> str:
        among = _as_among(self.conditions)
        return among or " | ".join(f"({c!r})" for c in self.conditions)


class Arg:
    """An argument, perhaps masked, waiting to be compared. Made by ``arg`` and ``arg32``."""

    __slots__ = ("_index", "_mask")

    def __init__(self, index: int, mask: int = MASK64) -> None:
        _check_int("an argument's index", index)
        if not 0 <= index <= 5:
            raise ValueError(f"a system call has arguments 0 to 5, not {index}")
        self._index = index
        self._mask = mask

    def __and__(self, mask: object) -> Arg:
        if not is_int(mask):
            raise TypeError(f"a mask is an int, not {mask!r}; write (arg({self._index}) & mask) == value")
        return Arg(self._index, self._mask & mask)

    def __eq__(self, value: object) -> Condition:  # type: ignore[override]
        return Compare(self._index, "==", _value(value), self._mask)

    def __ne__(self, value: object) -> Condition:  # type: ignore[override]
        return Compare(self._index, "!=", _value(value), self._mask)

    def __lt__(self, value: int) -> Condition:
        return Compare(self._index, "<", _value(value), self._mask)

    def __le__(self, value: int) -> Condition:
        return Compare(self._index, "<=", _value(value), self._mask)

    def __gt__(self, value: int) -> Condition:
        return Compare(self._index, ">", _value(value), self._mask)

    def __ge__(self, value: int) -> Condition:
        return Compare(self._index, ">=", _value(value), self._mask)

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def among(self, *values: int) -> Condition:
        """Equal to one of the values."""
        if not values:
            raise ValueError("impossible condition: among() of no values never holds")
        return any_of(*(Compare(self._index, "==", _value(value), self._mask) for value in values))

    def __bool__(self) -> bool:
        raise TypeError("an argument has no truth value here; compare it")

    def __repr__(self) -> str:
        if self._mask == MASK64:
            return f"arg({self._index})"
        if self._mask == MASK32:
            return f"arg32({self._index})"
        return f"(arg({self._index}) & {self._mask:#x})"


def arg(index: int) -> Arg:
    """Argument ``index`` (0 to 5), the whole register."""
    return Arg(index)


def arg32(index: int) -> Arg:
    """The lower 32 bits of argument ``index``: for parameters of type int, unsigned int and their like."""
    return Arg(index, MASK32)


def every(*conditions: Condition) -> Condition:
    """All of the conditions, as ``&`` joins them.

    >>> from isolate.seccomp import arg, every
    >>> every(arg(0) == 1, arg(1) == 2)
    (arg(0) == 1) & (arg(1) == 2)
    """
    found = dict.fromkeys(conditions)
    return next(iter(found)) if len(found) == 1 else All(tuple(found))


def any_of(*conditions: Condition) -> Condition:
    """One of the conditions at least, as ``|`` joins them.

    >>> from isolate.seccomp import any_of, arg
    >>> any_of(arg(0) == 1, arg(1) == 2)
    (arg(0) == 1) | (arg(1) == 2)
    """
    found = dict.fromkeys(conditions)
    return next(iter(found)) if len(found) == 1 else Any_(tuple(found))


def _check_int(what: str, value: Any) -> None:
    if not is_int(value):
        raise TypeError(f"{what} is an int, not {value!r}")


def _value(value: Any) -> int:
    _check_int("a compared value", value)
    return int(value)


def _flat(conditions: tuple[Condition, ...], kind: type[All | Any_]) -> tuple[Condition, ...]:
    found: dict[Condition, None] = {}
    for condition in conditions:
        if not isinstance(condition, Condition):
            raise TypeError(f"not a condition: {condition!r}")
        for part in condition.conditions if isinstance(condition, kind) else (condition,):
            found[part] = None
    if len(found) < 2:
        raise ValueError("a combination needs two different conditions at least; use every() or any_of()")
    return tuple(found)


def _as_among(conditions: tuple[Condition, ...]) -> str | None:
    first = conditions[0]
    values = []
    for condition in conditions:
        if (
            not isinstance(condition, Compare)
            or not isinstance(first, Compare)
            or condition.op != "=="
            or (condition.index, condition.mask) != (first.index, first.mask)
        ):
            return None
        values.append(repr(condition.value) if -10 < condition.value < 10 else hex(condition.value))
    assert isinstance(first, Compare)
    return f"{Arg(first.index, first.mask)!r}.among({', '.join(values)})"
