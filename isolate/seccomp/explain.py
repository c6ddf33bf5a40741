"""A policy's answer to one call, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolate.kernel import syscalls

from . import decide, sets

if TYPE_CHECKING:
    from .rules import Rule
    from .value import Policy

__all__ = ["explain"]


def explain(policy: Policy, name: str, args: tuple[int, ...], arch: str | None) -> str:
    """The text behind ``Seccomp.explain``."""
    arch = syscalls.native_arch() if arch is None else syscalls.canonical_arch(arch)
    number = syscalls.number(name, arch)
    since = syscalls.since(name)
    head = f"{name} is number {number & ~syscalls.X32_BIT if arch == 'x32' else number} on {arch}"
    lines = [head + (f", since Linux {since[0]}.{since[1]}" if since else "")]
    if policy.ready is not None:
        lines.append(f"  the ready program answers: {policy.simulate(name, *args, arch=arch)}")
        return "\n".join(lines)
    if arch in ("i386", "x32", "arm") and arch != syscalls.native_arch() and arch not in policy.compat:
        lines.append(f"  {policy.foreign}: the policy does not cover the ABI {arch} (compat=)")
        return "\n".join(lines)
    if args:
        shown = ", ".join(hex(value) if value > 9 else str(value) for value in args)
        answer = policy.answer(name, *args, arch=arch)
        by = f"by {_brief(answer.rule, name)}" if answer.rule is not None else answer.reason
        lines.append(f"  {name}({shown}): {answer.action}, {by}")
        return "\n".join(lines)
    plain = policy.answer(name, arch=arch)
    if plain.rule is None and "arguments of" in plain.reason:
        lines.append(f"  {plain.action}: {plain.reason}; a rule that names {name} overrides this")
        return "\n".join(lines)
    for rule in reversed(policy.rules):
        if not decide.speaks(rule, name, arch):
            continue
        when = f" where {rule.when!r}" if rule.when is not None else ""
        lines.append(f"  {rule.action}{when}, by {_brief(rule, name)}")
        if rule.when is None:
            return "\n".join(lines)
    last = decide.otherwise(policy, name, decide.running_kernel())
    lines.append(f"  {last.action}: {last.reason}")
    return "\n".join(lines)


def _brief(rule: Rule, name: str) -> str:
    """The rule, with only those of its names that mean this call."""
    names = [n for n in rule.names if n == name or (n.startswith("@") and name in sets.members(n))]
    more = len(rule.names) - len(names)
    words = ", ".join(repr(n) for n in names) or repr(name)
    verb = repr(rule).split("(")[0]
    return f"{verb}({words}{', …' if more else ''}{', when=' + repr(rule.when) if rule.when is not None else ''})"
