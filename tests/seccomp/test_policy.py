"""Policies as values: what is refused, what they print, arithmetic, words about them."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from isolate import seccomp
from isolate.kernel import syscalls
from isolate.seccomp import InvalidProgram, Rule, Seccomp, allow, arg, arg32, deny, members, rule, simulate
from isolate.seccomp.actions import Action
from isolate.seccomp.conditions import Compare, Condition
from tests.seccomp.test_compiler import policies

RET_ALLOW = struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)

REFUSED: list[tuple[Any, type[Exception], str]] = [
    (lambda: allow("opneat"), ValueError, "did you mean 'openat'"),
    (lambda: allow("@netwrok"), ValueError, "did you mean '@network'"),
    (lambda: allow(), ValueError, "at least one"),
    (lambda: allow(3), TypeError, "is a str"),
    (lambda: allow("read\0"), ValueError, "no system call"),
    (lambda: deny("read", errno="EPREM"), ValueError, "did you mean 'EPERM'"),
    (lambda: deny("read", errno=5000), ValueError, "out of range 0..4095"),
    (lambda: deny("read", errno=-1), ValueError, "out of range"),
    (lambda: rule("alow", "read"), ValueError, "unknown action 'alow'"),
    (lambda: rule(7, "read"), TypeError, "a word"),  # type: ignore[arg-type]
    (lambda: Action.trace(70000), ValueError, "out of range"),
    (lambda: arg(6), ValueError, "arguments 0 to 5"),
    (lambda: arg(-1), ValueError, "arguments 0 to 5"),
    (lambda: arg("0"), TypeError, "is an int"),  # type: ignore[arg-type]
    (lambda: arg(0) == "x", TypeError, "is an int"),
    (lambda: arg(0) == True, TypeError, "is an int"),  # noqa: E712
    (lambda: arg(0) == 2**64, ValueError, "does not fit"),
    (lambda: arg32(0) == 2**32, ValueError, "does not fit"),
    (lambda: arg32(0) == -(2**31) - 1, ValueError, "does not fit"),
    (lambda: arg(0) < -1, ValueError, "unsigned"),
    (lambda: arg(0) < 0, ValueError, "never holds"),
    (lambda: arg(0) >= 0, ValueError, "always holds"),
    (lambda: arg32(0) <= 2**32 - 1, ValueError, "always holds"),
    (lambda: (arg(0) & 0xF) == 0x10, ValueError, "bits that the mask takes away"),
    (lambda: arg(0) & True, TypeError, "a mask is an int"),
    (lambda: arg(0) == 1 & arg(1), TypeError, "unsupported operand"),  # type: ignore[operator]
    (lambda: arg(0).among(), ValueError, "never holds"),
    (lambda: bool(arg(0) == 1), TypeError, "no truth value"),
    (lambda: (arg(0) == 1) and (arg(1) == 2), TypeError, "no truth value"),
    (lambda: allow("read", when=(arg(0) == 1) & (arg(0) == 2)), ValueError, "impossible condition"),
    (lambda: allow("read", when=(arg(0) > 1) | (arg(0) < 9)), ValueError, "always holds"),
    (lambda: allow("read", when=1), TypeError, "when="),  # type: ignore[arg-type]
    (lambda: Seccomp("read"), TypeError, "use allow"),  # type: ignore[arg-type]
    (lambda: Seccomp(otherwise="EPREM"), ValueError, "did you mean"),
    (lambda: Seccomp(compat="aarch64"), ValueError, "compat takes"),
    (lambda: Seccomp(compat="sparc"), ValueError, "unknown architecture"),
    (lambda: Seccomp(otherwise="kill") + Seccomp(otherwise="allow"), ValueError, "differ in otherwise"),
    (lambda: Seccomp.from_bpf(b""), InvalidProgram, "multiple of 8"),
    (lambda: Seccomp.from_bpf(b"\0" * 9), InvalidProgram, "multiple of 8"),
    (lambda: Seccomp.from_bpf(RET_ALLOW * 4097), InvalidProgram, "4097 instructions"),
    (lambda: Seccomp.from_bpf(struct.pack("=HBBI", 0x20, 0, 0, 64) + RET_ALLOW), InvalidProgram, "offset 64"),
    (lambda: Seccomp.from_bpf(struct.pack("=HBBI", 0x20, 0, 0, 2) + RET_ALLOW), InvalidProgram, "offset 2"),
    (lambda: Seccomp.from_bpf(struct.pack("=HBBI", 0x15, 1, 0, 2) + RET_ALLOW), InvalidProgram, "past the end"),
    (lambda: Seccomp.from_bpf(struct.pack("=HBBI", 0x05, 0, 0, 1) + RET_ALLOW), InvalidProgram, "past the end"),
    (lambda: Seccomp.from_bpf(struct.pack("=HBBI", 0x28, 0, 0, 0) + RET_ALLOW), InvalidProgram, "does not allow"),
    (lambda: Seccomp.from_bpf(struct.pack("=HBBI", 0x34, 0, 0, 0) + RET_ALLOW), InvalidProgram, "divides by zero"),
    (lambda: Seccomp.from_bpf(struct.pack("=HBBI", 0x20, 0, 0, 0)), InvalidProgram, "no return"),
    (lambda: Seccomp.from_bpf(RET_ALLOW) + allow("read"), TypeError, "ready program"),
    (lambda: Seccomp.default().explain("opneat"), ValueError, "did you mean"),
    (lambda: Seccomp.default().simulate("read", *range(7)), ValueError, "at most 6"),
    (lambda: Seccomp().program("sparc"), ValueError, "unknown architecture"),
]


@pytest.mark.parametrize(("make", "kind", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_refused(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        make()
    assert message in str(caught.value)


NAMESPACE = {
    "Action": Action,
    "Seccomp": Seccomp,
    "allow": allow,
    "arg": arg,
    "arg32": arg32,
    "deny": deny,
    "rule": rule,
}


@settings(max_examples=100, deadline=None)
@given(policy=policies())
def test_prints_as_the_code_that_makes_it(policy: Seccomp) -> None:
    again = eval(repr(policy), NAMESPACE)
    assert again == policy
    assert hash(again) == hash(policy)
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_ready_policies_print() -> None:
    for policy in (
        Seccomp.default(),
        Seccomp.strict("kill"),
        Seccomp.from_bpf(RET_ALLOW),
        Seccomp(compat="arm", log=True),
    ):
        assert eval(repr(policy), NAMESPACE) == policy


def test_conditions_print() -> None:
    def check(condition: Condition, text: str) -> None:
        assert repr(condition) == text
        assert eval(text, NAMESPACE) == condition

    check(arg(0) == 5, "arg(0) == 5")
    check(arg32(1) != -1, "arg32(1) != -1")
    check((arg(2) & 0xF0) == 0x10, "(arg(2) & 0xf0) == 0x10")
    check(arg32(0).among(1, 2, 0x10), "arg32(0).among(1, 2, 0x10)")
    check((arg(0) == 1) & (arg(1) > 2) | (arg(3) <= 7), "((arg(0) == 1) & (arg(1) > 2)) | (arg(3) <= 7)")


def test_arithmetic() -> None:
    base = Seccomp(allow("@clock", "read", "write"), otherwise="kill")
    assert (base + deny("read")).simulate("read") == Action.EPERM
    assert (base + deny("read") + allow("read")).simulate("read") == Action.ALLOW
    assert base == base + Seccomp(otherwise="kill")
    assert base + allow("openat") == base + Seccomp(allow("openat"), otherwise="kill")
    less = base - "clock_settime"
    assert less.simulate("clock_settime") == Action.KILL_PROCESS
    assert less.simulate("settimeofday") == Action.ALLOW
    assert (base - "@clock").rules == (allow("read", "write"),)
    assert (base - ("read", "write", "@clock")).rules == ()
    assert base.rules == (allow("@clock", "read", "write"),), "the policy itself does not change"
    assert len({base, base + deny("read"), Seccomp(allow("@clock", "read", "write"), otherwise="kill")}) == 2
    assert members("@clock") - {"stime"} == members("@clock") ^ {"stime"}


def test_sets_hold_known_calls_and_what_the_c_library_falls_back_to() -> None:
    for name in seccomp.SETS:
        assert seccomp.DESCRIPTIONS[name]
        for call in members(name):
            assert syscalls.known(call), (name, call)
    covered = frozenset().union(*(members(name) for name in seccomp.SETS))
    known = set().union(*(syscalls.names(arch) for arch in syscalls.ARCHITECTURES))
    assert known - covered <= {
        "bpf",
        "ioctl",
        "memfd_secret",
        "modify_ldt",
        "personality",
        "userfaultfd",
        "vmsplice",
        "usr26",
        "usr32",
    }
    # A set that has a call has its variants of other widths too, or a 32-bit C library would lose its way.
    for name in seccomp.SETS:
        for call in members(name):
            for other in (f"{call}64", f"{call}_time64", f"{call}32"):
                if syscalls.known(other) and other != "prlimit64":
                    assert other in members(name), (name, call, other)


def test_the_documentation_lists_the_sets() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "seccomp.rst").read_text().replace("\\_", "_")
    text = " ".join(text.split())
    for name in seccomp.SETS:
        assert f"- ``{name}`` - {seccomp.DESCRIPTIONS[name]} - {', '.join(sorted(members(name)))}" in text, name


def test_explain() -> None:
    policy = Seccomp.default()
    assert "allow, by allow('@file-system', …)" in policy.explain("openat")
    assert "number 257 on x86_64" in policy.explain("openat", arch="x86_64")
    assert "EPERM where (arg(0) & 0x7e020000) != 0" in policy.explain("clone")
    assert "clone(0x10000000): EPERM, by deny" in policy.explain("clone", 0x10000000)
    assert "ENOSYS: arguments of clone are filtered" in policy.explain("clone3")
    assert "no rule matches" in policy.explain("mount")
    assert "does not cover the ABI i386" in policy.explain("mount", arch="i386")
    assert "ready program answers: allow" in Seccomp.from_bpf(RET_ALLOW).explain("mount")


def test_disassemble() -> None:
    text = Seccomp(allow("read", when=arg(0) == 3)).disassemble("x86_64")
    assert "; x86_64" in text
    assert "ld  nr" in text
    assert "ld  arg0.low" in text
    assert "; EPERM" in text
    assert "; allow" in text


def test_simulator_runs_what_the_compiler_never_makes() -> None:
    """Ready programs may use all of what seccomp allows: memory, the index register, arithmetic."""
    code = [
        (0x20, 0, 0, 16),  # ld arg0.low
        (0x07, 0, 0, 0),  # tax
        (0x02, 0, 0, 3),  # st M[3]
        (0x00, 0, 0, 10),  # ld #10
        (0x0C, 0, 0, 0),  # add x
        (0x64, 0, 0, 4),  # lsh #4
        (0x61, 0, 0, 3),  # ldx M[3]
        (0x1C, 0, 0, 0),  # sub x
        (0x15, 0, 1, (15 << 4) - 5),  # jeq
        (0x06, 0, 0, 0x7FFF0000),
        (0x3C, 0, 0, 0),  # div x
        (0x06, 0, 0, 0x00050001),
    ]
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
    assert simulate(program, "x86_64", 0, (5,)) == Action.ALLOW
    assert simulate(program, "x86_64", 0, (6,)) == Action.EPERM
    assert simulate(program, "x86_64", 0, (0,)) == Action.KILL_THREAD, "a division by zero"


def test_rules_are_values() -> None:
    assert allow("write", "read") == allow("read", ["write"]) == Rule(Action.ALLOW, ("read", "write", "read"))
    assert hash(allow("read", when=arg(0) == 1)) == hash(allow("read", when=Compare(0, "==", 1)))
    with pytest.raises(AttributeError):
        allow("read").names = ()  # type: ignore[misc]
