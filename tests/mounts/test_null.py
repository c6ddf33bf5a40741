"""What a program can do to the host's /dev/null by the streams that are it."""

from __future__ import annotations

import os
from typing import Any

import pytest

from isolate import Bind, Dev, Root, Sandbox, UserNamespace
from tests.mounts.conftest import SYSTEM

DEVNULL = -3

# The mode that the device has already: should it work, nothing is changed.
CHANGE = r"""
import os, sys
for fd in map(int, sys.argv[1:]):
    assert os.fstat(fd).st_rdev == os.makedev(1, 3)
    if fd:
        os.write(fd, b"x")
    else:
        assert os.read(fd, 1) == b""
    try:
        os.fchmod(fd, os.fstat(fd).st_mode & 0o7777)
    except OSError as error:
        sys.exit(error.errno)
"""
CHANGED, READ_ONLY, NOT_OWNER = 0, 30, 1


def ends(box: Any, *fds: int) -> int | None:
    stdin, stdout, stderr = (DEVNULL if n in fds else None for n in range(3))
    args = ["/usr/bin/python3", "-c", CHANGE, *map(str, fds)]
    return box.run(args, stdin=stdin, stdout=stdout, stderr=stderr, timeout=60).returncode  # type: ignore[no-any-return]


@pytest.mark.skipif(not os.path.exists("/usr/bin/python3"), reason="needs the system's Python")
class TestNull:
    def test_without_a_root_its_owner_can_change_it(self) -> None:
        assert ends(Sandbox(UserNamespace()), 0) == (CHANGED if os.geteuid() == 0 else NOT_OWNER)

    @pytest.mark.parametrize("entries", [(), (Dev(),), (Bind("/dev", recursive=True),)], ids=["none", "dev", "bound"])
    def test_nobody_in_a_root_can(self, parts: tuple[Any, ...], entries: tuple[Any, ...]) -> None:
        box = Sandbox(Root(*SYSTEM, *entries), *parts)
        for fds in ((0,), (1,), (2,), (0, 1, 2)):
            assert ends(box, *fds) == READ_ONLY

    def test_nor_a_further_program(self, parts: tuple[Any, ...]) -> None:
        box = Sandbox(Root(*SYSTEM, Dev()), *parts)
        with box.spawn(["/bin/sleep", "60"], stdin=DEVNULL) as process:
            args = ["/usr/bin/python3", "-c", CHANGE, "0", "1"]
            with process.exec(args, stdin=DEVNULL, stdout=DEVNULL) as further:
                assert further.wait() == (READ_ONLY if os.geteuid() == 0 else NOT_OWNER)

    def test_what_is_not_it_stays(self, parts: tuple[Any, ...]) -> None:
        script = "import os; print(os.fstat(0).st_rdev == os.makedev(1, 5))"
        with open("/dev/zero", "rb") as zero:
            done = Sandbox(Root(*SYSTEM), *parts).run(["/usr/bin/python3", "-c", script], stdin=zero, text=True)
        assert done.stdout == "True\n"
