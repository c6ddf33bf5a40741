"""Calls decided in Python while the program waits: handlers, what they see, what they may answer.

    def opened(call):
        path = call.read_string(call.args[1])
        return Reply.errno("EACCES") if b"secret" in path else Reply.proceed()

    Sandbox(Seccomp.default(), Seccomp(otherwise="allow", notify={"openat": opened})).run(...)

The kernel stops the calling thread and hands the call to a thread of this program (seccomp_unotify(2), Linux 5.14).
Handlers run in threads of their own, several at once; an ``async def`` handler runs in an event loop of its own there.
A handler is no filter: ``Reply.proceed()`` lets the kernel look at the arguments *again*, and another thread of the
program may have changed what pointers point to. Refuse, answer in the program's stead, or hand in a descriptor opened
here; and let a call proceed only if it may be made with any arguments.
"""

from __future__ import annotations

import errno as _errno
import fcntl
import os
import select
import selectors
import socket
import struct
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from isolate.kernel import syscalls

from .actions import Action
from .bpf import AUDIT_ARCH

__all__ = ["Call", "Handler", "Reply", "StaleCall", "Supervisor"]

# linux/seccomp.h, as ioctl numbers of x86-64, AArch64 and RISC-V alike.
NOTIF_RECV, NOTIF_SEND, NOTIF_ID_VALID, NOTIF_ADDFD = 0xC0502100, 0xC0182101, 0x40082102, 0x40182103
_NOTIF = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_ADDFD = struct.Struct("=QIIII")
_CONTINUE = 1
_ADDFD_SETFD, _ADDFD_SEND = 1, 2
_LARGEST_READ = 1 << 24


class StaleCall(ProcessLookupError):
    """The program that made the call is gone, or a signal took it out of the call; there is nobody to answer."""


@dataclass(frozen=True)
class Reply:
    """What a handler answers."""

    kind: str
    number: int = 0
    fd: int = -1
    new_fd: int | None = None
    cloexec: bool = True

    @classmethod
    def errno(cls, number: int | str) -> Reply:
        """The call is not made and fails."""
        return cls("errno", Action.errno(number).data)

    @classmethod
    def value(cls, number: int) -> Reply:
        """The call is not made and returns this number, as if it had succeeded."""
        if not isinstance(number, int) or not -(2**63) <= number < 2**63:
            raise ValueError(f"a system call returns a signed 64-bit number, not {number!r}")
        return cls("value", number)

    @classmethod
    def proceed(cls) -> Reply:
        """The call is made, with its arguments as they are *then*: no decision about what pointers point to holds."""
        return cls("proceed")

    @classmethod
    def descriptor(cls, fd: int, *, new_fd: int | None = None, cloexec: bool = True) -> Reply:
        """The call is not made and returns a descriptor: a copy of this program's ``fd``, under the number ``new_fd``
        or the lowest free one. The handler keeps its own and may close it when it has returned."""
        if isinstance(fd, bool) or not isinstance(fd, int) or fd < 0:
            raise ValueError(f"not a descriptor: {fd!r}")
        # A copy now: the handler may close its own before the answer is sent.
        return cls("descriptor", 0, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3), new_fd, cloexec)


class Call:
    """A system call that waits for its answer."""

    def __init__(self, listener: int, data: bytes) -> None:
        values = _NOTIF.unpack(data)
        self.id: int = values[0]
        #: The calling thread, as this program sees it; 0 if it cannot.
        self.pid: int = values[1]
        self.number: int = values[3] & 0xFFFFFFFF
        self.arch = _arch_of(values[4] & 0xFFFFFFFF, self.number)
        #: The name, or None for a number that the tables do not have.
        self.name = syscalls.name(self.number, self.arch)
        self.instruction_pointer: int = values[5]
        #: The six arguments, unsigned; those of a pointer are addresses in the program.
        self.args: tuple[int, ...] = values[6:]
        self._listener = listener

    def __repr__(self) -> str:
        shown = ", ".join(hex(value) for value in self.args)
        return f"<{self.name or self.number}({shown}) of {self.pid}>"

    def valid(self) -> bool:
        """Whether the program still waits. Whatever was read of it before is its own only if this is true after."""
        try:
            fcntl.ioctl(self._listener, NOTIF_ID_VALID, struct.pack("=Q", self.id))
        except OSError:
            return False
        return True

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the program's memory; fewer where its mapping ends. StaleCall if it is gone."""
        if not 0 <= size <= _LARGEST_READ:
            raise ValueError(f"read takes 0 to {_LARGEST_READ} bytes, not {size}")
        fd = self._memory(os.O_RDONLY)
        try:
            return os.pread(fd, size, address)
        finally:
            os.close(fd)

    def read_string(self, address: int, limit: int = 4096) -> bytes:
        """The bytes up to a NUL; ValueError if there is none within ``limit``."""
        found = b""
        fd = self._memory(os.O_RDONLY)
        try:
            while len(found) < limit:
                # Not across a page at once: the next may not be mapped.
                size = min(4096 - (address + len(found)) % 4096, limit - len(found))
                piece = os.pread(fd, size, address + len(found))
                end = piece.find(b"\0")
                if end >= 0:
                    return found + piece[:end]
                if not piece:
                    break
                found += piece
        finally:
            os.close(fd)
        raise ValueError(f"no string of at most {limit} bytes at {address:#x}")

    def write(self, address: int, data: bytes) -> None:
        """Put bytes into the program's memory (the result of a call that is answered for it)."""
        fd = self._memory(os.O_RDWR)
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(fd, data[written:], address + written)
        finally:
            os.close(fd)

    def _memory(self, mode: int) -> int:
        try:
            fd = os.open(f"/proc/{self.pid}/mem", mode | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StaleCall(_errno.ESRCH, "the program is gone") from None
        # The number may have been another process's when it was opened. If the call still waits now, it was not; and
        # the descriptor stays with that address space.
        if not self.valid():
            os.close(fd)
            raise StaleCall(_errno.ESRCH, "the call no longer waits")
        return fd


Handler = Callable[[Call], Reply | Awaitable[Reply]]


class Supervisor:
    """Receives the listeners of a policy's filters and answers their calls, from a thread that ends with the policy.

    One policy in any number of sandboxes and runs has one supervisor. A handler that raises makes the call fail with
    EIO, and the error goes to ``sys.unraisablehook``; one that takes longer than ``timeout`` seconds makes it fail with
    ETIMEDOUT, and what it returns later is dropped. When this program ends, waiting calls and later ones fail with
    ENOSYS: nothing hangs.
    """

    def __init__(self, handlers: Mapping[str, Handler], timeout: float, *, direct: bool = False) -> None:
        self.outside, self.inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # The thread must not keep the supervisor alive: it holds what it needs and stops when the pipe closes.
        state = SimpleNamespace(
            handlers=dict(handlers),
            timeout=timeout,
            direct=direct,
            outside=self.outside,
            inside=self.inside,
            wake=wake_read,
        )
        thread = threading.Thread(target=_serve, args=(state,), name="isolate-seccomp", daemon=True)
        self._finalizer = weakref.finalize(self, os.close, wake_write)
        thread.start()
        self._thread = thread

    def close(self) -> None:
        """Stop. Calls that wait, and later ones, fail with ENOSYS."""
        self._finalizer()
        self._thread.join()


def _serve(state: Any) -> None:
    outside: socket.socket = state.outside
    selector = selectors.DefaultSelector()
    selector.register(state.wake, selectors.EVENT_READ)
    selector.register(outside, selectors.EVENT_READ)
    pending: dict[tuple[int, int], _Pending] = {}
    running = True
    while running:
        now = time.monotonic()
        for answered in [name for name, entry in pending.items() if entry.done]:
            del pending[answered]
        left = [entry.deadline - now for entry in pending.values()]
        for key, _ in selector.select(max(0.0, min(left)) if left else None):
            if key.fileobj == state.wake:
                running = False
            elif key.fileobj == outside:
                fds = socket.recv_fds(outside, 1, 4)[1]
                for fd in fds:
                    selector.register(fd, selectors.EVENT_READ)
            else:
                _receive(state, selector, cast("int", key.fileobj), pending)
        now = time.monotonic()
        for entry in pending.values():
            if entry.deadline <= now:
                entry.answer(Reply("errno", _errno.ETIMEDOUT))
    for last in list(selector.get_map().values()):
        if isinstance(last.fileobj, int):
            os.close(last.fileobj)
    selector.close()
    outside.close()
    state.inside.close()


def _receive(
    state: Any, selector: selectors.BaseSelector, listener: int, pending: dict[tuple[int, int], _Pending]
) -> None:
    buffer = bytearray(_NOTIF.size)
    # The kernel says "readable" also when the last program under the filter has ended.
    ready = select.poll()
    ready.register(listener, select.POLLIN)
    events = ready.poll(0)
    if events and not events[0][1] & select.POLLIN:
        selector.unregister(listener)
        for entry in pending.values():
            entry.forget(listener)
        os.close(listener)
        return
    try:
        fcntl.ioctl(listener, NOTIF_RECV, buffer)
    except OSError as error:
        if error.errno in (_errno.ENOENT, _errno.EINTR):
            return  # a signal took the program out of the call before we saw it
        raise
    call = Call(listener, bytes(buffer))
    entry = _Pending(call, time.monotonic() + state.timeout)
    handler = state.handlers.get(call.name) or state.handlers.get("")
    if handler is None:
        entry.answer(Reply("errno", _errno.ENOSYS))
    elif state.direct:
        entry.run(handler)
    else:
        pending[listener, call.id] = entry
        threading.Thread(target=entry.run, args=(handler,), name="isolate-seccomp-handler", daemon=True).start()


class _Pending:
    """A call with its answer: the first that comes is sent."""

    def __init__(self, call: Call, deadline: float) -> None:
        self.call = call
        self.deadline = deadline
        self.done = False
        self._lock = threading.Lock()

    def run(self, handler: Handler) -> None:
        try:
            reply = handler(self.call)
            if not isinstance(reply, Reply):
                if not isinstance(reply, Awaitable):
                    raise TypeError(f"a handler returns a Reply, not {reply!r}")
                import asyncio

                reply = asyncio.run(_awaited(reply))
        except StaleCall:
            reply = Reply("errno", _errno.ESRCH)
        except BaseException as error:
            hook: Any = sys.unraisablehook
            hook(SimpleNamespace(
                exc_type=type(error), exc_value=error, exc_traceback=error.__traceback__,
                err_msg=f"in the handler of {self.call!r}, which fails with EIO", object=handler,
            ))  # fmt: skip
            reply = Reply("errno", _errno.EIO)
        self.answer(reply)

    def forget(self, listener: int) -> None:
        with self._lock:
            self.done = self.done or self.call._listener == listener

    def answer(self, reply: Reply) -> None:
        with self._lock:
            try:
                if not self.done:
                    _send(self.call._listener, self.call.id, reply)
            except OSError as error:
                # ENOENT: it no longer waits. Anything else about the descriptor is the handler's mistake.
                if reply.kind == "descriptor" and error.errno != _errno.ENOENT:
                    _send_quietly(self.call._listener, self.call.id, Reply("errno", error.errno or _errno.EIO))
            finally:
                self.done = True
                if reply.fd >= 0:
                    os.close(reply.fd)


async def _awaited(reply: Awaitable[Reply]) -> Reply:
    found = await reply
    if not isinstance(found, Reply):
        raise TypeError(f"a handler returns a Reply, not {found!r}")
    return found


def _send(listener: int, call: int, reply: Reply) -> None:
    if reply.kind == "descriptor":
        flags = _ADDFD_SEND | (_ADDFD_SETFD if reply.new_fd is not None else 0)
        cloexec = os.O_CLOEXEC if reply.cloexec else 0
        fcntl.ioctl(listener, NOTIF_ADDFD, _ADDFD.pack(call, flags, reply.fd, reply.new_fd or 0, cloexec))
        return
    value = reply.number if reply.kind == "value" else 0
    error = -reply.number if reply.kind == "errno" else 0
    flags = _CONTINUE if reply.kind == "proceed" else 0
    fcntl.ioctl(listener, NOTIF_SEND, _RESPONSE.pack(call, value, error, flags))


def _send_quietly(listener: int, call: int, reply: Reply) -> None:
    try:
        _send(listener, call, reply)
    except OSError:
        return


def _arch_of(audit_arch: int, number: int) -> str:
    if audit_arch == AUDIT_ARCH["x86_64"]:
        return "x32" if number & syscalls.X32_BIT and number != 0xFFFFFFFF else "x86_64"
    return next(name for name, value in AUDIT_ARCH.items() if value == audit_arch)
