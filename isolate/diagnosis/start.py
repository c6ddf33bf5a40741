"""Start a launcher for everybody above the engine: a failure becomes the error that a person reads.

The engine knows stages and numbers only. What an error means is found by :mod:`isolate.diagnosis.setup`, which is
loaded when there is one.
"""

from __future__ import annotations

import errno
import functools
import time
from typing import TYPE_CHECKING

from isolate.engine.native import lib
from isolate.engine.session import Session, StartFailure
from isolate.errors import SetupError
from isolate.thread.blocks import children_get_another_pid_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import ParamSpec, TypeVar

    from isolate.engine.plan import Part
    from isolate.engine.tape import Tape

    _P = ParamSpec("_P")
    _T = TypeVar("_T")

__all__ = ["alone", "from_template", "hand_over", "keep", "launch", "waiting", "why"]

_DEVNULL = -3


def _told(start: Callable[_P, _T]) -> Callable[_P, _T]:
    """The same, with the engine's failure told as an error."""

    @functools.wraps(start)
    def told(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return start(*args, **kwargs)
        except StartFailure as failure:
            error = _error(failure)
        raise error

    return told


def _error(failure: StartFailure) -> SetupError:
    try:
        from isolate.diagnosis.setup import start_error  # loaded late: only an error needs it
    except (OSError, ImportError):
        # As a rule for the same reason: a program that has used up its descriptors loads no module.
        few = failure.error in (errno.EMFILE, errno.ENFILE)
        return SetupError(
            failure.error or errno.EIO,
            "start the launcher",
            part="Sandbox",
            cause="no descriptor is left, not even one to load the words for this error by" if few else None,
            remedy="close some, or raise the limit: ulimit -n, systemd's LimitNOFILE=" if few else None,
        )
    return start_error(failure.stage, failure.error)


@_told
def launch(tape: Tape, run: bytes, stdio: Sequence[int], slots: Sequence[int], *, nonblocking: bool = False) -> Session:
    """Start the program of a run block: see ``isolate.engine.session.Session``.

    :raises SetupError: the launcher could not be started; nothing is left of it.
    """
    return Session(tape, run, stdio, slots, nonblocking=nonblocking, direct=children_get_another_pid_namespace())


@_told
def waiting(tape: Tape) -> Session:
    """A sandbox that is set up, or soon will be, and waits for its program.

    :raises SetupError: the launcher could not be started.
    """
    return Session.waiting(tape, direct=children_get_another_pid_namespace())


@_told
def alone(tape: Tape) -> Session:
    """A sandbox without a program: its init stays until it is killed, and its end is told as the program's.

    :raises SetupError: the launcher could not be started.
    """
    return Session.alone(tape, direct=children_get_another_pid_namespace())


#: :meth:`Session.hand_over <isolate.engine.session.Session.hand_over>`, which raises SetupError.
hand_over = _told(Session.hand_over)
#: :meth:`Session.from_template <isolate.engine.session.Session.from_template>`, which raises SetupError.
from_template = _told(Session.from_template)


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
