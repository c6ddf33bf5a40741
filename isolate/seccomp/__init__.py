"""Filters for system calls: policies as values, compiled to classic BPF without libseccomp.

from isolate.seccomp import Seccomp, allow, deny, arg, arg32

policy = Seccomp.default() - "@debug" + deny("connect", errno="ENETUNREACH")
print(policy.explain("connect"))
"""

from typing import TYPE_CHECKING

from isolate.kernel import lazy as _lazy

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

# Loaded when they are first used: a sandbox needs few of them.
_HOMES = {
    "actions": "Action",
    "bpf": "ProgramTooLarge",
    "conditions": "Condition any_of arg arg32 every",
    "nested": "deny_user_namespaces",
    "policy": "Seccomp",
    "rules": "Rule allow deny rule",
    "sets": "DESCRIPTIONS SETS members",
    "simulator": "InvalidProgram disassemble simulate",
}

__all__ = _lazy.names(_HOMES)
__getattr__, __dir__ = _lazy.face(__name__, _HOMES)
