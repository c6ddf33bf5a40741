"""Starting a compiled tape, and what comes back on the control socket.

A :class:`Session` is one launcher: a socket whose end of file means "let go" to it, a pidfd, and the records that it
sends. Nothing here knows a part or a pipe.
"""

from __future__ import annotations

import os
import select
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate import native
from isolate.native import lib

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from isolate.tape import Tape

RECORD = struct.Struct(f"<IiIIiiiI4QII{lib.ISO_HEAD}s")
_ANCILLARY = 64  # one descriptor and its header


@dataclass(frozen=True, slots=True)
class Record:
    """A message from the launcher, decoded: bytes only, every length bounded by the message's own."""

    kind: int
    error: int
    op: int
    stage: int
    status: int
    init_status: int
    complete: int
    user_ns: int
    system_ns: int
    max_rss: int
    wall_ns: int
    head: bytes
    skipped: bytes
    report: bytes


def decode(message: bytes) -> Record:
    """Decode a record.

    :raises ValueError: for anything but a whole one.
    """
    if len(message) < RECORD.size:
        raise ValueError(f"a record of {len(message)} bytes")
    values = RECORD.unpack_from(message)
    (*plain, head_size, user, system, rss, wall, skipped_size, report_size, head) = values
    end = RECORD.size + skipped_size
    if len(message) != end + report_size or head_size > len(head):
        raise ValueError("a record whose sizes do not add up")
    return Record(
        *plain[:7], user, system, rss, wall, head[:head_size], message[RECORD.size : end], message[end : end + report_size]
    )  # fmt: skip


class Session:
    """A launcher that runs, owned by this process."""

    def __init__(self, tape: Tape, run: bytes, fds: Sequence[int], *, direct: bool | None = None) -> None:
        """Start it. ``fds`` are stdin, stdout, stderr, then the tape's own slots, then the run's."""
        import socket

        self.tape = tape
        self.owner = os.getpid()
        self.started: Record | None = None
        self.end: Record | None = None
        self.payload_fd = -1
        self.pidfd = -1
        self.pid = -1
        self._socket: socket.socket | None = None
        # SEQPACKET: a record is a message, so a dying launcher cannot leave half of one.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        temporary: list[int] = []
        try:
            self._socket = ours
            memfd = os.memfd_create("isolate-tape", 1)
            temporary.append(memfd)
            _write(memfd, tape.data, run)
            # Its end of life is ours: whatever ends this process, the launcher sees it here.
            owner = os.pidfd_open(self.owner)
            temporary.append(owner)
            table = [*fds[:3], theirs.fileno(), memfd, owner, *fds[3:]]
            use_direct = _reaping.direct if direct is None else direct
            self.pid, self.pidfd = native.spawn(table, direct=use_direct)
            self.direct = use_direct
        except BaseException:
            self.close()
            raise
        finally:
            theirs.close()
            for fd in temporary:
                os.close(fd)

    def fileno(self) -> int:
        """The control socket: readable when a record has come, or the end."""
        return self._socket.fileno() if self._socket is not None else -1

    def receive(self) -> Record | None:
        """Take one record without waiting; None if there is none yet. After the last one ``end`` is set.

        :raises EOFError: the launcher is gone without having told an end.
        """
        if self._socket is None:
            raise EOFError
        import array
        import socket

        size = RECORD.size + len(self.tape.plan.steps) // 8 + 1 + sum(n + 8 for _, _, n in self.tape.reports) + 64
        try:
            message, ancillary, _, _ = self._socket.recvmsg(size, _ANCILLARY, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except ConnectionError:
            raise EOFError from None
        received = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received.frombytes(data[: len(data) - len(data) % received.itemsize])
        if not message:
            raise EOFError
        try:
            record = decode(message)
        finally:
            expected = message[:4] == struct.pack("<I", lib.ISO_RECORD_STARTED) and self.payload_fd < 0
            for index, fd in enumerate(received):
                if expected and index == 0:
                    self.payload_fd = fd
                else:
                    os.close(fd)
        if record.kind == lib.ISO_RECORD_STARTED:
            self.started = record
        else:
            self.end = record
        return record

    def kill(self) -> None:
        """Let go: the launcher kills everything inside and tells the end. Also after a fork elsewhere holds copies."""
        if self._socket is not None and os.getpid() == self.owner:
            import socket

            # shutdown, not close: a forked child of this program's may hold the socket too.
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # already gone

    def wait_gone(self, timeout: float | None = None) -> bool:
        """Wait until the launcher itself has gone, and reap it where it is ours."""
        if self.pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if not poll.poll(None if timeout is None else max(0, int(timeout * 1000))):
            return False
        self.reap()
        return True

    def reap(self) -> None:
        """Reap the launcher if it is our child: directly, or since this process adopts orphans (PID 1, a subreaper)."""
        if self.pidfd < 0 or os.getpid() != self.owner:
            return
        try:
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            _reaping.observe(self)

    def close(self) -> None:
        """Let go and release the descriptors."""
        self.kill()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        for name in ("pidfd", "payload_fd"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)


class _Reaping:
    """Whether orphans get reaped here.

    A launcher is made an orphan so that nothing of it shows in this program. Someone must reap it: PID 1. Where PID 1 does
    not (a container whose PID 1 is ``sleep``), zombies would pile up; that is noticed, and from then on launchers are
    children of this process, reaped by it.
    """

    def __init__(self) -> None:
        self.direct = False
        self._trusted = False
        self._suspect: tuple[int, str, float] | None = None  # pid, start time, when seen

    def observe(self, session: Session) -> None:
        """An orphaned launcher has ended: once it is known that somebody reaps them, nothing more is done."""
        if self._trusted or self.direct or session.direct:
            return
        import time

        if self._suspect is None:
            state = _state(session.pid)
            if state is not None:
                self._suspect = (session.pid, state[1], time.monotonic())
            else:
                self._trusted = True
            return
        pid, start, seen = self._suspect
        state = _state(pid)
        if state is None or state[1] != start:
            self._trusted = True
        elif time.monotonic() - seen > 1:
            self.direct = True


def _state(pid: int) -> tuple[str, str] | None:
    """State letter and start time of a process, None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields[0].decode(), fields[19].decode()


_reaping = _Reaping()


def _write(fd: int, *parts: bytes) -> None:
    total = sum(map(len, parts))
    written = os.writev(fd, parts)
    if written != total:
        rest = memoryview(b"".join(parts))[written:]
        while rest:
            rest = rest[os.write(fd, rest) :]
