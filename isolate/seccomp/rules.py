"""Rules: which calls, under which condition, get which answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from isolate.kernel import syscalls

from . import sets
from .actions import Action
from .conditions import Condition

__all__ = ["Rule", "allow", "deny", "rule"]


@dataclass(frozen=True)
class Rule:
    """An answer for some system calls, where a condition on their arguments holds or always.

    ``names`` are names of calls and of sets (``@network``), kept sorted; a name that only some architectures have says
    nothing on the others. Made by ``allow``, ``deny`` and ``rule``. UnknownSyscall (a ValueError) for a name that
    none has.
    """

    action: Action
    names: tuple[str, ...]
    when: Condition | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.action, Action):
            raise TypeError(f"not an action: {self.action!r}")
        if self.when is not None and not isinstance(self.when, Condition):
            raise TypeError(f"when= takes a condition such as arg(0) == 1, not {self.when!r}")
        flat = _flat(self.names)
        if not flat:
            raise ValueError("a rule names at least one system call")
        for name in flat:
            if name.startswith("@"):
                sets.members(name)
            elif not syscalls.known(name):
                raise syscalls.UnknownSyscall(name, syscalls.native_arch())
        object.__setattr__(self, "names", flat)
        if self.when is not None:
            from .ranges import normal_form

            outcome = normal_form(self.when, wide=True)
            if isinstance(outcome, bool):
                raise ValueError(f"impossible condition: {self.when!r} {'always' if outcome else 'never'} holds")

    @property
    def calls(self) -> frozenset[str]:
        """The calls that the rule speaks of, sets resolved."""
        found = self.__dict__.get("_calls")
        if found is None:
            found = frozenset().union(*(sets.members(n) if n.startswith("@") else {n} for n in self.names))
            object.__setattr__(self, "_calls", found)
        return found

    def without(self, removed: frozenset[str]) -> Rule | None:
        """The rule for the other calls; None if there are none. A set that loses a member is written out."""
        if not self.calls & removed:
            return self
        names: list[str] = []
        for name in self.names:
            if name.startswith("@"):
                members = sets.members(name)
                names += [name] if not members & removed else sorted(members - removed)
            elif name not in removed:
                names.append(name)
        return Rule(self.action, tuple(names), self.when) if names else None

    def __repr__(self) -> str:
        words = [repr(name) for name in self.names]
        if self.when is not None:
            words.append(f"when={self.when!r}")
        if self.action == Action.ALLOW:
            return f"allow({', '.join(words)})"
        if self.action.kind == "errno":
            if self.action != Action.EPERM:
                word = self.action.word
                words.append(f"errno={word!r}" if word[0] == "E" else f"errno={self.action.data}")
            return f"deny({', '.join(words)})"
        return f"rule({self.action!r}, {', '.join(words)})"


def allow(*names: str | Iterable[str], when: Condition | None = None) -> Rule:
    """The calls are made: ``allow("@file-system", "ioctl", when=…)``.

    :param names: calls, and sets of calls (``"@file-system"``).
    :param when: only where this holds for the arguments.

    :raises ValueError: a name that no architecture has; the nearest one is named.

    >>> from isolate.seccomp import allow
    >>> allow("read", "write").names
    ('read', 'write')
    """
    return Rule(Action.ALLOW, _flat(names), when)


def deny(*names: str | Iterable[str], when: Condition | None = None, errno: int | str = "EPERM") -> Rule:
    """The calls fail with ``errno`` (a name or a number; EPERM unless given) and are not made.

    :param names: calls, and sets of calls (``"@mount"``).
    :param when: only where this holds for the arguments.
    :param errno: such as ``"ENOSYS"``, which makes most programs take another way.

    :raises ValueError: a name that no architecture has, or no errno; the nearest one is named.

    >>> from isolate.seccomp import deny
    >>> deny("ptrace", errno="ENOSYS").names
    ('ptrace',)
    """
    return Rule(Action.errno(errno), _flat(names), when)


def rule(action: Action | str, *names: str | Iterable[str], when: Condition | None = None) -> Rule:
    """The calls get any other answer: ``rule("kill", "ptrace")``, ``rule(Action.trace(7), "execve")``."""
    return Rule(Action.of(action), _flat(names), when)


def _flat(names: Iterable[str | Iterable[str]]) -> tuple[str, ...]:
    found: set[str] = set()
    for name in names:
        if isinstance(name, str):
            found.add(name)
        elif isinstance(name, Iterable):
            for inner in name:
                if not isinstance(inner, str):
                    raise TypeError(f"a system call's name is a str, not {inner!r}")
                found.add(inner)
        else:
            raise TypeError(f"a system call's name is a str, not {name!r}")
    return tuple(sorted(found))
