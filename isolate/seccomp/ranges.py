"""Conditions brought to a normal form: and/or trees of "argument & mask lies in these ranges".

Every comparison of one masked argument is a set of ranges; comparisons of the same one meet or join exactly, so that
the compiler makes the fewest tests and a condition that can never or must always hold is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from .conditions import MASK32, MASK64, All, Any_, Compare, Condition

__all__ = ["Atom", "Both", "Either", "Test", "normal_form"]

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Atom:
    """``argument[index] & mask`` lies in one of the ranges (inclusive, sorted, apart from each other)."""

    index: int
    mask: int
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Both:
    """All of the tests, in this order."""

    tests: tuple[Test, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of the tests, tried in this order."""

    tests: tuple[Test, ...]


Test: TypeAlias = "Atom | Both | Either | bool"


def normal_form(condition: Condition, *, wide: bool) -> Test:
    """The condition's test; True or False where it does not depend on the arguments. ``wide`` is the ABI's 64 bits.

    On a 32-bit ABI the kernel looks at the lower halves alone, so the upper ones count as nothing there: a 64-bit
    program that enters by ``int 0x80`` can fill them.
    """
    if isinstance(condition, Compare):
        full = MASK64 if wide else MASK32
        mask = condition.mask & full
        value = condition.value & mask if condition.value < 0 else condition.value
        return _atom(condition.index, mask, _compared(condition.op, value, mask))
    if isinstance(condition, All):
        return _combine([normal_form(c, wide=wide) for c in condition.conditions], both=True)
    if isinstance(condition, Any_):
        return _combine([normal_form(c, wide=wide) for c in condition.conditions], both=False)
    raise TypeError(f"not a condition of this library: {condition!r}")


def either(tests: list[Test]) -> Test:
    """One of the tests holds."""
    return _combine(tests, both=False)


def _compared(op: str, value: int, mask: int) -> Ranges:
    if op == "==":
        return ((value, value),)
    if op == "!=":
        return ((0, value - 1), (value + 1, mask))
    if op == "<":
        return ((0, value - 1),)
    if op == "<=":
        return ((0, value),)
    if op == ">":
        return ((value + 1, mask),)
    return ((value, mask),)


def _atom(index: int, mask: int, ranges: Ranges) -> Test:
    # A masked value is never above its mask.
    clipped = tuple((low, min(high, mask)) for low, high in ranges if low <= high and low <= mask)
    if not clipped:
        return False
    if clipped == ((0, mask),):
        return True
    return Atom(index, mask, clipped)


def _combine(tests: list[Test], *, both: bool) -> Test:
    kind = Both if both else Either
    flat: list[Test] = []
    for test in tests:
        if isinstance(test, kind):
            flat.extend(test.tests)
        else:
            flat.append(test)
    # The first test on a masked argument takes in all later ones on the same.
    merged: dict[object, list[Test]] = {}
    for test in flat:
        if test is (not both):
            return test
        if test is not both:
            merged.setdefault((test.index, test.mask) if isinstance(test, Atom) else test, []).append(test)
    left: list[Test] = []
    for group in merged.values():
        joined = _joined(group, both=both)
        if joined is (not both):
            return joined
        if joined is not both:
            left.append(joined)
    if not left:
        return both
    return left[0] if len(left) == 1 else kind(tuple(left))


def _joined(group: list[Test], *, both: bool) -> Test:
    first = group[0]
    if not isinstance(first, Atom) or len(group) == 1:
        return first
    ranges = first.ranges
    others = [test.ranges for test in group[1:] if isinstance(test, Atom)]
    if both:
        for other in others:
            ranges = _meet(ranges, other)
    else:
        ranges = _union(ranges + tuple(r for other in others for r in other))
    return _atom(first.index, first.mask, ranges)


def _union(ranges: Ranges) -> Ranges:
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return tuple(found)


def _meet(a: Ranges, b: Ranges) -> Ranges:
    found = []
    for low, high in a:
        for other_low, other_high in b:
            if low <= other_high and other_low <= high:
                found.append((max(low, other_low), min(high, other_high)))
    return tuple(sorted(found))
