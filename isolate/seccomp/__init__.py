"""Filters for system calls: policies as values, compiled to classic BPF without libseccomp.

from isolate.seccomp import Seccomp, allow, deny, arg, arg32

policy = Seccomp.default() - "@debug" + deny("connect", errno="ENETUNREACH")
print(policy.explain("connect"))
"""

from .actions import Action as Action
from .bpf import ProgramTooLarge as ProgramTooLarge
from .conditions import Condition as Condition
from .conditions import any_of as any_of
from .conditions import arg as arg
from .conditions import arg32 as arg32
from .conditions import every as every
from .nested import deny_user_namespaces as deny_user_namespaces
from .policy import Seccomp as Seccomp
from .rules import Rule as Rule
from .rules import allow as allow
from .rules import deny as deny
from .rules import rule as rule
from .sets import DESCRIPTIONS as DESCRIPTIONS
from .sets import SETS as SETS
from .sets import members as members
from .simulator import InvalidProgram as InvalidProgram
from .simulator import disassemble as disassemble
from .simulator import simulate as simulate
