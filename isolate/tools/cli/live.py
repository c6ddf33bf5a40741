"""Tables that are drawn again and again: with rich on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import json
import shutil
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from isolate.tools.cli.showing import table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

__all__ = ["Rows", "add_options", "narrowed", "show"]

#: The heading and the rows, and the same for JSON.
Rows = tuple[list[tuple[str, ...]], Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--live`` and what belongs to it."""
    parser.add_argument("--live", action="store_true", help="draw the table again and again, until Ctrl-C")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="with --live (default: 1)")
    parser.add_argument("--count", type=int, metavar="N", help="with --live: end after so many tables")
    parser.add_argument("--json", action="store_true", help="as JSON; with --live one line for each table")


def show(options: argparse.Namespace, ask: Callable[[], Rows]) -> int:
    """Print a table once, or with ``--live`` until it is interrupted."""
    if not options.live:
        if options.count is not None:
            raise ValueError("--count goes with --live")
        rows, data = ask()
        print(json.dumps(data, indent=2) if options.json else table(rows))
        return 0
    if not 0 < options.interval <= 86400:
        raise ValueError(f"--interval must be seconds above 0, at most a day, not {options.interval:g}")
    if options.count is not None and options.count < 1:
        raise ValueError(f"--count must be a number above 0, not {options.count}")
    done = 0
    with _drawing(options.json) as draw, suppress(KeyboardInterrupt):
        while True:
            draw(*ask())
            done += 1
            if done == options.count:
                break
            time.sleep(options.interval)
    return 0


@contextmanager
def _drawing(as_json: bool) -> Iterator[Callable[[list[tuple[str, ...]], Any], None]]:
    if as_json:
        yield lambda rows, data: print(json.dumps(data), flush=True)
        return
    terminal = sys.stdout.isatty()
    live = _rich() if terminal else None
    if live is None and terminal:
        width = shutil.get_terminal_size().columns
        yield lambda rows, data: print(f"\x1b[H\x1b[J{table(narrowed(rows, width))}", flush=True)
        return
    if live is None:
        yield lambda rows, data: print(f"{table(rows)}\n", flush=True)
        return
    with live[0]:
        yield lambda rows, data: live[0].update(live[1](rows), refresh=True)


def _rich() -> Any:
    """A display that changes in place, and what makes its table; None without rich."""
    try:
        from rich.live import Live  # pyright: ignore[reportMissingImports]
        from rich.table import Table  # pyright: ignore[reportMissingImports]
        from rich.text import Text  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None

    display = Live(auto_refresh=False)

    def made(rows: list[tuple[str, ...]]) -> Any:
        rows = narrowed(rows, display.console.width)
        found = Table(box=None, pad_edge=False, header_style="bold")
        for at, word in enumerate(rows[0]):
            found.add_column(word, justify="left" if at in (0, len(rows[0]) - 1) else "right", no_wrap=True)
        for row in rows[1:]:  # as text: a name in brackets is no markup
            found.add_row(*(Text(cell, overflow="ellipsis") for cell in row))
        return found

    return display, made


#: The columns that a narrow terminal does without, the first to go first.
_LESS = ("READ", "WRITTEN", "PEAK", "CPU TIME", "OOM KILLS", "PID", "AGE", "TASKS", "STATE")


def narrowed(rows: list[tuple[str, ...]], width: int) -> list[tuple[str, ...]]:
    """The rows without the columns for which a terminal has no room; the first one, the name, always stays."""
    for word in _LESS:
        needed = sum(max(len(row[at]) for row in rows) + 1 for at in range(len(rows[0])))
        if needed <= width:
            break
        if word in rows[0]:
            at = rows[0].index(word)
            rows = [(*row[:at], *row[at + 1 :]) for row in rows]
    return rows
