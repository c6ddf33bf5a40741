"""An interactive shell in a sandbox, on your terminal.

    python examples/shell.py [PROGRAM [ARGUMENTS]]

The shell has a terminal of its own, made of the sandbox's own devpts: job control, ``tty`` and full-screen programs
work, and nothing inside ever holds yours, whose settings are restored however this ends. Ctrl-] leaves. Works as root
and as an ordinary user.
"""

from __future__ import annotations

import os
import sys

import isolate

PROFILE = {"PATH": "/usr/bin:/bin", "PS1": "isolate$ ", "HOME": "/home", "TERM": os.environ.get("TERM", "dumb")}


def main(args: list[str]) -> int:
    """Run it until it ends."""
    box = isolate.presets.untrusted(isolate.Tmpfs("/home", size="64M"))
    with box.spawn(args or ["sh", "-i"], pty=True, env=PROFILE, cwd="/home") as shell:
        print("in a sandbox; Ctrl-] leaves", flush=True)
        code = shell.interact()
    print("\r\nleft" if code is None else f"\r\nended with {code}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
