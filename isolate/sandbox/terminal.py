"""Pseudo-terminals: our end of one, as a file; and what is set on it."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import struct
import termios
from typing import TYPE_CHECKING

from isolate.attributes.credentials import Credentials
from isolate.engine.native import ffi, lib
from isolate.errors import SetupError
from isolate.kernel.checks import is_int
from isolate.namespaces import UserNamespace
from isolate.namespaces.ids import outside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer as Writable

    from isolate.engine.plan import Context
    from isolate.engine.session import Session

__all__ = ["Terminal", "is_terminal", "program_uid", "set_window", "uid_inside", "wanted_window", "window"]


_FAILURES = {
    errno.ENOENT: ("there is no /dev/ptmx here", "as root: mount -t devpts devpts /dev/pts -o ptmxmode=666"),
    errno.ENOSPC: ("the limit of terminals is reached (kernel.pty.max)", "close some, or raise it by sysctl"),
    errno.EMFILE: ("this process has no descriptor left for it", "close some, or raise RLIMIT_NOFILE: ulimit -n"),
}


class Terminal(io.FileIO):
    """Our end of a terminal; it holds the program's end too until :meth:`hand_over`.

    The program's end is given to the host's ``uid``, so that the program can open it by its name, unless that is -1.
    Once every program that had it has closed it, reading says end of file.
    """

    def __init__(self, uid: int = -1, ends: Sequence[int] = ()) -> None:
        # C opens both and C closes them with this memory: an interrupt between two lines of Python loses neither.
        self._ends = ffi.gc(ffi.new("int32_t[2]", list(ends) or [-1, -1]), lib.iso_close_pty)
        error = 0 if ends else -lib.iso_open_pty(self._ends, uid)
        if error:
            cause, remedy = _FAILURES.get(error, (None, None))
            raise SetupError(
                error,
                "open a terminal",
                part="Sandbox",
                syscall="openat",
                path="/dev/ptmx",
                cause=cause,
                remedy=remedy,
            )
        super().__init__(self._ends[0], "r+b", closefd=False)

    @property
    def theirs(self) -> int:
        """The program's end."""
        return int(self._ends[1])

    def become(self, fd: int) -> None:
        """Be our end of another terminal from now on."""
        super().close()
        lib.iso_close_pty(self._ends)
        self._ends[0] = fd
        super().__init__(fd, "r+b", closefd=False)

    def take(self, session: Session) -> None:
        """Be our end of the terminal that the program made for itself, where it made one."""
        if session.exchange_terminal(self._ends):
            super().close()
            super().__init__(self._ends[0], "r+b", closefd=False)

    def hand_over(self) -> None:
        """Close the program's end here: with the last one closed, reading from ours ends."""
        lib.iso_close(self._ends + 1)

    def read(self, size: int | None = -1, /) -> bytes | None:  # type: ignore[override]
        """As :meth:`io.RawIOBase.read`."""
        if size is None or size < 0:
            return self.readall()
        try:
            return super().read(size)
        except OSError as error:
            return _end(error)

    def readall(self) -> bytes:
        """Everything up to the end of file."""
        data = bytearray()
        while chunk := self.read(65536):
            data += chunk
        return bytes(data)

    def readinto(self, buffer: Writable, /) -> int | None:
        """As :meth:`io.RawIOBase.readinto`."""
        try:
            return super().readinto(buffer)
        except OSError as error:
            return len(_end(error))

    def close(self) -> None:
        """Hang up."""
        if not self.closed:
            super().close()
            lib.iso_close_pty(self._ends)


def _end(error: OSError) -> bytes:
    """The kernel says EIO where everybody has closed the other end (pty(7)), which is an end of file."""
    if error.errno == errno.EIO:
        return b""
    raise error


def is_terminal(fd: int) -> bool:
    """Whether a descriptor is a terminal's."""
    return fd >= 0 and os.isatty(fd)


def window(fd: int) -> tuple[int, int]:
    """Rows and columns of a terminal; (0, 0) where nobody has said."""
    rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    return rows, columns


def set_window(fd: int, rows: int, columns: int) -> None:
    """Set a terminal's size (TIOCSWINSZ)."""
    for value in (rows, columns):
        if not is_int(value) or not 0 < value < 65536:
            raise ValueError(f"rows and columns must be from 1 to 65535, not {value!r}")
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def wanted_window(pty: object) -> tuple[int, int] | None:
    """Rows and columns of the terminal that is wanted, None where they are not said."""
    if isinstance(pty, bool):
        return None
    if not isinstance(pty, (tuple, list)) or len(pty) != 2:
        raise TypeError(f"pty must be True, False or (rows, columns), not {pty!r}")
    return pty[0], pty[1]


def uid_inside(context: Context) -> int:
    """The uid that the program will have, as its user namespace has it; -1 where it is not known."""
    user, credentials = context.find(UserNamespace), context.find(Credentials)
    if credentials is not None and credentials.uid is not None:
        return credentials.uid
    return -1 if user is None or user.joined else user.uid


def program_uid(context: Context) -> int:
    """The host's uid of a program that root starts as somebody else; -1 where it is the caller's own or not known."""
    if not context.privileged:
        return -1
    user, credentials = context.find(UserNamespace), context.find(Credentials)
    inside = None if credentials is None else credentials.uid
    if user is None:
        return -1 if inside is None else inside
    if user.joined:
        return -1
    return outside(user.ids(context).uids, user.uid if inside is None else inside)
