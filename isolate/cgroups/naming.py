"""Names of groups: whose they are, so that what was left behind can be told from what is in use.

``isolate-NAMESPACE-PID-START-TAG``: the pid namespace (hexadecimal inode) in which the owner's pid means something,
the owner's pid, its start time in clock ticks (proc_pid_stat(5), field 22), and what it is: the launcher's pid
for the group of a run, anything else for a :class:`~isolate.Cgroup`. Start times differ from one time namespace to
another (time_namespaces(7)), so where the owner's is not the first one, its inode stands behind that of the pid
namespace: ``isolate-PIDS.TIME-PID-START-TAG``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

_PREFIX = "isolate"
#: Inode of the time namespace that the kernel starts with (PROC_TIME_INIT_INO), and of whoever has none.
_FIRST_TIME = 0xEFFFFFFA
_ENDED = (b"Z", b"X")


@dataclass(frozen=True)
class Name:
    """A name, taken apart."""

    namespace: int
    pid: int
    start: int
    tag: str
    #: The time namespace in which ``start`` means something.
    time: int = _FIRST_TIME

    def __str__(self) -> str:
        time = "" if self.time == _FIRST_TIME else f".{self.time:x}"
        return f"{_PREFIX}-{self.namespace:x}{time}-{self.pid}-{self.start}-{self.tag}"


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is none (or only its zombie)."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in _ENDED else int(fields[19])


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat behind the name."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return None


def gone(pid: int, start: int | None = None) -> bool:
    """Whether a process (the one with this start time) has certainly ended; its zombie has.

    ``/proc`` alone does not say so: with ``hidepid`` it shows no process that cannot be dumped, and no launcher can.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no number of a process is as large
        return True
    except OSError:
        pass  # EPERM: it is another user's
    fields = _stat(pid)
    return fields is not None and (fields[0] in _ENDED or (start is not None and int(fields[19]) != start))


def pid_namespace() -> int:
    """The inode of this process's pid namespace."""
    return os.stat("/proc/self/ns/pid").st_ino


def time_namespace() -> int:
    """The inode of this process's time namespace; Linux 5.6."""
    try:
        return os.stat("/proc/self/ns/time").st_ino
    except OSError:
        return _FIRST_TIME


def prefix() -> str:
    """The name of a group of this process's, up to its tag."""
    return str(Name(pid_namespace(), os.getpid(), start_time(os.getpid()) or 0, "", time_namespace()))


def parse(name: str) -> Name | None:
    """The pieces of one of our names, None for any other."""
    pieces = name.split("-", 4)
    if len(pieces) != 5 or pieces[0] != _PREFIX or not pieces[4]:
        return None
    try:
        pids, dot, time = pieces[1].partition(".")
        return Name(int(pids, 16), int(pieces[2]), int(pieces[3]), pieces[4], int(time, 16) if dot else _FIRST_TIME)
    except ValueError:
        return None


def abandoned(name: Name) -> bool:
    """Whether the owner is certainly gone: only then may its group be swept.

    A name from another pid namespace says nothing here, so it is left alone. The group of a run also belongs to its
    launcher, which outlives its owner for the moment that it takes to clean up.
    """
    if name.namespace != pid_namespace():
        return False
    # In another time namespace somebody with its number may or may not be the owner.
    if name.pid <= 0 or not gone(name.pid, name.start if name.time == time_namespace() else None):
        return False
    return not name.tag.isdigit() or gone(int(name.tag))
