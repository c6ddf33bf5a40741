"""Resource limits of a process (getrlimit(2)), all sixteen, by the kernel's names."""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from isolate.engine.finding import Finding
from isolate.engine.plan import Buffer, Load, Phase, Step, Test, call
from isolate.kernel import checks
from isolate.kernel.checks import keywords
from isolate.kernel.constants import Constant
from isolate.thread.entering import Reversible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Context
    from isolate.thread.change import Change

__all__ = ["UNLIMITED", "Limit", "Rlimits"]

UNLIMITED = 2**64 - 1  #: RLIM_INFINITY of prlimit64

Value: TypeAlias = "int | str"
#: One value for soft and hard, or a pair. Values are ints, sizes such as ``"64M"``, or ``"unlimited"``.
Limit: TypeAlias = "Value | tuple[Value, Value] | None"

# name: number, unit (asm-generic/resource.h; the same on x86-64, AArch64 and riscv64)
_RESOURCES: dict[str, tuple[int, str]] = {
    "cpu": (0, "s"),
    "fsize": (1, "bytes"),
    "data": (2, "bytes"),
    "stack": (3, "bytes"),
    "core": (4, "bytes"),
    "rss": (5, "bytes"),
    "nproc": (6, "processes"),
    "nofile": (7, "descriptors"),
    "memlock": (8, "bytes"),
    "as_": (9, "bytes"),
    "locks": (10, "locks"),
    "sigpending": (11, "signals"),
    "msgqueue": (12, "bytes"),
    "nice": (13, "20 - nice"),
    "rtprio": (14, "priority"),
    "rttime": (15, "µs"),
}
_TOP = {"nice": 40, "rtprio": 99}
# Below this many descriptors the setting up itself could run out of them, so the limit comes later.
_ROOM = 1024


def _value(name: str, value: object) -> int:
    what = f"Rlimits: {name.rstrip('_')}"
    if value == UNLIMITED or (isinstance(value, str) and value.strip().lower() in checks.UNLIMITED):
        return UNLIMITED
    if _RESOURCES[name][1] == "bytes":
        return checks.size(what, value)
    if isinstance(value, str):
        raise ValueError(f"{what} must be an int ({_RESOURCES[name][1]}) or 'unlimited', not {value!r}")
    return checks.integer(what, value, 0, _TOP.get(name, checks.LARGEST))


def _show(value: int) -> str:
    return "unlimited" if value == UNLIMITED else str(value)


@keywords
@dataclass(frozen=True)
class Rlimits(Reversible):
    """Limits that the kernel keeps for each process by itself; a child starts with a copy.

    Each is an int, a size (``"64M"``, for those in bytes), ``"unlimited"``, a pair (soft, hard) of these, or None: as
    the caller's. One value is both soft and hard, so that the program cannot raise it again.

    ``cpu`` (seconds), ``fsize`` (bytes of a file written), ``data``, ``stack``, ``core``, ``rss`` (no effect since
    Linux 2.4.30), ``nproc`` (processes of the real user id in its user namespace, not only those of the sandbox; it
    does not bind root), ``nofile`` (one above the highest descriptor), ``memlock``, ``as_`` (``as`` is a word of
    Python; bytes of address space), ``locks`` (no effect since 2.4.25), ``sigpending``, ``msgqueue`` (bytes), ``nice``
    (the ceiling is 20 minus it), ``rtprio``, ``rttime`` (µs of real-time CPU without a blocking call).

    ``core`` is 0 by default: no core files. If the host's ``core_pattern`` is a pipe, 0 becomes 1: with 0 the
    kernel would still start the host's handler, and with 1 it does not (core(5)).

    A limit of this kind is per process: many processes have many times as much. For the whole of a sandbox, use
    :class:`~isolate.Limits`. Each is read back. Raising a hard limit needs CAP_SYS_RESOURCE in the initial user
    namespace (EPERM). ``nofile`` has the ceiling ``fs.nr_open``.

    :raises ValueError: soft above hard, negative, beyond the kernel's range.

    :param as_: bytes of address space (RLIMIT_AS).
    :param core: bytes of a core file.
    :param cpu: seconds of CPU of each process.
    :param data: bytes of data segment.
    :param fsize: bytes of a file that is written.
    :param locks: no effect since Linux 2.4.25.
    :param memlock: bytes that may be locked.
    :param msgqueue: bytes of POSIX message queues.
    :param nice: 20 minus the lowest nice value, 1 to 40.
    :param nofile: descriptors: one above the highest.
    :param nproc: processes of the real user id.
    :param rss: no effect since Linux 2.4.30.
    :param rtprio: highest real-time priority.
    :param rttime: microseconds of real-time CPU without a blocking call.
    :param sigpending: signals that may be queued.
    :param stack: bytes of stack.

    >>> Sandbox(Rlimits(nofile=64)).run(["sh", "-c", "ulimit -n"]).stdout
    b'64\\n'
    """

    as_: Limit = None
    core: Limit = 0
    cpu: Limit = None
    data: Limit = None
    fsize: Limit = None
    locks: Limit = None
    memlock: Limit = None
    msgqueue: Limit = None
    nice: Limit = None
    nofile: Limit = None
    nproc: Limit = None
    rss: Limit = None
    rtprio: Limit = None
    rttime: Limit = None
    sigpending: Limit = None
    stack: Limit = None

    def __post_init__(self) -> None:
        for name in _RESOURCES:
            given = getattr(self, name)
            if isinstance(given, list):
                object.__setattr__(self, name, tuple(given))
        self.values()

    def values(self) -> dict[str, tuple[int, int]]:
        """(soft, hard) of those that are set, in the kernel's order; "unlimited" is :data:`UNLIMITED`."""
        found: dict[str, tuple[int, int]] = {}
        for name in _RESOURCES:
            given = getattr(self, name)
            if given is None:
                continue
            if isinstance(given, tuple):
                if len(given) != 2:
                    raise ValueError(f"Rlimits: {name.rstrip('_')} takes a pair (soft, hard), not {given!r}")
                soft, hard = (_value(name, v) for v in given)
            else:
                soft = hard = _value(name, given)
            if soft > hard:
                raise ValueError(f"Rlimits: {name.rstrip('_')}: soft {_show(soft)} is above hard {_show(hard)}")
            found[name] = soft, hard
        return found

    def here(self) -> Change:
        """``with``: the soft limits of this process; hard ones stay, and one that is named must be what it is."""
        from isolate.attributes.rlimits_change import wanted

        pairs = frozenset(name for name in _RESOURCES if isinstance(getattr(self, name), tuple))
        return wanted(self.values(), _RESOURCES, pairs)

    def steps(self, context: Context) -> Iterator[Step]:
        """Set and read back; a small ``nofile`` last, so that it does not bind the setting up."""
        for name, (soft, hard) in self.values().items():
            number, unit = _RESOURCES[name]
            if name == "core" and hard == 0 and core_goes_to_a_pipe():
                soft = hard = 1
            kernel_name = f"RLIMIT_{name.rstrip('_').upper()}"
            resource = Constant(number, kernel_name)
            new = Buffer(struct.pack("<QQ", soft, hard), "limit")
            found = Buffer(16, "found")
            late = name == "nofile" and soft < _ROOM
            amount = _show(soft) if soft == hard else f"{_show(soft)}, at most {_show(hard)}"
            setting = call("prlimit64", 0, resource, new, 0)
            reading = (
                call("prlimit64", 0, resource, 0, found),
                Test(Load(found, 0), soft, error=errno.ERANGE),
                Test(Load(found, 8), hard, error=errno.ERANGE),
            )
            hints: dict[int, str | Finding] = {
                errno.EPERM: Finding(
                    "raising the hard limit needs CAP_SYS_RESOURCE on the host"
                    + (" (nofile never goes beyond fs.nr_open)" if name == "nofile" else ""),
                    "ask for no more than the hard limit (ulimit -H -a shows it), or have it raised before this "
                    "program starts: /etc/security/limits.conf, systemd's Limit…=",
                ),
                errno.ERANGE: "the kernel reports another limit than was set",
            }
            text = f"{kernel_name} {amount} ({unit})"
            if late:
                yield Step(Phase.VERIFY, text, (setting, *reading), hints=hints)
            else:
                yield Step(Phase.RLIMITS, text, (setting,), hints=hints)
                yield Step(Phase.VERIFY, f"verify {kernel_name}", reading, hints=hints)


def core_goes_to_a_pipe(path: str = "/proc/sys/kernel/core_pattern") -> bool:
    """Whether a crash starts a program of the host's. Where nobody can tell: as if."""
    try:
        with open(path, "rb") as file:
            return file.read(1) in (b"|", b"@")  # @: a socket (Linux 6.16)
    except OSError:
        return True
