"""Random policies, many: the compiled filter's answer beside the rules' own. `python -m tests.seccomp.many`

    python -m tests.seccomp.many [--policies 1000000] [--processes N] [--seed 0]

Each policy is made from a number, so a failure names the number that makes it again. For each, on its own architecture
and the ABIs it covers, calls are tried with arguments at and around every value that the policy compares with; what the
program answers (``simulator.run``) must be what the rules read one by one answer (``Seccomp.answer``), which share no
code with the compiler.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time

from isolate.kernel import syscalls
from isolate.seccomp import ProgramTooLarge, Seccomp, bpf, compiler, decide, rule, simulator
from isolate.seccomp.actions import Action
from isolate.seccomp.conditions import MASK32, MASK64, Compare, Condition, any_of, every
from isolate.seccomp.ranges import normal_form
from tests.seccomp.tools import boundary_values

FAMILY = {"x86_64": ("x86_64", "i386", "x32"), "aarch64": ("aarch64", "arm"), "riscv64": ("riscv64",)}
KERNEL = (6, 18)
NAMES = (
    "read", "write", "close", "ioctl", "openat", "openat2", "clone", "clone3", "futex", "prctl", "rt_sigaction",
    "mount", "socket", "socketcall", "personality", "kill", "io_uring_setup", "mmap", "getrandom", "@clock", "@network",
)  # fmt: skip  # many names, few lines
CALLS = (*(name for name in NAMES if name[0] != "@"), "clock_settime", "connect", "mseal")
ACTIONS = (
    Action.ALLOW,
    Action.ALLOW,
    Action.EPERM,
    Action.ENOSYS,
    Action.KILL_PROCESS,
    Action.KILL_THREAD,
    Action.LOG,
    Action.trap(3),
    Action.trace(9),
    Action.NOTIFY,
)
SPECIAL = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 2, 2**64 - 1, 0x5412, 0x10000000)
MASKS = (MASK64, MASK64, MASK32, MASK32, 1, 0xF, 0xF0, 0x10000000, 0x7E020000, 0xFF00000000, 1 << 63, 0xF0000000F)
OPS = ("==", "==", "!=", "<", "<=", ">", ">=")


def _compare(chooser: random.Random) -> Compare:
    """One comparison that can hold and can fail."""
    while True:
        mask = chooser.choice(MASKS) if chooser.random() < 0.9 else chooser.randrange(1, 2**64)
        value = (
            chooser.choice(SPECIAL)
            if chooser.random() < 0.5
            else chooser.randrange(2 ** chooser.choice((3, 8, 33, 64)))
        )
        try:
            return Compare(chooser.randrange(6), chooser.choice(OPS), value & mask, mask)
        except ValueError:
            continue  # always or never: refused


def _condition(chooser: random.Random, depth: int) -> Condition:
    kind = chooser.random()
    if depth == 0 or kind < 0.4:
        return _compare(chooser)
    if kind < 0.5:
        return ~_condition(chooser, depth - 1)
    parts = [_condition(chooser, depth - 1) for _ in range(chooser.randint(2, 4))]
    return every(*parts) if kind < 0.75 else any_of(*parts)


def policy_of(number: int) -> tuple[Seccomp, str, random.Random]:
    """The policy of a number, the architecture it is compiled for, and the source of its calls."""
    chooser = random.Random(number)
    rules = []
    for _ in range(chooser.randint(0, 6)):
        condition = _condition(chooser, chooser.randint(0, 3)) if chooser.random() < 0.75 else None
        if condition is None or not isinstance(normal_form(condition, wide=True), bool):
            rules.append(
                rule(chooser.choice(ACTIONS), *chooser.choices(NAMES, k=chooser.randint(1, 4)), when=condition)
            )
    native = chooser.choice(tuple(FAMILY))
    otherwise = chooser.choice(ACTIONS)
    # Mostly the same for what is unknown: else every number of the tables needs an answer of its own, and time.
    unknown = otherwise if chooser.random() < 0.9 else chooser.choice((None, *ACTIONS))
    policy = Seccomp(
        rules,
        otherwise=otherwise,
        unknown=unknown,
        foreign=chooser.choice(ACTIONS),
        compat=[abi for abi in ("i386", "x32", "arm") if chooser.random() < 0.3],
    )
    return policy, native, chooser


def check(number: int) -> int:
    """Compile the policy of a number and compare; how many calls were. AssertionError names what differs."""
    policy, native, chooser = policy_of(number)
    # As Seccomp.program does, past its caches.
    try:
        program = compiler.build(decide.decisions(policy, native, KERNEL), policy.foreign.value)
    except ProgramTooLarge:
        return 0
    values = boundary_values(policy)
    tried = 0
    spoken = [name for name in CALLS if any(name in r.calls for r in policy.rules)]
    for abi in FAMILY[native]:
        covered = abi == native or abi in policy.compat
        known = [name for name in spoken if name in syscalls.table(abi)]
        numbers = [syscalls.number(name, abi) for name in known for _ in range(6)][:48]
        numbers += [syscalls.number(chooser.choice([n for n in CALLS if n in syscalls.table(abi)]), abi)]
        bit = syscalls.X32_BIT if abi == "x32" else 0
        numbers += [chooser.randrange(600) | bit, 0x3FFFFFFF | bit]
        for nr in numbers if covered else numbers[:3]:
            args = tuple(chooser.choices(values, k=6))
            wanted = policy.answer(nr, *args, arch=abi, kernel=KERNEL).action if covered else policy.foreign
            got = simulator.run(program, bpf.AUDIT_ARCH[abi], nr, args)
            tried += 1
            assert got == wanted.value, (
                f"policy {number} for {native}: number {nr} of {abi} with {args}: the rules say {wanted}, the program "
                f"{Action.from_return(got)}\n{policy!r}"
            )
    return tried


def _chunk(bounds: tuple[int, int]) -> tuple[int, int, str]:
    calls = 0
    for number in range(*bounds):
        try:
            calls += check(number)
        except AssertionError as error:
            return number - bounds[0], calls, str(error)
    return bounds[1] - bounds[0], calls, ""


def main() -> int:
    """The command line; 1 where an answer differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0, help="the number of the first policy")
    options = parser.parse_args()
    end = options.seed + options.policies
    chunks = [(at, min(at + 1000, end)) for at in range(options.seed, end, 1000)]
    start, policies, calls = time.monotonic(), 0, 0
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for done, compared, failure in pool.imap_unordered(_chunk, chunks):
            policies, calls = policies + done, calls + compared
            if failure:
                print(failure)
                return 1
            if policies % 50_000 == 0:
                print(f"{policies} policies, {calls} calls, {time.monotonic() - start:.0f} s", flush=True)
    print(f"{policies} policies, {calls} calls: all answers are the rules', {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
