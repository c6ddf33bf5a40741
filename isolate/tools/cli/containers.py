"""Commands for containers that are detached: open, ps, exec, cp, logs, stop, rm, stats."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from isolate.tools.cli import copying, live
from isolate.tools.cli.showing import binary

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
        usage="isolate open [options] NAME [[--] PROGRAM [ARGUMENT ...]]",
        **common,
    )
    opening.add_argument("--log-size", metavar="SIZE", default="1M", help="how much of the log is kept (default: 1M)")
    start_options(opening)
    options(opening)
    opening.add_argument("container", metavar="NAME")

    listing = commands.add_parser("ps", help="list the containers that were opened", **common)
    live.add_options(listing)

    executing = commands.add_parser(
        "exec",
        help="run a program in an open container",
        epilog=exit_codes,
        usage="isolate exec [options] NAME [--] PROGRAM [ARGUMENT ...]",
        **common,
    )
    executing.add_argument("--keep", action="store_true", help="let it run on; its output goes to the log")
    start_options(executing)
    executing.add_argument("container", metavar="NAME")

    copying.add_command(commands, common)

    logs = commands.add_parser("logs", help="print what the programs that were kept have written", **common)
    logs.add_argument("--json", action="store_true", help="as JSON")
    logs.add_argument("container", metavar="NAME")

    stop = commands.add_parser("stop", help="end a container: SIGTERM to its programs, then everything", **common)
    stop.add_argument("--grace", type=float, default=10.0, metavar="SECONDS", help="for the programs (default: 10)")
    stop.add_argument("--json", action="store_true", help="print the names as JSON")
    stop.add_argument("container", metavar="NAME", nargs="+")

    removal = commands.add_parser("rm", help="remove the record and the log of a container that has ended", **common)
    removal.add_argument("--force", action="store_true", help="end it first")
    removal.add_argument("--json", action="store_true", help="print the names as JSON")
    removal.add_argument("container", metavar="NAME", nargs="+")

    stats = commands.add_parser(
        "stats",
        help="what containers use (they need a limit, such as --memory)",
        description="What containers use: a table of those that run, or all figures of one NAME. Counted are those that"
        "\nhave a group of their own: opened with a limit, such as --memory.",
        **common,
    )
    live.add_options(stats)
    stats.add_argument("container", metavar="NAME", nargs="*")


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
                remove(options.container)
                raise
        if options.json:
            print(json.dumps({"name": options.container, "pid": c.pid}))
    return 0


def _ps(options: argparse.Namespace) -> int:
    from isolate.errors import printable
    from isolate.sandbox.containers.records import read_records

    def ask() -> live.Rows:
        found = read_records()
        rows: list[tuple[str, ...]] = [("NAME", "STATE", "PID", "AGE", "COMMAND")]
        rows += [
            (r.name, r.state, str(r.pid or "-"), _age(r.created), printable(" ".join(r.command))[:60]) for r in found
        ]
        return rows, [asdict(record) for record in found]

    return live.show(options, ask)


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
    if options.json:
        print(json.dumps({"container": options.container, "log": data.decode("utf-8", "backslashreplace")}))
    elif sys.stdout.isatty():  # what a program wrote is shown, never sent to the terminal as it is
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
    return _told(options, "stopped")


def _told(options: argparse.Namespace, what: str) -> int:
    if options.json:
        print(json.dumps({what: options.container}))
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
                _settled(name)  # it ends just now, or has ended, or there is none, which is said below
        remove(name)
    return _told(options, "removed")


def _stats(options: argparse.Namespace) -> int:
    if len(options.container) == 1 and not options.live:
        with entered(options.container[0]) as c:
            try:
                found: Stats = c.stats()
            except ValueError:
                name = options.container[0]
                raise ValueError(
                    f"{name} has no limit, so nothing counts for it: open it with --memory 1G, say"
                ) from None
        if options.json:
            print(json.dumps(asdict(found), indent=2))
            return 0
        for name, value in asdict(found).items():
            if value is not None and not isinstance(value, dict):
                print(f"{name:20} {value:.3f}" if isinstance(value, float) else f"{name:20} {value}")
        return 0
    return live.show(options, Usage(options.container).ask)


class Usage:
    """The use of containers, asked again and again."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._before: dict[str, tuple[float, float]] = {}

    def ask(self) -> live.Rows:
        """The table; processor time is that since the last one."""
        from isolate.sandbox.containers.records import read_records

        states = {record.name: record.state for record in read_records()}
        rows: list[tuple[str, ...]] = [
            ("NAME", "CPU %", "CPU TIME", "MEMORY", "PEAK", "TASKS", "READ", "WRITTEN", "OOM KILLS", "STATE")
        ]
        data = []
        for name in self._names or [name for name, state in states.items() if state == "running"]:
            stats, state = self._of(name, states.get(name, "not there"))
            now = time.monotonic()
            share = None
            if stats is not None and stats.cpu_time is not None:
                then, used = self._before.get(name, (now, stats.cpu_time))
                share = 100 * (stats.cpu_time - used) / (now - then) if now > then else None
                self._before[name] = now, stats.cpu_time
            rows.append(_row(name, stats, share, state))
            figures = None if stats is None else asdict(stats)
            data.append({"name": name, "state": state, "cpu_percent": share, "stats": figures})
        return rows, data

    @staticmethod
    def _of(name: str, state: str) -> tuple[Stats | None, str]:
        from isolate.errors import IsolateError

        if state != "running":
            return None, state
        try:
            with entered(name) as c:
                return c.stats(), state
        except (IsolateError, OSError) as error:  # it has ended meanwhile, or has no group of its own
            return None, f"{state}: {getattr(error, 'cause', None) or error}"


def _row(name: str, stats: Stats | None, share: float | None, state: str) -> tuple[str, ...]:
    from isolate.errors import printable

    def said(value: Any, text: Callable[[Any], str] = str) -> str:
        return "-" if value is None else text(value)

    def size(value: Any) -> str:
        return said(value, binary)

    if stats is None:
        return (name, *["-"] * 8, printable(state)[:60])
    read = sum(each.rbytes for each in stats.io.values()) if stats.io else None
    written = sum(each.wbytes for each in stats.io.values()) if stats.io else None
    return (
        name,
        said(share, "{:.1f}".format),
        said(stats.cpu_time, "{:.2f} s".format),
        size(stats.memory),
        size(stats.peak_memory),
        said(stats.pids),
        size(read),
        size(written),
        said(stats.oom_kill),
        state,
    )


#: By the command's word. ``exec`` is executed as the others are that run a program: see :mod:`isolate.tools.cli`.
COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "open": _open,
    "ps": _ps,
    "cp": copying.copy,
    "logs": _logs,
    "stop": _stop,
    "rm": _rm,
    "stats": _stats,
}
