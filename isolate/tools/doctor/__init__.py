"""The features that work on this host for this user, found by trying them in temporary sandboxes.

:func:`examine` is what ``python -m isolate doctor`` prints, :func:`abilities` its rows without the presets.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from isolate.kernel.checks import nearest
from isolate.tools.doctor.attempts import GROUPS, Ability, attempt_all
from isolate.tools.doctor.compositions import ATTEMPTS, Composition, compositions
from isolate.tools.doctor.remedies import Remedies

__all__ = ["GROUPS", "Ability", "Composition", "Report", "abilities", "examine"]


@dataclass(frozen=True)
class Report:
    """All that was found.

    >>> report = examine()
    >>> report.ability("start").ok
    True
    """

    #: Kernel, machine, user, and the kind of container that this seems to be.
    host: str
    abilities: tuple[Ability, ...]
    presets: tuple[Composition, ...]

    @property
    def ok(self) -> bool:
        """Whether every preset runs, with all that it names."""
        return all(preset.runs and not preset.without for preset in self.presets)

    @property
    def usable(self) -> bool:
        """Whether :func:`isolate.presets.untrusted` runs."""
        return self.presets[0].runs

    def ability(self, name: str) -> Ability:
        """The row of that name.

        :raises ValueError: there is none.
        """
        for row in self.abilities:
            if row.name == name:
                return row
        names = [row.name for row in self.abilities]
        hint = nearest(name, names) or f"; they are {', '.join(names)}"
        raise ValueError(f"no ability is named {name!r}{hint}")

    def json(self) -> dict[str, Any]:
        """As a dictionary of plain values."""
        return {**asdict(self), "ok": self.ok, "usable": self.usable}


def abilities() -> tuple[Ability, ...]:
    """Try everything and tell. Leaves nothing behind and raises nothing.

    :return: one :class:`Ability` for each row of ``python -m isolate doctor``.

    >>> [row.name for row in abilities() if row.name == "start" and row.ok]
    ['start']
    """
    return attempt_all(Remedies())


def examine() -> Report:
    """Try every part, and every preset, and tell what runs here, and what would make the rest run.

    Takes less than two seconds, needs no privileges, changes nothing, and raises nothing.

    :return: a :class:`Report`.
    """
    remedies = Remedies()
    found = attempt_all(remedies, ATTEMPTS)
    tried, rows = found[: len(ATTEMPTS)], found[len(ATTEMPTS) :]
    system = os.uname()
    who = "root" if os.geteuid() == 0 else f"uid {os.geteuid()}"
    inside = f", in {remedies.container}" if remedies.container else ""
    host = f"{system.sysname} {system.release} {system.machine}, as {who}{inside}"
    return Report(host, rows, compositions(tried, rows, remedies))
