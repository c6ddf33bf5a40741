"""From the launcher's last record to a verdict, a result or an error."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

from isolate.engine import proc
from isolate.engine.finding import Finding
from isolate.engine.native import lib
from isolate.engine.proc import children
from isolate.errors import printable
from isolate.kernel import log
from isolate.kernel.proc import status
from isolate.sandbox.result import Result, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.cgroups.counting import Outcome
    from isolate.engine.record import Record
    from isolate.engine.session import Session
    from isolate.engine.tape import Tape
    from isolate.mounts.changes import Changes

_CPUS = os.cpu_count() or 1
_TICK = 1 / os.sysconf("SC_CLK_TCK")


def ended(session: Session, args: Sequence[bytes]) -> Record:
    """The final record.

    :raises SetupError: the program never started.
    """
    record = session.end
    if record is None:
        from isolate.diagnosis.setup import launcher_lost

        remove_group(session)
        raise launcher_lost(session)
    if record.kind == lib.ISO_RECORD_FAILED:
        from isolate.diagnosis.setup import setup_error

        raise setup_error(session.tape, record, args, session.run)
    if record.error:
        _warn(session.tape, record)
    return record


def finish(session: Session) -> None:
    """Wait for the launcher's end, and until it has cleaned up where it has told of the end before that."""
    session.wait_gone(10.0 if session.early else 1.0)
    if not session.early or session.end is None or session.end.kind != lib.ISO_RECORD_ENDED:
        return
    cleaned = session.cleaned()
    if cleaned is None:
        remove_group(session)  # it was killed on its way out
    elif cleaned.error:
        _warn(session.tape, cleaned)


def remove_group(session: Session) -> None:
    """Remove the groups that a killed launcher has left. One that ended by itself has left none."""
    group = session.tape.plan.context.group
    if group is not None:
        group.remove(session)


def _warn(tape: Tape, record: Record) -> None:
    """The program ran as it should, and the clean-up after it failed for good."""
    import warnings

    found = tape.step(record.op)
    words = f"{type(found[1]).__name__}: {found[0].text}" if found else f"op {record.op} of the tape"
    hint = found[0].hints.get(record.error) if found else None
    cause = hint.cause if isinstance(hint, Finding) else hint
    reason = os.strerror(record.error) + (f": {cause}" if cause else "")
    warnings.warn(printable(f"cleaning up after a sandbox failed: {words}: {reason}"), RuntimeWarning, stacklevel=4)


def judge(
    record: Record,
    killed: Verdict | None,
    tape: Tape,
    timeout: float | None = None,
    cpu_time: float | None = None,
) -> tuple[int, Verdict]:
    """Return code and verdict: what the kernel's counters, launcher or caller saw, never a signal's number alone.

    ``killed`` is why the caller killed it, if it did; ``timeout`` and ``cpu_time`` are limits of the run, which the
    launcher holds as well. A program that ended by itself within them just before it was killed is told as it ended.
    """
    group = group_outcome(record, tape)
    if killed is None:
        killed = _exceeded(record, group, timeout, cpu_time)
    if killed is Verdict.TIMEOUT and timeout is not None and record.wall_ns < timeout * 1e9:
        killed = None  # it had ended before, and was only found so at the limit
    complete = record.complete & lib.ISO_COMPLETE_STATUS
    if not complete:
        # PID 1 was killed and took all along: by us, by the OOM killer, or by whoever may signal it from outside.
        counted = group.verdict(failed=True) if group is not None and killed is None else None
        return -signal.SIGKILL, killed or (Verdict(counted) if counted else Verdict.SIGNALED)
    returncode = os.waitstatus_to_exitcode(record.status)
    if killed is not None and (returncode == -signal.SIGKILL or _late(record, group, timeout, cpu_time)):
        return returncode, killed
    counted = group.verdict(failed=returncode != 0) if group is not None else None
    if counted is not None:
        return returncode, Verdict(counted)
    if record.complete & lib.ISO_COMPLETE_FILTERED and returncode == -signal.SIGSYS:
        return returncode, Verdict.SECCOMP
    if returncode in (-signal.SIGXCPU, -signal.SIGKILL) and _used_up(-returncode, record, tape):
        return returncode, Verdict.CPU_TIME
    if returncode < 0:
        return returncode, Verdict.SIGNALED
    return returncode, Verdict.EXITED if returncode else Verdict.OK


def _late(record: Record, group: Outcome | None, timeout: float | None, cpu_time: float | None) -> Verdict | None:
    """Which limit the final figures are above, if any."""
    if timeout is not None and record.wall_ns > timeout * 1e9:
        return Verdict.TIMEOUT
    if cpu_time is not None:
        used = (record.user_ns + record.system_ns) / 1e9
        if group is not None and group.cpu_time is not None:
            used = group.cpu_time
        if used > cpu_time:
            return Verdict.CPU_TIME
    return None


def _exceeded(record: Record, group: Outcome | None, timeout: float | None, cpu_time: float | None) -> Verdict | None:
    """Why the launcher killed it, or which limit it has passed unseen."""
    if record.complete & lib.ISO_COMPLETE_TIMEOUT:
        return Verdict.TIMEOUT
    if record.complete & lib.ISO_COMPLETE_CPU_TIME:
        return Verdict.CPU_TIME
    return _late(record, group, timeout, cpu_time)


def _used_up(number: int, record: Record, tape: Tape) -> bool:
    """Whether the program had used what RLIMIT_CPU allows: the kernel sends SIGXCPU each second from the soft limit on,
    and SIGKILL at the hard one (getrlimit(2)). It counts the program's own process, which init has asked for."""
    import resource

    from isolate.attributes.rlimits import Rlimits

    part = tape.plan.context.find(Rlimits)
    limit = part.cpu if part is not None and part.cpu is not None else resource.getrlimit(resource.RLIMIT_CPU)
    soft, hard = limit if isinstance(limit, tuple) else (limit, limit)
    allowed = soft if number == signal.SIGXCPU else hard
    return isinstance(allowed, int) and allowed >= 0 and record.program_ns >= allowed * 1_000_000_000


def check_countable(tape: Tape) -> None:
    """Refuse a limit of CPU time that nobody could hold.

    :raises UnsupportedError: neither a cgroup counts it nor does /proc show the sandbox's processes.
    """
    group = tape.plan.context.group
    if (group is not None and group.counts) or proc.shows_sandboxes():
        return
    import errno

    from isolate.errors import UnsupportedError

    raise UnsupportedError(
        errno.EOPNOTSUPP,
        "hold cpu_time",
        part="Sandbox",
        path="/proc",
        cause="/proc is absent, of another pid namespace, or hides what runs in a sandbox (hidepid=)",
        remedy="mount a /proc of this pid namespace, or add Limits(), whose group counts it",
    )


def group_outcome(record: Record, tape: Tape) -> Outcome | None:
    """The counters of the sandbox's cgroup, if it had one of its own."""
    group = tape.plan.context.group
    return None if group is None else group.outcome(record.report, tape.reports)


def applied(record: Record, tape: Tape) -> dict[str, bool]:
    """For each part whether all of its steps held."""
    if not record.skipped.strip(b"\0"):
        return dict.fromkeys(tape.names, True)
    held: dict[str, bool] = {}
    for index, part in enumerate(tape.plan.owners):
        skipped = index < len(record.skipped) and bool(record.skipped[index])
        name = type(part).__name__
        held[name] = held.get(name, True) and not skipped
    return held


def left_out(record: Record, tape: Tape) -> tuple[str, ...]:
    """The steps that did not hold, in words."""
    if not record.skipped.strip(b"\0"):
        return ()  # as a rule: dozens of steps are not looked through for nothing
    return tuple(
        f"{type(part).__name__}: {step.text}"
        for skipped, step, part in zip(record.skipped, tape.plan.steps, tape.plan.owners, strict=False)
        if skipped
    )


def make_result(
    record: Record,
    tape: Tape,
    args: Sequence[bytes],
    returncode: int,
    verdict: Verdict,
    captured: Sequence[Any],
    truncated: frozenset[str],
    usage: tuple[float, int] = (0.0, 0),
    pid: int = 0,
    changes: Changes | None = None,
    asked: Sequence[Any] = (),
) -> Result[Any]:
    """A result from its pieces; ``usage`` is what was seen just before a kill. A cgroup counts better than both.
    ``pid`` is the program's, where it is known; ``changes`` are those of its overlays, ``asked`` what it wanted of the
    network."""
    group = group_outcome(record, tape)
    cpu_time, peak_memory = max((record.user_ns + record.system_ns) / 1e9, usage[0]), max(record.max_rss, usage[1])
    if group is not None:
        cpu_time = cpu_time if group.cpu_time is None else group.cpu_time
        counted = group.peak_in_use(peak_memory)
        peak_memory = peak_memory if counted is None else counted
    syscall = None
    if returncode == -signal.SIGSYS and verdict in (Verdict.SECCOMP, Verdict.SIGNALED) and tape.filtered:
        syscall = denied_call(record, pid)
        # Where another thread than the first was killed, or a trap had no handler, the kernel's log alone knows of it.
        verdict = verdict if syscall is None else Verdict.SECCOMP
    log.debug(__name__, "verdict %s, status %d after %.6f s", verdict, returncode, record.wall_ns / 1e9)
    return Result(
        args=tuple(args),
        returncode=returncode,
        verdict=verdict,
        stdout=captured[0],
        stderr=captured[1],
        wall_time=record.wall_ns / 1e9,
        cpu_time=cpu_time,
        peak_memory=peak_memory,
        peak_charged=None if group is None else group.peak_memory,
        truncated=truncated,
        applied=applied(record, tape),
        left_out=left_out(record, tape),
        stats=None if group is None else group.stats,
        syscall=syscall,
        hints=() if verdict is Verdict.OK else _hints(returncode, verdict, record.max_rss, tape),
        changes=changes,
        asked=tuple(asked),
    )


def _hints(returncode: int, verdict: Verdict, largest: int, tape: Tape) -> tuple[str, ...]:
    from isolate.sandbox.hints import hints  # loaded late: not for a program that did well

    return hints(returncode, verdict, largest, tape)


def changes_of(session: Session) -> Changes | None:
    """The changes in the overlays of a session whose changes are in memory; None without any."""
    if not session.held:
        return None
    from isolate.sandbox.changed import changes_of as found  # loaded late: few sandboxes have such an overlay

    return found(session)


def denied_call(record: Record, pid: int) -> str | None:
    """The call for which a filter killed the program; None where the kernel does not tell."""
    if pid <= 0:
        return None
    from isolate.seccomp.audit import call_that_killed

    return call_that_killed(pid, time.time() - record.wall_ns / 1e9)


def next_sample(left: float) -> float:
    """When to look again at a tree that may still use ``left`` seconds: it cannot use more than all CPUs give."""
    return min(max(left / _CPUS, 0.01), 1.0)


def usage(session: Session) -> tuple[float, int]:
    """CPU seconds and the largest resident set so far: by the sandbox's cgroup, which misses nothing, or by a walk."""
    group = session.tape.plan.context.group
    counted = None if group is None else group.usage(session)
    return tree_usage(session.pid) if counted is None else (counted, 0)


def tree_usage(root: int) -> tuple[float, int]:
    """CPU seconds and the largest resident set of a process's descendants, living and reaped (proc(5): stat, status).

    What moves from a process to its parent while this walks is missed, never counted twice: a limit is found a sample
    later. Needed while they live: the kernel does not account for what it reaps itself when PID 1 is killed.
    """
    total, peak = 0.0, 0
    pending = children(root)
    while pending:
        pid = pending.pop()
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            mark = status(pid).get("VmHWM", "").split(" ")[0]
        except OSError:
            continue
        total += sum(map(int, fields[11:15])) * _TICK
        peak = max(peak, int(mark) * 1024 if mark.isdigit() else 0)
        pending += children(pid)
    return total, peak
