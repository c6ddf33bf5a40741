"""Which call a filter killed a process for: the kernel writes it to the audit log, and that is where it is looked up.

The record (AUDIT_SECCOMP, 1326; Linux 4.14 logs every kill unless ``kernel.seccomp.actions_logged`` says otherwise) has
the pid, the ABI and the number. It reaches the kernel's message buffer (/dev/kmsg), unless an audit daemon takes it
away or the kernel's limit of messages (``kernel.printk_ratelimit``) drops it. The buffer is read only after a program
was killed: what is not killed does not pay for it.
"""

from __future__ import annotations

import os
import re
import select
import time
from typing import TYPE_CHECKING

from isolate.kernel import syscalls

from . import bpf
from .actions import Action

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["call_that_killed", "readable"]

_BUFFER = "/dev/kmsg"
_LONGEST = 8192  # of a record (Documentation/ABI/testing/dev-kmsg); a shorter buffer is EINVAL
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # proc_ns.h, PROC_PID_INIT_INO
_SIGSYS = 31

# Strings of the program's own (its name, its path) stand in quotes, or as hex if they hold a quote or a blank.
_TEXT = r'(?:"[^"]*"|[0-9A-F]+|\(null\))'
_RECORD = re.compile(
    r"audit: type=1326 audit\((?P<seconds>\d+)\.(?P<milliseconds>\d{3}):\d+\): auid=.* "
    rf"pid=(?P<pid>\d+) comm={_TEXT} exe={_TEXT} sig=(?P<signal>\d+) arch=(?P<arch>[0-9a-f]+) "
    r"syscall=(?P<number>-?\d+) compat=\d ip=0x[0-9a-f]+ code=0x(?P<action>[0-9a-f]+)"
)


def readable() -> bool:
    """Whether this process may read the kernel's messages, and has the pids that stand in them."""
    try:
        os.close(os.open(_BUFFER, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        return os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE
    except OSError:
        return False


def call_that_killed(pid: int, since: float, patience: float = 0.1) -> str | None:
    """The call for which a filter ended the process ``pid``; None where the kernel does not tell.

    ``since`` is a time of the system's clock when the pid was the process's already. The kernel writes its records a
    little later than it kills: ``patience`` is how many seconds to wait at most.
    """
    try:
        buffer = os.open(_BUFFER, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        until = time.monotonic() + patience
        more = select.poll()
        more.register(buffer, select.POLLIN)
        while True:
            # The last one: a thread may have been killed before the process was.
            found = None
            for line in _kernel_messages(buffer):
                found = _call(line, pid, since) or found
            left = until - time.monotonic()
            if found or left <= 0:
                return found
            more.poll(int(left * 1000) + 1)
    except OSError:
        return None
    finally:
        os.close(buffer)


def _kernel_messages(buffer: int) -> Iterator[str]:
    """The kernel's messages that are still unread. Programs' are left out: only the kernel is of facility 0."""
    while True:
        try:
            record = os.read(buffer, _LONGEST)
        except BlockingIOError:
            return
        except BrokenPipeError:
            continue  # overwritten meanwhile: goes on with the oldest that is left
        head, _, text = record.partition(b";")
        level = head.partition(b",")[0]
        if level.isdigit() and int(level) >> 3 == 0:
            yield text.partition(b"\n")[0].decode("ascii", "replace")


def _call(line: str, pid: int, since: float) -> str | None:
    record = _RECORD.fullmatch(line)
    if record is None or int(record["pid"]) != pid:
        return None
    # The kernel's coarse clock is up to a tick behind.
    if int(record["seconds"]) + int(record["milliseconds"]) / 1000 < since - 0.02:
        return None
    action = Action.from_return(int(record["action"], 16))
    if int(record["signal"]) != _SIGSYS and action.kind != "trap":
        return None  # with log=True errnos are noted too
    return _named(int(record["arch"], 16), int(record["number"]))


def _named(audit_arch: int, number: int) -> str:
    """``mkdir``; with the ABI before it where that is not the machine's own (``i386:mkdir``); else the number."""
    native = syscalls.native_arch()
    abi = next((name for name, value in bpf.AUDIT_ARCH.items() if value == audit_arch), f"{audit_arch:#x}")
    if abi == "x86_64" and number != -1 and number & syscalls.X32_BIT:
        abi = "x32"
    found = syscalls.name(number, abi) if abi in bpf.AUDIT_ARCH else None
    word = found or str(number & ~syscalls.X32_BIT if abi == "x32" else number)
    return word if abi == native else f"{abi}:{word}"
