"""The possible answers of a filter: the SECCOMP_RET_* values, as data."""

from __future__ import annotations

import errno as _errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from isolate.kernel.checks import is_int

__all__ = ["Action"]

# linux/seccomp.h: the upper 16 bits are the action, the lower 16 its data.
_RET = {
    "kill_process": 0x80000000,
    "kill_thread": 0x00000000,
    "trap": 0x00030000,
    "errno": 0x00050000,
    "notify": 0x7FC00000,
    "trace": 0x7FF00000,
    "log": 0x7FFC0000,
    "allow": 0x7FFF0000,
}
_KINDS = {value: kind for kind, value in _RET.items()}
_WITH_DATA = ("errno", "trace", "trap")

# linux/errno.h caps what a filter can return; anything greater becomes this.
_MAX_ERRNO = 4095


@dataclass(frozen=True, slots=True)
class Action:
    """One answer of a filter. Made by the names below, or from a word: ``Action.of("allow")``, ``Action.of("EPERM")``.

    - ``Action.ALLOW``: the call is made.
    - ``Action.LOG``: the call is made and written to the audit log (Linux 4.14).
    - ``Action.errno("EPERM")``: the call is not made and fails so. At most 4095; ``errno(0)`` makes it "succeed" with
      0.
    - ``Action.KILL_PROCESS``: the whole process ends as by SIGSYS, with a core dump where those are on (Linux 4.14).
    - ``Action.KILL_THREAD``: only the calling thread ends.
    - ``Action.TRAP``: SIGSYS is sent, the call is not made; ``trap(data)`` sets si_errno.
    - ``Action.trace(data)``: a tracer decides (PTRACE_O_TRACESECCOMP); without one the call fails with ENOSYS.
    - ``Action.NOTIFY``: the supervisor that holds the filter's listener decides (Linux 5.0).
    """

    kind: str
    data: int = 0

    # Set below. Not for the run-time: what prints annotated fields would go round in circles.
    if TYPE_CHECKING:
        ALLOW: ClassVar[Action]
        LOG: ClassVar[Action]
        KILL_PROCESS: ClassVar[Action]
        KILL_THREAD: ClassVar[Action]
        TRAP: ClassVar[Action]
        NOTIFY: ClassVar[Action]
        EPERM: ClassVar[Action]
        ENOSYS: ClassVar[Action]

    def __post_init__(self) -> None:
        if self.kind not in _RET:
            raise ValueError(f"unknown action {self.kind!r}; known are {', '.join(_RET)}")
        if not is_int(self.data):
            raise TypeError(f"an action's data is an int, not {self.data!r}")
        limit = _MAX_ERRNO if self.kind == "errno" else 0xFFFF if self.kind in _WITH_DATA else 0
        if not 0 <= self.data <= limit:
            raise ValueError(f"data of action {self.kind} out of range 0..{limit}: {self.data}")

    @classmethod
    def errno(cls, number: int | str) -> Action:
        """Fail with this errno: a number, or a name such as "EACCES"."""
        return cls("errno", _errno_number(number))

    @classmethod
    def trace(cls, data: int = 0) -> Action:
        """Ask a ptrace tracer, which reads ``data`` by PTRACE_GETEVENTMSG."""
        return cls("trace", data)

    @classmethod
    def trap(cls, data: int = 0) -> Action:
        """Send SIGSYS with ``data`` as si_errno."""
        return cls("trap", data)

    @classmethod
    def of(cls, value: Action | str) -> Action:
        """An action from its word: "allow", "log", "kill" (the process), "kill_thread", "trap", "trace", "notify",
        or the name of an errno."""
        if isinstance(value, Action):
            return value
        if not isinstance(value, str):
            raise TypeError(f"an action is an Action or a word, not {value!r}")
        word = value.lower().replace("-", "_")
        if word == "kill":
            return cls("kill_process")
        if word in _RET and word != "errno":
            return cls(word)
        if value.startswith("E"):
            return cls.errno(value)
        raise ValueError(
            f"unknown action {value!r}; use allow, log, kill, kill_thread, trap, trace, notify or an errno like EPERM"
        )

    @classmethod
    def from_return(cls, value: int) -> Action:
        """The action in a filter's return value. For an unknown action the kernel kills the process."""
        kind = _KINDS.get(value & 0xFFFF0000, "kill_process")
        data = value & 0xFFFF if kind in _WITH_DATA else 0
        return cls(kind, min(data, _MAX_ERRNO) if kind == "errno" else data)

    @property
    def value(self) -> int:
        """The value that the BPF program returns for it."""
        return _RET[self.kind] | self.data

    @property
    def makes_call(self) -> bool:
        """Whether the kernel makes the call without asking anybody."""
        return self.kind in ("allow", "log")

    @property
    def code(self) -> str:
        """The expression that makes this action, without the leading ``Action``."""
        if self.kind == "errno":
            name = _errno.errorcode.get(self.data)
            return f".errno({name!r})" if name else f".errno({self.data})"
        if self.kind == "trace" or (self.kind == "trap" and self.data):
            return f".{self.kind}({self.data})"
        return f".{self.kind.upper()}"

    @property
    def word(self) -> str:
        """The shortest spelling that ``Action.of`` takes, or the one for people where there is none."""
        if self.kind == "errno":
            return _errno.errorcode.get(self.data, f"errno {self.data}")
        if self.kind == "kill_process":
            return "kill"
        return f"{self.kind} {self.data}" if self.data else self.kind

    def __repr__(self) -> str:
        return f"Action{self.code}"

    def __str__(self) -> str:
        return self.word


def _errno_number(number: int | str) -> int:
    if isinstance(number, str):
        value = getattr(_errno, number, None)
        if not number.startswith("E") or not isinstance(value, int):
            from isolate.kernel.checks import nearest

            raise ValueError(f"no errno is named {number!r}{nearest(number, _errno.errorcode.values())}")
        return value
    return number


Action.ALLOW = Action("allow")
Action.LOG = Action("log")
Action.KILL_PROCESS = Action("kill_process")
Action.KILL_THREAD = Action("kill_thread")
Action.TRAP = Action("trap")
Action.NOTIFY = Action("notify")
Action.EPERM = Action.errno(_errno.EPERM)
Action.ENOSYS = Action.errno(_errno.ENOSYS)
