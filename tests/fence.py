"""A child of the test process behind a seccomp filter that can ask the test about every system call.

The filter is inherited by all that the child starts, launcher and payload included, and the listener reports a hang-up
once the last task behind it has gone. So it serves three ends: to see every system call in order, to let one of them
fail or to kill somebody at exactly that call, and to tell without any doubt that nothing was left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import pickle
import random
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from isolate.engine.native import call
from isolate.kernel import syscalls
from tests.snapshot import SOON, settled

NOTIF_RECV, NOTIF_SEND = 0xC0502100, 0xC0182101
CONTINUE = 1
REPORT_FD = 777
UNUSED_NR = 1000  # no kernel has it: a filter that asks about nothing

_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_libc = ctypes.CDLL(None, use_errno=True)


def nr(name: str) -> int:
    return syscalls.number(name)


def _program(asks: bool, free: tuple[int, ...]) -> bytes:
    def ins(code: int, jt: int, jf: int, k: int) -> bytes:
        return struct.pack("<HBBI", code, jt, jf, k)

    rows = [ins(0x20, 0, 0, 0)]  # load the number
    if not asks:
        rows += [ins(0x15, 0, 1, UNUSED_NR), ins(6, 0, 0, _NOTIFY), ins(6, 0, 0, _ALLOW)]
        return b"".join(rows)
    for number in free:
        rows += [ins(0x15, 0, 1, number), ins(6, 0, 0, _ALLOW)]
    # The report goes through unasked.
    rows += [ins(0x15, 0, 3, nr("write")), ins(0x20, 0, 0, 16), ins(0x15, 0, 1, REPORT_FD), ins(6, 0, 0, _ALLOW)]
    rows.append(ins(6, 0, 0, _NOTIFY))
    return b"".join(rows)


#: Never asked about: they cannot fail, or no caller can do anything about it.
_FREE_NAMES = "futex exit exit_group rt_sigreturn clock_gettime munmap brk sched_yield restart_syscall"
FREE = tuple(map(nr, _FREE_NAMES.split()))


def _install(asks: bool) -> int:
    program = _program(asks, FREE)
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("<H6xQ", len(program) // 8, ctypes.addressof(buffer))
    if os.geteuid():
        _libc.prctl(38, 1, 0, 0, 0)
    listener = call(nr("seccomp"), 1, 8, fprog)  # SET_MODE_FILTER, NEW_LISTENER
    if listener < 0:
        raise OSError(-listener, os.strerror(-listener))
    return listener


@dataclass
class Call:
    """One system call that waits for an answer."""

    pid: int
    role: str
    index: int  # among those of its role since the beginning
    nr: int
    args: tuple[int, ...]

    @property
    def name(self) -> str:
        return syscalls.name(self.nr) or str(self.nr)


#: What the test answers: None lets the call go on, a positive errno makes it fail, 0 says that it was done, untruly.
Decide = Callable[[Call], "int | None"]

#: Whose child is what: the launcher's first child is init, any other a program of the host's that it runs.
CHILD_OF = {
    "caller": "middle",
    "middle": "launcher",
    "parked": "launcher",
    "launcher": "init",
    "init": "payload",
    "next": "unborn",
}
#: Once they have executed something, their calls are another program's.
EXECUTING = ("init", "payload", "helper")


def parent_of(pid: int) -> int:
    """The parent of a process that waits for our answer."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:  # killed meanwhile
        return 0


def is_launcher(pid: int) -> bool:
    """Whether a process is one of ours that stands outside."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read() == b"isolate-launche\n"
    except OSError:
        return False


@dataclass
class Outcome:
    """What came of a fenced run."""

    value: Any = None
    error: str | None = None
    calls: list[Call] = field(default_factory=list)
    status: int | None = None
    #: Seconds after the child's end until nothing was left; None: something was left.
    gone: float | None = None
    left: list[str] = field(default_factory=list)
    ended: float = 0.0


class Fence:
    """Runs ``function`` in a forked child. ``begin()`` inside it starts the counting of calls, ``end()`` stops it.

    ``begin(pid)`` names the launcher that is parked: of what was there before, that and what stems from it has a role.
    """

    def __init__(self, function: Callable[[Callable[[], None], Callable[[], None]], Any], *, asks: bool = True) -> None:
        self.asks = asks
        settled()  # what a thread holds at the moment of a fork, the child never gets
        reading, writing = os.pipe()
        ready, go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._child(function, reading, writing, ready, go)
        os.close(writing)
        os.close(go)
        os.set_blocking(reading, False)
        self.report = reading
        self.pidfd = os.pidfd_open(self.pid)
        number = struct.unpack("<i", os.read(ready, 4))[0]
        os.close(ready)
        self.listener = self._fetch(number)
        self._text = b""
        self._active = False
        self._over = False
        self._parked = 0
        self._roles: dict[int, str] = {self.pid: "caller"}
        self._counts: dict[str, int] = {}
        self._executed: set[int] = set()

    def _child(self, function: Any, reading: int, writing: int, ready: int, go: int) -> None:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.close(reading)
            os.close(ready)
            os.dup2(writing, REPORT_FD, inheritable=False)
            os.close(writing)
            probe = os.dup(go)
            os.close(probe)
            os.write(go, struct.pack("<i", probe))
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            listener = _install(self.asks)
            # The test takes its own copy before this one goes: the first call that is asked about waits for it.
            os.close(go)
            if not self.asks:
                signal.sigwait([signal.SIGUSR1])
            os.close(listener)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
            value: tuple[Any, str | None]
            try:
                begin = lambda pid=0: self._say(struct.pack("<ci", b"<", pid))  # noqa: E731
                value = (function(begin, lambda: self._say(b">")), None)
            except BaseException:
                value = (None, traceback.format_exc())
            data = pickle.dumps(value)
            self._say(b"=" + struct.pack("<I", len(data)) + data)
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)

    @staticmethod
    def _say(data: bytes) -> None:
        while data:
            data = data[os.write(REPORT_FD, data) :]

    def _fetch(self, number: int) -> int:
        deadline = time.monotonic() + SOON
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if "seccomp" in os.readlink(f"/proc/{self.pid}/fd/{number}"):
                    fd = call(nr("pidfd_getfd"), self.pidfd, number, 0)
                    if fd >= 0:
                        if not self.asks:
                            os.kill(self.pid, signal.SIGUSR1)
                        return fd
            time.sleep(0.0005)
        raise AssertionError("the fenced child did not install its filter")

    # ---- answering ---------------------------------------------------------------------------------------------------

    def _read_report(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.report, 65536):
                self._text += data
        if b"<" in self._text[:1] and len(self._text) >= 5:
            self._active, self._parked, self._text = True, *struct.unpack_from("<i", self._text, 1), self._text[5:]
        if self._active and b">" in self._text[:1]:
            self._active, self._over, self._text = False, True, self._text[1:]

    def _received(self) -> bytes | None:
        """The next call that waits for an answer; None: who made it was killed meanwhile."""
        buffer = bytearray(80)
        try:
            fcntl.ioctl(self.listener, NOTIF_RECV, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        self._read_report()
        return buffer

    def _answer(self, decide: Decide | None, calls: list[Call]) -> None:
        received = self._received()
        if received is None:
            return
        ident, pid, _, number, _, _, *args = struct.unpack("<QIIiIQ6Q", received)
        answer: int | None = None
        if self._active or self._over:
            role = self._roles.get(pid)
            if role is None:
                parent = parent_of(pid)
                role = "other" if parent in self._executed else CHILD_OF.get(self._roles.get(parent, ""), "other")
                if role == "payload" and number == nr("prctl"):
                    role = "aside"  # init's second process, whose first call this is
                if role == "other" and parent not in self._roles and is_launcher(pid):
                    role = self._before(pid, parent)
                if role == "launcher" and role in self._roles.values() and self._roles.get(parent) == "parked":
                    role = "next"  # the fork that waits for the start after this one
                if role in self._roles.values():
                    role = "helper" if role == "init" else "other"
                self._roles[pid] = role
            inside = pid in self._executed or role == "other"
            if not inside and (self._active or role != "caller"):
                index = self._counts.get(role, 0)
                self._counts[role] = index + 1
                one = Call(pid, role, index, number, tuple(args))
                calls.append(one)
                answer = decide(one) if decide is not None else None
                if answer is None and role in EXECUTING and number == nr("execve"):
                    self._executed.add(pid)
        reply = struct.pack("<QqiI", ident, 0, -(answer or 0), CONTINUE if answer is None else 0)
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.listener, NOTIF_SEND, reply)

    def _before(self, pid: int, parent: int) -> str:
        """The role of who was there before the beginning: one that is parked, its fork, which waits for a start, and
        its init. The launcher of an earlier start may still be on its way out; it is neither."""
        if self._parked:
            line = [pid, parent, parent_of(parent)]
            return ("parked", "launcher", "init")[line.index(self._parked)] if self._parked in line else "other"
        if is_launcher(parent):
            return "init" if is_launcher(parent_of(parent)) else "launcher"
        return "parked"

    def kill(self) -> None:
        """SIGKILL to the child. It may have ended by itself, and have been reaped: then nobody gets it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def drive(self, decide: Decide | None = None, *, limit: float = 60.0, grace: float = SOON) -> Outcome:
        """Answer until the child has ended and nothing is left, or ``grace`` seconds later.

        It hangs if nothing makes a call for ``limit`` seconds, or if it takes six times as long: on a busy machine
        each of some thousand calls waits for its answer, and all of them take longer than any one.
        """
        outcome = Outcome()
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        poll.register(self.pidfd, select.POLLIN)
        poll.register(self.report, select.POLLIN)
        quiet = time.monotonic() + limit
        deadline = quiet + 5 * limit
        hung = False
        while True:
            now = time.monotonic()
            if outcome.gone is not None or (outcome.status is not None and now > outcome.ended + grace):
                break
            if outcome.status is None and now > min(quiet, deadline) and not hung:
                hung = True
                outcome.left = self.survivors()
                self.kill()
            events = dict(poll.poll(50))
            if self.report in events:
                self._read_report()
                if events[self.report] & select.POLLHUP:
                    poll.unregister(self.report)
            if events.get(self.listener, 0) & select.POLLIN:
                quiet = time.monotonic() + limit
                self._answer(decide, outcome.calls)
            elif events.get(self.listener, 0) & select.POLLHUP and outcome.status is not None:
                outcome.gone = max(0.0, time.monotonic() - outcome.ended)
            if self.pidfd in events and outcome.status is None:
                outcome.status = os.waitpid(self.pid, 0)[1]
                outcome.ended = time.monotonic()
                poll.unregister(self.pidfd)
        if outcome.gone is None:
            outcome.left = outcome.left or self.survivors()
        self._read_report()
        if self._text[:1] == b"=":
            outcome.value, outcome.error = pickle.loads(self._text[5 : 5 + struct.unpack("<I", self._text[1:5])[0]])
        elif not hung and outcome.status == 0:
            outcome.error = "no report"
        if hung:
            outcome.error = "hung"
        for fd in (self.listener, self.report, self.pidfd):
            os.close(fd)
        return outcome

    def survivors(self) -> list[str]:
        """Processes of this fence that still live: by the roles seen and by their descendants."""
        found = []
        for pid, role in self._roles.items():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
                found.append(f"{role} {file.read()[:120]!r}")
        return found


def calls_of(start: Callable[[], object]) -> list[Call]:
    """All calls of a start that nothing disturbs, which must end well."""

    def program(begin: Any, end: Any) -> str:
        begin()
        return str(start())

    outcome = Fence(program).drive()
    assert outcome.value == "OK", outcome.error
    return outcome.calls


def killed_at_random(program: Any, instants: int, longest: float, seed: int) -> Iterator[tuple[str, Outcome]]:
    """Kill a program at random instants of its first seconds: when it was, and what became of its processes."""
    rng = random.Random(seed)
    for number in range(instants):
        fence = Fence(program, asks=False)
        instant = rng.uniform(0, longest)
        time.sleep(instant)  # the instant is the experiment
        fence.kill()
        yield f"{number}: killed after {instant * 1000:.2f} ms", fence.drive()
