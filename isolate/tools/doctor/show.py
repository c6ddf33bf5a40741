"""The output of ``python -m isolate doctor``."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING

from isolate.tools.doctor import GROUPS, examine

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from isolate.tools.doctor import Ability, Composition, Report

__all__ = ["run"]

_WIDTH = 118


def run(options: argparse.Namespace) -> int:
    """The command; its exit status."""
    report = examine()
    rows = report.abilities
    if options.names:
        rows = tuple(dict.fromkeys(report.ability(name) for name in options.names))
    if options.json:
        document = [asdict(row) for row in rows] if options.names or options.command == "probe" else report.json()
        print(json.dumps(document, indent=2))
    else:
        print(report.host)
        _rows(rows)
        if not options.names:
            _presets(report)
        _remedies(rows, () if options.names else report.presets)
    if options.names:
        return 0 if all(row.ok for row in rows) else 1
    return 0 if report.usable else 1


def _rows(rows: Sequence[Ability]) -> None:
    width = max(len(row.name) for row in rows)
    for group in GROUPS:
        members = [row for row in rows if row.group == group]
        if members:
            print(f"\n{group}")
        for row in members:
            detail = f" ({row.reason})" if row.ok and row.reason else ""
            print(f"  {row.name:{width}}  {'ok' if row.ok else 'no'}  {row.what}{detail}")
            if row.proof:
                print(f"  {'':{width}}      tried: {row.proof}")


def _presets(report: Report) -> None:
    print("\npresets")
    for preset in report.presets:
        print(f"  {preset.name}: {preset}")


def _remedies(rows: Sequence[Ability], presets: Sequence[Composition]) -> None:
    """Each cause once, with all that it stands in the way of."""
    told: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if not row.ok:
            told.setdefault((row.reason, row.remedy, row.paste), []).append(row.name)
    for preset in presets:
        if preset.reason:
            told.setdefault((preset.reason, preset.remedy, preset.paste), []).append(preset.name)
    # Several causes with one remedy are one thing to do.
    done: set[str] = set()
    for (reason, remedy, paste), names in told.items():
        print(f"\nno {', '.join(names)}")
        _fill("why", reason)
        if paste and paste in done:
            _fill("remedy", "the same as above")
            continue
        done.add(paste)
        if remedy:
            _fill("remedy", remedy)
        for line in paste.splitlines():
            print(f"    {line}")


def _fill(word: str, text: str) -> None:
    print(textwrap.fill(f"{word}: {text}", _WIDTH, initial_indent="  ", subsequent_indent="    "))
