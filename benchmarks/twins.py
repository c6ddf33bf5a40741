"""The C twins of a sandbox: the tapes of its plan as straight-line C, compiled into twin.c.

The ops' kinds and flags are those of ``_native/tape.h``; what an op means is written down here once more on purpose: a
twin that shared the library's interpreter would measure that and not the system calls.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from isolate.engine import tape as tapes
from isolate.engine.native import lib

HERE = Path(__file__).resolve().parent
PROGRAM = "/bin/true"
FREESTANDING = [
    "-O2",
    "-ffreestanding",
    "-fno-builtin",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-fno-pie",
    "-Wl,-z,noexecstack",
    "-Wl,--build-id=none",
    "-Wl,-z,norelro",
    "-s",
]


def calls(tape: tapes.Tape) -> str:
    """Each section of a tape as a C function that makes the same calls."""
    header = tapes.HEADER.unpack_from(tape.data)
    _, _, _, _, ops_at, op_count, data_at, data_size, registers, steps, _, flags, clone_flags, *rest = header
    sections = rest[4:]
    data = tape.data[data_at : data_at + data_size]
    rows = [tapes.OP.unpack_from(tape.data, ops_at + i * tapes.OP.size) for i in range(op_count)]
    lines = [
        f"static unsigned char data[] __attribute__((aligned(16))) = {{{','.join(map(str, data))}}};",
        f"#define CLONE_FLAGS {clone_flags}ul",
        f"#define HAS_PIDNS {int(bool(flags & lib.ISO_TAPE_PIDNS))}",
        f"#define SHARE {int(bool(flags & lib.ISO_TAPE_SHARE))}",
        f"#define STEPS {steps}",
        f'_Static_assert({registers} <= sizeof reg / sizeof *reg, "registers");',
    ]
    for index, name in enumerate(("outer", "supervisor", "init", "payload", "after", "report", "cleanup", "aside")):
        first, count = sections[2 * index : 2 * index + 2]
        begin = len(lines)
        lines += [f"static void {name}(void)", "{", "\tlong r = 0;", "\t(void)r;"]
        targets = {row[16] for row in rows[first : first + count] if row[1] & (lib.ISO_JUMP | lib.ISO_OPTIONAL)}
        for at in range(first, first + count):
            if at in targets:
                lines.append(f"l{at}:;")
            lines += [f"\t{line}" for line in statement(rows[at])]
        # Jumps to the end of the section, and beyond what is here: wherever there is a goto there is its label.
        text = "\n".join(lines[begin:])
        used = set(re.findall(r"goto (l\d+);", text)) - set(re.findall(r"^(l\d+):;", text, re.M))
        lines += [f"{label}:;" for label in sorted(used)]
        lines.append("}")
    return "\n".join(lines) + "\n"


def value(kind: int, number: int) -> str:
    """An argument as a C expression."""
    names = {
        lib.ISO_IMM: f"{number}l",
        lib.ISO_DATA: f"PTR(data + {number})",
        lib.ISO_REG: f"reg[{number}]",
        lib.ISO_SLOT: f"{number}l",
        lib.ISO_CWD: 'PTR("/")',
        lib.ISO_COUNTER: "counter",
        lib.ISO_LOAD4: f"(long)*(unsigned *)(data + {number})",
        lib.ISO_LOAD8: f"*(long *)(data + {number})",
        lib.ISO_FLAGS: f"{lib.ISO_RUN_KILLABLE}l",  # the benchmark is not spared by the OOM killer
    }
    return "(-9223372036854775807l - 1)" if number == -(1 << 63) else names[kind]


def statement(row: tuple[int, ...]) -> list[str]:
    """An op as C."""
    code, flags, *rest = row
    kinds, (_, out), errors, (repeat, nr, jump, expect), numbers = (
        rest[:6],
        rest[6:8],
        rest[8:12],
        rest[12:16],
        rest[16:22],
    )
    args = [value(k, n) for k, n in zip(kinds, numbers, strict=True)]
    engine = {
        lib.ISO_OP_SYNC: "engine_sync",
        lib.ISO_OP_SESSION: "engine_session",
        lib.ISO_OP_FIND: "engine_find",
        lib.ISO_OP_FDS: "engine_fds",
        lib.ISO_OP_EXEC: "engine_exec",
        lib.ISO_OP_ASIDE: "engine_aside",
        lib.ISO_OP_MEET: "engine_meet",
    }
    if code in engine:
        return [f"{engine[code]}();"]
    if code == lib.ISO_OP_STORE:
        return [f"store((unsigned char *){args[0]}, (unsigned long){args[1]}, {args[2]});"]
    if code == lib.ISO_OP_TEST:
        otherwise = f"goto l{jump};" if flags & (lib.ISO_JUMP | lib.ISO_OPTIONAL) else "stop();"
        return [f"if ((({args[0]} & {args[1]}) == {args[2]}) == {int(bool(flags & lib.ISO_NOT))}) {otherwise}"]
    if code == lib.ISO_OP_TARGET:
        call = f"target({args[0]}, (const char *){args[1]}, {args[2]}, {args[3]}, {args[4]})"
    elif code == lib.ISO_OP_CALL:
        call = f"iso_syscall({nr}, {', '.join(args)})"
    else:
        raise SystemExit(f"the twin has no op {code}")
    lines = [f"r = {call};"]
    if repeat > 1:
        lines = [f"for (long counter = 0; counter < {repeat}; counter++) {{ {lines[0]}"]
    listed = " || ".join(f"r == -{e}" for e in errors if e) or "0"
    fate = f"goto l{jump};" if flags & lib.ISO_OPTIONAL else "stop();"
    if flags & lib.ISO_TOLERATE:
        fate = f"if (!({listed})) {{ {fate} }}" + (" break;" if repeat > 1 else "")
    elif flags & lib.ISO_JUMP:
        fate = f"if ({listed}) goto l{jump}; else stop();"
    if out != lib.ISO_NONE:
        lines.append(f"reg[{out}] = r;")
    lines.append(f"if (r < 0 && r > -4096) {{ {fate} }}")
    if flags & lib.ISO_EXACT:
        lines.append(f"else if (r != {expect}) stop();")
    if repeat > 1:
        lines.append("}")
    return lines


def compile_twin(directory: Path, name: str, halves: dict[str, tapes.Tape]) -> Path:
    """Compile the calls of a tape, or of the two of a template."""
    headers = []
    for kind, tape in halves.items():
        header = directory / f"{name}-{kind}.h"
        header.write_text(calls(tape))
        headers.append(f'-DTWIN_{kind}="{header}"')
    target = directory / name
    compile_c(target, [*FREESTANDING, "-DTWIN_LAUNCHER", *headers, f'-DTWIN_PROGRAM="{PROGRAM}"'])
    return target


def compile_c(target: Path, flags: list[str]) -> None:
    """Compile twin.c."""
    command = ["gcc", "-std=gnu11", "-Wall", "-Wno-unused", "-Wno-array-bounds", *flags, str(HERE / "twin.c")]
    subprocess.run([*command, "-o", str(target)], check=True)
