"""From the launcher's (step, errno) to an error that says why and what to do.

Facts about the host are read here, when an error is being made; a sandbox that starts reads none. What the kernel does
not tell (which of several rules refused) is said to be likely, not certain.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from isolate.diagnosis import clone, program, steps
from isolate.diagnosis.host import Failure, Finding, Host
from isolate.diagnosis.program import Start
from isolate.engine.native import lib
from isolate.engine.plan import Engine, Phase
from isolate.errors import SetupError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.engine.record import Record
    from isolate.engine.session import Session
    from isolate.engine.tape import Tape

__all__ = ["Finding", "Host", "launcher_lost", "setup_error", "start_error"]

_STAGES = {
    lib.ISO_STAGE_TAPE: "check the tape",
    lib.ISO_STAGE_MEMORY: "map memory in the launcher",
    lib.ISO_STAGE_PIPE: "make a pipe in the launcher",
    lib.ISO_STAGE_CLONE_INIT: "make the sandbox's first process",
    lib.ISO_STAGE_CLONE_PAYLOAD: "make the program's process",
    lib.ISO_STAGE_DEATH: "set up the sandbox",
    lib.ISO_STAGE_OWNER: "watch for the end of this program",
    lib.ISO_STAGE_POLL: "watch over the sandbox",
    lib.ISO_STAGE_SIGNALS: "reset signals",
    lib.ISO_STAGE_LATER: "take the program that the sandbox waited for",
    lib.ISO_STAGE_TEMPLATE: "enter the tree that was made once",
    lib.ISO_STAGE_PROC: "open a /proc of this pid namespace",
}

_STARTS: dict[int, tuple[str, str | None]] = {
    lib.ISO_SPAWN_CLONE: ("start the launcher", "clone"),
    lib.ISO_SPAWN_FILES: ("arrange the launcher's descriptors", "dup3"),
    lib.ISO_SPAWN_EXEC: ("execute the launcher", "execveat"),
    lib.ISO_SPAWN_SIGNALS: ("block signals", "rt_sigprocmask"),
    lib.ISO_START_STREAMS: ("open the standard streams", "pipe2"),
    lib.ISO_START_CONTROL: ("open the control socket", "socketpair"),
    lib.ISO_START_TAPE: ("write the tape", "memfd_create"),
    lib.ISO_START_OWNER: ("open a pidfd of this process", "pidfd_open"),
}


def launcher_lost(session: Session) -> SetupError:
    """The launcher went without a word. Whatever was inside went with it."""
    host = Host()
    found = clone.no_pid_one(host) if session.elsewhere else clone.silenced(host)
    if found is not None:
        return _error(errno.EPIPE, "wait for the launcher", "Sandbox", found)
    return SetupError(
        errno.EPIPE,
        "wait for the launcher",
        part="Sandbox",
        cause="the launcher was killed from outside (the OOM killer, an administrator); everything inside died with it",
        remedy="look for the OOM killer in the kernel's log (dmesg, journalctl -k), and try again",
    )


def start_error(stage: int, error: int, host: Host | None = None) -> SetupError:
    """The launcher itself could not be started: the caller's limits, or the machine's."""
    host = host or Host()
    step, syscall = _STARTS.get(stage, ("start the launcher", None))
    found: Finding | None = None
    if error == errno.EAGAIN:
        found = clone.processes(host)
    elif error == errno.ENOMEM:
        found = clone.no_pid_one(host) if stage == lib.ISO_SPAWN_CLONE else None
        found = found or clone.clone(host, error, 0, into_cgroup=False)
    elif error in (errno.EMFILE, errno.ENFILE):
        found = steps.descriptors(error)
    elif error == errno.ENOSYS or (error == errno.EPERM and host.filtered()):
        found = clone.seccomp(host, syscall or "what starting the launcher takes")
    elif error == errno.EACCES and stage == lib.ISO_SPAWN_EXEC:
        found = Finding(
            "the launcher may not be executed: vm.memfd_noexec forbids it in memory, and the installed file lies on "
            "a noexec mount",
            "install isolate on a mount without noexec",
        )
    elif error == errno.ETIMEDOUT:
        step, syscall = "wait for the launcher that is parked (template)", None
        found = Finding(
            "it has not answered for ten seconds: a program with this uid has stopped it, or the machine is overloaded",
            "try again: it was ended, and the next start is made without it",
        )
    elif error == errno.EBADF and stage == lib.ISO_SPAWN_FILES:
        found = Finding(
            "a descriptor that a part or pass_fds names is not open (any more)",
            "keep it open while the sandbox is used",
        )
    return _error(error, step, "Sandbox", found, syscall)


def setup_error(
    tape: Tape, record: Record, args: Sequence[bytes], run: bytes = b"", host: Host | None = None
) -> SetupError:
    """The error of a failed start.

    ``args``, and the ``run`` block where it is at hand, are what was to run. :class:`~isolate.UnsupportedError` where
    the host cannot do it at all.
    """
    try:
        return _setup_error(tape, record, args, run, host or Host())
    except Exception as error:  # whatever it is, it must not hide the failure that it was to explain
        found = tape.step(record.op) if record.stage == lib.ISO_STAGE_OPS else None
        step = found[0].text if found else _STAGES.get(record.stage, f"stage {record.stage}")
        part = type(found[1]).__name__ if found else "Sandbox"
        cause = f"not known: its diagnosis failed too ({type(error).__name__}: {error})"
        return SetupError(record.error or errno.EIO, step, part=part, cause=cause)


def _setup_error(tape: Tape, record: Record, args: Sequence[bytes], run: bytes, host: Host) -> SetupError:
    start = Start.read(run) if run else None
    flags = int(tape.plan.clone_flags)
    if record.stage != lib.ISO_STAGE_OPS:
        return _engine_error(tape, record, host, flags)
    found = tape.step(record.op)
    if found is None:
        return SetupError(record.error or errno.EIO, f"op {record.op} of the tape", part="Sandbox")
    step, part = found
    op = tape.ops[record.op]
    part_name = type(part).__name__
    path = os.fsdecode(step.path) if step.path else None
    finding: Finding | None
    if isinstance(op, Engine) and op.name in ("find", "exec"):
        why = program.not_found if op.name == "find" else program.not_executed
        path, finding = why(record.error, start, tuple(args), record.head)
        if record.error == errno.EACCES and any(getattr(p, "restricts_execution", False) for p in tape.plan.parts):
            finding = Finding(
                f"the sandbox's Landlock may not let {path}, its interpreter or its dynamic loader be executed; or else"
                f" {finding.cause}",
                "name the program's and its loader's directories: Landlock(execute=[…])",
            )
        failed = _error(record.error, f"execute {path}", part_name, finding, "execve", path)
        failed.program = True
        return failed
    if step.phase is Phase.DIRECTORY and path is None and start is not None:
        path = program.show(start.cwd)
    finding = steps.certain(host, record.error, step, op, flags)
    if finding is None:
        finding = _told(Failure(host, record.error, step, op, flags))
    return _error(record.error, step.text, part_name, finding, steps.call_name(op), path)


def _told(failure: Failure) -> Finding | None:
    """The step's finding for its errno. Without one, or with a cause alone, the usual finding completes it.

    A cause alone covers neither the remedy that is known for such a failure nor that the host cannot do it at all.
    """
    host, error, step, op, _ = failure
    hint = step.finding(error)
    if hint is None:
        return steps.likely(host, error, step, op)
    asked = hint.ask(failure) if hint.ask is not None else None
    if asked is not None:
        return asked
    if hint.remedy is not None or hint.unsupported:
        return hint
    if error == errno.EPERM:
        filtered = clone.seccomp(host, steps.call_name(op) or "it")
        return hint if filtered is None else Finding(f"{hint.cause}; or else {filtered.cause}", filtered.remedy)
    found = steps.likely(host, error, step, op)
    # A missing right is only completed by the way to the path: a filter of system calls is not what a part means by it.
    if found is None or (error == errno.EACCES and not (step.path and step.phase < Phase.ROOT)):
        return hint
    return found._replace(cause=hint.cause)


def _engine_error(tape: Tape, record: Record, host: Host, flags: int) -> SetupError:
    """A failure outside any op: of clone, of the launcher's own needs."""
    step = _STAGES.get(record.stage, f"stage {record.stage}")
    part, syscall = "Sandbox", None
    found: Finding | None = None
    if record.stage == lib.ISO_STAGE_CLONE_INIT:
        names = clone.kinds(flags)
        if names:
            step += f" in new namespaces ({', '.join(names)})"
        syscall = "clone3"
        found = clone.clone(host, record.error, flags, into_cgroup=tape.plan.cgroup is not None)
        part = _cloning_part(tape, flags)
    elif record.stage == lib.ISO_STAGE_CLONE_PAYLOAD:
        syscall = "clone"
        found = _inner_limit(tape, record.error) or clone.clone(host, record.error, 0, into_cgroup=False)
    elif record.stage in (lib.ISO_STAGE_LATER, lib.ISO_STAGE_PIPE):
        syscall = "recvmsg" if record.stage == lib.ISO_STAGE_LATER else "pipe2"
        found = steps.descriptors(record.error) if record.error in (errno.EMFILE, errno.ENFILE) else None
    elif record.stage == lib.ISO_STAGE_PROC:
        syscall = "fsmount"
        found = Finding(
            "/proc is absent or of another pid namespace, and this user may not make another: without it nobody finds "
            "what the program leaves behind",
            "add PidNamespace(), with which the kernel ends it all, or mount a /proc of this pid namespace "
            "(unshare --mount-proc)",
            unsupported=True,
        )
    elif record.stage in (lib.ISO_STAGE_POLL, lib.ISO_STAGE_TEMPLATE) and record.error in (errno.EPERM, errno.ENOSYS):
        found = clone.seccomp(host, "to wait for the program" if record.stage == lib.ISO_STAGE_POLL else "setns")
    elif record.stage == lib.ISO_STAGE_MEMORY:
        syscall = "mmap"
        found = Finding(
            "no memory: a cgroup's limit, RLIMIT_AS or RLIMIT_DATA of this program, or the machine's", "raise it"
        )
    elif record.stage == lib.ISO_STAGE_DEATH:
        found = Finding(
            "it was killed before the program was executed: by the OOM killer (of its group, or the machine's), or "
            "from outside",
            "if the sandbox has a memory limit, raise it; else look for the OOM killer in the kernel's log",
        )
    elif record.stage == lib.ISO_STAGE_TAPE:
        found = Finding(
            "the launcher refused what it was handed, and executed none of it: damaged on the way, or extension and "
            "launcher are of different builds",
            "reinstall isolate-linux; if it stays so, this is a bug of isolate",
        )
    return _error(record.error, step, part, found, syscall)


def _cloning_part(tape: Tape, flags: int) -> str:
    """The part to name for a failed clone: the user namespace, since the rest follows from it, or the only one."""
    owners = {
        type(part).__name__: int(step.clone_flags)
        for step, part in zip(tape.plan.steps, tape.plan.owners, strict=True)
        if step.clone_flags
    }
    for name, own in owners.items():
        if own & clone.NEWUSER:
            return name
    return next(iter(owners), "Sandbox") if len(owners) < 2 else "Sandbox"


def _inner_limit(tape: Tape, error: int) -> Finding | None:
    """EAGAIN for the second process: the sandbox's own limit."""
    if error != errno.EAGAIN:
        return None
    for part in tape.plan.parts:
        limit = getattr(part, "pids", None)
        if isinstance(limit, int):
            return Finding(
                f"{type(part).__name__}(pids={limit}) leaves no room for the program: init is a process too",
                "pids must be at least 2, or PidNamespace(init=False)",
            )
    return None


def _error(
    error: int, step: str, part: str, found: Finding | None, syscall: str | None = None, path: str | None = None
) -> SetupError:
    kind = UnsupportedError if found is not None and found.unsupported else SetupError
    return kind(
        error or errno.EIO,
        step,
        part=part,
        syscall=syscall,
        path=path,
        cause=found.cause if found else None,
        remedy=found.remedy if found else None,
    )
