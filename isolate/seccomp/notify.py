"""Calls decided in Python while the program waits: handlers, what they see, what they may answer.

    def opened(call):
        path = call.read_string(call.args[1])
        return Reply.errno("EACCES") if b"secret" in path else Reply.proceed()

    Sandbox(Seccomp.default(), Seccomp(otherwise="allow", notify={"openat": opened})).run(...)

The kernel stops the calling thread and hands the call to a thread of this program (seccomp_unotify(2), Linux 5.14).
Handlers run in threads of a pool, several at once; an ``async def`` handler runs in an event loop of its own there.
A handler is no filter: ``Reply.proceed()`` lets the kernel look at the arguments *again*, and another thread of the
program may have changed what pointers point to. Refuse, answer in the program's stead, or hand in a descriptor opened
here; and let a call proceed only if it may be made with any arguments.
"""

from __future__ import annotations

import errno as _errno
import fcntl
import os
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from isolate.kernel import syscalls
from isolate.kernel.checks import is_int

from .actions import Action
from .bpf import AUDIT_ARCH

__all__ = ["NOTIF", "NOTIF_RECV", "Call", "Handler", "Reply", "StaleCall", "send", "send_quietly"]

# linux/seccomp.h, as ioctl numbers of x86-64, AArch64 and RISC-V alike.
NOTIF_RECV, NOTIF_SEND, NOTIF_ID_VALID, NOTIF_ADDFD = 0xC0502100, 0xC0182101, 0x40082102, 0x40182103
NOTIF = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_ADDFD = struct.Struct("=QIIII")
_CONTINUE = 1
_ADDFD_SETFD, _ADDFD_SEND = 1, 2
_LARGEST_READ = 1 << 24
_T = TypeVar("_T")


class StaleCall(ProcessLookupError):
    """The program that made the call is gone, or a signal took it out of the call; there is nobody to answer."""


@dataclass(frozen=True)
class Reply:
    """The answer of a handler."""

    kind: str
    number: int = 0
    fd: int = -1
    new_fd: int | None = None
    cloexec: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("errno", "value", "proceed", "descriptor"):
            raise ValueError(f"no reply is of the kind {self.kind!r}")

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
        if not is_int(fd) or fd < 0:
            raise ValueError(f"not a descriptor: {fd!r}")
        if new_fd is not None and (not is_int(new_fd) or not 0 <= new_fd < 2**31):
            raise ValueError(f"new_fd must be a number of a descriptor, not {new_fd!r}")
        # A copy now: the handler may close its own before the answer is sent.
        return cls("descriptor", 0, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3), new_fd, cloexec)


class Call:
    """A system call that waits for its answer."""

    def __init__(self, listener: int, data: bytes) -> None:
        values = NOTIF.unpack(data)
        self.id: int = values[0]
        #: The calling thread, as this program sees it; 0 if it cannot.
        self.pid: int = values[1]
        self.number: int = values[3] & 0xFFFFFFFF
        self.arch: str = _arch_of(values[4] & 0xFFFFFFFF, self.number)
        #: The name, or None for a number that the tables do not have.
        self.name: str | None = syscalls.name(self.number, self.arch)
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
        """Bytes of the program's memory; fewer where its mapping ends.

        :raises StaleCall: the program is gone. :raises OSError: EFAULT, there is no memory at the address.
        """
        if not 0 <= size <= _LARGEST_READ:
            raise ValueError(f"read takes 0 to {_LARGEST_READ} bytes, not {size}")
        with self._memory(os.O_RDONLY, address) as fd:
            found = self._done(os.pread, fd, size, address)
        if size and not found:
            raise self._gone(address)
        return found

    def read_string(self, address: int, limit: int = 4096) -> bytes:
        """The bytes up to a NUL; ValueError if there is none within ``limit``."""
        found = b""
        with self._memory(os.O_RDONLY, address) as fd:
            while len(found) < limit:
                # Not across a page at once: the next may not be mapped.
                size = min(4096 - (address + len(found)) % 4096, limit - len(found))
                piece = self._done(os.pread, fd, size, address + len(found))
                end = piece.find(b"\0")
                if end >= 0:
                    return found + piece[:end]
                if not piece:
                    raise self._gone(address + len(found))
                found += piece
        raise ValueError(f"no string of at most {limit} bytes at {address:#x}")

    def write(self, address: int, data: bytes) -> None:
        """Put bytes into the program's memory (the result of a call that is answered for it).

        :raises StaleCall: the program is gone. :raises OSError: EFAULT, there is no memory at the address, or not
            enough of it.
        """
        with self._memory(os.O_RDWR, address) as fd:
            written = 0
            while written < len(data):
                count = self._done(os.pwrite, fd, data[written:], address + written)
                if not count:
                    raise self._gone(address + written)  # what an address space says whose last thread has ended
                written += count

    def _done(self, transfer: Callable[[int, Any, int], _T], fd: int, what: Any, address: int) -> _T:
        """pread or pwrite of the program's memory, with EFAULT for what is not mapped or no address at all."""
        try:
            return transfer(fd, what, address)
        except OverflowError:  # in the upper half, which no program has
            raise self._gone(address) from None
        except OSError as error:
            if error.errno == _errno.EIO:
                raise self._gone(address) from None
            raise

    def _gone(self, address: int) -> OSError:
        if not self.valid():
            return StaleCall(_errno.ESRCH, "the call no longer waits")
        return OSError(_errno.EFAULT, f"{os.strerror(_errno.EFAULT)}: {address:#x} in the program")

    @contextmanager
    def _memory(self, mode: int, address: int) -> Iterator[int]:
        if not is_int(address):
            raise TypeError(f"an address is an int, not {address!r}")
        if not 0 <= address < 2**64:
            raise OSError(_errno.EFAULT, f"{os.strerror(_errno.EFAULT)}: {address:#x} is no address")
        try:
            fd = os.open(f"/proc/{self.pid}/mem", mode | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            raise StaleCall(_errno.ESRCH, "the program is gone") from None
        try:
            # The number may have been another process's when it was opened. If the call still waits now, it was not;
            # and the descriptor stays with that address space.
            if not self.valid():
                raise StaleCall(_errno.ESRCH, "the call no longer waits")
            yield fd
        finally:
            os.close(fd)


Handler = Callable[[Call], Reply | Awaitable[Reply]]


def send(listener: int, call: int, reply: Reply) -> None:
    if reply.kind == "descriptor":
        flags = _ADDFD_SEND | (_ADDFD_SETFD if reply.new_fd is not None else 0)
        cloexec = os.O_CLOEXEC if reply.cloexec else 0
        fcntl.ioctl(listener, NOTIF_ADDFD, _ADDFD.pack(call, flags, reply.fd, reply.new_fd or 0, cloexec))
        return
    value = reply.number if reply.kind == "value" else 0
    error = -reply.number if reply.kind == "errno" else 0
    flags = _CONTINUE if reply.kind == "proceed" else 0
    fcntl.ioctl(listener, NOTIF_SEND, _RESPONSE.pack(call, value, error, flags))


def send_quietly(listener: int, call: int, reply: Reply) -> None:
    try:
        send(listener, call, reply)
    except OSError:
        return


def _arch_of(audit_arch: int, number: int) -> str:
    if audit_arch == AUDIT_ARCH["x86_64"]:
        return "x32" if number & syscalls.X32_BIT and number != 0xFFFFFFFF else "x86_64"
    return next(name for name, value in AUDIT_ARCH.items() if value == audit_arch)
