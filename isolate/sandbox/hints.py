"""Hints about a limit that a program may have reached, and that the kernel does not report.

A limit of a cgroup is counted, so a verdict says it. A limit of a process (setrlimit(2)) is not: what goes beyond it
fails inside the program, with an errno or a signal that have other causes, too. So here are facts, not verdicts.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from isolate.sandbox.result import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.tape import Tape

_MEMORY = {"as_": "RLIMIT_AS", "data": "RLIMIT_DATA"}


def hints(returncode: int, verdict: Verdict, largest: int, tape: Tape) -> tuple[str, ...]:
    """Sentences; none where the verdict says it all. ``largest`` is the largest resident set of a process."""
    if verdict not in (Verdict.EXITED, Verdict.SIGNALED):
        return ()
    return tuple(_hints(returncode, largest, tape))


def soft_limit(tape: Tape, name: str) -> tuple[int | None, str]:
    """The soft limit that a program has at its start, None without one, and who has set it.

    ``name`` as in :class:`isolate.Rlimits`.
    """
    import resource

    from isolate.attributes.rlimits import Rlimits

    part = tape.plan.context.find(Rlimits)
    found = None if part is None else part.values().get(name)
    plain = name.rstrip("_")
    if found is not None:
        return (found[0] if found[0] < 1 << 63 else None), f"by Rlimits({name}=)"
    inherited = resource.getrlimit(getattr(resource, f"RLIMIT_{plain.upper()}"))[0]
    return (None if inherited == resource.RLIM_INFINITY else inherited), "the caller's own"


def _hints(returncode: int, largest: int, tape: Tape) -> Iterator[str]:
    if returncode == -signal.SIGXFSZ:
        limit, whose = soft_limit(tape, "fsize")
        if limit is not None:
            yield (
                "the kernel sends SIGXFSZ for a file that would grow beyond RLIMIT_FSIZE, "
                f"here {limit} bytes ({whose}); it can be sent by others, too"
            )
    for name, kernel_name in _MEMORY.items():
        limit, whose = soft_limit(tape, name)
        # Resident memory is a part of what these limits count. A single request that is too large leaves no trace.
        if limit is not None and largest >= limit // 2:
            yield (
                f"its largest process had {largest} bytes resident, and {kernel_name} is {limit} ({whose}): "
                "what it asked for beyond that failed with ENOMEM"
            )
