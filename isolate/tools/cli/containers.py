"""Commands for containers that are detached: open, ps, exec, logs, stop, rm, stats."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from isolate.cgroups.stats import Stats

__all__ = ["COMMANDS", "add_commands", "entered"]

_OPEN = """Open a container that runs on after this command, under a name. With a PROGRAM that is started in it;
its output goes to a bounded log (isolate logs NAME). The options are those of isolate run."""


def add_commands(
    commands: Any,
    common: dict[str, Any],
    options: Callable[[argparse.ArgumentParser], None],
    start_options: Callable[[argparse.ArgumentParser], None],
    exit_codes: str,
) -> None:
    """Their parsers."""
    opening = commands.add_parser(
        "open",
        help="open a container that runs on, under a name",
        description=_OPEN,
        usage="isolate open [options] NAME [-- PROGRAM [ARGUMENT ...]]",
        **common,
    )
    opening.add_argument("--log-size", metavar="SIZE", default="1M", help="how much of the log is kept (default: 1M)")
    start_options(opening)
    options(opening)
    opening.add_argument("container", metavar="NAME")

    listing = commands.add_parser("ps", help="list the containers that were opened", **common)
    listing.add_argument("--json", action="store_true", help="as JSON, a list")

    executing = commands.add_parser(
        "exec",
        help="run a program in an open container",
        epilog=exit_codes,
        usage="isolate exec [options] NAME -- PROGRAM [ARGUMENT ...]",
        **common,
    )
    executing.add_argument("--keep", action="store_true", help="let it run on; its output goes to the log")
    start_options(executing)
    executing.add_argument("container", metavar="NAME")

    logs = commands.add_parser("logs", help="print what the programs that were kept have written", **common)
    logs.add_argument("container", metavar="NAME")

    stop = commands.add_parser("stop", help="end a container: SIGTERM to its programs, then everything", **common)
    stop.add_argument("--grace", type=float, default=10.0, metavar="SECONDS", help="for the programs (default: 10)")
    stop.add_argument("container", metavar="NAME", nargs="+")

    removal = commands.add_parser("rm", help="remove the record and the log of a container that has ended", **common)
    removal.add_argument("--force", action="store_true", help="end it first")
    removal.add_argument("container", metavar="NAME", nargs="+")

    stats = commands.add_parser("stats", help="what a container uses (it needs a limit, such as --memory)", **common)
    stats.add_argument("--json", action="store_true", help="as JSON")
    stats.add_argument("container", metavar="NAME")


def entered(name: str) -> Any:
    """The container of a name."""
    from isolate.sandbox.containers.detached import reopen

    return reopen(name)


def _open(options: argparse.Namespace) -> int:
    from isolate.tools.cli.assemble import environment, sandbox

    program = getattr(options, "program", None)
    with sandbox(options).open(name=options.container, detached=True, log_size=options.log_size) as c:
        if program:
            try:
                c.keep(program, env=environment(options.env), cwd=options.cwd)
            except BaseException:
                from isolate.sandbox.containers.records import remove

                c.kill()
                c.wait(30)
                _settled(options.container)
                remove(options.container)
                raise
    return 0


def _ps(options: argparse.Namespace) -> int:
    from isolate.errors import printable
    from isolate.sandbox.containers.records import read_records

    found = read_records()
    if options.json:
        print(json.dumps([asdict(record) for record in found], indent=2))
        return 0
    rows = [("NAME", "STATE", "PID", "AGE", "COMMAND")]
    rows += [(r.name, r.state, str(r.pid or "-"), _age(r.created), printable(" ".join(r.command))[:60]) for r in found]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join([*(f"{text:{width}}" for text, width in zip(row, widths, strict=False)), row[4]]).rstrip())
    return 0


def _age(since: float) -> str:
    seconds = max(0, int(time.time() - since))
    if not since:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _logs(options: argparse.Namespace) -> int:
    from isolate.sandbox.containers.log import read_log
    from isolate.sandbox.containers.records import opened

    with opened(options.container) as directory:
        data = read_log(directory)
    if sys.stdout.isatty():  # what a program wrote is shown, never sent to the terminal as it is
        from isolate.errors import printable_lines

        print(printable_lines(data.decode("utf-8", "backslashreplace")), end="")
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    return 0


def _stop(options: argparse.Namespace) -> int:
    for name in options.container:
        with entered(name) as c:
            c.stop(options.grace)
        _settled(name)
    return 0


def _settled(name: str) -> None:
    """Wait until the keeper has said that it ended."""
    from isolate.sandbox.containers.records import read_records

    deadline = time.monotonic() + 10
    while any(r.name == name and r.state == "running" for r in read_records()) and time.monotonic() < deadline:
        time.sleep(0.01)


def _rm(options: argparse.Namespace) -> int:
    from isolate.errors import SetupError
    from isolate.sandbox.containers.records import remove

    for name in options.container:
        if options.force:
            try:
                with entered(name) as c:
                    c.kill()
                    c.wait(30)
            except SetupError:
                pass  # it has ended, or there is none, which is said below
            _settled(name)
        remove(name)
    return 0


def _stats(options: argparse.Namespace) -> int:
    with entered(options.container) as c:
        found: Stats = c.stats()
    if options.json:
        print(json.dumps(asdict(found), indent=2))
        return 0
    for name, value in asdict(found).items():
        if value is not None and not isinstance(value, dict):
            print(f"{name:20} {value:.3f}" if isinstance(value, float) else f"{name:20} {value}")
    return 0


#: By the command's word. ``exec`` is executed as the others are that run a program: see :mod:`isolate.tools.cli`.
COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "open": _open,
    "ps": _ps,
    "logs": _logs,
    "stop": _stop,
    "rm": _rm,
    "stats": _stats,
}
