"""A real login user, made by useradd and gone after the test: its groups are what ``initgroups`` makes of them."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

_numbers = itertools.count()

if TYPE_CHECKING:
    from collections.abc import Iterator


def _account(*command: str) -> subprocess.CompletedProcess[str]:
    """useradd and userdel lock the files of accounts, which another test run may hold for a moment; and userdel removes
    nobody of whom a process still runs: those of a sandbox end a moment after its program."""
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 or not ("lock" in done.stderr or "currently used" in done.stderr):
            return done
        if time.monotonic() > deadline:
            return done
        time.sleep(0.1)


@dataclass(frozen=True)
class Login:
    """Somebody who logs in."""

    name: str
    uid: int
    gid: int

    def change(self, *options: str) -> None:
        """By usermod."""
        done = _account("usermod", *options, self.name)
        assert done.returncode == 0, done.stderr

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """A command after ``su -l``."""
        done = subprocess.run(
            ["su", "-l", self.name, "-c", shlex.join(command)],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def python(self, code: str, *arguments: str, check: bool = True) -> str:
        """What Python code prints."""
        return self.run(sys.executable, "-c", code, *arguments, check=check).stdout


def make_login_user(*groups: str) -> Iterator[Login]:
    """A user with a group of its own and these further ones; a generator, for fixtures."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("useradd", "userdel", "su"))):
        reason = "a login user takes root, useradd, su and userdel"
        if os.environ.get("ISOLATE_REQUIRE_KERNEL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    name = f"isolate-{os.getpid()}-{next(_numbers)}"
    extra = ["-G", ",".join(groups)] if groups else []
    made = _account("useradd", "-M", "-d", "/", "-s", "/bin/sh", "-U", *extra, name)
    assert made.returncode == 0, made.stderr
    try:
        import pwd

        entry = pwd.getpwnam(name)
        user = Login(name, entry.pw_uid, entry.pw_gid)
        reachable = user.run(sys.executable, "-c", "import isolate._native", check=False)
        if reachable.returncode:
            pytest.skip(f"another user cannot read {sys.executable} or the package: {reachable.stderr[-200:]}")
        yield user
    finally:
        gone = _account("userdel", name)
        assert gone.returncode == 0, gone.stderr
