"""How much of the machine's attention the program gets: CPU and I/O scheduling, affinity, the OOM killer's choice."""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from isolate.attributes import ordinary
from isolate.engine.finding import Finding
from isolate.engine.plan import CHILD, Buffer, Load, Op, Phase, Register, Step, Store, Test, call
from isolate.errors import ConflictError
from isolate.kernel.checks import is_int, keywords
from isolate.kernel.constants import AT_FDCWD, O_CLOEXEC, O_PATH, O_RDWR, Constant
from isolate.thread.entering import Reversible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.engine.plan import Context
    from isolate.thread.change import Change

__all__ = ["Scheduling"]

_POLICIES = {"other": 0, "fifo": 1, "rr": 2, "batch": 3, "idle": 5}
_REAL_TIME = ("fifo", "rr")
_IO_CLASSES = {"none": 0, "realtime": 1, "best-effort": 2, "idle": 3}
_MAX_CPUS = 8192  # CONFIG_NR_CPUS of x86-64 at most
INHERIT = "inherit"  #: the caller's, as it is


def _int(name: str, value: object, low: int, high: int) -> None:
    if not is_int(value):
        raise TypeError(f"Scheduling: {name} must be an int, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"Scheduling: {name} must be in {low} … {high}, not {value}")


def _word(name: str, value: object, known: Iterable[str]) -> None:
    known = tuple(known)
    if value not in known:
        from isolate.kernel.checks import nearest

        raise ValueError(f"Scheduling: {name} must be one of {', '.join(known)}, not {value!r}{nearest(value, known)}")


@keywords
@dataclass(frozen=True)
class Scheduling(Reversible):
    """Scheduling of the program and what it starts.

    In a sandbox, a setting that is not given has its ordinary value, whatever the caller has: no real-time or deadline
    policy, no nice value below 0, no real-time or raised I/O priority, an ``oom_score_adj`` not below 0. If the caller
    has *less* than the ordinary value (nice 10, idle), the sandbox has that, too. ``"inherit"`` keeps the caller's. On
    the calling thread (``with``, ``enter``) a setting that is not given stays as it is.

    ``nice``
        -20 … 19; lowering it needs CAP_SYS_NICE or RLIMIT_NICE. Between sandboxes, ``Limits(cpu_weight=)`` says more:
        autogroup makes nice count only within a session.
    ``policy``
        ``"other"``, ``"batch"``, ``"idle"``, or, with CAP_SYS_NICE or RLIMIT_RTPRIO, ``"fifo"`` and ``"rr"``. Those two
        need a ``priority`` of 1 … 99, and are dangerous without ``Rlimits(rttime=)``. ``"inherit"`` keeps the caller's
        policy, and its nice value unless ``nice`` says another.
    ``affinity``
        The CPUs it may run on, by number. It can be changed back by the program: cpusets (``Limits(cpus=)``) cannot.
    ``ioprio``
        ``"idle"``, ``"none"``, or a class with a level 0 (first) … 7: ``("best-effort", 4)``, ``("realtime", 0)``
        (CAP_SYS_ADMIN or CAP_SYS_NICE), or ``"inherit"``. For I/O schedulers that heed it (bfq, mq-deadline).
    ``oom_score_adj``
        -1000 … 1000, or ``"inherit"``: written from outside before the program is born. Lowering it below the caller's
        needs CAP_SYS_RESOURCE; an ordinary user's set-up cannot be traced, so its file is root's without UserNamespace.

    Each is read back before the program starts: the kernel drops CPUs that it does not have without a word, and here
    that is an error (ERANGE). All are inherited by children. CAP_SYS_NICE in a user namespace of its own does not
    count: real-time policies and negative nice values are refused there (EPERM, EACCES).

    :raises ValueError: out of range, or contradictory: ``priority`` without a real-time policy, ``nice`` with one.

    Source: sched(7), ioprio_set(2), proc(5).

    :param nice: -20 to 19.
    :param policy: ``"other"``, ``"batch"``, ``"idle"``, ``"fifo"``, ``"rr"`` or ``"inherit"``.
    :param priority: 1 to 99, with ``"fifo"`` and ``"rr"``.
    :param affinity: numbers of CPUs.
    :param ioprio: class, or (class, level 0 to 7), or ``"inherit"``.
    :param oom_score_adj: -1000 to 1000, or ``"inherit"``.

    >>> Sandbox(Scheduling(nice=19)).run(["nice"]).stdout
    b'19\\n'
    """

    nice: int | None = None
    policy: str | None = None
    priority: int | None = None
    affinity: frozenset[int] | None = None
    ioprio: str | tuple[str, int] | None = None
    oom_score_adj: int | str | None = None

    required: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.nice is not None:
            _int("nice", self.nice, -20, 19)
        if self.policy is not None:
            _word("policy", self.policy, (*_POLICIES, INHERIT))
        if self.priority is not None:
            _int("priority", self.priority, 1, 99)
        if (self.policy in _REAL_TIME) != (self.priority is not None):
            raise ConflictError("Scheduling: the policies fifo and rr need a priority, and only they have one")
        if self.nice is not None and self.policy in (*_REAL_TIME, "idle"):
            raise ConflictError(f"Scheduling: nice has no meaning with the policy {self.policy}")
        if self.affinity is not None:
            if isinstance(self.affinity, (str, int)):
                raise TypeError(f"Scheduling: affinity must be a set of CPU numbers, not {self.affinity!r}")
            object.__setattr__(self, "affinity", frozenset(self.affinity))
            for cpu in self.affinity:
                _int("a CPU", cpu, 0, _MAX_CPUS - 1)
            if not self.affinity:
                raise ValueError("Scheduling: affinity needs at least one CPU")
        if self.ioprio is not None and self.ioprio != INHERIT:
            if not isinstance(self.ioprio, str):
                object.__setattr__(self, "ioprio", tuple(self.ioprio))
            self._ioprio()
        if isinstance(self.oom_score_adj, str):
            _word("oom_score_adj as a word", self.oom_score_adj, (INHERIT,))
        elif self.oom_score_adj is not None:
            _int("oom_score_adj", self.oom_score_adj, -1000, 1000)

    @property
    def real_time(self) -> bool:
        """Whether it asks for a real-time policy, which a group may have no time for."""
        return self.policy in _REAL_TIME

    def _ioprio(self) -> int:
        """The kernel's number for it."""
        if isinstance(self.ioprio, tuple) and len(self.ioprio) != 2:
            raise ValueError(f"Scheduling: ioprio is a class or (class, level), not {self.ioprio!r}")
        kind, level = self.ioprio if isinstance(self.ioprio, tuple) else (self.ioprio, None)
        _word("the class of ioprio", kind, (*_IO_CLASSES, INHERIT))
        if (kind in ("realtime", "best-effort")) != (level is not None):
            raise ConflictError("Scheduling: ioprio realtime and best-effort need a level, and only they have one")
        if level is not None:
            _int("the level of ioprio", level, 0, 7)
        return _IO_CLASSES[str(kind)] << 13 | (level or 0)

    def here(self) -> Change:
        """``with``: this thread's; ``oom_score_adj`` is the process's."""
        from isolate.attributes.scheduling_change import SchedulingChange

        policy = self.policy not in (None, INHERIT) or self.nice is not None
        oom = isinstance(self.oom_score_adj, int)
        affinity, io = self.affinity is not None, self.ioprio not in (None, INHERIT)
        return SchedulingChange(self, policy=policy, affinity=affinity, io=io, oom=oom)

    def steps(self, context: Context) -> Iterator[Step]:
        """Each set in the payload and read back at once; ``oom_score_adj`` from the supervisor."""
        if context.executes:
            yield from self._ordinary()
        if isinstance(self.oom_score_adj, int):
            yield _oom_score_adj(self.oom_score_adj)
        privilege: dict[int, str | Finding] = {
            errno.EPERM: Finding(
                "it needs CAP_SYS_NICE on the host (a user namespace's own does not count) or an rlimit",
                "run as root without UserNamespace(), or have RLIMIT_RTPRIO or RLIMIT_NICE raised: "
                "/etc/security/limits.conf (rtprio, nice), systemd's LimitRTPRIO=, LimitNICE=",
            ),
            errno.EACCES: Finding(
                "a lower nice value needs CAP_SYS_NICE on the host, or RLIMIT_NICE",
                "give no lower value than this program has (nice shows it), run as root without UserNamespace(), or "
                "have RLIMIT_NICE raised: /etc/security/limits.conf (nice), systemd's LimitNICE=",
            ),
            errno.EIO: "the kernel reports another value than was set",
        }
        if self.policy is not None and self.policy != INHERIT:
            number = Constant(_POLICIES[self.policy], f"SCHED_{self.policy.upper()}")
            parameter = Buffer(struct.pack("<i", self.priority or 0), "param")
            found = Buffer(4, "found")
            yield Step(
                Phase.SCHEDULING,
                f"scheduling policy {self.policy}" + (f", priority {self.priority}" if self.priority else ""),
                (
                    call("sched_setscheduler", 0, number, parameter),
                    call("sched_getscheduler", 0, expect=int(number)),
                    call("sched_getparam", 0, found),
                    Test(Load(found, 0, 4), self.priority or 0, error=errno.EIO),
                ),
                hints=privilege,
            )
        if self.nice is not None:
            yield Step(
                Phase.SCHEDULING,
                f"nice {self.nice}",
                (
                    call("setpriority", _PRIO_PROCESS, 0, self.nice),
                    # The system call answers 20 - nice: never negative.
                    call("getpriority", _PRIO_PROCESS, 0, expect=20 - self.nice),
                ),
                hints=privilege,
            )
        if self.affinity is not None:
            yield _affinity(self.affinity)
        if self.ioprio is not None and self.ioprio != INHERIT:
            value = self._ioprio()
            shown = self.ioprio if isinstance(self.ioprio, str) else f"{self.ioprio[0]}, level {self.ioprio[1]}"
            answer = Register("ioprio")
            yield Step(
                Phase.SCHEDULING,
                f"I/O priority {shown}",
                (
                    call("ioprio_set", _IOPRIO_WHO_PROCESS, 0, value),
                    call("ioprio_get", _IOPRIO_WHO_PROCESS, 0, out=answer),
                    Test(answer, value, error=errno.EIO),
                ),
                hints={
                    **privilege,
                    errno.EPERM: Finding(
                        "the class realtime needs CAP_SYS_ADMIN or CAP_SYS_NICE on the host",
                        'run as root without UserNamespace(), or use the class "best-effort"',
                    ),
                },
            )

    def _ordinary(self) -> Iterator[Step]:
        """Nothing of the caller's that puts the program before others, where nothing else is said."""
        if self.oom_score_adj is None:
            yield ordinary.killable()
        if self.policy is None:
            yield ordinary.no_real_time(nice=self.nice is None)
        if self.ioprio is None:
            yield ordinary.no_io_priority()


_PRIO_PROCESS = Constant(0, "PRIO_PROCESS")
_IOPRIO_WHO_PROCESS = Constant(1, "IOPRIO_WHO_PROCESS")


_SOME_CPUS = "name some of os.sched_getaffinity(0)"


def _affinity(cpus: frozenset[int]) -> Step:
    bits = sum(1 << cpu for cpu in cpus)
    size = _MAX_CPUS // 8
    wanted = Buffer(bits.to_bytes(size, "little"), "cpus")
    found = Buffer(size, "found")
    tests = tuple(
        Test(Load(found, at), int.from_bytes(wanted.data[at : at + 8], "little"), error=errno.ERANGE)
        for at in range(0, size, 8)
    )
    return Step(
        Phase.SCHEDULING,
        f"CPUs {', '.join(map(str, sorted(cpus)))}",
        (call("sched_setaffinity", 0, size, wanted), call("sched_getaffinity", 0, size, found), *tests),
        hints={
            errno.EINVAL: Finding("none of these CPUs is there, online and in the caller's cpuset", _SOME_CPUS),
            errno.ERANGE: Finding(
                "some of these CPUs are not there, not online, or not in the caller's cpuset", _SOME_CPUS
            ),
        },
    )


def _oom_score_adj(value: int) -> Step:
    path = Buffer(b"/proc/" + bytes(21), "proc")
    directory, file = Register("proc"), Register("oom_score_adj")
    data = b"%d" % value
    found = Buffer(8, "found")
    ops: tuple[Op, ...] = (
        Store(path, 6, CHILD, 0),
        call("openat", AT_FDCWD, path, O_PATH | O_CLOEXEC, 0, out=directory),
        call("openat", directory, b"oom_score_adj", O_RDWR | O_CLOEXEC, 0, out=file),
        call("write", file, data, len(data), expect=len(data)),
        call("pread64", file, found, len(found.data), 0, expect=len(data) + 1),
        Test(Load(found, 0), int.from_bytes((data + b"\n").ljust(8, b"\0"), "little"), error=errno.EIO),
        call("close", file),
        call("close", directory),
    )
    return Step(
        Phase.ADOPT,
        f"oom_score_adj {value}",
        ops,
        path=b"/proc/<init>/oom_score_adj",
        hints={
            errno.EACCES: Finding(
                "lowering oom_score_adj needs CAP_SYS_RESOURCE on the host; an ordinary user can raise it, but only "
                "together with UserNamespace()",
                "give a higher value; or run as root outside of a container and without UserNamespace(); or let "
                "systemd give this program a lower one to start with: OOMScoreAdjust=",
            ),
            errno.EIO: "the kernel reports another value than was set",
        },
    )
