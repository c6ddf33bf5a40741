"""The compiler against three judges: the rules read directly, libseccomp, and the kernel (test_kernel.py)."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from isolate.kernel import syscalls
from isolate.seccomp import ProgramTooLarge, Seccomp, allow, arg, arg32, bpf, compiler, deny, rule, simulator
from isolate.seccomp.actions import Action
from isolate.seccomp.conditions import MASK32, MASK64, All, Compare, Condition, any_of, every
from isolate.seccomp.ranges import normal_form
from tests.seccomp import many
from tests.seccomp.tools import boundary_values

if TYPE_CHECKING:
    from tests.seccomp.tools import Libseccomp

FAMILY = {"x86_64": ("x86_64", "i386", "x32"), "aarch64": ("aarch64", "arm"), "riscv64": ("riscv64",)}
KERNEL = (6, 18)

VALUES = st.one_of(
    st.integers(0, 10),
    st.sampled_from([2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 2, 2**64 - 1, 0x5412, 0x10000000]),
    st.integers(0, 2**64 - 1),
)
MASKS = st.one_of(
    st.just(MASK64), st.just(MASK32), st.sampled_from([1, 0xF, 0x10000000, 0x7E020000, 0xFF00000000, 1 << 63])
)
NAMES = ("read", "write", "close", "ioctl", "openat", "clone", "futex", "prctl", "rt_sigaction", "mount", "clone3")


@st.composite
def compares(draw: st.DrawFn) -> Compare:
    index, op, mask = draw(st.integers(0, 3)), draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">="])), draw(MASKS)
    value = draw(VALUES) & mask
    if draw(st.booleans()) and mask in (MASK32, MASK64) and op in ("==", "!="):
        value = -draw(st.integers(1, 3))
    if op in ("<", ">=") and value == 0:
        value = 1
    if op in (">", "<=") and value >= mask:
        value = mask - 1 if mask > 1 else 0
        if mask == 1:
            op = "=="
    return Compare(index, op, value, mask)


@st.composite
def conditions(draw: st.DrawFn, depth: int = 2) -> Condition:
    kind = draw(st.sampled_from(["compare", "compare", "all", "any", "not"])) if depth else "compare"
    if kind == "compare":
        return draw(compares())
    if kind == "not":
        return ~draw(conditions(depth - 1))
    parts = tuple(draw(conditions(depth - 1)) for _ in range(draw(st.integers(1, 3))))
    return every(*parts) if kind == "all" else any_of(*parts)


CONDITIONS = conditions()
ACTIONS = st.sampled_from(
    [
        Action.ALLOW,
        Action.EPERM,
        Action.errno("ENOSYS"),
        Action.KILL_PROCESS,
        Action.LOG,
        Action.trap(3),
        Action.trace(9),
    ]
)


@st.composite
def policies(draw: st.DrawFn) -> Seccomp:
    rules = []
    for _ in range(draw(st.integers(0, 5))):
        names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4))
        condition = draw(st.none() | CONDITIONS)
        if condition is None or not isinstance(normal_form(condition, wide=True), bool):
            rules.append(rule(draw(ACTIONS), *names, when=condition))
    compat = draw(st.lists(st.sampled_from(["i386", "x32", "arm"]), unique=True))
    return Seccomp(rules, otherwise=draw(ACTIONS), compat=compat)


def numbers_to_try(arch: str) -> list[int]:
    """Numbers that mean something and their neighbours, on one ABI."""
    found = {syscalls.number(n, arch) for n in NAMES if n in syscalls.table(arch)}
    found |= {n + d for n in found for d in (-1, 1)}
    edge = 0x40000000
    return sorted({n & 0xFFFFFFFF for n in found | {0, 469, 470, 511, 600, edge - 1, edge, edge + 600, 2**31, -1, -2}})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(policy=policies(), native=st.sampled_from(sorted(FAMILY)))
def test_filter_says_what_the_rules_say(policy: Seccomp, native: str) -> None:
    program = policy.program(native, KERNEL)
    values = boundary_values(policy)
    chooser = random.Random(0)
    for abi in FAMILY[native]:
        is_covered = abi == native or abi in policy.compat
        for number in numbers_to_try(abi):
            # x86-64 and x32 share their value of `arch` and divide the numbers.
            if abi in ("x86_64", "x32") and number != 0xFFFFFFFF and (number >= syscalls.X32_BIT) != (abi == "x32"):
                continue
            tried = [tuple([value] * 6) for value in values]
            tried += [tuple(chooser.choices(values, k=6)) for _ in range(10)]
            for args in tried if syscalls.name(number, abi) in NAMES else tried[:2]:
                # The upper halves are filled on 32-bit ABIs too: they must count for nothing there.
                expected = policy.answer(number, *args, arch=abi, kernel=KERNEL).action
                if not is_covered and not (abi == "x32" and number == 0xFFFFFFFF):
                    expected = policy.foreign
                got = simulator.simulate(program, abi, number, args)
                assert got == expected, (abi, number, syscalls.name(number, abi), args)


@pytest.mark.parametrize("count", [200, pytest.param(20_000, marks=pytest.mark.slow)])
def test_many_policies(count: int) -> None:
    """A slice of what ``python -m tests.seccomp.many`` does a million times."""
    assert sum(many.check(number) for number in range(count)) > 40 * count


def test_many_policies_would_find_a_wrong_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a compiler that forgets the upper halves of arguments is found out."""
    whole = compiler.bpf.argument_offset
    monkeypatch.setattr(bpf, "argument_offset", lambda index, *, high: whole(index, high=False))
    with pytest.raises(AssertionError, match="the rules say"):
        _ = [many.check(number) for number in range(200)]


@settings(max_examples=150, deadline=None)
@given(condition=CONDITIONS, args=st.lists(VALUES, min_size=6, max_size=6))
def test_negation_is_the_opposite(condition: Condition, args: list[int]) -> None:
    for wide in (True, False):
        assert (~condition).holds(tuple(args), wide=wide) is not condition.holds(tuple(args), wide=wide)


# ---- libseccomp ----


@st.composite
def plain_policies(draw: st.DrawFn) -> Seccomp:
    """Policies that libseccomp can say too: one action besides the default, conditions joined by and, on one argument
    each. (Rules about one call with different answers have no order there.)"""
    rules = []
    left = [name for name in NAMES if name != "clone3"]
    for _ in range(draw(st.integers(1, 3))):
        # One rule a call: of two about one, libseccomp 2.5.4 can lose one (read where arg2 <= 0 and arg3 == 0, and read
        # where arg2 < 1: it refuses arg2 == 0 with arg3 == 1), and is busy without end over some.
        names = draw(st.lists(st.sampled_from(left), min_size=1, max_size=3, unique=True))
        left = [name for name in left if name not in names]
        parts = []
        for index in draw(st.lists(st.integers(0, 5), max_size=2, unique=True)):
            op = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]))
            mask = draw(MASKS) if op == "==" else MASK64
            value = draw(VALUES) & mask
            value = max(value, 1) if op in ("<", ">=") else min(value, mask - 1) if op in (">", "<=") else value
            parts.append(Compare(index, op, value, mask))
        condition = every(*parts) if parts else None
        rules.append(allow(*names, when=condition))
    return Seccomp(
        rules, otherwise="EPERM", unknown="EPERM", compat=draw(st.sampled_from([(), ("i386",), ("i386", "x32")]))
    )


# The same policies at every run: which ones keep libseccomp busy must not change from one to the next.
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(policy=plain_policies(), level=st.sampled_from([1, 2]))
def test_same_answers_as_libseccomp(libseccomp: Libseccomp, policy: Seccomp, level: int) -> None:
    try:
        theirs = libseccomp.program(policy, level=level)
    except TimeoutError:
        assume(False)
    assert theirs is not None, policy
    # clone3 and io_uring answer ENOSYS here where clone's or openat's arguments are filtered; libseccomp knows no such.
    own = {syscalls.number(n) for n in ("clone3", "openat2", "io_uring_setup", "io_uring_enter", "io_uring_register")}
    ours = policy.program("x86_64", KERNEL)
    values = boundary_values(policy)
    chooser = random.Random(1)
    for abi in ("x86_64", "i386", "x32"):
        for number in numbers_to_try(abi):
            if abi != "i386" and number != 0xFFFFFFFF and (number >= syscalls.X32_BIT) != (abi == "x32"):
                continue
            if number & 0xFFFFFFF in own or syscalls.name(number, abi) in ("ipc", "socketcall"):
                continue
            for _ in range(12):
                args = tuple(chooser.choices(values, k=6))
                if abi != "x86_64":
                    # libseccomp takes x32's arguments for 32 bits, though registers are wider, and cuts values that
                    # are compared to 32 bits, where they match nothing here. So: only what fits.
                    if any(v > MASK32 for v in _compared(policy)):
                        continue
                    args = tuple(value & MASK32 for value in args)
                got = simulator.simulate(ours, abi, number, args)
                assert got == simulator.simulate(theirs, abi, number, args), (abi, number, args)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(policy=plain_policies(), native=st.sampled_from(["aarch64", "riscv64"]), level=st.sampled_from([1, 2]))
def test_same_answers_as_libseccomp_on_other_architectures(
    libseccomp: Libseccomp, policy: Seccomp, native: str, level: int
) -> None:
    """Every number that the tables have and its neighbours, by the simulator."""
    policy = Seccomp(policy.rules, unknown="EPERM", compat=("arm",) if native == "aarch64" else ())
    try:
        theirs = libseccomp.program(policy, native, level=level)
    except TimeoutError:
        assume(False)
    assert theirs is not None, policy
    ours = policy.program(native, KERNEL)
    own = {syscalls.number(n, native) for n in ("clone3", "openat2", "io_uring_setup", "io_uring_enter")}
    own.add(syscalls.number("io_uring_register", native))
    values, chooser = boundary_values(policy), random.Random(2)
    small = all(value <= MASK32 for value in _compared(policy))
    for abi in FAMILY[native]:
        spoken = {syscalls.number(n, abi) for r in policy.rules for n in r.calls}
        # Where libseccomp cuts what it compares to 32 bits, only what fits (as above).
        if abi == "arm" and not small:
            continue
        for number in itertools.chain(range(600), (0x3FFFFFFF, 0x40000000, 0xF0005, 2**31, 2**32 - 1)):
            if number in own:
                continue
            for _ in range(20 if number in spoken else 1):
                args = tuple(v & MASK32 if abi == "arm" else v for v in chooser.choices(values, k=6))
                got, wanted = (simulator.simulate(program, abi, number, args) for program in (ours, theirs))
                assert got == wanted, (abi, number, syscalls.name(number, abi), args)


def _compared(policy: Seccomp) -> list[int]:
    """Every value and mask in the policy's conditions, but masks that take everything."""
    found = []
    for r in policy.rules:
        for part in () if r.when is None else r.when.conditions if isinstance(r.when, All) else (r.when,):
            assert isinstance(part, Compare)
            found += [part.value, 0 if part.mask == MASK64 else part.mask]
    return found


def test_same_answers_as_libseccomp_for_every_number(libseccomp: Libseccomp) -> None:
    policy = Seccomp(
        allow("@file-system", "@memory", "clock_gettime", "restart_syscall"),
        allow("personality", when=arg(0) == 8),
        allow("personality", when=arg(0) == 0xFFFFFFFF),
        allow("kill", when=(arg(0) > 5) & (arg(1) <= 15)),
        unknown="EPERM",
        compat=("i386", "x32"),
    )
    # The installed libseccomp is older than the tables: calls that it does not know have no place in this comparison.
    policy -= [n for n in sorted(policy.rules[0].calls) if not _libseccomp_knows(libseccomp, n)]
    program = policy.program("x86_64", KERNEL)
    for level in (1, 2):
        theirs = libseccomp.program(policy, level=level)
        assert theirs is not None
        for abi, bit in (("x86_64", 0), ("i386", 0), ("x32", syscalls.X32_BIT)):
            for number in itertools.chain(range(1024), (0x3FFFFFFF, 0xFFFFFFFF)):
                for args in ((), (8, 15), (0xFFFFFFFF, 16), (6, 15), (5, 15)):
                    got = simulator.simulate(program, abi, number | bit, args)
                    wanted = simulator.simulate(theirs, abi, number | bit, args)
                    if syscalls.name(number | bit, abi) == "map_shadow_stack":  # of x32 since Linux 6.7
                        continue
                    assert got == wanted, (abi, number, syscalls.name(number | bit, abi), args)


def _libseccomp_knows(libseccomp: Libseccomp, name: str) -> bool:
    libseccomp.ask("new 50001 1 c000003e 40000003 4000003e")
    return libseccomp.ask(f"rule 7fff0000 {name}") == "ok"


# ---- the words of CVEs ----


def test_both_halves_are_compared() -> None:
    policy = Seccomp(allow("ioctl", when=arg(1) == 0x5412))
    assert policy.simulate("ioctl", 0, 0x5412) == Action.ALLOW
    assert policy.simulate("ioctl", 0, 0x5412 | 1 << 32) == Action.EPERM
    assert policy.simulate("ioctl", 0, 0x5412 | 1 << 63) == Action.EPERM


def test_upper_half_does_not_hide_a_32_bit_argument() -> None:
    policy = Seccomp(deny("ioctl", when=arg32(1) == 0x5412), otherwise="allow")
    assert policy.simulate("ioctl", 0, 0x5412 | 1 << 32) == Action.EPERM
    assert policy.simulate("ioctl", 0, 0x5413 | 1 << 32) == Action.ALLOW
    # The hole that arg32 closes:
    weak = Seccomp(deny("ioctl", when=arg(1) == 0x5412), otherwise="allow")
    assert weak.simulate("ioctl", 0, 0x5412 | 1 << 32) == Action.ALLOW


def test_comparisons_on_one_argument_join_exactly() -> None:
    # Joining these was where a released libseccomp let through more than was said.
    policy = Seccomp(allow("kill", when=(arg(0) > 10) & (arg(0) <= 2**32 + 5) & (arg(0) != 12)))
    for value in (0, 10, 11, 12, 13, 2**32 - 1, 2**32, 2**32 + 5, 2**32 + 6, 2**33, 2**64 - 1):
        wanted = 10 < value <= 2**32 + 5 and value != 12
        assert (policy.simulate("kill", value) == Action.ALLOW) is wanted, value


def test_other_abis_end_the_process() -> None:
    policy = Seccomp(allow("read", "write"), otherwise="allow")
    program = policy.program("x86_64")
    assert simulator.simulate(program, "i386", syscalls.number("read", "i386")) == Action.KILL_PROCESS
    assert simulator.simulate(program, "x32", syscalls.number("read", "x32")) == Action.KILL_PROCESS
    assert simulator.simulate(program, "aarch64", 63) == Action.KILL_PROCESS
    assert simulator.simulate(program, "x86_64", 0) == Action.ALLOW
    arm = policy.program("aarch64")
    assert simulator.simulate(arm, "arm", 3) == Action.KILL_PROCESS
    assert simulator.simulate(arm, "aarch64", 63) == Action.ALLOW
    # What a tracer skips has the number -1 and is no x32 call.
    assert simulator.simulate(program, "x86_64", -1) == Action.ALLOW


def test_upper_halves_count_for_nothing_on_32_bit_abis() -> None:
    policy = Seccomp(deny("kill", when=arg(0) == 5), otherwise="allow", compat=["i386"])
    number = syscalls.number("kill", "i386")
    assert policy.simulate(number, 5, arch="i386") == Action.EPERM
    assert policy.simulate(number, 5 | 7 << 32, arch="i386") == Action.EPERM
    assert policy.simulate(number, 6 | 7 << 32, arch="i386") == Action.ALLOW


def test_calls_that_carry_filtered_arguments_elsewhere_answer_enosys() -> None:
    policy = Seccomp(allow("@process", "openat2"), allow("socketcall", "socket", when=arg(0) == 1), compat="i386")
    assert policy.simulate("clone3") == Action.ALLOW
    filtered = policy + deny("clone", when=(arg(0) & 0x10000000) != 0)
    assert filtered.simulate("clone3") == Action.ENOSYS
    assert filtered.simulate("openat2") == Action.ALLOW
    assert (filtered + deny("openat", when=arg(2) == 1)).simulate("openat2") == Action.ALLOW, "named by its own name"
    assert (filtered + allow("clone3")).simulate("clone3") == Action.ALLOW
    sockets = Seccomp(allow("@network"), deny("socket", when=arg(0) == 16), compat="i386")
    assert sockets.simulate("socketcall", arch="i386") == Action.ENOSYS


# ---- shape ----


def test_constant_answers_load_no_argument() -> None:
    """The kernel's bitmap of allowed calls serves only what is decided by number and architecture."""
    policy = Seccomp.default()
    program = list(bpf.decode(policy.program("x86_64")))
    for name in syscalls.names("x86_64"):
        decision = policy.answer(name, arch="x86_64", kernel=(6, 18))
        depends = any(r.when is not None and name in r.calls for r in policy.rules)
        loads = _loads(program, 0xC000003E, syscalls.number(name, "x86_64"))
        assert depends == any(offset >= 16 for offset in loads), (name, decision)


def _loads(program: list[tuple[int, int, int, int]], arch: int, number: int) -> list[int]:
    words = [number, arch, *[0] * 14]
    pc, accumulator, found = 0, 0, []
    while True:
        code, jt, jf, k = program[pc]
        pc += 1
        if code == bpf.RET:
            return found
        if code == bpf.LD_W_ABS:
            found.append(k)
            accumulator = words[k // 4]
        elif code == bpf.AND:
            accumulator &= k
        elif code == bpf.JA:
            pc += k
        else:
            test = {
                bpf.JEQ: accumulator == k,
                bpf.JGE: accumulator >= k,
                bpf.JGT: accumulator > k,
                bpf.JSET: bool(accumulator & k),
            }
            pc += jt if test[code] else jf


def test_same_policy_same_bytes() -> None:
    def make() -> Seccomp:
        return Seccomp(allow("read", "write"), deny("ioctl", when=arg32(1).among(3, 1, 2)), otherwise="kill")

    assert make() == make()
    assert hash(make()) == hash(make())
    assert make().program("aarch64") == make().program("aarch64")
    first = make().program()
    assert make().program() is first, "compiled once for equal policies"


def test_same_bytes_in_every_process() -> None:
    """Whatever order sets of strings have there."""
    code = (
        "from isolate import Seccomp; from isolate.seccomp import allow, deny\n"
        "policy = Seccomp.default() + deny('@clock', '@keyring') + allow('@obsolete')\n"
        "print(*(policy.program(arch).hex() for arch in ('x86_64', 'aarch64', 'riscv64')), repr(policy))\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            env={"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in (1, 2, 3)
    }
    assert len(found) == 1


@pytest.mark.parametrize("count", [200, 700, 1300])
def test_far_jumps(count: int) -> None:
    """Blocks of argument tests much further apart than 255 instructions."""
    chooser = random.Random(count)
    values = sorted(chooser.sample(range(2**40), count))
    names = ("read", "write", "openat", "mmap", "ioctl", "futex")
    rules = [allow(name, when=arg(at % 6).among(*values[at :: len(names)])) for at, name in enumerate(names)]
    policy = Seccomp(rules, deny("close", when=(arg(0) == 1) | (arg(1) == 2)), otherwise="kill")
    program = policy.program("x86_64")
    assert len(program) // 8 > 300
    for at, name in enumerate(names):
        for value in chooser.sample(values, 30):
            args = [0] * 6
            for near in (value - 1, value, value + 1):
                args[at % 6] = near
                wanted = Action.ALLOW if near in values[at :: len(names)] else Action.KILL_PROCESS
                assert simulator.simulate(program, "x86_64", syscalls.number(name, "x86_64"), args) == wanted


def test_too_many_instructions_is_a_clear_error() -> None:
    policy = Seccomp(allow("read", when=arg(0).among(*range(0, 2**40, 2**28 + 7))))
    with pytest.raises(ProgramTooLarge, match="4096 BPF instructions"):
        policy.program()
    rules = [deny("read", when=(arg(0) == n) & (arg(1) == n + 1), errno=1 + n % 30) for n in range(900)]
    with pytest.raises(ProgramTooLarge):
        Seccomp(rules).program()
    fits = Seccomp(rules[:300])
    assert fits.simulate("read", 299, 300) == rules[299].action
    assert fits.simulate("read", 299, 301) == Action.EPERM


def test_unknown_and_later_calls_answer_enosys() -> None:
    policy = Seccomp(allow("read"))
    assert policy.simulate(9999) == Action.ENOSYS
    assert policy.simulate(470) == Action.ENOSYS
    assert policy.simulate("mount") == Action.EPERM
    assert policy.simulate("mseal", kernel=(6, 9)) == Action.ENOSYS
    assert policy.simulate("mseal", kernel=(6, 10)) == Action.EPERM
    assert Seccomp(allow("mseal")).simulate("mseal", kernel=(6, 9)) == Action.ALLOW
    assert Seccomp(allow("read"), otherwise="kill").simulate(9999) == Action.KILL_PROCESS
    assert Seccomp(allow("read"), unknown="kill").simulate(9999) == Action.KILL_PROCESS
