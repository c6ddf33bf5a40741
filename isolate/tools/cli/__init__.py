"""The command line: run a program in a sandbox, explain one, examine the host.

It is a thin dress of :class:`isolate.Sandbox`: whatever an option does, a part does, and ``explain --code`` prints it.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Any

from isolate.sandbox.streams import PIPE
from isolate.tools.cli.assemble import environment, of_image, sandbox
from isolate.tools.cli.containers import COMMANDS
from isolate.tools.cli.listing import completion, man_page, overview
from isolate.tools.cli.options import (
    BEHIND,
    EXIT_INTERRUPTED,
    EXIT_NOT_EXECUTABLE,
    EXIT_NOT_FOUND,
    EXIT_SETUP,
    EXIT_TIME,
    EXIT_USAGE,
    parser,
)
from isolate.tools.cli.signals import Forwarding

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from isolate.errors import SetupError
    from isolate.sandbox.box import Sandbox
    from isolate.sandbox.result import Result
    from isolate.sandbox.verbs import Verbs

__all__ = ["main"]


def _complain(what: object) -> None:
    """A message on stderr. What a sandbox's program may have put into it is shown, never sent to the terminal."""
    from isolate.errors import printable_lines

    print(f"isolate: {printable_lines(str(what))}", file=sys.stderr)


def _failed(error: Exception, options: argparse.Namespace) -> None:
    """Print the error that ends a command: on stderr, and with ``--json`` on stdout as well, as the answer."""
    _complain(error)
    if getattr(options, "json", False):
        import json

        words = {name: getattr(error, name, None) for name in ("part", "step", "path", "errno", "cause", "remedy")}
        print(
            json.dumps({"error": {"type": type(error).__name__, **words}, "message": str(error)}, default=os.fsdecode)
        )


def _any_terminal() -> None:
    """Let stdout and stderr escape what their encoding has no way to say: a terminal may be an ASCII one."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _run(options: argparse.Namespace) -> int:
    if not options.program and options.image is None:
        raise ValueError("which program? (isolate run [options] -- PROGRAM [ARGUMENT ...])")
    try:
        return _execute(sandbox(options), options)
    finally:
        _close(options)


def _close(options: argparse.Namespace) -> None:
    """The network that --publish made."""
    lan = getattr(options, "network", None)
    if lan is not None:
        lan.close()


def _profile(options: argparse.Namespace) -> int:
    from isolate.tools.cli.profile import command

    return command(options)


def _completion(options: argparse.Namespace) -> int:
    print(completion(parser(), options.shell), end="")
    return 0


def _man(options: argparse.Namespace) -> int:
    print(man_page(parser()), end="")
    return 0


def _net(options: argparse.Namespace) -> int:
    from isolate.tools.cli import net

    return net.command(options)


def _build(options: argparse.Namespace) -> int:
    from isolate.tools.cli import build

    return build.command(options)


def _image(options: argparse.Namespace) -> int:
    from isolate.tools.cli.image import image

    return image(options)


def _shell(options: argparse.Namespace) -> int:
    if not options.program:
        options.program = ["sh", "-c", "command -v bash >/dev/null && exec bash -i; exec sh -i"]
    if "TERM" in os.environ and not any(word.partition("=")[0] == "TERM" for word in options.env):
        options.env = [*options.env, "TERM"]
    options.tty, options.quiet = True, True
    return _execute(sandbox(options), options)


def _attach(options: argparse.Namespace) -> int:
    from isolate.sandbox.attach import attach

    if not options.pid.isdecimal():
        options.container, options.keep = options.pid, False
        options.program = getattr(options, "program", None) or ["/bin/sh"]
        return _exec(options)
    if not getattr(options, "program", None):
        raise ValueError("which program? (isolate attach [options] PID [--] PROGRAM [ARGUMENT ...])")
    with attach(int(options.pid)) as there:
        return _execute(there.sandbox(only=options.only.split(",") if options.only else None), options)


def _exec(options: argparse.Namespace) -> int:
    from isolate.tools.cli.containers import entered

    if not getattr(options, "program", None):
        raise ValueError("which program? (isolate exec [options] NAME [--] PROGRAM [ARGUMENT ...])")
    with entered(options.container) as container:
        if not options.keep:
            return _execute(container, options, container.box)
        container.keep(options.program, env=environment(options.env), cwd=options.cwd)
    return 0


def _execute(box: Verbs, options: argparse.Namespace, of: Sandbox | None = None) -> int:
    """``of``: the sandbox that a container is of."""
    from isolate.errors import SetupError

    words: dict[str, Any] = {"stdin": 0, "max_output": options.max_output}
    if options.tty and options.json:
        raise ValueError("--tty shows what the program writes; --json collects it")
    if options.tty:
        words = {"pty": True}
    elif options.json:
        words.update(stdout=PIPE, stderr=PIPE)
    try:
        with Forwarding(options.grace) as forwarding:
            words.update(timeout=options.timeout, cpu_time=options.cpu_time, cwd=options.cwd)
            with box.spawn(options.program, env=environment(options.env, of_image(of or box)), **words) as process:
                forwarding.started(process)
                if options.tty:
                    process.interact(escape=None)
                process.communicate()
                result = process.result()
    except SetupError as error:
        if options.json:
            _print_error(error)
        else:
            _complain(error)
        return _setup_status(error)
    if options.json:
        print(result.json())
    elif not options.quiet and str(result.verdict) not in ("OK", "EXITED"):
        _complain(_why(result))
    return _status(result)


def _print_error(error: SetupError) -> None:
    import json

    told = ("part", "step", "syscall", "path", "errno", "cause", "remedy")
    print(json.dumps({"verdict": None, "error": {name: getattr(error, name) for name in told}, "message": str(error)}))


def _setup_status(error: SetupError) -> int:
    if error.program:
        return EXIT_NOT_FOUND if error.errno == errno.ENOENT else EXIT_NOT_EXECUTABLE
    return EXIT_SETUP


def _why(result: Result[Any]) -> str:
    import signal

    words = {
        "TIMEOUT": "killed: it ran into --timeout",
        "CPU_TIME": "killed: it ran into its limit of CPU time",
        "OOM": "killed: it ran into its limit of memory",
        "PIDS": "it ran into its limit of processes",
        "OUTPUT": "killed: it wrote more than --max-output",
        "SECCOMP": "killed: it made a system call that its filter forbids",
    }.get(str(result.verdict))
    if words is None:
        number = -result.returncode
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        words = f"ended by {name}"
    told = f"{result.verdict}: {words} (after {result.wall_time:.3f} s, {result.cpu_time:.3f} s of CPU time)"
    return "; ".join((told, *result.hints))


def _status(result: Result[Any]) -> int:
    if str(result.verdict) in ("TIMEOUT", "CPU_TIME"):
        return EXIT_TIME
    if str(result.verdict) == "OUTPUT":
        return 128 + 9  # also where it ended by itself before it could be killed
    return 128 - result.returncode if result.returncode < 0 else result.returncode


def _explain(options: argparse.Namespace) -> int:
    from isolate.tools.cli import explain

    try:
        return explain.command(options, sandbox(options))
    finally:
        _close(options)


def _doctor(options: argparse.Namespace) -> int:
    from isolate.tools.doctor.show import run

    return run(options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit status. Without arguments it shows what there is, with examples."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    _any_terminal()
    # All words behind the first -- belong to the program, however they look.
    cut = argv.index("--") if "--" in argv else None
    top = parser(behind=cut is None)
    if not argv:
        print(overview(top), end="")
        return 0
    options = top.parse_args(argv[:cut])
    if cut is None and options.command in BEHIND and options.program and options.program[0][:1] == "-":
        options = parser(behind=False).parse_args(argv)  # options behind the name, which are no program
    if options.command is None:
        top.print_help()
        return EXIT_USAGE
    if cut is not None:
        if getattr(options, "program", None):
            top.error(f"{options.program[0]!r} stands before --: options first, then -- and the program")
        options.program = argv[cut + 1 :]
    own = {
        "run": _run,
        "shell": _shell,
        "attach": _attach,
        "exec": _exec,
        "explain": _explain,
        "doctor": _doctor,
        "probe": _doctor,
        "image": _image,
        "net": _net,
        "build": _build,
        "profile": _profile,
        "completion": _completion,
        "man": _man,
    }
    command = own.get(options.command) or COMMANDS[options.command]
    try:
        return command(options)
    except (ValueError, TypeError) as error:
        _failed(error, options)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_INTERRUPTED
    except OSError as error:
        _failed(error, options)
        return EXIT_SETUP
