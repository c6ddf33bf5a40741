"""A keeper: a helper process that holds something for this program, and takes it down at this program's end.

It is the launcher with a tape of its own: it does the steps of one part, waits until its owner ends in any way (SIGKILL
included) or lets go, and then does the part's steps of the phase CLEANUP. It is in none of the groups and namespaces
that it keeps unless its steps put it there, and holds nothing of the owner's but a pidfd.
"""

from __future__ import annotations

import errno
import os
import select
import struct
from typing import TYPE_CHECKING

from isolate.engine.plan import Buffer, Phase, Plan, Register, Step, Test, call

if TYPE_CHECKING:
    from isolate.engine.plan import Part
    from isolate.engine.tape import Tape

__all__ = ["END", "prepare", "until_owner_ends", "watched"]

#: The launcher's descriptors for the socket to its owner and for the owner's pidfd (tape.h).
_CONTROL_FD, _OWNER_FD = 3, 5
_FREE = 6  # the first slot behind the launcher's own
#: The text of the step that waits.
END = "wait for the owner's end"


def watched() -> Buffer:
    """Two struct pollfd: a message from the owner, and the owner's end."""
    return Buffer(struct.pack("<ihhihh", _CONTROL_FD, select.POLLIN, 0, _OWNER_FD, select.POLLIN, 0), "pollfds")


def until_owner_ends() -> Step:
    """Wait for the owner's end. ECANCELED ends the tape there; what is left is the clean-up."""
    seen = Register("events")
    wait = (call("ppoll", watched(), 2, 0, 0, 8, out=seen), Test(seen, -1, error=errno.ECANCELED))
    return Step(Phase.CGROUP, END, wait)


def prepare(part: Part) -> tuple[Tape, bytes, list[int]]:
    """Tape, run block and descriptors of the keeper whose only part this is."""
    from isolate.engine.run_block import run_block  # loaded late: a sandbox that is only made starts nothing
    from isolate.engine.tape import compile_plan

    plan = Plan([part], euid=os.geteuid(), egid=os.getegid())
    tape = compile_plan(plan, init=False, pid_namespace=False, share=False)
    slots = list(plan.context.slots)
    run = run_block(
        [b"-"], [], program=b"-", path=b"", cwd=b"/", fds=[], slots=_FREE + len(slots), started=False, tty=False
    )
    return tape, run, slots
