"""What the kernel does under our filters, beside what the simulator says."""

from __future__ import annotations

import itertools
import random
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isolate.kernel import syscalls
from isolate.seccomp import Seccomp, allow, arg, arg32, deny, deny_user_namespaces, rule, simulate
from tests.seccomp.test_compiler import NAMES, policies
from tests.seccomp.tools import boundary_values, mark, marked, probe

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(syscalls.native_arch() != "x86_64", reason="the probe enters three ABIs of x86-64")

POLICIES = {
    "default": Seccomp.default(),
    "strict": Seccomp.strict("kill"),
    "compat": Seccomp(
        allow("@file-system", "@network"),
        deny("socket", errno=97, when=arg32(0) > 2),
        rule("trap", "kill", when=(arg(0) == -1) | (arg32(1) == 9)),
        otherwise="log",
        unknown="ENOSYS",
        compat=("i386", "x32"),
    ),
    "deny user namespaces": Seccomp.from_bpf(deny_user_namespaces()),
}


def expected(policy: Seccomp, abi: str, number: int, args: tuple[int, ...]) -> int:
    return -marked(simulate(policy.program(), abi, number, args))


@pytest.mark.parametrize("name", POLICIES)
def test_every_number_of_three_abis(name: str, probe_helper: Path, tmp_path: Path) -> None:
    policy = POLICIES[name]
    calls = [
        (abi, number | bit, (0x10000011, 0x5412, 3))
        for abi, bit in (("x86_64", 0), ("i386", 0), ("x32", syscalls.X32_BIT))
        for number in itertools.chain(range(700), (0x3FFFFFFE, 0x3FFFFFFF))
    ]
    # uretprobe and uprobe pass every filter (Linux 6.14) and raise SIGILL outside of the kernel's trampolines.
    calls = [call for call in calls if call[0] == "i386" or call[1] & ~syscalls.X32_BIT not in (335, 336)]
    calls += [("x86_64", 0x80000000, ()), ("i386", 0x80000000, ())]
    results = probe(probe_helper, tmp_path, mark(policy), calls)
    for (abi, number, args), result in zip(calls, results, strict=True):
        assert result == expected(policy, abi, number, args), (abi, number, syscalls.name(number, abi))


@pytest.mark.parametrize("seed", range(4))
def test_arguments_at_their_boundaries(seed: int, probe_helper: Path, tmp_path: Path) -> None:
    chooser = random.Random(seed)
    policy = Seccomp(
        allow("read", when=(arg(0) == 2**32 + 5) | (arg(1) < 2**40) & (arg(1) > 77)),
        deny("write", errno="EXDEV", when=arg32(0).among(1, 2, 3, 2**31) & (arg(2) != -1)),
        allow("ioctl", when=~arg32(1).among(0x5412, 0x541C)),
        deny("openat", errno="ELOOP", when=(arg(3) & 0xF0F0_0000_00F0) == 0x1010_0000_0010),
        rule("kill", "mmap", when=(arg(5) >= 2**63) & (arg(4) <= 9)),
        allow("clone", when=(arg(0) & 0x7E020000) == 0),
        compat=("i386", "x32"),
    )
    values = boundary_values(policy)
    calls = []
    for abi in ("x86_64", "i386", "x32"):
        for name in ("read", "write", "ioctl", "openat", "mmap", "clone"):
            for _ in range(200):
                calls.append((abi, syscalls.number(name, abi), tuple(chooser.choices(values, k=6))))
    calls = [call for call in calls if call[2][5] & 0xFFFFFFFF != 0x5ECC]
    results = probe(probe_helper, tmp_path, mark(policy), calls)
    differing = [
        (call, result, expected(policy, *call))
        for call, result in zip(calls, results, strict=True)
        if result != expected(policy, *call)
    ]
    assert not differing, differing[:5]
    assert len(set(results)) > 3, "the calls must reach different answers"


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(policy=policies(), seed=st.integers(0, 9))
def test_made_up_policies(policy: Seccomp, seed: int, probe_helper: Path, tmp_path: Path) -> None:
    chooser = random.Random(seed)
    values = boundary_values(policy)
    calls: list[tuple[str, int, tuple[int, ...]]] = []
    for abi in ("x86_64", "i386", "x32"):
        for name in NAMES:
            calls += [(abi, syscalls.number(name, abi), tuple(chooser.choices(values, k=6))) for _ in range(15)]
    calls = [call for call in calls if call[2][5] & 0xFFFFFFFF != 0x5ECC]
    for call, result in zip(calls, probe(probe_helper, tmp_path, mark(policy), calls), strict=True):
        assert result == expected(policy, *call), call


def test_probe_runs_calls_without_a_filter_in_the_way(probe_helper: Path, tmp_path: Path) -> None:
    """The control of the tests above: allowed calls are made, on all three ABIs where the kernel has them."""
    everything = Seccomp(otherwise="allow", foreign="allow", compat=("i386", "x32")).program()
    calls = [("x86_64", syscalls.number("getppid"), ()), ("i386", syscalls.number("getppid", "i386"), ())]
    native, other = probe(probe_helper, tmp_path, everything, calls)
    assert native > 1
    if other == -38:
        pytest.skip("this kernel has no i386 calls: the other tests see only what the filter says")
    assert other == native


SCRIPT = """
import os, sys
from isolate.engine import native
from isolate.kernel import syscalls
from isolate.seccomp import Seccomp, allow, deny, rule, arg, arg32, deny_user_namespaces
import struct, ctypes
def install(program):
    code = native.ffi.from_buffer(program)
    header = struct.pack("=HxxxxxxQ", len(program) // 8, int(native.ffi.cast("uintptr_t", code)))
    assert native.call(syscalls.number("prctl"), 38, 1, 0, 0, 0) == 0
    result = native.call(syscalls.number("seccomp"), 1, 0, header)
    assert result == 0, result
"""


def child(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT + code], capture_output=True, text=True, timeout=60)


def test_user_namespaces_are_denied_and_nothing_else() -> None:
    attempt = """
import errno
def unshare(): return native.call(syscalls.number("unshare"), 0x10000000)
pid = native.call(syscalls.number("clone"), 0x10000011, 0, 0, 0, 0)
if pid == 0: os._exit(0)
if pid > 0: os.waitpid(pid, 0)
print(pid if pid < 0 else "made", native.call(syscalls.number("clone3"), 0, 0), unshare())
plain = os.fork()
if plain == 0: os._exit(7)
print(os.waitpid(plain, 0)[1] >> 8)
"""
    control = child(attempt)
    assert control.stdout.split() == ["made", "-22", "0", "7"], control
    denied = child("install(deny_user_namespaces())\n" + attempt)
    assert denied.stdout.split() == ["-1", "-38", "-1", "7"], denied


@pytest.mark.parametrize(
    ("action", "returncode"),
    [("kill", -31), ("kill_thread", -31), ("trap", -31), ("EXDEV", 18), ("allow", 100), ("log", 100)],
)
def test_actions(action: str, returncode: int) -> None:
    done = child(
        f"install(Seccomp(rule({action!r}, 'getppid'), otherwise='allow').program())\n"
        "result = native.call(syscalls.number('getppid'))\nos._exit(100 if result > 0 else -result)\n"
    )
    assert done.returncode == returncode, done


def test_a_program_too_long_for_the_kernel_is_refused_before(tmp_path: Path) -> None:
    """4,096 instructions are taken by the kernel; our limit is the kernel's."""
    from isolate.seccomp import bpf

    for count, wanted in ((4096, "0"), (4097, "-22")):
        done = child(
            f"""
program = struct.pack("=HBBI", 0x20, 0, 0, 0) * ({count} - 1) + struct.pack("=HBBI", 6, 0, 0, 0x7fff0000)
code = native.ffi.from_buffer(program)
header = struct.pack("=HxxxxxxQ", {count}, int(native.ffi.cast("uintptr_t", code)))
native.call(syscalls.number("prctl"), 38, 1, 0, 0, 0)
print(native.call(syscalls.number("seccomp"), 1, 0, header))
"""
        )
        assert done.stdout.strip() == wanted, done
    assert bpf.MAX_INSTRUCTIONS == 4096


# ---- what the kernel refuses ---------------------------------------------------------------------------------------

_ASK = """
import os, struct, sys
from isolate import syscalls
from isolate.engine import native
from isolate.engine.native import ffi
SECCOMP, PRCTL = syscalls.number("seccomp"), syscalls.number("prctl")
data = bytes.fromhex(sys.stdin.read())
native.call(PRCTL, 38, 1, 0, 0, 0)
answers = []
while data:
    size = int.from_bytes(data[:2], "little")
    program, data = data[2:2 + size], data[2 + size:]
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = ffi.new("char[]", program)
        header = struct.pack("=HxxxxxxQ", len(program) // 8, int(ffi.cast("uintptr_t", code)))
        # What the kernel takes may end this process at its next call: only a refusal is told.
        if native.call(SECCOMP, 1, 0, header) < 0:
            os.write(write, b"r")
        os._exit(0)
    os.close(write)
    answers.append(os.read(read, 1) == b"")
    os.close(read)
    os.waitpid(pid, 0)
print("".join("01"[taken] for taken in answers))
"""


def test_41_from_bpf_takes_what_the_kernel_takes() -> None:
    """Small programs of valid codes, with loads, stores and jumps to and fro: our check and the kernel's agree."""
    from isolate.seccomp.simulator import InvalidProgram, check

    chance = random.Random(41)
    # ld, ldx, st, stx of scratch memory; jumps; returns; arithmetic; and some that seccomp refuses
    codes = [
        0x60,
        0x61,
        0x02,
        0x03,
        0x05,
        0x15,
        0x1D,
        0x25,
        0x45,
        0x06,
        0x16,
        0x20,
        0x00,
        0x80,
        0x34,
        0x3C,
        0x64,
        0x84,
        0x94,
        0x28,
    ]
    programs = [
        struct.pack("=HBBI", 0x60, 0, 0, 3) + struct.pack("=HBBI", 0x16, 0, 0, 0),  # loads what was never stored
        struct.pack("=HBBI", 0x02, 0, 0, 3) + struct.pack("=HBBI", 0x60, 0, 0, 3) + struct.pack("=HBBI", 0x16, 0, 0, 0),
    ]
    for _ in range(400):
        count = chance.randrange(1, 7)
        rows = [
            struct.pack(
                "=HBBI",
                chance.choice(codes),
                chance.randrange(3),
                chance.randrange(3),
                chance.choice([0, 1, 1, 2, 4, 33]),
            )
            for _ in range(count)
        ]
        programs.append(b"".join([*rows, struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)]))
    text = b"".join(len(program).to_bytes(2, "little") + program for program in programs).hex()
    done = subprocess.run([sys.executable, "-c", _ASK], input=text, capture_output=True, text=True, check=False)
    kernel = [answer == "1" for answer in done.stdout.strip()]
    assert len(kernel) == len(programs), done.stderr
    ours = []
    for program in programs:
        try:
            check(program)
            ours.append(True)
        except InvalidProgram:
            ours.append(False)
    wrong = [(program.hex(), a, b) for program, a, b in zip(programs, ours, kernel, strict=True) if a != b]
    assert not wrong
    assert (ours[0], ours[1]) == (False, True)
    assert 20 < sum(kernel) < 380
