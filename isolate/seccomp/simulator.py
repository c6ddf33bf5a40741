"""A filter run in Python, instruction by instruction, as the kernel would; and a filter printed."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING

from isolate.kernel import syscalls

from . import bpf
from .actions import Action

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["InvalidProgram", "can_kill", "check", "disassemble", "run", "simulate"]

_DATA_SIZE = 64
_MEMWORDS = 16


class InvalidProgram(ValueError):
    """Bytes that the kernel would not take as a seccomp filter; the message says which instruction and why."""


def simulate(program: bytes, arch: str, nr: int, args: Sequence[int] = (), instruction_pointer: int = 0) -> Action:
    """The answer of a filter to one call: ``simulate(program, "x86_64", syscalls.number("openat"), (...))``.

    ``nr`` is the number as the kernel sees it (with the x32 bit for x32; -1 for a call that a tracer skipped), ``args``
    up to six unsigned or signed values. The program is checked first as the kernel checks it (InvalidProgram).
    """
    return Action.from_return(
        run(program, bpf.AUDIT_ARCH[syscalls.canonical_arch(arch)], nr, args, instruction_pointer)
    )


def run(program: bytes, audit_arch: int, nr: int, args: Sequence[int] = (), instruction_pointer: int = 0) -> int:
    """The raw 32-bit value that the program returns for a ``struct seccomp_data``."""
    if len(args) > 6:
        raise ValueError(f"a system call has at most 6 arguments, not {len(args)}")
    mask = 0xFFFFFFFFFFFFFFFF
    values = [value & mask for value in args] + [0] * (6 - len(args))
    packed = struct.pack("<IIQ6Q", nr & 0xFFFFFFFF, audit_arch & 0xFFFFFFFF, instruction_pointer & mask, *values)
    return _run(_checked(program), struct.unpack("<16I", packed))


@lru_cache(64)
def can_kill(program: bytes) -> bool:
    """Whether a filter has an answer that ends a process."""
    if not program:  # no filter at all
        return False
    answers = {Action.from_return(k).kind for code, _, _, k in bpf.decode(program) if code == bpf.RET}
    return bool(answers & {"kill_process", "kill_thread", "trap"})


def check(program: bytes) -> None:
    """Raise InvalidProgram where the kernel would refuse the program."""
    _checked(program)


def _run(instructions: tuple[tuple[int, int, int, int], ...], words: tuple[int, ...]) -> int:
    a = x = pc = 0
    memory = [0] * _MEMWORDS
    while True:
        code, jt, jf, k = instructions[pc]
        pc += 1
        if code == bpf.LD_W_ABS:
            a = words[k >> 2]
        elif code == bpf.JEQ:
            pc += jt if a == k else jf
        elif code == bpf.JGE:
            pc += jt if a >= k else jf
        elif code == bpf.JGT:
            pc += jt if a > k else jf
        elif code == bpf.JSET:
            pc += jt if a & k else jf
        elif code == bpf.RET:
            return k
        elif code == bpf.AND:
            a &= k
        elif code == bpf.JA:
            pc += k
        elif code == bpf.RET_A:
            return a
        elif code == bpf.LD_IMM:
            a = k
        elif code == bpf.LDX_IMM:
            x = k
        elif code == bpf.LD_MEM:
            a = memory[k]
        elif code == bpf.LDX_MEM:
            x = memory[k]
        elif code == bpf.LD_W_LEN:
            a = _DATA_SIZE
        elif code == bpf.LDX_W_LEN:
            x = _DATA_SIZE
        elif code == bpf.ST:
            memory[k] = a
        elif code == bpf.STX:
            memory[k] = x
        elif code == bpf.TAX:
            x = a
        elif code == bpf.TXA:
            a = x
        elif code in _JUMPS_X:
            pc += jt if _JUMPS_X[code](a, x) else jf
        else:
            result = _alu(code, a, x if code & 0x08 else k)
            if result is None:
                return 0  # BPF ends with 0 on a division by zero: kill the thread
            a = result


_JUMPS_X = {
    bpf.JEQ_X: lambda a, x: a == x,
    bpf.JGE_X: lambda a, x: a >= x,
    bpf.JGT_X: lambda a, x: a > x,
    bpf.JSET_X: lambda a, x: a & x,
}

_ALU = {
    0x04: "+",
    0x14: "-",
    0x24: "*",
    0x34: "/",
    0x44: "|",
    0x54: "&",
    0x64: "<<",
    0x74: ">>",
    0x84: "neg",
    0xA4: "^",
}


def _alu(code: int, a: int, b: int) -> int | None:
    op = code & 0xF7
    if op == 0x04:
        a += b
    elif op == 0x14:
        a -= b
    elif op == 0x24:
        a *= b
    elif op == 0x34:
        if b == 0:
            return None
        a //= b
    elif op == 0x44:
        a |= b
    elif op == 0x54:
        a &= b
    elif op == 0x64:
        a = a << (b & 31)
    elif op == 0x74:
        a = a >> (b & 31)
    elif op == 0x84:
        a = -a
    else:
        a ^= b
    return a & 0xFFFFFFFF


@lru_cache(maxsize=64)
def _checked(program: bytes) -> tuple[tuple[int, int, int, int], ...]:
    """The instructions, checked as kernel/seccomp.c and net/core/filter.c check them."""
    try:
        instructions = tuple((code, jt, jf, k) for code, jt, jf, k in bpf.decode(program))
    except ValueError as error:
        raise InvalidProgram(str(error)) from None
    count = len(instructions)
    if count > bpf.MAX_INSTRUCTIONS:
        raise InvalidProgram(f"{count} instructions, the kernel takes {bpf.MAX_INSTRUCTIONS}")
    for at, (code, jt, jf, k) in enumerate(instructions):
        reason = None
        if code == bpf.LD_W_ABS:
            if k >= _DATA_SIZE or k & 3:
                reason = f"loads from offset {k} of struct seccomp_data (64 bytes, words of 4)"
        elif code == bpf.JA:
            if k >= count - at - 1:
                reason = "jumps past the end"
        elif code in (bpf.JEQ, bpf.JGE, bpf.JGT, bpf.JSET) or code in _JUMPS_X:
            if at + 1 + max(jt, jf) >= count:
                reason = "jumps past the end"
        elif code in (bpf.LD_MEM, bpf.LDX_MEM, bpf.ST, bpf.STX):
            if k >= _MEMWORDS:
                reason = f"uses scratch word {k} of {_MEMWORDS}"
        elif code in (bpf.RET, bpf.RET_A, bpf.TAX, bpf.TXA, bpf.LD_IMM, bpf.LDX_IMM, bpf.LD_W_LEN, bpf.LDX_W_LEN):
            pass
        elif code & 0xF7 in _ALU and code != 140:
            if code == 0x34 and k == 0:
                reason = "divides by zero"
            elif code in (0x64, 0x74) and k >= 32:
                reason = f"shifts by {k}"
        else:
            reason = f"has code {code:#04x}, which seccomp does not allow"
        if reason:
            raise InvalidProgram(f"instruction {at} {reason}")
    if instructions[-1][0] not in (bpf.RET, bpf.RET_A):
        raise InvalidProgram("the last instruction is no return")
    _check_scratch(instructions)
    return instructions


def _check_scratch(instructions: tuple[tuple[int, int, int, int], ...]) -> None:
    """A word of the scratch memory must have been stored on every way to where it is loaded (check_load_and_stores)."""
    everything = (1 << _MEMWORDS) - 1
    stored = [everything] * (len(instructions) + 1)
    now = 0
    for at, (code, jt, jf, k) in enumerate(instructions):
        now &= stored[at]
        if code in (bpf.ST, bpf.STX):
            now |= 1 << k
        elif code in (bpf.LD_MEM, bpf.LDX_MEM):
            if not now >> k & 1:
                raise InvalidProgram(f"instruction {at} loads scratch word {k}, which may not have been stored before")
        elif code == bpf.JA:
            stored[at + 1 + k] &= now
            now = everything
        elif code in (bpf.JEQ, bpf.JGE, bpf.JGT, bpf.JSET) or code in _JUMPS_X:
            stored[at + 1 + jt] &= now
            stored[at + 1 + jf] &= now
            now = everything


def _word_name(offset: int) -> str:
    if offset == bpf.NR_OFFSET:
        return "nr"
    if offset == bpf.ARCH_OFFSET:
        return "arch"
    if offset < 16:
        return "ip.high" if offset == 12 else "ip.low"
    return f"arg{(offset - 16) // 8}.{'high' if offset & 4 else 'low'}"


def disassemble(program: bytes, arch: str | None = None) -> str:
    """The program as text, one instruction a line, with absolute targets, names of words, actions and, where the
    accumulator holds the number, of system calls of ``arch`` (the one that the program compares with, else native)."""
    instructions = _checked(program)
    by_audit = {value: name for name, value in reversed(bpf.AUDIT_ARCH.items())}
    lines = []
    current = syscalls.canonical_arch(arch) if arch else syscalls.native_arch()
    holds = ""
    for at, (code, jt, jf, k) in enumerate(instructions):
        note = ""
        yes, no = at + 1 + jt, at + 1 + jf
        if code == bpf.LD_W_ABS:
            holds = _word_name(k)
            text = f"ld  {holds}"
        elif code in (bpf.JEQ, bpf.JGE, bpf.JGT, bpf.JSET):
            word = {bpf.JEQ: "jeq", bpf.JGE: "jge", bpf.JGT: "jgt", bpf.JSET: "jset"}[code]
            text = f"{word} {k:#x}, {yes}, {no}"
            if holds == "arch" and code == bpf.JEQ and k in by_audit:
                note = by_audit[k]
            elif holds == "nr":
                note = syscalls.name(k, "x32" if current == "x86_64" and k & syscalls.X32_BIT else current) or ""
        elif code == bpf.RET:
            text, note = f"ret {k:#x}", str(Action.from_return(k))
        elif code == bpf.JA:
            text = f"ja  {at + 1 + k}"
        elif code == bpf.AND:
            text = f"and {k:#x}"
        elif code == bpf.RET_A:
            text = "ret a"
        else:
            text = f"code {code:#04x} jt={jt} jf={jf} k={k:#x}"
        lines.append(f"{at:4}: {text:<34}{'; ' + note if note else ''}".rstrip())
    return "\n".join(lines)
