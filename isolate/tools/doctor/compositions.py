"""A verdict for each preset: whether it runs here, and without what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.cgroups import Limits
from isolate.tools.doctor.attempts import carry_out

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolate.sandbox.box import Sandbox
    from isolate.tools.doctor.attempts import Ability, Row
    from isolate.tools.doctor.remedies import Remedies

__all__ = ["ATTEMPTS", "Composition", "compositions"]


@dataclass(frozen=True)
class Composition:
    """A preset, as this host has it."""

    name: str
    runs: bool
    #: The parts that it runs without: ``("limits",)``.
    without: tuple[str, ...] = ()
    #: Why it does not run, or what is missing.
    reason: str = ""
    remedy: str = ""
    #: Text to paste that does what ``remedy`` says.
    paste: str = ""

    def __str__(self) -> str:
        if not self.runs:
            return "does not run"
        return f"runs without {', '.join(self.without)}" if self.without else "runs"


_EVERY = Limits(memory="64M", pids=64, cpu=0.5)


def _untrusted(limits: Limits | None) -> Sandbox:
    from isolate import presets

    return presets.untrusted(limits=limits)


def _container(limits: Limits | None) -> Sandbox:
    from isolate import presets

    # Any directory is good for a root: nothing is executed in it.
    return presets.container("/usr", extra=[] if limits is None else [limits])


_PRESETS: tuple[tuple[str, Callable[[Limits | None], Sandbox]], ...] = (
    ("untrusted", _untrusted),
    ("container", _container),
)


def _trial(name: str, make: Callable[[Limits | None], Sandbox], limits: Limits | None) -> Row:
    return name, "", "presets", lambda: make(limits).check()


#: The presets with every limit, as attempts to carry out beside the others.
ATTEMPTS: tuple[Row, ...] = tuple(_trial(name, make, _EVERY) for name, make in _PRESETS)


def compositions(tried: Sequence[Ability], rows: Sequence[Ability], remedies: Remedies) -> tuple[Composition, ...]:
    """A verdict for each preset. ``tried`` are the results of ``ATTEMPTS``: of one that did not run it is found out
    here whether it does without limits, and whether it was for the other attempts beside it."""
    missing = [row for row in rows if row.group == "limits" and not row.ok]
    found = []
    for (name, make), full in zip(_PRESETS, tried, strict=True):
        alone = full if full.ok else carry_out(*_trial(name, make, None), remedies=remedies)
        if not alone.ok:
            found.append(Composition(name, False, (), alone.reason, alone.remedy, alone.paste))
            continue
        if not full.ok and not missing:
            full = carry_out(*_trial(name, make, _EVERY), remedies=remedies)
        wanting = missing[0] if missing else full
        if wanting.ok:
            found.append(Composition(name, True))
        else:
            words = tuple(sorted({f"{row.what.partition(',')[0].removeprefix('limit of ')} limits" for row in missing}))
            without = words if 0 < len(words) < 4 else ("limits",)
            found.append(Composition(name, True, without, wanting.reason, wanting.remedy, wanting.paste))
    return tuple(found)
