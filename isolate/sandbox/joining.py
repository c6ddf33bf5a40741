"""A further program in a running sandbox, however it joins: its steps of the sandbox's plan, and its view of the group.

``sandbox.exec`` joins by the first program's pidfd, ``sandbox.containers.command`` by descriptors that the container's
init has handed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.cgroups.counting import Outcome, RunGroup
from isolate.cgroups.stats import Stats, verdict
from isolate.engine.plan import Phase, Section, Step, call
from isolate.kernel.constants import PR_SET_PDEATHSIG

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Launched, Plan, Row

__all__ = ["JoinedGroup", "JoinedOutcome", "steps_of_programs"]

_KEPT = (Phase.SYNC, Phase.IDENTITY, Phase.HARDEN)


def steps_of_programs(original: Plan) -> Iterator[Row]:
    """The steps by which a program of the sandbox becomes who it is; those that make the sandbox are left out."""
    bound = False
    for step, owner in original.rows:
        if step.phase is Phase.DESCRIPTORS and not bound:
            # With our init, which is not PID 1 in there. Before the filter, which may refuse it.
            yield Step(Phase.DESCRIPTORS, "die with init", (call("prctl", PR_SET_PDEATHSIG, 9),)), owner
            bound = True
        if step.phase in _KEPT or step.phase.section in (Section.PAYLOAD, Section.AFTER):
            yield step, owner


class JoinedGroup(RunGroup):
    """The sandbox's group, as a further program sees it: it is not this launcher's to remove."""

    def remove(self, session: Launched) -> None:
        """It belongs to the sandbox."""

    def remove_left(self) -> None:
        """Nothing is made."""

    def remove_abandoned(self) -> None:
        """Nothing is made."""

    def usage(self, session: Launched) -> float | None:
        """Nobody counts what one of the programs in it uses."""
        return None

    @property
    def counts(self) -> bool:
        """See :meth:`usage`."""
        return False


@dataclass(frozen=True)
class JoinedOutcome(Outcome):
    """An outcome with the counters at the start of the further program."""

    before: Stats | None = None

    def verdict(self, *, failed: bool) -> str | None:
        """As :meth:`Outcome.verdict`, of what was counted meanwhile, and only for a program that failed: it may have
        been another one that the kernel killed."""
        return verdict(self.before, self.stats, failed=True) if failed else None
