"""A process that removes a group when its owner ends in any way, SIGKILL included; or only ends with it.

It is the launcher with a tape of its own: wait until the owner ends or lets go, then kill what is in the group and
remove it. It is not in the group, and holds nothing of the owner's but a pidfd.
"""

from __future__ import annotations

import errno
import os
import select
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.engine.plan import Buffer, Phase, Plan, Register, RemoveTree, Step, Test, call
from isolate.kernel.constants import AT_FDCWD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Context
    from isolate.engine.session import Session

#: The launcher's descriptors for the socket to its owner and for the owner's pidfd (tape.h).
CONTROL_FD, OWNER_FD = 3, 5
_DEVNULL = -3


@dataclass(frozen=True)
class Guardian:
    """The only part of the guardian's plan."""

    directories: tuple[str, ...]

    def steps(self, context: Context) -> Iterator[Step]:
        """Wait; what fails then is meant to: no child is made, and the clean-up runs."""
        watched = Buffer(struct.pack("<ihhihh", CONTROL_FD, select.POLLIN, 0, OWNER_FD, select.POLLIN, 0), "pollfds")
        seen = Register("events")
        wait = (call("ppoll", watched, 2, 0, 0, 8, out=seen), Test(seen, -1, error=errno.ECANCELED))
        yield Step(Phase.CGROUP, "wait for the owner's end", wait)
        gone = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV)
        for directory in self.directories:
            remove = RemoveTree(AT_FDCWD, os.fsencode(directory), errors=gone, everybody=True)
            yield Step(Phase.CLEANUP, f"kill what is in {directory}, and remove it", (remove,))


def watch(directories: list[str]) -> Session:
    """Start a guardian for directories, which need not be there yet. Closing the session has them removed, too.

    For none it does nothing but end when its owner does: what keeps a scope (:mod:`isolate.cgroups.scope`).
    """
    from isolate.engine.session import Session
    from isolate.engine.tape import compile_plan, run_block

    plan = Plan([Guardian(tuple(directories))], euid=os.geteuid(), egid=os.getegid())
    tape = compile_plan(plan, init=False, pid_namespace=False, share=False)
    block = run_block(
        [b"-"], [], program=b"-", path=b"", cwd=b"/", fds=[], slots=6, started=False, tty=False
    )  # fmt: skip
    return Session(tape, block, [_DEVNULL] * 3, ())
