"""Scheduling of the calling thread, and back; ``oom_score_adj`` is the process's (sched(7))."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from isolate.engine import native
from isolate.engine.native import ffi
from isolate.engine.plan import number
from isolate.errors import IrreversibleError
from isolate.thread.change import Change
from isolate.thread.program import Program, Running, gather

if TYPE_CHECKING:
    from isolate.engine.plan import Part

__all__ = ["SchedulingChange"]

_ATTR = 56  # struct sched_attr, with the clamps of Linux 5.3
_CPUS = 1024
_IOPRIO_WHO_PROCESS = 1


class SchedulingChange(Change):
    """The part's settings, by its own steps; the old values are read before and put back after.

    Whether the kernel will give it back (a lower nice value, a way out of a policy) is tried beforehand, on a thread
    that ends at once.
    """

    __slots__ = ("_affinity", "_attr", "_io", "_oom", "_part", "_sets")

    text = "the scheduling of this thread"
    order = 45

    def __init__(self, part: Part, *, policy: bool, affinity: bool, io: bool, oom: bool) -> None:
        self._part = part
        self._sets = policy, affinity, io, oom
        self._attr: bytes | None = None
        self._affinity: bytes | None = None
        self._io: int | None = None
        self._oom: bytes | None = None

    def check(self) -> None:
        """Try the way there and back on a disposable thread."""
        policy, affinity, io, _ = self._sets
        if not policy and not io and not affinity:
            return
        from isolate.thread.disposable import on_a_thread

        # oom_score_adj is left out: it would be the whole process's at once. The kernel gives it back (proc(5)).
        trial = SchedulingChange(self._part, policy=policy, affinity=affinity, io=io, oom=False)
        refused = on_a_thread(trial._try)
        if refused is not None:
            raise IrreversibleError(
                f"with {self._part!r}: the kernel would not give back what this thread has ({refused}): that needs"
                " CAP_SYS_NICE, or RLIMIT_NICE. Use isolate.in_thread(function, part) or Sandbox(part)"
            )

    def _try(self) -> OSError | None:
        self._read()
        Running(_program(self._part, oom=False)).apply()
        try:
            self.undo()
        except OSError as error:
            return error
        return None

    def _read(self) -> None:
        policy, affinity, io, oom = self._sets
        if policy:
            attr = ffi.new("uint8_t[]", _ATTR)
            _done(native.call(number("sched_getattr"), 0, attr, _ATTR, 0), "read the policy")
            self._attr = bytes(ffi.buffer(attr))
        if affinity:
            cpus = ffi.new("uint8_t[]", _CPUS)
            size = _done(native.call(number("sched_getaffinity"), 0, _CPUS, cpus), "read the affinity")
            self._affinity = bytes(ffi.buffer(cpus))[:size]
        if io:
            self._io = _done(native.call(number("ioprio_get"), _IOPRIO_WHO_PROCESS, 0), "read the I/O priority")
        if oom:
            with open("/proc/self/oom_score_adj", "rb") as file:
                self._oom = file.read().strip()

    def apply(self) -> None:
        """The part's own steps, with what they read back."""
        self._read()
        Running(_program(self._part, oom=True)).apply()

    def undo(self) -> None:
        """Each as it was."""
        failed: OSError | None = None
        for restore in (self._policy_again, self._affinity_again, self._io_again, self._oom_again):
            try:
                restore()
            except OSError as error:
                failed = error
        if failed is not None:
            raise failed

    def _policy_again(self) -> None:
        if self._attr is not None:
            _done(native.call(number("sched_setattr"), 0, self._attr, 0), "policy and nice value again")

    def _affinity_again(self) -> None:
        if self._affinity is not None:
            _done(native.call(number("sched_setaffinity"), 0, len(self._affinity), self._affinity), "CPUs again")

    def _io_again(self) -> None:
        if self._io is not None:
            _done(native.call(number("ioprio_set"), _IOPRIO_WHO_PROCESS, 0, self._io), "I/O priority again")

    def _oom_again(self) -> None:
        if self._oom is not None:
            with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
                file.write(self._oom)

    def now(self) -> str:
        """Policy, nice value and CPUs of this thread."""
        attr = ffi.new("uint8_t[]", _ATTR)
        native.call(number("sched_getattr"), 0, attr, _ATTR, 0)
        _, policy, _, nice, priority = struct.unpack_from("<IIQiI", bytes(ffi.buffer(attr)))
        return f"policy {policy}, nice {nice}, priority {priority}, CPUs {sorted(os.sched_getaffinity(0))}"


def _program(part: Part, *, oom: bool) -> Program:
    rows = [row for row in gather((part,)) if oom or "oom_score_adj" not in row[0].text]
    return Program(part, rows)


def _done(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, f"{os.strerror(-result)}: {what}")
    return result
