"""Restrict this very process and execute a program in its place, as a wrapper does.

    python examples/restrict.py [PROGRAM [ARGUMENTS]]

Nothing is started: the parts are put in force on this process for good (``enter``), and then it executes the program,
which may execute what the system has, write below the working directory, and open no socket. No namespace is needed.
Works as root and as an ordinary user.
"""

from __future__ import annotations

import os
import sys

import isolate

PROGRAM = """
import os, socket
for what, attempt in (
    ("read /etc/passwd", lambda: open("/etc/passwd").read()),
    ("write here", lambda: open("result", "w").write("x")),
    ("write elsewhere", lambda: open("/var/tmp/isolate-restrict", "w")),
    ("open a socket", lambda: socket.socket()),
    ("see a parent's directory", lambda: os.listdir("/root")),
):
    try:
        attempt()
        print(f"{what:26} done")
    except OSError as error:
        print(f"{what:26} {error.strerror}")
"""


def main(args: list[str]) -> None:
    """Enter, and execute."""
    programs = [path for path in ("/usr", "/bin", "/lib", "/lib64") if os.path.isdir(path)]
    box = isolate.Sandbox(
        isolate.NoNewPrivs(),
        isolate.Landlock(execute=programs, read=["/etc"], write=[os.getcwd(), "/dev/null"]),
        isolate.Seccomp.default() + isolate.seccomp.deny("socket", "socketpair"),
        isolate.Rlimits(core=0, nofile=64),
    )
    command = args or ["/usr/bin/python3", "-c", PROGRAM]
    print(f"executing {command[0]}", flush=True)
    box.enter()
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
