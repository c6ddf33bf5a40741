"""From decisions to classic BPF.

For each ABI the numbers from 0 to 2**32-1 fall into ranges that are answered alike. A tree of comparisons finds the
range; a range whose answer depends on arguments goes on to tests of their halves, made by the same kind of tree. Calls
with a constant answer never load an argument, which is what lets the kernel (5.11 and later) answer allowed ones from a
bitmap without running the program.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from . import bpf
from .ranges import Atom, Both, Test

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Abi", "Decision", "build"]

#: The answer to a call: tests in order, each with the value to return if it holds, then the value if none holds.
Decision = tuple[tuple[tuple[Test, int], ...], int]

# The accumulator's content: the offset of a loaded word and the mask applied to it, or None if unknown.
_Held = tuple[int, int] | None
_ALL = 0xFFFFFFFF

# A longer row of tests is laid out from its end, each as if the accumulator held nothing, instead of by recursion.
_ROW = 30

# How much more often than another range one is worth reaching fast. The kernel answers allowed calls from its bitmap
# without the program, so their place matters least and that of calls with tests most.
_WEIGHT_TESTED, _WEIGHT_REFUSED, _WEIGHT_ALLOWED = 12, 2, 1


@dataclass(frozen=True)
class Abi:
    """One value of ``arch`` in struct seccomp_data, with the answer to every number under it."""

    audit_arch: int
    decisions: dict[int, Decision]
    #: The answers to numbers that have none of their own, as (lowest number, answer), from 0 on, rising.
    otherwise: tuple[tuple[int, Decision], ...]


def build(abis: Sequence[Abi], foreign: int) -> bytes:
    """A program that answers each ABI by its decisions and every other ABI by ``foreign``. Raises ProgramTooLarge."""
    try:
        return _build(abis, foreign)
    except RecursionError:
        raise bpf.ProgramTooLarge("the conditions are nested too deeply to compile") from None


def _build(abis: Sequence[Abi], foreign: int) -> bytes:
    assembler = bpf.Assembler()
    node = assembler.ret(foreign)
    for abi in reversed(abis):
        numbers = _Tree(assembler, bpf.NR_OFFSET, _ALL, _ranges(abi, assembler)).node(None)
        node = assembler.jump(bpf.JEQ, abi.audit_arch, numbers, node)
    return assembler.assemble(assembler.load(bpf.ARCH_OFFSET, node))


# A leaf makes the node that goes on from it, given what the accumulator holds. Leaves are compared by their key.
@dataclass(frozen=True)
class _Leaf:
    key: object
    weight: int
    make: Callable[[_Held], int]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Leaf) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


class _Tree:
    """Comparisons of one masked word that lead to the leaf of the range it lies in."""

    def __init__(self, assembler: bpf.Assembler, offset: int, mask: int, ranges: list[tuple[int, _Leaf]]) -> None:
        self.assembler = assembler
        self.offset = offset
        self.mask = mask
        # (start, leaf), rising from 0; ranges that a masked value cannot reach and seams between equal ones go.
        kept: list[tuple[int, _Leaf]] = []
        for start, leaf in ranges:
            if start <= mask and not (kept and kept[-1][1] == leaf):
                kept.append((start, leaf))
        self.starts = [start for start, _ in kept]
        self.leaves = [leaf for _, leaf in kept]
        self.ends = [start - 1 for start in self.starts[1:]] + [mask]
        self.weights = [0, *accumulate(leaf.weight for leaf in self.leaves)]

    def node(self, held: _Held) -> int:
        """The first node of the tree, with the load if the accumulator has not got the word already."""
        if len(self.leaves) == 1:
            return self.leaves[0].make(held)
        bits = self._bit_test()
        loaded = (self.offset, _ALL)
        if bits is not None:
            zero, other = bits
            no, yes = zero.make(loaded), other.make(loaded)
            node = self.assembler.jump(bpf.JSET, self.mask, yes, no)
            return node if held == loaded else self.assembler.load(self.offset, node)
        masked = (self.offset, self.mask)
        node = self._search(0, len(self.leaves), masked)
        if held == masked:
            return node
        if self.mask != _ALL:
            node = self.assembler.mask(self.mask, node)
        return node if held == loaded else self.assembler.load(self.offset, node)

    def _bit_test(self) -> tuple[_Leaf, _Leaf] | None:
        if self.mask == _ALL or len(self.leaves) > 2:
            return None
        # With one bit in the mask only 0 and the mask itself occur, wherever the seam is.
        one_bit = self.mask & (self.mask - 1) == 0
        return (self.leaves[0], self.leaves[-1]) if one_bit or self.starts[1] == 1 else None

    def _search(self, low: int, high: int, held: _Held) -> int:
        count = high - low
        leaves = self.leaves
        if count == 1:
            return leaves[low].make(held)
        # Up to two single numbers among a rest that is answered alike are asked for one by one.
        if count in (3, 5):
            odd = range(low + 1, high, 2)
            if all(self.starts[i] == self.ends[i] for i in odd) and len({leaves[i] for i in range(low, high, 2)}) == 1:
                node = leaves[low].make(held)
                for i in sorted(odd, key=lambda i: leaves[i].weight):
                    node = self.assembler.jump(bpf.JEQ, self.starts[i], leaves[i].make(held), node)
                return node
        half = (self.weights[low] + self.weights[high]) / 2
        middle = bisect_left(self.weights, half, low + 1, high - 1)
        if middle > low + 1 and half - self.weights[middle - 1] < self.weights[middle] - half:
            middle -= 1
        below = self._search(low, middle, held)
        above = self._search(middle, high, held)
        return self.assembler.jump(bpf.JGE, self.starts[middle], above, below)


def _ranges(abi: Abi, assembler: bpf.Assembler) -> list[tuple[int, _Leaf]]:
    leaves: dict[Decision, _Leaf] = {}

    def leaf(decision: Decision) -> _Leaf:
        found = leaves.get(decision)
        if found is None:
            tests, value = decision
            weight = _WEIGHT_TESTED if tests else _WEIGHT_ALLOWED if value == 0x7FFF0000 else _WEIGHT_REFUSED
            found = leaves[decision] = _Leaf(decision, weight, lambda held: _decide(assembler, decision, held))
        return found

    found: dict[int, _Leaf] = {start: leaf(decision) for start, decision in abi.otherwise}
    starts = [start for start, _ in abi.otherwise]
    for number in sorted(abi.decisions):
        after = number + 1
        if after <= _ALL and after not in found:
            found[after] = leaf(abi.otherwise[bisect_left(starts, after + 1) - 1][1])
        found[number] = leaf(abi.decisions[number])
    return sorted(found.items())


def _decide(assembler: bpf.Assembler, decision: Decision, held: _Held) -> int:
    tests, value = decision
    on: Callable[[_Held], int] = _returns(assembler, value)
    for test, result in reversed(tests):
        on = _then(assembler, test, _returns(assembler, result), on, row=len(tests))
    return on(held)


def _returns(assembler: bpf.Assembler, value: int) -> Callable[[_Held], int]:
    return lambda _: assembler.ret(value)


def _test(
    assembler: bpf.Assembler, test: Test, yes: Callable[[_Held], int], no: Callable[[_Held], int], held: _Held
) -> int:
    if isinstance(test, bool):
        return (yes if test else no)(held)
    if isinstance(test, Atom):
        return _atom(assembler, test, yes, no, held)
    both = isinstance(test, Both)
    on = yes if both else no
    for part in reversed(test.tests):
        on = _then(assembler, part, *((on, no) if both else (yes, on)), row=len(test.tests))
    return on(held)


def _then(
    assembler: bpf.Assembler, test: Test, yes: Callable[[_Held], int], no: Callable[[_Held], int], *, row: int
) -> Callable[[_Held], int]:
    known: dict[_Held, int] = {}

    def make(held: _Held) -> int:
        if row > _ROW:
            held = None
        if held not in known:
            known[held] = _test(assembler, test, yes, no, held)
        return known[held]

    if row > _ROW:
        make(None)
    return make


def _atom(
    assembler: bpf.Assembler, atom: Atom, yes: Callable[[_Held], int], no: Callable[[_Held], int], held: _Held
) -> int:
    """Tests of an argument's halves: the upper one finds which ranges of the lower one are asked for."""
    accept, refuse = _Leaf(True, 1, yes), _Leaf(False, 1, no)
    high_mask, low_mask = atom.mask >> 32, atom.mask & _ALL
    low_offset = bpf.argument_offset(atom.index, high=False)

    def low_leaf(ranges: tuple[tuple[int, int], ...]) -> _Leaf:
        if not ranges:
            return refuse
        found: list[tuple[int, _Leaf]] = [(0, refuse)]
        for start, end in ranges:
            if found[-1][0] == start:
                found.pop()
            found.append((start, accept))
            if end < _ALL:
                found.append((end + 1, refuse))
        tree = _Tree(assembler, low_offset, low_mask, found)
        if len(tree.leaves) == 1:
            return tree.leaves[0]
        return _Leaf(ranges, 1, tree.node)

    # Each upper half that a range begins or ends in has ranges of its own; the ones between are wholly in or out.
    edges = sorted({0, *(v >> 32 for r in atom.ranges for v in r), *((v >> 32) + 1 for r in atom.ranges for v in r)})
    uppers: list[tuple[int, _Leaf]] = []
    for edge in edges:
        if edge > high_mask:
            continue
        first, last = edge << 32, edge << 32 | _ALL
        inside = tuple((max(a, first) & _ALL, min(b, last) & _ALL) for a, b in atom.ranges if a <= last and b >= first)
        uppers.append((edge, low_leaf(inside)))
    return _Tree(assembler, bpf.argument_offset(atom.index, high=True), high_mask, uppers).node(held)
