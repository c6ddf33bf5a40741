"""A policy from watching: run a program, note which calls it makes, and write down what would let it do just that.

Watching sees what happened in that run: the paths not taken, the error handling, the other C library, the next version
are not in it. It sees numbers and registers, not what pointers point to, and calls that the vDSO answers without the
kernel (clock_gettime, time, getcpu) not at all; those are added. Read the result before use, and add a set of the same
purpose (``@file-system``) rather than single calls where the program's work may vary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from isolate.kernel import syscalls
from isolate.seccomp import decide
from isolate.seccomp.conditions import arg32
from isolate.seccomp.policy import Seccomp
from isolate.seccomp.rules import Rule, allow, rule

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from isolate.engine.plan import Part
    from isolate.sandbox.result import Result
    from isolate.seccomp.actions import Action
    from isolate.seccomp.notify import Call, Reply

__all__ = ["Learned", "learn"]

#: Which arguments of a call say what it does, and are worth a rule: flags, commands, families.
TELLING: Mapping[str, tuple[int, ...]] = {
    "arch_prctl": (0,),
    "bpf": (0,),
    "clone": (0,),
    "fcntl": (1,),
    "fcntl64": (1,),
    "ioctl": (1,),
    "keyctl": (0,),
    "madvise": (2,),
    "personality": (0,),
    "prctl": (0,),
    "ptrace": (0,),
    "setsockopt": (1, 2),
    "socket": (0, 1, 2),
    "socketpair": (0, 1, 2),
    "unshare": (0,),
}
#: More values than this of one argument are no pattern.
_MANY = 24
#: Arguments that hold flags: if there are many values, only the bits that were seen are allowed.
_FLAGS = ("clone", "unshare")
#: Calls that do the same as one with telling arguments, where no filter sees them (``clone3``, ``io_uring``). A policy
#: that allowed them would allow whatever they carry. So they answer ENOSYS already while learning, as under the policy,
#: and the program takes the other way, which is learned.
BLIND = frozenset(name for name, others in decide.BLIND.items() if any(other in TELLING for other in others))

# The vDSO answers these where it can; on another clock source, or in a time namespace, the kernel is asked.
_VDSO = ("clock_getres", "clock_gettime", "getcpu", "gettimeofday", "time")
# Calls that the C library makes at its end or after an error, and that a successful run may not show.
_ALWAYS = ("exit", "exit_group", "restart_syscall", "rt_sigreturn")


@dataclass(frozen=True)
class Learned:
    """The calls that a run made, and a policy that allows them.

    :param policy: allows the calls that were made.
    :param counts: how often each call was made.
    :param result: of the run.
    :param refused: calls that answered ENOSYS, with their number.

    >>> "execve" in learn(["true"]).counts
    True
    """

    #: The policy that allows it.
    policy: Seccomp
    #: Each call, and how often it was made.
    counts: Mapping[str, int]
    #: The run itself.
    result: Result[Any]
    #: Calls that were answered with ENOSYS, since no filter sees their arguments (``clone3``), and how often.
    refused: Mapping[str, int] = field(default_factory=dict)


class _Recorder:
    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.values: dict[str, set[tuple[int, ...]]] = {}
        self.unknown: set[int] = set()
        self.refused: dict[str, int] = {}

    def __call__(self, call: Call) -> Reply:
        from isolate.seccomp.notify import Reply

        name = call.name
        if name is None:
            self.unknown.add(call.number)
        elif name in BLIND:
            self.refused[name] = self.refused.get(name, 0) + 1
            return Reply.errno("ENOSYS")
        else:
            self.counts[name] = self.counts.get(name, 0) + 1
            telling = TELLING.get(name)
            if telling:
                # Parameters of these are ints: the kernel looks at the lower half.
                self.values.setdefault(name, set()).add(tuple(call.args[i] & 0xFFFFFFFF for i in telling))
        return Reply.proceed()

    def policy(self, otherwise: Action | str) -> Seccomp:
        used = {*self.counts, *_ALWAYS, *(name for name in _VDSO if name in syscalls.table())}
        rules: list[Rule] = [allow(name for name in used if name not in self.values or name in self._plain())]
        for name in sorted(self.values):
            if name not in self._plain():
                rules += [allow(name, when=when) for when in _conditions(name, self.values[name])]
        return Seccomp(rules, otherwise=otherwise)

    def _plain(self) -> set[str]:
        return {name for name, values in self.values.items() if len(values) > _MANY and name not in _FLAGS}


def _conditions(name: str, values: Iterable[tuple[int, ...]]) -> list[Any]:
    positions = TELLING[name]
    ordered = sorted(values)
    if name in _FLAGS and len(ordered) > _MANY:
        seen = 0
        for (flags,) in ordered:
            seen |= flags
        return [arg32(positions[0]) & (0xFFFFFFFF & ~seen) == 0]
    if len(positions) == 1:
        return [arg32(positions[0]).among(*(value[0] for value in ordered))]
    found = []
    for value in ordered:
        condition = arg32(positions[0]) == value[0]
        for position, part in zip(positions[1:], value[1:], strict=True):
            condition = condition & (arg32(position) == part)
        found.append(condition)
    return found


def learn(
    args: Sequence[str | bytes | os.PathLike[str]] | str | os.PathLike[str],
    *,
    parts: Iterable[Part] = (),
    otherwise: Action | str = "EPERM",
    timeout: float | None = 60.0,
    **options: Any,
) -> Learned:
    """Run a program, asking about every call it makes, and return what it used.

    ``parts`` are those of the sandbox it shall run in (no other policy with handlers among them); ``options`` go to
    ``Sandbox.run``: input, env, cwd, text and so on. Every call takes some tens of microseconds more, so ``timeout``
    may need room. ``otherwise`` is what the resulting policy answers to the rest.

    Calls that do what others do with arguments that no filter sees (``clone3``, ``io_uring``) answer ENOSYS, as they do
    under the policy; else the run is not restricted: what it does, it does. Run what you trust, in a sandbox.

    :param parts: of the sandbox that it runs in.
    :param otherwise: what the policy answers to the rest.
    :param timeout: in seconds, for the whole run.
    :param options: those of :meth:`isolate.Sandbox.run`.

    >>> learned = learn(["true"])
    >>> Sandbox(learned.policy).run(["true"]).ok
    True
    """
    from isolate.sandbox.box import Sandbox
    from isolate.seccomp.install import SENDMSG_FLAGS
    from isolate.seccomp.supervisor import Supervisor

    recorder = _Recorder()
    asking = Seccomp(
        rule("allow", "sendmsg", when=arg32(2) == SENDMSG_FLAGS),
        otherwise="notify",
        unknown="notify",
    )
    parts = tuple(parts)
    object.__setattr__(asking, "notify", (("", recorder),))
    object.__setattr__(asking, "_supervisor", Supervisor({"": recorder}, 3600.0, direct=True))
    result: Result[Any] = Sandbox(asking, *parts).run(args, timeout=timeout, **options)
    # The library's own, after the first filter was there: one call of seccomp for each policy.
    own = 1 + sum(isinstance(part, Seccomp) for part in parts)
    left = recorder.counts.pop("seccomp", 0) - own
    if left > 0:
        recorder.counts["seccomp"] = left
    return Learned(recorder.policy(otherwise), dict(sorted(recorder.counts.items())), result, recorder.refused)
