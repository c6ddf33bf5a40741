"""The typed face of the compiled extension.

The rest of the library reaches the kernel only through here. Nothing below knows a part.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Final, Protocol, cast

from isolate import _native  # type: ignore[attr-defined]


class _Library(Protocol):
    """What the extension offers, and what C's integers become."""

    def iso_start(self, start: Any) -> int: ...
    def iso_receive(self, start: Any, buffer: Any, size: int) -> int: ...
    def iso_release(self, start: Any) -> None: ...
    def iso_close(self, fd: Any) -> None: ...
    def iso_call(self, number: int, a: int, b: int, c: int, d: int, e: int, f: int) -> int: ...
    def iso_check(self, tape: Any, size: int) -> int: ...
    def iso_tape_checksum(self, tape: Any, size: int) -> int: ...
    def iso_run_here(
        self, tape: Any, size: int, section: int, registers: Any, failed_op: Any, skipped: Any
    ) -> int: ...
    def iso_version(self) -> Any: ...
    def __getattr__(self, name: str) -> int: ...


ffi: Final = cast("Any", _native.ffi)
lib: Final = cast("_Library", _native.lib)

VERSION: Final[str] = ffi.string(lib.iso_version()).decode()
LAUNCHER_PATH: Final[str] = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_launcher")
MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_EXEC = 1, 2, 0x10
F_ADD_SEALS, F_SEAL_ALL = 1033, 0xF  # seal, shrink, grow, write


def _read_launcher() -> bytes:
    try:
        with open(LAUNCHER_PATH, "rb") as file:
            image = file.read()
    except OSError as error:
        raise ImportError(f"isolate's launcher is missing ({error}): reinstall isolate-linux") from error
    if f"isolate-launcher {VERSION}\0".encode() not in image:
        raise ImportError(
            f"isolate's extension is version {VERSION}, its launcher ({LAUNCHER_PATH}) another: reinstall isolate-linux"
        )
    return image


_read_launcher()  # at import: a mixed installation must say so at once, not at the first sandbox


def call(number: int, *args: int | bytes | Any) -> int:
    """A raw system call on this thread: its result, or -errno. Bytes and cffi buffers go by address."""
    keep = [ffi.from_buffer(a) if isinstance(a, (bytes, bytearray)) else a for a in args]
    numbers = [a if isinstance(a, int) else int(ffi.cast("intptr_t", a)) for a in keep]
    numbers += [0] * (6 - len(numbers))
    return lib.iso_call(number, *numbers)


# ---- the launcher's own descriptor ----------------------------------------------------------------------------

_launcher: tuple[int, int, int] | None = None  # descriptor, st_dev, st_ino


def launcher_fd() -> int:
    """A descriptor of the launcher in a sealed memfd, made once; -1 where the kernel forbids executable memfds.

    A program may have closed it behind our back and the number may be another file's by now, so device and
    inode are compared each time.
    """
    global _launcher
    if _launcher is not None:
        fd, device, inode = _launcher
        if fd < 0:
            return fd
        try:
            status = os.fstat(fd)
        except OSError:
            status = None
        if status is not None and (status.st_dev, status.st_ino) == (device, inode):
            return fd
    _launcher = _make_launcher()
    return _launcher[0]


def _make_launcher() -> tuple[int, int, int]:
    import fcntl

    image = _read_launcher()
    try:
        try:
            fd = os.memfd_create("isolate-launcher", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:  # MFD_EXEC came with Linux 6.3
                raise
            fd = os.memfd_create("isolate-launcher", MFD_CLOEXEC | MFD_ALLOW_SEALING)
    except PermissionError:
        return -1, 0, 0  # vm.memfd_noexec=2: the installed file is executed instead
    try:
        os.write(fd, image)
        fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_ALL)
        status = os.fstat(fd)
        if not status.st_mode & 0o100:
            os.close(fd)
            return -1, 0, 0  # vm.memfd_noexec=1 takes the execute bits away
    except BaseException:
        os.close(fd)
        raise
    return fd, status.st_dev, status.st_ino
