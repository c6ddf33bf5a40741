"""A policy as a value, for what compiles, explains and installs it: :class:`~isolate.Seccomp` is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .actions import Action
    from .notify import Handler
    from .rules import Rule

__all__ = ["Answer", "Policy"]


@dataclass(frozen=True)
class Answer:
    """The answer of a policy to a call, and the reason."""

    action: Action
    #: The rule that decided, None where none did.
    rule: Rule | None
    #: Why, where no rule did.
    reason: str = ""


class Policy(Protocol):
    """Rules, what is answered where none matches, and the filter that they make."""

    @property
    def rules(self) -> tuple[Rule, ...]: ...
    @property
    def otherwise(self) -> Action: ...
    @property
    def unknown_action(self) -> Action: ...
    @property
    def foreign(self) -> Action: ...
    @property
    def compat(self) -> tuple[str, ...]: ...
    @property
    def ready(self) -> bytes | None: ...
    @property
    def notify(self) -> tuple[tuple[str, Handler], ...]: ...
    @property
    def notify_timeout(self) -> float: ...
    @property
    def flags(self) -> int: ...
    @property
    def log(self) -> bool: ...
    @property
    def spec_allow(self) -> bool: ...
    @property
    def may_kill(self) -> bool: ...

    def program(self, arch: str | None = None, kernel: tuple[int, int] | None = None) -> bytes:
        """The compiled filter."""
        ...

    def simulate(
        self, name: str | int, *args: int, arch: str | None = None, kernel: tuple[int, int] | None = None
    ) -> Action:
        """The answer of the filter to a call."""
        ...

    def answer(
        self, name: str | int, *args: int, arch: str | None = None, kernel: tuple[int, int] | None = None
    ) -> Answer:
        """The answer of the rules to a call, and the rule that decides."""
        ...
