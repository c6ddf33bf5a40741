"""From (step, errno) to an error that says why and what to do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from isolate.errors import SetupError
from isolate.native import lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.launch import Record, Session
    from isolate.tape import Tape


def launcher_lost(session: Session) -> SetupError:
    """The launcher went without a word."""
    return SetupError(
        32, "wait for the launcher", part="Sandbox",
        cause="the launcher was killed from outside (the OOM killer, an administrator)",
    )  # fmt: skip


def setup_error(tape: Tape, record: Record, args: Sequence[bytes]) -> SetupError:
    """The error of a failed step."""
    found = tape.step(record.op) if record.stage == lib.ISO_STAGE_OPS else None
    if found is None:
        return SetupError(record.error or 5, f"stage {record.stage}", part="Sandbox")
    step, part = found
    op = tape.ops[record.op]
    return SetupError(
        record.error, step.text, part=type(part).__name__, syscall=getattr(op, "name", None),
        path=os.fsdecode(step.path) if step.path else None, cause=step.hints.get(record.error),
    )  # fmt: skip


def start_error(stage: int, error: int) -> SetupError:
    """The launcher could not be started."""
    words = {
        lib.ISO_SPAWN_CLONE: ("start the launcher", "clone"),
        lib.ISO_SPAWN_FILES: ("arrange the launcher's descriptors", "dup3"),
        lib.ISO_SPAWN_EXEC: ("execute the launcher", "execveat"),
        lib.ISO_START_STREAMS: ("open the standard streams", "pipe2"),
        lib.ISO_START_CONTROL: ("open the control socket", "socketpair"),
        lib.ISO_START_TAPE: ("write the tape", "memfd_create"),
        lib.ISO_START_OWNER: ("open a pidfd of this process", "pidfd_open"),
    }
    step, syscall = words.get(stage, ("start the launcher", None))
    return SetupError(error, step, part="Sandbox", syscall=syscall)
