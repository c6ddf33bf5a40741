"""The options and commands of docker, podman, bubblewrap and systemd-run, and what they are called here."""

from __future__ import annotations

from typing import Final

__all__ = ["command", "option"]

_BIND = "--bind SRC DST (writable) or --ro-bind SRC DST"
_NEW = "every namespace is new already; fewer: --preset bare --new KINDS"
_NOT_NEEDED = "it is so already: leave it out"
_OPTIONS: Final = {
    **dict.fromkeys(("-v", "--volume", "--mount", "--bind-try"), _BIND),
    "--ro-bind-try": "--ro-bind SRC DST",
    "--overlay-src": "--overlay SRC DST",
    **dict.fromkeys(("-e", "--setenv"), "--env NAME=VALUE"),
    **dict.fromkeys(("-w", "--workdir", "--chdir", "--working-directory"), "--cwd DIR"),
    **dict.fromkeys(("-u", "--user"), "--uid N and --gid N"),
    **dict.fromkeys(("-i", "-it", "-ti", "--interactive", "--pty"), "-t; input is read in any case"),
    **dict.fromkeys(("-m", "--memory-limit"), "--memory SIZE"),
    "--cpus": "--cpu CORES",
    "--pids-limit": "--pids N",
    "--ulimit": "--rlimit NAME=N[:HARD]",
    "--cap-add": "--cap NAME",
    **dict.fromkeys(("-p", "-P"), "--publish PORT:PORT"),
    **dict.fromkeys(("--network", "--net=host", "--share-net"), "--net none, host, user or NAME"),
    "--entrypoint": "the program after --",
    "--security-opt": "--seccomp default, strict or none",
    "--init": _NOT_NEEDED,
    **dict.fromkeys(
        ("--rm", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "--read-only"), _NOT_NEEDED
    ),
    **dict.fromkeys(("-d", "--detach"), "isolate open NAME -- PROGRAM"),
}
_COMMANDS: Final = {
    "inspect": "ps --json",
    "create": "open",
    "start": "open",
    "kill": "stop",
    **dict.fromkeys(("top", "list", "ls"), "ps, or image ls"),
    **dict.fromkeys(("pull", "push", "images", "save", "load", "tag", "rmi"), "image (isolate image --help)"),
    "network": "net",
    "help": "--help, also after a command",
}


def option(word: str) -> str:
    """``"; here: --cwd DIR"`` for an option that another tool has; or nothing."""
    found = _NEW if word.startswith("--unshare-") else _OPTIONS.get(word)
    return "" if found is None else f"; here: {found}"


def command(word: str) -> str:
    """The same for a command."""
    found = _COMMANDS.get(word)
    return "" if found is None else f"; here: {found}"
