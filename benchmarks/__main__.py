"""Every figure of a start in one run, as tables, JSON and pictures.

    python -m benchmarks [--quick] [--json FILE] [--plots DIRECTORY] [--only start,mounts,…] [--peers DIRECTORY]

Rows of one table take turns, so that whatever else the machine does hits all alike; what a machine is like at the time
(kernel, processors, mounts, processes, load) stands with the figures. CPU time is that of everything a row starts.

``start`` is the one that benchmarks/spawn.py explains, with ``subprocess`` and others (benchmarks/peers.py): who is not
here is a row with the reason. The sweeps (benchmarks/sweeps.py) change one thing of the host or of the caller and look
at the same start: ``mounts``, ``processes``, ``descriptors``, ``memory``, ``alive`` (sandboxes that the caller keeps)
and ``threads`` (which start at the same time: starts in a second). ``parts`` is what each part adds, ``steady`` what
runs inside beside outside (benchmarks/steady.py). Needs gcc; pictures need matplotlib (extra ``benchmark``).

    python -m benchmarks --docs

does all of it and writes what the documentation shows: figures.json, tables and pictures in docs/_static/figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import isolate
from benchmarks import measuring, spawn, starts, steady, sweeps, tables

FIGURES = spawn.HERE.parent / "docs" / "_static" / "figures"
KINDS = ("start", "parts", *sweeps.SWEEPS, "steady")


def options_of(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Every figure of a start in one run.")
    parser.add_argument("--quick", action="store_true", help="few runs and small sweeps: two minutes")
    parser.add_argument("--rounds", type=int, help="runs of each row (default: 200, 20 with --quick)")
    parser.add_argument("--only", help="some of: " + ", ".join(KINDS))
    parser.add_argument("--peers", type=Path, metavar="DIRECTORY", help="a Python environment with peers of PyPI")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--plots", type=Path, help="make pictures in this directory")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the tables as reStructuredText there")
    parser.add_argument("--pictures", metavar="PATH", help="where the page finds the pictures")
    parser.add_argument("--docs", action="store_true", help="write what the documentation shows: all of these")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: tables and pictures from --json's file")
    parser.add_argument("--worker", nargs=2, metavar=("KIND", "NUMBER"), help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    options.rounds = options.rounds or (20 if options.quick else 200)
    options.wanted = options.only.split(",") if options.only else list(KINDS)
    unknown = set(options.wanted) - set(KINDS)
    if unknown:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    if options.docs:
        options.json, options.plots, options.page = FIGURES / "figures.json", FIGURES, FIGURES / "tables.inc"
        options.pictures = "_static/figures"
    if options.redraw and not options.json:
        parser.error("--redraw needs --json, or --docs")
    return options


def undisturbed() -> None:
    """In a mount namespace of our own: a start is from a tree only while nobody mounts anything where the caller is."""
    try:
        isolate.MountNamespace(propagation="private").enter()
    except (isolate.IsolateError, OSError) as error:
        print(f"what others mount ends trees here: {str(error).splitlines()[0]}")


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what is wanted."""
    undisturbed()
    told: dict[str, Any] = {"machine": measuring.machine(), "command": "python -m benchmarks " + " ".join(sys.argv[1:])}
    print(", ".join(f"{name} {value}" for name, value in told["machine"].items()), flush=True)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, measuring.accounted():
        directory = Path(temporary)
        programs, driver = spawn.prepare(directory)
        if "start" in options.wanted:
            told["start"] = starts.start(directory, programs, driver, options.rounds, options.peers)
        if "parts" in options.wanted:
            told["parts"] = steady.parts(programs, options.rounds)
        for kind in sweeps.SWEEPS:
            if kind in options.wanted:
                told[kind] = sweeps.sweep(kind, max(10, options.rounds // 2), options.quick)
        if "steady" in options.wanted:
            told["steady"] = steady.steady(options.rounds)
    told["seconds"] = round(time.monotonic() - begin)
    told["machine"]["load at the end"] = measuring.machine()["load"]
    print(f"\n{told['seconds']} seconds, load {told['machine']['load at the end']:.1f} at the end")
    return told


def main() -> None:
    """Measure, or read what was measured, and write what was asked for."""
    options = options_of()
    if options.worker:
        print(json.dumps(sweeps.worker(options.worker[0], int(options.worker[1]), options.rounds)))
        return
    if options.docs and not options.redraw and options.peers is None:
        options.peers = Path(tempfile.gettempdir()) / "isolate-benchmark-peers"
        subprocess.run(
            [sys.executable, "-m", "benchmarks.peers", str(options.peers)], check=True, cwd=spawn.HERE.parent
        )
    told = json.loads(options.json.read_text()) if options.redraw else measured(options)
    if options.json and not options.redraw:
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    if options.plots:
        tables.plots(told, options.plots)
    if options.page:
        options.page.write_text(tables.page(told, told["command"], options.pictures))


if __name__ == "__main__":
    main()
