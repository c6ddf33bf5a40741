"""Waiting until what was started has been executed."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

from isolate.engine.native import lib
from isolate.errors import SetupError
from isolate.sandbox import outcome

if TYPE_CHECKING:
    from isolate.engine.session import Session

__all__ = ["await_start"]


def await_start(session: Session, args: tuple[bytes, ...], patience: float | None = None) -> None:
    """Wait until the program has been executed, for ``patience`` seconds at most: what runs inside already may stop
    whoever comes, again and again, or be frozen meanwhile. It also returns when a limit of time of the program's own
    has ended it on its way: that is a verdict, as it is of a run.

    :raises SetupError: it has not been executed, and nothing is left of it.
    """
    deadline = None if patience is None else time.monotonic() + patience
    while not session.started and session.end is None:
        try:
            session.await_record(1.0)
            if deadline is not None and time.monotonic() > deadline and not session.started and session.end is None:
                raise SetupError(
                    errno.ETIMEDOUT,
                    "execute a further program",
                    part="Process.exec",
                    cause="the sandbox is frozen, or a program inside stops whoever comes",
                    remedy="thaw its group, or close the sandbox and start another",
                )
        except SetupError:
            raise
        except EOFError:
            break
        except OSError as error:
            raise SetupError(
                error.errno or errno.EIO,
                "take the program's pidfd",
                part="Sandbox",
                syscall="recvmsg",
                cause="this process has no descriptor left for it" if error.errno == errno.EMFILE else None,
                remedy="close some, or raise RLIMIT_NOFILE: ulimit -n" if error.errno == errno.EMFILE else None,
            ) from None
    if not session.started:
        session.wait_gone(1.0)
        end = outcome.ended(session, args)  # raises, unless it was killed before init could tell
        if end.complete & (lib.ISO_COMPLETE_TIMEOUT | lib.ISO_COMPLETE_CPU_TIME):
            return
        raise SetupError(errno.ESRCH, "start the program", part="Sandbox", cause="it was killed before it was executed")
