"""Start a launcher for everybody above the engine: a failure becomes the error that a person reads.

The engine knows stages and numbers only. What an error means is found by :mod:`isolate.diagnosis.setup`, which is
loaded when there is one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from isolate.engine.native import lib
from isolate.engine.session import Session, StartFailure
from isolate.thread.blocks import children_get_another_pid_namespace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.engine.plan import Part
    from isolate.engine.tape import Tape
    from isolate.errors import SetupError

__all__ = ["alone", "from_template", "hand_over", "keep", "launch", "waiting", "why"]

_DEVNULL = -3


def launch(tape: Tape, run: bytes, stdio: Sequence[int], slots: Sequence[int], *, nonblocking: bool = False) -> Session:
    """Start the program of a run block: see ``isolate.engine.session.Session``.

    :raises SetupError: the launcher could not be started; nothing is left of it.
    """
    try:
        return Session(tape, run, stdio, slots, nonblocking=nonblocking, direct=children_get_another_pid_namespace())
    except StartFailure as failure:
        raise _explained(failure) from None


def waiting(tape: Tape) -> Session:
    """A sandbox that is set up, or soon will be, and waits for its program.

    :raises SetupError: the launcher could not be started.
    """
    try:
        return Session.waiting(tape, direct=children_get_another_pid_namespace())
    except StartFailure as failure:
        raise _explained(failure) from None


def alone(tape: Tape) -> Session:
    """A sandbox without a program: its init stays until it is killed, and its end is told as the program's.

    :raises SetupError: the launcher could not be started.
    """
    try:
        return Session.alone(tape, direct=children_get_another_pid_namespace())
    except StartFailure as failure:
        raise _explained(failure) from None


def hand_over(
    session: Session, run: bytes, stdio: Sequence[int], slots: Sequence[int], *, nonblocking: bool = False
) -> bool:
    """Tell a sandbox that waits which program to run; False if it has gone, and nothing has happened.

    :raises SetupError: EMFILE and the like: a stream could not be opened.
    """
    try:
        return session.hand_over(run, stdio, slots, nonblocking=nonblocking)
    except StartFailure as failure:
        raise _explained(failure) from None


def from_template(
    starts: int,
    watched: bool,
    tape: Tape,
    run: bytes,
    stdio: Sequence[int],
    slots: Sequence[int],
    *,
    nonblocking: bool,
    later: bool = False,
) -> Session | None:
    """A start by a launcher that is parked, by its socket; None if it has gone, and nothing has been started.

    :raises SetupError: EMFILE and the like: a stream could not be opened.
    """
    try:
        return Session.from_template(starts, watched, tape, run, stdio, slots, nonblocking=nonblocking, later=later)
    except StartFailure as failure:
        raise _explained(failure) from None


def keep(part: Part) -> Session:
    """Start the keeper whose steps this part has: see :mod:`isolate.engine.keeper`.

    :raises SetupError: the launcher could not be started. What its steps do is told by its record: see :func:`why`.
    """
    from isolate.engine.keeper import prepare  # loaded late: most programs keep nothing

    tape, run, slots = prepare(part)
    return launch(tape, run, [_DEVNULL] * 3, slots)


def why(session: Session, part: str, patience: float = 10.0) -> SetupError:
    """The error of a keeper, or of another launcher of ours, that did not get so far. ``part`` is named in it."""
    from isolate.diagnosis.setup import launcher_lost, setup_error  # loaded late: only an error needs it

    deadline = time.monotonic() + patience
    try:
        while session.end is None and time.monotonic() < deadline:
            session.await_record(1.0)
    except EOFError:
        pass
    if session.end is None or session.end.kind != lib.ISO_RECORD_FAILED:
        return launcher_lost(session)
    error = setup_error(session.tape, session.end, [b"-"], session.run)
    error.part = part
    return error


def _explained(failure: StartFailure) -> SetupError:
    from isolate.diagnosis.setup import start_error  # loaded late: only an error needs it

    return start_error(failure.stage, failure.error)
