"""Progress and tables: bars with rich on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from isolate.images.progress import Progress

__all__ = ["amount", "binary", "colour", "counted", "progress", "short", "table"]

_COLOURS = {"added": "32", "modified": "33", "metadata": "36", "removed": "31"}


def counted(count: int, noun: str) -> str:
    """A number with its noun: 1 layer, 2 layers."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def amount(size: int | None) -> str:
    """Bytes for people: powers of 1000, as registries count."""
    if size is None:
        return "?"
    return _scaled(size, 1000, (" kB", " MB", " GB"))


def binary(size: int) -> str:
    """Bytes of memory for people: powers of 1024, as limits are given."""
    return _scaled(size, 1024, ("K", "M", "G"))


def _scaled(size: int, base: int, units: tuple[str, ...]) -> str:
    if size < base:
        return f"{size} B"
    value, number = size / base, 0
    while value >= base and number < len(units) - 1:
        value, number = value / base, number + 1
    return f"{value:.1f}{units[number]}"


def short(digest: str) -> str:
    """Twelve digits of a digest, or the name that it is."""
    return digest.partition(":")[2][:12] if digest.startswith("sha") else digest[:40]


def colour(kind: str, text: str) -> str:
    """A line in the colour of a kind of change, on a terminal."""
    return f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m" if sys.stdout.isatty() and kind in _COLOURS else text


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns, the first row on top."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """The receiver of a long verb's progress."""
    if quiet:
        yield None
        return
    bars = _bars() if sys.stderr.isatty() else None
    if bars is None:
        yield _lines()
        return
    with bars:
        tasks: dict[tuple[str, str], Any] = {}

        def show(p: Progress) -> None:
            key = p.what, p.digest
            if key not in tasks:
                tasks[key] = bars.add_task(f"{p.what:9} {short(p.digest)}", total=p.total)
            bars.update(tasks[key], completed=p.done, total=p.total)

        yield show


def _bars() -> Any:
    try:
        from rich.console import Console  # pyright: ignore[reportMissingImports]
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn  # pyright: ignore[reportMissingImports]
        from rich.progress import Progress as Bars  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Bars(*columns, console=Console(stderr=True))


def _lines() -> Callable[[Progress], None]:
    told: set[tuple[str, str]] = set()

    def show(p: Progress) -> None:
        if p.done == p.total and (p.what, p.digest) not in told:
            told.add((p.what, p.digest))
            print(f"{p.what} {short(p.digest)} {amount(p.total)}", file=sys.stderr, flush=True)

    return show
