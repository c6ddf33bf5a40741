"""A launcher that is parked: it has made a sandbox's tree of mounts once, and starts sandboxes from it.

A start is then one message to it, and a fork of it is the supervisor. The kernel copies the finished tree with the new
mount namespace. What a start would have found is compared each time: what it would inherit of this thread, this mount
namespace's table, and each file of the host that the tree shows. Whatever differs, the start is as without it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import struct
import sys
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

from isolate.cgroups.naming import gone
from isolate.diagnosis.start import from_template, launch
from isolate.engine import native
from isolate.engine.native import ffi, lib
from isolate.engine.ops import RunHost
from isolate.engine.run_block import block_without_program, run_block
from isolate.engine.session import MOST_PASSED, Session
from isolate.engine.waiting import ready
from isolate.kernel.namespaces import children_elsewhere
from isolate.thread.blocks import standing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.engine.plan import Buffer
    from isolate.engine.tape import Tape

__all__ = ["LAUNCHERS", "Starts", "Template", "end_all"]

_FREE: int = lib.ISO_SLOT_FREE
_DEVNULL = -3
#: The number of launchers that are kept for this process: the most recently used.
LAUNCHERS = 8
_PATIENCE = 1 << 16  # after so many starts without it, it is made again although it never lasted
_STATX = struct.Struct("<32xQ96x2I")  # inode; device, major and minor


class Template(NamedTuple):
    """The two tapes of a sandbox, and what the first one pins of the host."""

    build: Tape
    again: Tape
    sources: tuple[tuple[bytes, Buffer], ...]

    @property
    def fresh(self) -> int:
        """The namespaces that each start makes for itself, so that it does not matter in which ones the caller is."""
        return int(self.again.plan.clone_flags)

    @property
    def executes(self) -> bool:
        """Whether a start runs a program of the host's, outside."""
        return any(isinstance(op, RunHost) for step in self.again.plan.steps for op in step.ops)


class _Launcher:
    """One that builds, or is parked."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self._compared = ffi.new("struct iso_compared *")
        self._compared.fresh, self._compared.executes = template.fresh, template.executes
        if lib.iso_note(self._compared) < 0:
            raise OSError(errno.EOPNOTSUPP, "what a process inherits of this thread cannot be told")
        self._standing = standing()
        self._owner = native.owner()
        self._pinned = False
        self._rows, self._paths = _rows([path for path, _ in template.sources])
        self.failed = False
        self._starts: socket.socket | None = None
        self._mounts = os.open("/proc/thread-self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._session: Session | None = None  # from here on it is to be released
        self._starts, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, _carried(template.again.data) as tape:
            run = run_block(
                [b"-"], [], program=b"-", path=b"", cwd=b"/", fds=[], slots=_FREE + 2, started=False, tty=False
            )
            self._session = launch(template.build, run, [_DEVNULL] * 3, [theirs.fileno(), tape.fileno()])
        #: Whether a Landlock domain has to be watched for.
        watched = lib.iso_watches(self._session.pid)
        self.failed = watched < 0
        compared = self._compared
        compared.watched, compared.launcher, compared.mountinfo = watched, self._session.pid, self._mounts
        compared.pinned, compared.paths, compared.count = self._rows, self._paths, len(template.sources)

    def _is_parked(self) -> bool:
        """Whether its tree is there, and as it was asked for."""
        session = self._session
        if self._pinned or session is None or self.failed:
            return session is not None and not self.failed
        if session.end is None:
            try:
                if not ready(session.fileno()) or session.take() is None:
                    return False
            except (EOFError, OSError):
                self.failed = True
                return False
        record = session.end
        if record is None or record.kind != lib.ISO_RECORD_PARKED or any(record.skipped):
            self.failed = True
            return False
        places = {buffer: record.report[at : at + size] for buffer, at, size in self._template.build.reports}
        rows = self._rows
        for row, (_, buffer) in zip(rows, self._template.sources, strict=False):
            row.inode, row.major, row.minor = _STATX.unpack_from(places[buffer])
        self._pinned = True  # last: it tells other threads that all is there
        return True

    @property
    def pid(self) -> int:
        """Its process id."""
        return -1 if self._session is None else self._session.pid

    @property
    def building(self) -> bool:
        """Whether there is nothing to be said of it yet."""
        return not self._is_parked() and not self.failed

    def fits(self, stands: tuple[int, ...]) -> bool:
        """Whether it can be asked by a thread of which :func:`~isolate.thread.blocks.standing` says this. The rest is
        compared with the start."""
        return self._standing == stands and self._is_parked()

    def start(
        self, run: bytes, stdio: Sequence[int], slots: Sequence[int], *, nonblocking: bool, later: bool = False
    ) -> Session | None:
        """A sandbox from the tree; None if the launcher has gone, or a start by this thread would find something else.
        With ``later`` it waits for its program."""
        assert self._starts is not None
        assert self._session is not None
        return from_template(
            self._session,
            self._starts.fileno(),
            self._compared,
            self._template.again,
            run,
            stdio,
            slots,
            nonblocking=nonblocking,
            later=later,
        )

    def kill(self) -> None:
        """End one that does not answer, before it can begin with what it was asked for."""
        if self._session is not None and native.owns(self._owner):
            lib.iso_send(self._session._start, False, signal.SIGKILL)

    def end(self) -> None:
        """Let it end; what it has started goes on.

        Descriptors are closed with the last reference: another thread may be starting something by them.
        """
        if self._starts is not None and native.owns(self._owner):
            with contextlib.suppress(OSError):
                self._starts.shutdown(socket.SHUT_RDWR)
            self._clear()

    def _clear(self) -> None:
        """A launcher and its fork that waits clear up one for the other: this is for both of them killed."""
        group = self._template.again.plan.context.group
        if group is not None and not sys.is_finalizing() and gone(self.pid):
            with contextlib.suppress(OSError):
                group.remove_left()

    def __del__(self) -> None:
        if not hasattr(self, "_session"):
            return
        self.end()
        if self._starts is not None:
            self._starts.close()
        if self._session is not None:
            self._session.close()
        os.close(self._mounts)


def _rows(sources: Sequence[bytes]) -> tuple[Any, Any]:
    """A row for each source, with the mount in which it is found now; and their paths."""
    rows, paths = ffi.new("struct iso_pinned[]", max(1, len(sources))), bytearray()
    for row, path in zip(rows, sources, strict=False):
        row.path = len(paths)
        paths += path + b"\0"
    texts = ffi.from_buffer(bytes(paths) or b"\0")
    lib.iso_mounts(rows, len(sources), texts)
    return rows, texts


def _carried(data: bytes) -> Any:
    """A file in memory with these bytes, that nobody changes any more. Where a file may not be so long (RLIMIT_FSIZE,
    which the kernel answers with SIGXFSZ), a pipe that holds them all; a launcher takes its tape from either."""
    import fcntl

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and len(data) > limit:
        return _piped(data)
    file = os.fdopen(os.memfd_create("isolate-start", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+b", buffering=0)
    try:
        if file.write(data) != len(data):
            raise OSError(errno.ENOSPC, "tape of a template")
        fcntl.fcntl(file, 1033, 0xF)  # F_ADD_SEALS: seal, shrink, grow, write
    except BaseException:
        file.close()
        raise
    return file


def _piped(data: bytes) -> Any:
    import fcntl

    ends = os.pipe()
    reading = os.fdopen(ends[0], "rb", buffering=0)
    try:
        os.set_blocking(ends[1], False)
        fcntl.fcntl(ends[1], 1031, len(data))  # F_SETPIPE_SZ; above a mebibyte with CAP_SYS_RESOURCE alone
        if os.write(ends[1], data) != len(data):
            raise OSError(errno.EFBIG, "tape of a template")
    except BaseException:
        reading.close()
        raise
    finally:
        os.close(ends[1])
    return reading


def end_all() -> None:
    """End every launcher of this process that is parked; what they have started goes on."""
    with _lock:
        ending = list(_mine().values())
    for starts in ending:
        starts.close()


_lock = threading.RLock()
_alive: OrderedDict[int, Starts] = OrderedDict()
_alive_owner = 0


def _fresh_lock() -> None:
    """Give a forked child a lock of its own: a thread that it does not have may have held the parent's."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_fresh_lock)


def _mine() -> OrderedDict[int, Starts]:
    """Those of this process: what a parent has is not ours to end."""
    global _alive_owner
    if not native.owns(_alive_owner):
        _alive.clear()
        _alive_owner = native.owner()
    return _alive


class Starts:
    """The starts of one sandbox: from the second on by a launcher that is parked, as long as that tells the truth."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self._launcher: _Launcher | None = None
        self._seen = 0
        #: How many starts were from the tree.
        self.used: int = 0
        self._again = 0  # so many starts as without it, before it is made
        self._penalty = 1
        self._used = 0
        self._owner = native.owner()

    def start(
        self,
        run: bytes,
        stdio: Sequence[int],
        slots: Sequence[int],
        *,
        nonblocking: bool = False,
        later: bool = False,
    ) -> Session | None:
        """A sandbox from the tree, or None: to be set up as without one. With ``later`` it waits for its program."""
        stands = standing()
        if len(stands) > 1:
            return None  # in a block: it would keep alive what the block puts in force, and nothing else needs it
        if not native.owns(self._owner):
            self.__init__(self._template)  # type: ignore[misc]  # a forked child has its own
        launcher = self._launcher
        self._seen += 1
        if launcher is None:
            if self._seen > self._again:
                self._make()
            return None
        if launcher.building:
            return None
        if len(slots) > MOST_PASSED:
            return None
        if launcher.fits(stands):
            try:
                session = launcher.start(run, stdio, slots, nonblocking=nonblocking, later=later)
            except OSError as error:
                if error.errno == errno.ETIMEDOUT:
                    launcher.kill()
                    self._give_up(launcher)
                raise
            if session is not None:
                self._used += 1
                self.used += 1
                with _lock:
                    if id(self) in _alive:
                        _alive.move_to_end(id(self))
                return session
        self._give_up(launcher)
        return None

    def waiting(self) -> Session | None:
        """One from the tree that waits for its program, or None."""
        return self.start(block_without_program(0, later=True), [_DEVNULL] * 3, (), later=True)

    @property
    def launcher(self) -> int | None:
        """The process id of the launcher, if there is one."""
        found = self._launcher
        return None if found is None else found.pid

    def is_ready(self) -> bool:
        """Whether the tree has been made."""
        found = self._launcher
        return found is not None and not found.building and not found.failed

    def _give_up(self, launcher: _Launcher) -> None:
        """It is not as it was, or has gone: another one is made, later if this one did not last."""
        with _lock:
            if self._launcher is not launcher:
                return
            self._launcher = None
            _mine().pop(id(self), None)
            lasted = self._used >= 2 * self._penalty and not launcher.failed
            self._penalty = 1 if lasted else min(2 * self._penalty, _PATIENCE)
            if launcher.failed:
                self._penalty = _PATIENCE
            self._again, self._used = self._seen + self._penalty - 1, 0
        launcher.end()

    def _make(self) -> None:
        """Have a launcher build the tree, while this start goes on without."""
        with _lock:
            if self._launcher is not None:
                return
            try:
                if children_elsewhere():
                    raise OSError(errno.ECHILD, "it might be PID 1 there, and its end that of all others")
                self._launcher = _Launcher(self._template)
            except OSError:  # SetupError, too: the start that goes on without it says what is wrong
                self._again = self._seen + self._penalty
                self._penalty = min(2 * self._penalty, _PATIENCE)
                return
            alive = _mine()
            alive[id(self)] = self
            old = [alive.popitem(last=False)[1] for _ in range(len(alive) - LAUNCHERS)]
        for other in old:
            other.close()
        group = self._template.again.plan.context.group
        if group is not None:
            group.remove_abandoned()  # while the launcher builds

    def close(self) -> None:
        """End the launcher; what it has started goes on."""
        with _lock:
            launcher, self._launcher = self._launcher, None
            _alive.pop(id(self), None)
            self._again = self._seen + 1
        if launcher is not None:
            launcher.end()
