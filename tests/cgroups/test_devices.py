"""The device program: it must say what the rules say. An interpreter of its few eBPF instructions compares."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from isolate.cgroups import Device, Limits
from isolate.cgroups.devices import program, simulate

KINDS = {"b": 1, "c": 2}
ACCESS = {"m": 1, "r": 2, "w": 4}


def execute(code: bytes, kind: int, access: int, major: int, minor: int) -> int:
    """Interpret: 64-bit registers, unsigned."""
    words = [struct.unpack_from("<BBhi", code, at) for at in range(0, len(code), 8)]
    context = {0: access << 16 | kind, 4: major, 8: minor}
    registers = {1: -1}
    at = steps = 0
    while True:
        op, pair, offset, value = words[at]
        to, source = pair & 15, pair >> 4
        at += 1
        steps += 1
        assert steps <= len(words)  # every jump goes forward
        if op == 0x95:
            return registers[0]
        if op == 0x61:
            assert source == 1
            registers[to] = context[offset]
        elif op == 0xB7:
            registers[to] = value
        elif op == 0xBF:
            registers[to] = registers[source]
        elif op == 0x57:
            registers[to] &= value
        elif op == 0x77:
            registers[to] >>= value
        elif op == 0x55:
            at += offset if registers[to] != value else 0
        else:
            raise AssertionError(hex(op))


numbers = st.one_of(st.none(), st.integers(0, 3), st.just((1 << 20) - 1))
accesses = st.sets(st.sampled_from("rwm"), min_size=1).map(lambda s: "".join(sorted(s)))
devices = st.builds(Device, st.sampled_from("bc"), numbers, numbers, accesses)
rules = st.lists(st.one_of(devices, st.just(Device())), max_size=6)


@given(rules, st.sampled_from("bc"), st.integers(0, 4), st.integers(0, 4), accesses)
def test_program_says_what_the_rules_say(rules: list[Device], kind: str, major: int, minor: int, access: str) -> None:
    asked = sum(ACCESS[a] for a in access)
    answer = execute(program(rules), KINDS[kind], asked, major, minor)
    assert answer == simulate(rules, kind, major, minor, access)


def test_default() -> None:
    rules = Limits.DEVICES
    assert simulate(rules, "c", 1, 3, "rw")
    assert simulate(rules, "c", 136, 77, "rw")
    assert simulate(rules, "b", 8, 0, "m")
    assert not simulate(rules, "b", 8, 0, "r")
    assert not simulate(rules, "c", 1, 1, "r")  # /dev/mem
