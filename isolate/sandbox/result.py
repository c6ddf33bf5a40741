"""The return value of a run: a :class:`Result` with one :class:`Verdict`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, AnyStr, Generic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from isolate.mounts.changes import Changes
    from isolate.network.proxy.events import Asked

__all__ = ["Result", "Verdict"]


class Verdict(str, enum.Enum):
    """One word for why a program ended.

    >>> Sandbox().run(["sleep", "9"], timeout=0.1).verdict
    <Verdict.TIMEOUT: 'TIMEOUT'>
    """

    OK = "OK"  #: it exited with 0
    EXITED = "EXITED"  #: it exited with another status
    SIGNALED = "SIGNALED"  #: a signal ended it (also its own abort())
    TIMEOUT = "TIMEOUT"  #: it was killed at the wall-clock limit
    CPU_TIME = "CPU_TIME"  #: it was killed at the limit of CPU time
    OOM = "OOM"  #: the kernel killed it, or one of its children, for memory
    PIDS = "PIDS"  #: it ran into its limit of processes and failed
    OUTPUT = "OUTPUT"  #: it was killed for writing more than max_output
    #: its filter killed it; one of its own, too, if the sandbox has a policy that may kill, else that is SIGNALED
    SECCOMP = "SECCOMP"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Result(Generic[AnyStr]):
    """How a program ended and what it wrote.

    ``returncode`` is the exit status, or minus the signal that ended it (-9 if isolate killed it). Times are seconds,
    ``peak_memory`` bytes: anonymous and shared memory of the whole tree where a cgroup counted it, at least the
    resident set of the largest process (ru_maxrss), which is all that is known without a cgroup. It does not depend on
    whether the files that the program read were in the page cache. ``peak_charged`` does: it is what the cgroup was
    charged at its peak, the page cache that the program filled included, and what the limit is held against.

    >>> result = Sandbox().run(["sh", "-c", "echo hello; exit 3"], text=True)
    >>> result.verdict, result.returncode, result.stdout
    (<Verdict.EXITED: 'EXITED'>, 3, 'hello\\n')
    """

    args: tuple[str | bytes, ...]
    returncode: int
    verdict: Verdict
    #: The captured output; None if the stream went elsewhere.
    stdout: AnyStr | None
    stderr: AnyStr | None
    #: From the moment at which the start was asked for to the death of the last process. With the verdict TIMEOUT it is
    #: not below the limit.
    wall_time: float
    #: User and system time of the whole tree, also of a program that was killed at a limit. Without a cgroup it leaves
    #: out what the kernel itself reaps: the children of a program that is PID 1 (``PidNamespace(init=False)``), and
    #: everything in a pid namespace whose init somebody else has killed. ``Limits`` counts all.
    cpu_time: float
    peak_memory: int
    #: None without a cgroup that counts memory.
    peak_charged: int | None = None
    #: The streams ("stdout", "stderr") of which not everything was kept.
    truncated: frozenset[str] = frozenset()
    #: For each part whether all of it held. False for parts with ``required=False``, and where this host cannot give a
    #: default that protects nothing here (``explain()`` says of which steps that may be so).
    applied: Mapping[str, bool] = field(default_factory=dict)
    #: The steps that did not hold, in words: "SessionKeyring: a new, empty session keyring …".
    left_out: tuple[str, ...] = ()
    #: Counters of the sandbox's cgroup, where it had one.
    stats: Any = None
    #: With the verdict SECCOMP the call that was denied, "mkdir"; one through another ABI is "i386:mkdir", one without
    #: a name its number. None where the kernel does not tell: see :ref:`seccomp-denied`.
    syscall: str | None = None
    #: What is known of a limit that it may have run into and that the kernel tells nobody about, in sentences: SIGXFSZ
    #: under a limit of file sizes, a resident set near RLIMIT_AS or RLIMIT_DATA; and which sources are closed to a
    #: program of root's that has another id on the host. None is no proof: see :ref:`limits of a process <hints>`.
    hints: tuple[str, ...] = ()
    #: What was changed in overlays whose changes are in memory, by their paths in the sandbox; None without one. See
    #: :ref:`changes`.
    changes: Changes | None = None
    #: What it asked of :class:`isolate.network.Domains` and :class:`isolate.network.Connect`, and what became of it.
    asked: tuple[Asked, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the verdict is OK."""
        return self.verdict is Verdict.OK

    def check(self) -> Result[AnyStr]:
        """The result itself, or :class:`ProgramError` if the verdict is not OK."""
        if self.verdict is not Verdict.OK:
            from isolate.errors import ProgramError

            raise ProgramError(self)  # pyright: ignore[reportArgumentType]  # AnyStr is one of the two
        return self

    def json(self) -> str:
        """As a line of JSON; output that is not text is escaped (backslashreplace)."""
        import json

        def text(value: str | bytes | None) -> str | None:
            return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value

        return json.dumps(
            {
                "args": [text(a) for a in self.args],
                "returncode": self.returncode,
                "verdict": str(self.verdict),
                "syscall": self.syscall,
                "hints": list(self.hints),
                "stdout": text(self.stdout),
                "stderr": text(self.stderr),
                "wall_time": self.wall_time,
                "cpu_time": self.cpu_time,
                "peak_memory": self.peak_memory,
                "peak_charged": self.peak_charged,
                "truncated": sorted(self.truncated),
                "applied": dict(self.applied),
                "left_out": list(self.left_out),
                "changes": None if self.changes is None else [(c.kind, text(b"/" + c.path)) for c in self.changes],
                "asked": [event._asdict() for event in self.asked],
            }
        )
