"""Hints about what may have made a program fail, and what the kernel reports to nobody else.

A limit of a cgroup is counted, so a verdict says it. A limit of a process (setrlimit(2)) is not: what goes beyond it
fails inside the program, with an errno or a signal that have other causes, too. So here are facts, not verdicts. The
other fact is a directory of root's that was shown to a program which has another id of the host, and is closed to it.
"""

from __future__ import annotations

import signal
import stat
from typing import TYPE_CHECKING

from isolate.attributes.credentials import Credentials
from isolate.errors import SetupError, printable
from isolate.kernel.paths import absolute, text
from isolate.mounts.bind import Bind
from isolate.mounts.owners import for_the_program, shut
from isolate.mounts.root import Root
from isolate.namespaces.ids import is_host_root
from isolate.sandbox.containers.acting import actor_of
from isolate.sandbox.result import Verdict

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from isolate.engine.tape import Tape

_MEMORY = {"as_": "RLIMIT_AS", "data": "RLIMIT_DATA"}


def hints(returncode: int, verdict: Verdict, largest: int, tape: Tape) -> tuple[str, ...]:
    """Sentences; none where the verdict says it all. ``largest`` is the largest resident set of a process."""
    if verdict not in (Verdict.EXITED, Verdict.SIGNALED):
        return ()
    closed = _closed(tape) if verdict is Verdict.EXITED else ()
    return (*_hints(returncode, largest, tape), *closed)


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


def _closed(tape: Tape) -> Iterator[str]:
    """Sources of the root that are closed by their mode to the program, where it has another id than the caller."""
    context = tape.plan.context
    root = context.find(Root)
    if root is None or not context.privileged or not is_host_root():
        return
    try:
        ids = actor_of(context).ids
    except SetupError:
        return  # not known: its user namespace is another's
    who = context.find(Credentials)
    if ids is None or ids[0] == 0 or (who is not None and who.groups):
        return
    for bind in root.entries:
        if not isinstance(bind, Bind) or isinstance(bind.source, int) or bind.idmap not in (None, False):
            continue
        source = absolute(bind.source)
        if bind.idmap is None and for_the_program(context, source, writable=not bind.read_only):
            continue
        found = shut(source, *ids)
        if found is not None:
            yield _shut(bind.place, source, found, *ids)


def _shut(place: bytes, source: bytes, found: os.stat_result, uid: int, gid: int) -> str:
    mode = "o+rx" if stat.S_ISDIR(found.st_mode) else "o+r"
    ids = f"IdMap.single({found.st_uid}, {found.st_gid}, host_uid={uid}, host_gid={gid})"
    return printable(
        f"{text(place)} is closed to the program, which is uid {uid} on the host: its source belongs to "
        f"uid {found.st_uid}, with mode {stat.S_IMODE(found.st_mode):04o} (chmod {mode} {text(source)}, "
        f"or show it as the program's own: Bind(..., idmap={ids}))"
    )
