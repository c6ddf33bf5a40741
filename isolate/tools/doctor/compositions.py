"""A verdict for each preset: whether it runs here, and without what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.cgroups import Limits
from isolate.tools.doctor.attempts import carry_out

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from isolate.sandbox.box import Sandbox
    from isolate.tools.doctor.attempts import Ability
    from isolate.tools.doctor.remedies import Remedies

__all__ = ["Composition", "compositions"]


@dataclass(frozen=True)
class Composition:
    """A preset, as this host has it."""

    name: str
    runs: bool
    #: What it runs without: ``("limits",)``.
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


def compositions(rows: Sequence[Ability], remedies: Remedies) -> tuple[Composition, ...]:
    """Try the presets; limits are known from the rows of abilities."""
    missing = [row for row in rows if row.group == "limits" and not row.ok]
    found = []
    for name, make in _PRESETS:
        alone = carry_out(name, "", "presets", lambda make=make: make(None).check(), remedies=remedies)  # type: ignore[misc]
        if not alone.ok:
            found.append(Composition(name, False, (), alone.reason, alone.remedy, alone.paste))
            continue
        full = alone
        if not missing:
            full = carry_out(name, "", "presets", lambda make=make: make(_EVERY).check(), remedies=remedies)  # type: ignore[misc]
        wanting = missing[0] if missing else full
        if wanting.ok:
            found.append(Composition(name, True))
        else:
            words = tuple(sorted({f"{row.what.partition(',')[0].removeprefix('limit of ')} limits" for row in missing}))
            without = words if 0 < len(words) < 4 else ("limits",)
            found.append(Composition(name, True, without, wanting.reason, wanting.remedy, wanting.paste))
    return tuple(found)
