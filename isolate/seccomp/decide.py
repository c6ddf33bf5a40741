"""The answers of a policy to each number of each ABI: rules resolved into decisions, for compiler and people."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from isolate.kernel import syscalls

from .actions import Action
from .bpf import AUDIT_ARCH, FAMILIES
from .compiler import Abi, Decision
from .ranges import Test, either, normal_form
from .value import Answer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .rules import Rule
    from .value import Policy

__all__ = ["BLIND", "Answer", "answer", "blind_calls", "covered", "decisions", "otherwise", "running_kernel", "speaks"]

NARROW = ("i386", "arm")

_SOCKETS = (
    "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmsg recvmmsg send sendmsg "
    "sendmmsg sendto setsockopt shutdown socket socketpair"
)
_SYSV = "msgctl msgget msgrcv msgsnd semctl semget semop semtimedop shmat shmctl shmdt shmget"

# Calls that do what others do, with the arguments where no filter sees them (behind a pointer or in a ring). Where the
# others' arguments are filtered, these answer ENOSYS, which sends the C library to the others.
BLIND: dict[str, tuple[str, ...]] = {
    "clone3": ("clone",),
    "openat2": ("open", "openat"),
    "socketcall": tuple(_SOCKETS.split()),
    "ipc": tuple(_SYSV.split()),
    "io_uring_setup": ("open", "openat", *_SOCKETS.split()),
    "io_uring_enter": ("open", "openat", *_SOCKETS.split()),
    "io_uring_register": ("open", "openat", *_SOCKETS.split()),
}


def running_kernel() -> tuple[int, int]:
    """Major and minor version of the running kernel."""
    global _kernel
    if _kernel is None:
        major, minor = os.uname().release.split(".")[:2]
        _kernel = (int(major), int("".join(c for c in minor if c.isdigit()) or 0))
    return _kernel


_kernel: tuple[int, int] | None = None


def covered(policy: Policy, arch: str) -> tuple[str, ...]:
    """The ABIs of an architecture that the policy speaks of, its own first."""
    return (arch, *(other for other in FAMILIES[arch] if other in policy.compat))


def answer(policy: Policy, name: str | None, args: tuple[int, ...], arch: str, kernel: tuple[int, int]) -> Answer:
    """The policy's answer straight from its rules, last rule first. ``name`` is None for a number without one."""
    if name is None:
        return Answer(policy.unknown_action, None, "no call of the tables has this number")
    blind = _blind(policy, name)
    if blind:
        return Answer(Action.ENOSYS, None, f"arguments of {blind} are filtered and no filter sees those of {name}")
    values = args + (0,) * (6 - len(args))
    for rule in reversed(policy.rules):
        if speaks(rule, name, arch) and (rule.when is None or rule.when.holds(values, wide=arch not in NARROW)):
            return Answer(rule.action, rule)
    return otherwise(policy, name, kernel)


def otherwise(policy: Policy, name: str, kernel: tuple[int, int]) -> Answer:
    """The answer to a call that no rule matches."""
    if _later(name, kernel):
        since = syscalls.since(name) or (0, 0)
        return Answer(policy.unknown_action, None, f"{name} is of Linux {since[0]}.{since[1]}, later than this kernel")
    return Answer(policy.otherwise, None, "no rule matches: the policy's `otherwise`")


def decisions(policy: Policy, arch: str, kernel: tuple[int, int]) -> list[Abi]:
    """The decisions for the compiler: one Abi for each value of ``arch`` that the filter knows."""
    blind = blind_calls(policy)
    found: dict[int, Abi] = {}
    # If both answers are equal, numbers without a rule need no entry of their own.
    uniform = policy.unknown_action == policy.otherwise
    unknown: Decision = ((), policy.unknown_action.value)
    foreign: Decision = ((), policy.foreign.value)
    for abi in covered(policy, arch):
        table: dict[int, Decision] = {}
        wide = abi not in NARROW
        cache: dict[tuple[int, ...], Decision] = {}
        numbers = syscalls.table(abi)
        by_number: dict[int, list[Rule]] = {}
        for rule in policy.rules:
            for number in {numbers[name] for name in rule.calls if name in numbers}:
                by_number.setdefault(number, []).append(rule)
        for name in syscalls.names(abi):
            number = numbers[name]
            if name in blind:
                table[number] = ((), Action.ENOSYS.value)
                continue
            rules = by_number.get(number, ())
            if not rules and uniform:
                continue
            if not rules:
                table[number] = ((), (policy.unknown_action if _later(name, kernel) else policy.otherwise).value)
                continue
            key = tuple(map(id, rules))
            decision = cache.get(key)
            if decision is None:
                decision = cache[key] = _resolve(rules, policy.otherwise, wide=wide)
            table[number] = decision
        audit_arch = AUDIT_ARCH[abi]
        if abi == "x32":
            known = found[audit_arch]
            lower, _, upper = known.otherwise
            found[audit_arch] = Abi(
                audit_arch, {**known.decisions, **table}, (lower, (syscalls.X32_BIT, unknown), upper)
            )
        elif abi == "x86_64":
            # -1 is what a tracer leaves of a call that it answered itself: not x32, though it has the bit.
            otherwise = ((0, unknown), (syscalls.X32_BIT, foreign), (0xFFFFFFFF, unknown))
            found[audit_arch] = Abi(audit_arch, table, otherwise)
        else:
            found[audit_arch] = Abi(audit_arch, table, ((0, unknown),))
    return list(found.values())


def _resolve(rules: Iterable[Rule], default: Action, *, wide: bool) -> Decision:
    """Rules for one call, first to last, as tests in the order in which the filter tries them: last rule first."""
    tests: list[tuple[list[Test], int]] = []
    final = default.value
    for rule in reversed(list(rules)):
        test: Test = True if rule.when is None else normal_form(rule.when, wide=wide)
        if test is True:
            final = rule.action.value
            break
        if test is False:
            continue
        if tests and tests[-1][1] == rule.action.value:
            tests[-1][0].append(test)
        else:
            tests.append(([test], rule.action.value))
    while tests and tests[-1][1] == final:
        tests.pop()
    joined: list[tuple[Test, int]] = []
    for group, value in tests:
        test = either(group)
        if test is True:
            final = value
            break
        joined.append((test, value))
    return tuple(joined), final


def _later(name: str, kernel: tuple[int, int]) -> bool:
    since = syscalls.since(name)
    return since is not None and since > kernel


def speaks(rule: Rule, name: str, arch: str) -> bool:
    """Whether the rule is about the call, under any of its names."""
    if name in rule.calls:
        return True
    # Use its other name, if that means the same call on this architecture.
    number = syscalls.number(name, arch)
    others = syscalls.spellings(name)
    return any(o in rule.calls and syscalls.table(arch).get(o) == number for o in others if o != name)


def blind_calls(policy: Policy) -> frozenset[str]:
    """The calls that answer ENOSYS because they carry arguments past the filter that others are filtered by."""
    return frozenset(name for name in BLIND if _blind(policy, name))


def _blind(policy: Policy, name: str) -> str | None:
    """The call whose filtered arguments ``name`` would carry past the filter; None if ``name`` is ruled by its own
    name."""
    others = BLIND.get(name)
    if others is None or any(name in rule.names for rule in policy.rules):
        return None
    for rule in policy.rules:
        if rule.when is not None:
            for other in others:
                if other in rule.calls:
                    return other
    return None
