"""No priority of the caller's in a sandbox: what holds of scheduling and the OOM killer where nothing else is said."""

from __future__ import annotations

import errno
import struct

from isolate.engine.finding import Finding
from isolate.engine.native import lib
from isolate.engine.plan import FLAGS, Buffer, Jump, Label, Load, Op, Phase, Register, Step, Test, call
from isolate.kernel.constants import AT_FDCWD, O_CLOEXEC, O_RDONLY, O_WRONLY, PR_SET_DUMPABLE, Constant

OTHER, BATCH, IDLE = 0, 3, 5  # SCHED_*
KILLABLE: int = lib.ISO_RUN_KILLABLE
_ATTR = struct.Struct("<IIQiIQQQ")  # struct sched_attr of Linux 3.14: size, policy, flags, nice, priority, deadline's
_PRIO_PROCESS = Constant(0, "PRIO_PROCESS")
_IOPRIO_WHO_PROCESS = Constant(1, "IOPRIO_WHO_PROCESS")
_IO_CLASS, _IO_BEST_EFFORT, _IO_IDLE = 7 << 13, 2 << 13, 3 << 13


def killable() -> Step:
    """The OOM killer may take the program before others, also where the caller is protected from it."""
    file, text, done, ours, opened = Register("oom_score_adj"), Buffer(8, "text"), Label(), Label(), Label()
    path = b"/proc/self/oom_score_adj"
    # An ordinary user's set-up is not dumpable: its file is root's, but for the moment in which it is opened. Nobody
    # can use that who could not trace the Python program itself; and it is only where the value is below 0.
    ops: tuple[Op, ...] = (
        # Asked by the caller: in its own /proc the file has been opened before, in a new process's it takes ten times
        # as long. Where the caller cannot tell, it is asked here.
        Test(FLAGS, KILLABLE, mask=KILLABLE, negate=True, label=done),
        call(
            "openat",
            AT_FDCWD,
            path,
            O_RDONLY | O_CLOEXEC,
            0,
            out=file,
            errors=(errno.ENOENT,),
            policy="jump",
            label=done,
        ),
        call("pread64", file, text, 7, 0),
        call("close", file),
        Test(Load(text, 0, 4), ord("-"), mask=0xFF, label=done),
        call(
            "openat",
            AT_FDCWD,
            path,
            O_WRONLY | O_CLOEXEC,
            0,
            out=file,
            errors=(errno.EACCES,),
            policy="jump",
            label=ours,
        ),
        Jump(opened),
        ours,
        call("prctl", PR_SET_DUMPABLE, 1),
        call("openat", AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0, out=file),
        call("prctl", PR_SET_DUMPABLE, 0),
        opened,
        call("write", file, b"0", 1, expect=1),
        call("close", file),
        done,
    )
    keep = "Scheduling(oom_score_adj='inherit') keeps what the caller has"
    return Step(
        Phase.INHERITED,
        "oom_score_adj 0 where the caller's is below",
        ops,
        path=path,
        hints={
            errno.EROFS: Finding("/proc is read-only here", keep),
            errno.EACCES: Finding("the caller's oom_score_adj is below 0 and cannot be raised here", keep),
        },
    )


def no_real_time(*, nice: bool) -> Step:
    """The policy "other" in place of a real-time or deadline one; with ``nice`` also 0 in place of a value below."""
    attr = Buffer(_ATTR.size, "attr")
    plain = Buffer(_ATTR.pack(_ATTR.size, 0, 0, 0, 0, 0, 0, 0), "plain")
    ordinary, done = Label(), Label()
    policy = Load(attr, 4, 4)
    ops: list[Op] = [call("sched_getattr", 0, attr, _ATTR.size, 0)]
    for number in (OTHER, BATCH):
        ops.append(Test(policy, number, negate=True, label=ordinary))
    ops.append(Test(policy, IDLE, negate=True, label=done))
    setting = (call("sched_setattr", 0, plain, 0), call("sched_getscheduler", 0, expect=0))
    ops += [*setting, Jump(done), ordinary]
    if nice:
        # A nice value below 0 has its sign bit set.
        ops += [Test(Load(attr, 16, 4), 1 << 31, mask=1 << 31, label=done), *setting]
        ops.append(call("getpriority", _PRIO_PROCESS, 0, expect=20))
    return Step(
        Phase.ORDINARY,
        "no real-time policy of the caller's" + (", no nice value below 0" if nice else ""),
        (*ops, done),
        hints={
            errno.EPERM: 'the caller\'s policy may not be left; Scheduling(policy="inherit") keeps it',
            errno.EIO: "the kernel reports another policy or nice value than was set",
        },
    )


def no_io_priority() -> Step:
    """No I/O class in place of real-time, or of best-effort above the level that it has by default."""
    value, done = Register("ioprio"), Label()
    asking = call(
        "ioprio_get", _IOPRIO_WHO_PROCESS, 0, out=value, errors=(errno.ENOSYS, errno.EPERM), policy="jump", label=done
    )
    ops = (
        asking,
        Test(value, 0, mask=_IO_CLASS, negate=True, label=done),
        Test(value, _IO_IDLE, mask=_IO_CLASS, negate=True, label=done),
        # Levels 4 (what a process has that asked for nothing) to 7.
        Test(value, _IO_BEST_EFFORT | 4, mask=_IO_CLASS | 4, negate=True, label=done),
        call("ioprio_set", _IOPRIO_WHO_PROCESS, 0, 0),
        done,
    )
    return Step(Phase.ORDINARY, "no I/O priority of the caller's above the usual", ops)
