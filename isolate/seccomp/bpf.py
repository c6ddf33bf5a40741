"""Classic BPF as seccomp takes it: instructions, and an assembler that shares what is alike.

A program is bytes: eight for an instruction (``struct sock_filter``, in the machine's own byte order), at most 4,096.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ARCH_OFFSET",
    "AUDIT_ARCH",
    "FAMILIES",
    "MAX_INSTRUCTIONS",
    "NR_OFFSET",
    "Assembler",
    "ProgramTooLarge",
    "decode",
]

MAX_INSTRUCTIONS = 4096

# linux/bpf_common.h
LD_W_ABS = 0x20
LD_IMM = 0x00
LDX_IMM = 0x01
LD_MEM = 0x60
LDX_MEM = 0x61
LD_W_LEN = 0x80
LDX_W_LEN = 0x81
ST = 0x02
STX = 0x03
JA = 0x05
JEQ = 0x15
JGT = 0x25
JGE = 0x35
JSET = 0x45
JEQ_X = 0x1D
JGT_X = 0x2D
JGE_X = 0x3D
JSET_X = 0x4D
AND = 0x54
RET = 0x06
RET_A = 0x16
TAX = 0x07
TXA = 0x87

# struct seccomp_data: nr, arch, instruction_pointer, args[6]; this library's architectures are little-endian.
NR_OFFSET = 0
ARCH_OFFSET = 4

#: linux/audit.h. x32 shares x86-64's value and is told by a bit of the number.
AUDIT_ARCH = {
    "x86_64": 0xC000003E,
    "i386": 0x40000003,
    "x32": 0xC000003E,
    "aarch64": 0xC00000B7,
    "arm": 0x40000028,
    "riscv64": 0xC00000F3,
}

#: ABIs that one kernel offers besides its own.
FAMILIES: dict[str, tuple[str, ...]] = {
    "x86_64": ("i386", "x32"),
    "aarch64": ("arm",),
    "riscv64": (),
    "i386": (),
    "arm": (),
    "x32": (),
}

_INSTRUCTION = struct.Struct("=HBBI")


class ProgramTooLarge(ValueError):
    """A filter of more instructions than the kernel takes (BPF_MAXINSNS)."""


def argument_offset(index: int, *, high: bool) -> int:
    """The offset of an argument's lower or upper 32 bits in struct seccomp_data."""
    return 16 + 8 * index + (4 if high else 0)


def decode(program: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(code, jt, jf, k) of each instruction; ValueError if the bytes are no whole number of instructions."""
    if not program or len(program) % 8:
        raise ValueError(f"a BPF program is a positive multiple of 8 bytes, not {len(program)}")
    return _INSTRUCTION.iter_unpack(program)


class Assembler:
    """Builds a program from its end: a node is made after the nodes that it goes on to.

    Equal nodes are one node, so tails are shared without looking for them. ``assemble`` lays nodes out and deals with
    jumps, whose offsets are forward and at most 255: beyond, it puts a copy of a return, or a long jump, in reach.
    """

    def __init__(self) -> None:
        self._nodes: list[tuple[int, int, int, int]] = []
        self._known: dict[tuple[int, int, int, int], int] = {}

    def _node(self, code: int, k: int, jt: int, jf: int) -> int:
        key = (code, k, jt, jf)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = len(self._nodes)
            self._nodes.append(key)
        return found

    def ret(self, value: int) -> int:
        return self._node(RET, value, -1, -1)

    def load(self, offset: int, then: int) -> int:
        return self._node(LD_W_ABS, offset, then, -1)

    def mask(self, value: int, then: int) -> int:
        return self._node(AND, value, then, -1)

    def jump(self, code: int, k: int, yes: int, no: int) -> int:
        return yes if yes == no else self._node(code, k, yes, no)

    def assemble(self, root: int) -> bytes:
        """The program that starts at a node. Raises ProgramTooLarge."""
        nodes = self._nodes
        backward: list[tuple[int, int, int, int]] = []
        place: dict[int, int] = {}

        def near(node: int, reach: int) -> None:
            # Make sure that the instruction emitted next-but-``255 - reach`` can still reach the node.
            if len(backward) - place[node] - 1 <= reach:
                return
            code, k, _, _ = nodes[node]
            if code == RET:
                backward.append((RET, 0, 0, k))
            else:
                backward.append((JA, 0, 0, len(backward) - place[node] - 1))
            place[node] = len(backward) - 1

        # Nodes are numbered after those they lead to: rising numbers are a valid order. Only reachable ones count.
        reachable = {root}
        for node in range(root, -1, -1):
            if node in reachable:
                _, _, jt, jf = nodes[node]
                reachable.update(target for target in (jt, jf) if target >= 0)
        for node in range(root + 1):
            if node not in reachable:
                continue
            code, k, jt, jf = nodes[node]
            if code == RET:
                backward.append((RET, 0, 0, k))
            elif code in (LD_W_ABS, AND):
                if place[jt] != len(backward) - 1:
                    # The code that follows is elsewhere. Other jumps still reach it directly, so it stays there.
                    follows, k_follows, _, _ = nodes[jt]
                    if follows == RET:
                        backward.append((RET, 0, 0, k_follows))
                    else:
                        backward.append((JA, 0, 0, len(backward) - place[jt] - 1))
                backward.append((code, 0, 0, k))
            else:
                # Placing one target in reach pushes the other away by one; hence 254 for the first.
                near(jf, 254)
                near(jt, 255)
                near(jf, 255)
                at = len(backward)
                backward.append((code, at - place[jt] - 1, at - place[jf] - 1, k))
            place[node] = len(backward) - 1
            if len(backward) > MAX_INSTRUCTIONS:
                raise ProgramTooLarge(
                    f"the filter needs more than {MAX_INSTRUCTIONS} BPF instructions, the kernel's limit: "
                    "use fewer conditions on arguments, or two policies one after the other"
                )
        return b"".join(_INSTRUCTION.pack(*instruction) for instruction in reversed(backward))
