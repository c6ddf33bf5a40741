"""The options of the command line, and what they say of themselves."""

from __future__ import annotations

import argparse
import re
from typing import Any, Final

from isolate.kernel.checks import nearest
from isolate.tools.cli import build, foreign, listing, net, profile
from isolate.tools.cli.containers import add_commands
from isolate.tools.cli.explain import add_command as add_explain
from isolate.tools.cli.image_options import add_image_commands, add_store

__all__ = [
    "BEHIND",
    "EXIT_INTERRUPTED",
    "EXIT_NOT_EXECUTABLE",
    "EXIT_NOT_FOUND",
    "EXIT_SETUP",
    "EXIT_TIME",
    "EXIT_USAGE",
    "parser",
]

EXIT_USAGE = 2
EXIT_TIME = 124
EXIT_SETUP = 125
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
EXIT_INTERRUPTED = 130

_EXIT_CODES = f"""\
exit status:
  the program's own, where it ended by itself; else
  {EXIT_USAGE}    the options are wrong
  {EXIT_TIME}  it ran into --timeout or --cpu-time
  {EXIT_SETUP}  the sandbox could not be set up: the program never started
  {EXIT_NOT_EXECUTABLE}  the program is there but cannot be executed
  {EXIT_NOT_FOUND}  the program is not there
  128+N  signal N ended it (137: killed, also for memory or --max-output; 159: by its seccomp filter)
A line on stderr, or --json, tells one from the other where the number alone does not."""

_RUN = """\
Run a program in a sandbox, with this terminal's input and output.

Without options the program sees the host's /usr and the like, read-only; its own /tmp, /proc and /dev; no network but
loopback; none of the host's processes; and it has no privileges (isolate.presets.untrusted). --preset bare starts with
nothing but what the options name; --root starts from a root file system of its own."""

_ENTRIES = "what stands in its root, in this order (paths inside are absolute)"


class _Entry(argparse.Action):
    """Collects entries of the root, of all kinds, in the order in which they were given."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        entries = list(getattr(namespace, "entries", []))
        entries.append((self.dest, values if isinstance(values, list) else [values]))
        namespace.entries = entries


def _options(parser: argparse.ArgumentParser) -> None:
    """The options that make a sandbox."""
    add = parser.add_argument
    add(
        "--preset",
        choices=("untrusted", "nested", "bare"),
        default="untrusted",
        help="what to start from: the host's programs for a program that nobody vouches for (default), the same inside"
        " of a container whose /proc is covered, or nothing",
    )
    add("--profile", metavar="FILE", help="start from this profile (isolate profile), in place of a preset")
    add("--root", metavar="DIR", help="start from this root file system, read-only, in place of a preset")
    add("--image", metavar="NAME", help="start from this image of the store; it says what else holds and what is run")
    add_store(parser)
    add("--pull", action="store_true", help="with --image: fetch it where the store has none of that name")
    add("--volume-size", metavar="SIZE", help="with --image: of what is written to each of its volumes (default: 256M)")
    add(
        "--new",
        metavar="KINDS",
        default="",
        help="with --preset bare: new namespaces, a comma between: user,mount,pid,net,ipc,uts,cgroup,time",
    )

    group = parser.add_argument_group(_ENTRIES)
    entry: dict[str, Any] = {"action": _Entry}
    group.add_argument("--ro-bind", nargs=2, metavar=("SRC", "DST"), help="the host's SRC at DST, read-only", **entry)
    group.add_argument("--bind", nargs=2, metavar=("SRC", "DST"), help="the host's SRC at DST, writable", **entry)
    group.add_argument("--tmpfs", metavar="DST", help="an empty directory in memory, of at most --tmpfs-size", **entry)
    group.add_argument(
        "--overlay", nargs=2, metavar=("SRC", "DST"), help="SRC at DST; changes are thrown away", **entry
    )
    group.add_argument("--dir", metavar="DST", help="an empty directory", **entry)
    group.add_argument("--symlink", nargs=2, metavar=("TO", "DST"), help="a symbolic link at DST to TO", **entry)
    group.add_argument("--mask", metavar="DST", help="hide what is at DST", **entry)
    group.add_argument("--proc", metavar="DST", help="with --preset bare: its own /proc at DST", **entry)
    group.add_argument("--dev", metavar="DST", help="with --preset bare: its own /dev at DST", **entry)
    group.add_argument("--tmpfs-size", metavar="SIZE", default="64M", help="of each --tmpfs (default: 64M)")

    group = parser.add_argument_group("what it may use (SIZE: bytes, or with K, M, G: 256M)")
    group.add_argument("--memory", metavar="SIZE", help="of all its processes together; no swap (a cgroup)")
    group.add_argument(
        "--pids", type=int, metavar="N", help="processes and threads, one of isolate's included (a cgroup)"
    )
    group.add_argument("--cpu", type=float, metavar="CORES", help="share of processors, such as 0.5 or 2 (a cgroup)")
    group.add_argument(
        "--rlimit",
        action="append",
        default=[],
        metavar="NAME=N[:HARD]",
        help="of each process: nofile=256, fsize=10M, …",
    )
    net.run_options(group.add_argument)

    group = parser.add_argument_group("who it is")
    group.add_argument("--hostname", metavar="NAME", help="its host name")
    group.add_argument("--uid", type=int, metavar="N", help="its user id inside")
    group.add_argument("--gid", type=int, metavar="N", help="its group id inside (default: as --uid)")
    group.add_argument(
        "--cap", action="append", default=[], metavar="NAME", help="a capability to leave it, such as net_raw"
    )
    group.add_argument(
        "--seccomp",
        choices=("default", "strict", "none"),
        help="the filter of its system calls (default: default; bare: none but for nested user namespaces)",
    )


def _start_options(parser: argparse.ArgumentParser) -> None:
    """The options of one run."""
    group = parser.add_argument_group("the run")
    group.add_argument("--timeout", type=float, metavar="SECONDS", help="kill everything after this much time")
    group.add_argument(
        "--cpu-time", type=float, metavar="SECONDS", help="kill everything after this much CPU time in all"
    )
    group.add_argument(
        "-t",
        "--tty",
        action="store_true",
        help="a terminal of the sandbox's own for the program, also where input or output is none",
    )
    group.add_argument(
        "--grace",
        type=float,
        metavar="SECONDS",
        default=10.0,
        help="SIGTERM, SIGHUP, SIGINT and SIGQUIT go to the program; kill everything so long after (default: 10)",
    )
    group.add_argument("--max-output", metavar="SIZE", default="64M", help="with --json: of each stream (default: 64M)")
    group.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable; without =VALUE with the value it has here (default: PATH alone)",
    )
    group.add_argument("--cwd", metavar="DIR", help="the working directory inside (default: /)")
    group.add_argument("--json", action="store_true", help="collect the output; print one line of JSON with the result")
    group.add_argument("--quiet", action="store_true", help="no line on stderr about why it was killed")


def _as_run(parser: argparse.ArgumentParser) -> None:
    """All that ``isolate run`` takes: the options of one run, those that make a sandbox, and the program."""
    _start_options(parser)
    _options(parser)
    _program(parser)


#: Commands that take a program behind the name of what it is started in.
BEHIND: Final = ("attach", "exec", "open")


def _program(parser: argparse.ArgumentParser) -> None:
    """The program and its arguments, with or without ``--`` before them."""
    parser.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


class _Parser(argparse.ArgumentParser):
    """Unknown words are refused by the command that they were given to, with the nearest that it knows."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].partition("=")[0]
            hint = foreign.option(word)
            if not hint and word[:2] == "--":
                hint = nearest(word, re.findall(r"--[a-z][a-z-]*", self.format_help()))
            if not hint and word[:1] != "-" and "exec" in self.prog.split():
                hint = "; -- stands before the program"
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        known = action.choices
        if known is None or value in known:
            return
        hint = foreign.command(str(value)) if action.dest == "command" else ""
        if hint := hint or nearest(value, map(str, known)):
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}{hint}")
        super()._check_value(action, value)


def parser(*, behind: bool = True) -> argparse.ArgumentParser:
    """The parser of the whole command line.

    ``behind``: the words behind the NAME or PID of exec, open and attach are a program. Else options may stand there.
    """
    import isolate

    top: argparse.ArgumentParser = _Parser(
        prog="isolate",
        allow_abbrev=False,
        description="Linux isolation primitives that compose. Each command has --help.",
    )
    top.add_argument("--version", action="version", version=f"isolate {isolate.__version__}")
    commands: Any = top.add_subparsers(dest="command", metavar="COMMAND")
    raw = argparse.RawDescriptionHelpFormatter
    common: dict[str, Any] = {"allow_abbrev": False, "formatter_class": raw}

    run = commands.add_parser(
        "run",
        help="run a program in a sandbox",
        description=_RUN,
        epilog=_EXIT_CODES,
        usage="isolate run [options] -- PROGRAM [ARGUMENT ...]",
        **common,
    )
    _as_run(run)

    shell = commands.add_parser(
        "shell",
        help="a shell in a sandbox, at a terminal of its own",
        description="An interactive shell in a sandbox, at a terminal of the sandbox's own, with the options of run."
        "\nbash where there is one, else sh; or the PROGRAM that is named.",
        epilog=_EXIT_CODES,
        usage="isolate shell [options] [-- PROGRAM [ARGUMENT ...]]",
        **common,
    )
    _as_run(shell)

    _as_run(add_explain(commands, common))

    attach = commands.add_parser(
        "attach",
        help="run a program in the namespaces of a running process",
        description="Run a program in the namespaces of a running process, with its ids, without capabilities, and "
        "with no terminal to control.\nNeeds to be root, or the user of the process.",
        epilog=_EXIT_CODES,
        usage="isolate attach [options] PID [--] PROGRAM [ARGUMENT ...]",
        **common,
    )
    attach.add_argument(
        "--only", metavar="KINDS", help="only these, with commas: user, mount, pid, net, ipc, uts, cgroup, time"
    )
    _start_options(attach)
    attach.add_argument("pid", metavar="PID", help="a process, or the name of an open container")

    add_commands(commands, common, _options, _start_options, _EXIT_CODES)
    for name in BEHIND if behind else ():
        _program(commands.choices[name])

    for name in ("doctor", "probe"):
        doctor = commands.add_parser(
            name,
            help="what this host can do for this user, and what would make the rest run"
            if name == "doctor"
            else "the same as doctor, by its old name",
            description="Try, in sandboxes that are thrown away, what this host can do for this user at this place; "
            "for each no say why,\nand print one remedy to paste. Changes nothing, needs no privileges.\nExit status: "
            "0 if all that was asked for can be done (with no NAME: if presets.untrusted() runs), 1 if not.",
            usage=f"isolate {name} [--json] [NAME ...]",
            **common,
        )
        doctor.add_argument("--json", action="store_true", help="as JSON")
        doctor.add_argument("names", nargs="*", metavar="NAME", help="only these rows of the table")
    profile.add_commands(commands, common)
    listing.add_commands(commands, common)
    add_image_commands(commands, common)
    net.options(commands, common)
    build.options(commands, common)
    return top
