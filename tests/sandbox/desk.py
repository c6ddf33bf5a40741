"""A terminal with a user at it: a shell with job control, keys that are typed, a screen that is read."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

ISOLATE = f"{sys.executable} -m isolate"
#: Nothing but what the test needs: the mechanism is the same for every sandbox.
RUN = f"{ISOLATE} run --preset bare --new user,mount,pid --"
PROMPT = b"PS> "


class Desk:
    """``args`` runs at a new terminal, which controls it."""

    def __init__(self, *args: str, **streams: Any) -> None:
        self.ours, theirs = os.openpty()
        self.screen = b""
        self.resize(24, 80)
        env = {**os.environ, "PS1": PROMPT.decode(), "TERM": "dumb", "HISTFILE": ""}
        words = args or ("bash", "--norc", "--noprofile", "--noediting", "-i")
        stdio = {"stdin": theirs, "stdout": theirs, "stderr": theirs, **streams}
        # Under nohup(1) SIGHUP is ignored, and who hangs up here expects that it ends somebody.
        words = ("env", "--default-signal=HUP", "setsid", "-c", *words)
        self.process = subprocess.Popen(words, env=env, **stdio)
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.ours)  # hangs up
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
            return
        self.process.kill()
        self.process.wait()

    def type(self, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        while data:
            data = data[os.write(self.ours, data) :]

    def read(self, seconds: float) -> bool:
        """Whether there was anything more."""
        if not select.select([self.ours], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.ours, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        self.screen += data
        return bool(data)

    def wait_for(self, wanted: str | bytes, seconds: float = 30.0) -> bytes:
        """What was on the screen up to it; the rest stays."""
        pattern = re.compile(wanted if isinstance(wanted, bytes) else re.escape(wanted.encode()))
        deadline = time.monotonic() + seconds
        while not (found := pattern.search(self.screen)):
            left = deadline - time.monotonic()
            assert left > 0, (wanted, self.screen)
            self.read(min(left, 0.5))
        before, self.screen = self.screen[: found.start()], self.screen[found.end() :]
        return before

    def press_until(self, key: bytes, wanted: bytes) -> None:
        """A key that is a signal. A shell that it strikes between its look for traps and its ``read`` acts on it only
        when another one comes."""
        for _ in range(9):
            self.type(key)
            with contextlib.suppress(AssertionError):
                self.wait_for(wanted, 3.0)
                return
        raise AssertionError((wanted, self.screen))

    def command(self, line: str) -> bytes:
        """What a command of the shell's shows."""
        self.type(line + "; echo E''ND\n")
        self.wait_for(b"END\r+\n")
        return b""

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self.ours)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def foreground(self) -> int:
        return os.tcgetpgrp(self.ours)

    def wait_for_settings(self, wanted: Sequence[Any], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while self.settings() != wanted:
            assert time.monotonic() < deadline, (self.settings(), wanted)
            time.sleep(0.01)

    def wait_for_other_settings(self, known: Sequence[Any], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while self.settings() == known:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def interrupt_with(self, number: int) -> None:
        os.killpg(self.foreground(), number)


KILL = signal.SIGKILL
