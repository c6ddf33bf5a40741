"""Filters for system calls: policies as values, compiled to classic BPF without libseccomp.

from isolate.seccomp import Seccomp, allow, deny, arg, arg32

policy = Seccomp.default() - "@debug" + deny("connect", errno="ENETUNREACH")
print(policy.explain("connect"))
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isolate.seccomp.actions import Action as Action
    from isolate.seccomp.bpf import ProgramTooLarge as ProgramTooLarge
    from isolate.seccomp.conditions import Condition as Condition
    from isolate.seccomp.conditions import any_of as any_of
    from isolate.seccomp.conditions import arg as arg
    from isolate.seccomp.conditions import arg32 as arg32
    from isolate.seccomp.conditions import every as every
    from isolate.seccomp.nested import deny_user_namespaces as deny_user_namespaces
    from isolate.seccomp.policy import Seccomp as Seccomp
    from isolate.seccomp.rules import Rule as Rule
    from isolate.seccomp.rules import allow as allow
    from isolate.seccomp.rules import deny as deny
    from isolate.seccomp.rules import rule as rule
    from isolate.seccomp.sets import DESCRIPTIONS as DESCRIPTIONS
    from isolate.seccomp.sets import SETS as SETS
    from isolate.seccomp.sets import members as members
    from isolate.seccomp.simulator import InvalidProgram as InvalidProgram
    from isolate.seccomp.simulator import disassemble as disassemble
    from isolate.seccomp.simulator import simulate as simulate

# Loaded when they are first used: a sandbox needs few of them, and a start should not wait for the others.
_HOMES = {
    "Action": "actions",
    "Condition": "conditions",
    "DESCRIPTIONS": "sets",
    "InvalidProgram": "simulator",
    "ProgramTooLarge": "bpf",
    "Rule": "rules",
    "SETS": "sets",
    "Seccomp": "policy",
    "allow": "rules",
    "any_of": "conditions",
    "arg": "conditions",
    "arg32": "conditions",
    "deny": "rules",
    "deny_user_namespaces": "nested",
    "disassemble": "simulator",
    "every": "conditions",
    "members": "sets",
    "rule": "rules",
    "simulate": "simulator",
}

__all__ = [
    "Action",
    "Condition",
    "DESCRIPTIONS",
    "InvalidProgram",
    "ProgramTooLarge",
    "Rule",
    "SETS",
    "Seccomp",
    "allow",
    "any_of",
    "arg",
    "arg32",
    "deny",
    "deny_user_namespaces",
    "disassemble",
    "every",
    "members",
    "rule",
    "simulate",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"isolate.seccomp.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
