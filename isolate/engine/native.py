"""The typed face of the compiled extension.

The rest of the library reaches the kernel only through here. Nothing below knows a part.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Final, Protocol, cast


def _refuse_isolated_interpreter() -> None:
    """Say so where no extension of cffi's can be loaded: an isolated sub-interpreter (Python 3.12, PEP 684).

    Its own refusal comes late, and Python 3.12.1 dies of what a failed import leaves there. Such an interpreter is one
    that allows no daemon threads; one with the shared lock, as mod_wsgi's, allows them and loads everything.
    """
    import _thread

    allowed = getattr(_thread, "daemon_threads_allowed", None)
    if allowed is not None and not allowed():
        raise ImportError("isolate cannot be used in an isolated sub-interpreter: import it in the main one")


_refuse_isolated_interpreter()

from isolate import _native  # noqa: E402  # not before it is known that it can be loaded


class _Library(Protocol):
    """The functions of the extension, and the Python types of C's integers."""

    def iso_rest(self, start: Any) -> None: ...
    def iso_pidfd(self, start: Any, payload: bool) -> int: ...
    def iso_send(self, start: Any, payload: bool, signal: int) -> int: ...
    def iso_reap(self, start: Any) -> int: ...
    def iso_wait(self, start: Any, records: int, milliseconds: int) -> int: ...
    def iso_gone(self, start: Any, milliseconds: int) -> int: ...
    def iso_device(self, path: bytes) -> int: ...
    def iso_group_remove(self, path: bytes, milliseconds: int) -> int: ...
    def iso_group_kill(self, path: bytes) -> int: ...
    def iso_group_thaw(self, path: bytes) -> int: ...
    def iso_begin(self, start: Any) -> None: ...
    def iso_start(self, start: Any, *arguments: Any) -> int: ...
    def iso_run_later(self, start: Any, *arguments: Any) -> int: ...
    def iso_start_parked(self, start: Any, *arguments: Any) -> int: ...
    def iso_ask_filters(self) -> None: ...
    def iso_mounts(self, pinned: Any, count: int, paths: Any) -> None: ...
    def iso_state(self, state: Any, fresh: int, executes: bool) -> int: ...
    def iso_in_state(self, state: Any, fresh: int, executes: bool) -> int: ...
    def iso_sees(self, pid: int) -> int: ...
    def iso_watches(self, pid: int) -> int: ...
    def iso_note(self, compared: Any) -> int: ...
    def iso_fits(self, compared: Any) -> int: ...
    def iso_same(self, pinned: Any, count: int, paths: Any, mountinfo: int) -> int: ...
    def iso_receive(self, start: Any, buffer: Any, size: int) -> int: ...
    def iso_owner(self) -> int: ...
    def iso_launcher_fd(self) -> int: ...
    def iso_make_launcher(self, image: Any, size: int) -> int: ...
    def iso_let_go(self, start: Any) -> None: ...
    def iso_release(self, start: Any) -> None: ...
    def iso_open_pty(self, ends: Any, uid: int) -> int: ...
    def iso_close_pty(self, ends: Any) -> None: ...
    def iso_take_terminal(self, start: Any, ends: Any) -> int: ...
    def iso_close(self, fd: Any) -> None: ...
    def iso_call(self, number: int, a: int, b: int, c: int, d: int, e: int, f: int) -> int: ...
    def iso_run_check(self, run: Any, size: int, tape_slots: int) -> int: ...
    def iso_check(self, tape: Any, size: int) -> int: ...
    def iso_tape_checksum(self, tape: Any, size: int) -> int: ...
    def iso_run_here(self, tape: Any, size: int, section: int, registers: Any, failed_op: Any, skipped: Any) -> int: ...
    def iso_netlink_prepare(self, fd: int, route: bool) -> int: ...
    def iso_netlink(self, fd: int, requests: bytes, size: int, first: int, framed: bool) -> int: ...
    def iso_netlink_settle(self, fd: int, name: bytes) -> int: ...
    def iso_netlink_attach(self, *arguments: int | bytes) -> int: ...
    def iso_netlink_free(self, answers: Any) -> None: ...
    def iso_counters(
        self, wanted: Any, count: int, keys: Any, data: bytes, size: int, values: Any, value_count: int
    ) -> None: ...
    def iso_version(self) -> Any: ...
    def __getattr__(self, name: str) -> int: ...


ffi: Final = cast("Any", _native.ffi)
lib: Final = cast("_Library", _native.lib)

VERSION: Final[str] = ffi.string(lib.iso_version()).decode()


def _beside_the_extension() -> str:
    """The launcher's path. A program that was frozen has no ``__file__``, or one that names no file."""
    import sys

    found = getattr(_native, "__file__", None) or getattr(getattr(_native, "__spec__", None), "origin", None)
    here = os.path.dirname(os.path.abspath(found or sys.executable))
    beside = os.path.join(here, "_launcher")
    # Tools that freeze programs move extensions, but leave data files at their place in the package.
    bundle = getattr(sys, "_MEIPASS", None) or os.path.dirname(os.path.abspath(sys.executable))
    return next((path for path in (beside, os.path.join(bundle, "isolate/_launcher")) if os.path.exists(path)), beside)


LAUNCHER_PATH: Final[str] = _beside_the_extension()


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


lib.iso_ask_filters()  # at import: most programs have no thread yet
_read_launcher()  # at import: a mixed installation must say so at once, not at the first sandbox


def owner() -> int:
    """A number that this process alone has. The process id is not one: PID 1 can fork a PID 1 of another namespace. 0,
    which is nobody's, where the kernel cannot tell a forked child from its parent."""
    return lib.iso_owner()


def owns(token: int) -> bool:
    """Whether what was made under this :func:`owner` is this process's own, and not its parent's."""
    return token != 0 and token == lib.iso_owner()


def call(number: int, *args: int | bytes | Any) -> int:
    """A raw system call on this thread: its result, or -errno. Bytes and cffi buffers go by address."""
    keep = [ffi.from_buffer(a) if isinstance(a, (bytes, bytearray)) else a for a in args]
    numbers = [a if isinstance(a, int) else int(ffi.cast("intptr_t", a)) for a in keep]
    numbers += [0] * (6 - len(numbers))
    return lib.iso_call(number, *numbers)


# ---- the launcher's own descriptor ----------------------------------------------------------------------------

_forbidden = False


def launcher_fd() -> int:
    """A descriptor of the launcher in a sealed memfd, made once. Where the kernel forbids executable memfds it is the
    installed file's, by a read-only mount of its own if the caller may make one, else -1.

    A program may have closed it behind our back: then it is made again.

    :raises OSError: it cannot be made: no descriptor, no memory.
    """
    global _forbidden
    fd = lib.iso_launcher_fd()
    if fd >= 0:
        return fd
    if _forbidden:
        return _installed()
    image = _read_launcher()
    fd = lib.iso_make_launcher(ffi.from_buffer(image), len(image))
    if fd == -errno.EACCES:
        _forbidden = True  # vm.memfd_noexec, or a filter: the installed file is executed instead
        return _installed()
    if fd == -errno.EFBIG:
        return _installed()  # RLIMIT_FSIZE, which may be another one the next time
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd), "memfd of the launcher")
    return fd


_mounted: tuple[int, int, int] | None = None  # descriptor, device, inode


def _installed() -> int:
    """The installed file by a mount that is attached nowhere and read-only; -1 without CAP_SYS_ADMIN.

    Its descriptor is what /proc/pid/exe gives: somebody inside with our uid could write to the file by another
    (CVE-2019-5736).
    """
    global _mounted
    if _mounted is not None:
        try:
            now = os.fstat(_mounted[0])
        except OSError:
            pass
        else:
            if (now.st_dev, now.st_ino) == _mounted[1:] and os.fstatvfs(_mounted[0]).f_flag & os.ST_RDONLY:
                return _mounted[0]
    # The numbers are every architecture's. OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC; AT_EMPTY_PATH, MOUNT_ATTR_RDONLY.
    open_tree, mount_setattr, read_only = 428, 442, (1).to_bytes(8, "little") + bytes(24)
    fd = call(open_tree, -100, os.fsencode(LAUNCHER_PATH) + b"\0", 1 | os.O_CLOEXEC)
    if fd < 0:
        return -1
    if call(mount_setattr, fd, b"\0", 0x1000, read_only, len(read_only)) < 0:
        os.close(fd)
        return -1
    now = os.fstat(fd)
    _mounted = fd, now.st_dev, now.st_ino
    return fd
