"""The records of detached containers: a directory for each below the user's runtime directory.

Nobody but the user can change or read what is there (modes, owners, no links followed). A container runs as long as its
keeper holds the lock in its directory, so a machine that lost power, or a keeper that was killed, leaves a record that
is recognised as dead by everybody, without asking for process ids.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import stat
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from isolate.errors import SetupError
from isolate.kernel.directories import open_own
from isolate.kernel.locks import lock_within, try_lock
from isolate.kernel.paths import expanded

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Record", "base_directory", "check_name", "opened", "read_records", "remove", "reserve", "write_record"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_FILES = ("record.json", "record.new", "parts", "sock", "log", "log.1", "lock")
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST = 1 << 20  # bytes of a record
_PATIENCE = 10.0  # seconds for others, who hold the lock for as long as it takes to make or remove a directory
_ELSEWHERE = (
    "set XDG_RUNTIME_DIR, or ISOLATE_CONTAINERS, to a directory of yours with mode 700, below none that others may"
    " write to (not in /tmp)"
)
_LOOKING = 1.0  # seconds until a list is made without the lock


@dataclass(frozen=True)
class Record:
    """The record of a detached container."""

    name: str
    #: "running"; "ended": it was stopped, or its memory ran out; "dead": its keeper was killed, or the machine.
    state: str
    created: float = 0.0
    ended: float | None = None
    #: The process id of its init, in the keeper's pid namespace.
    pid: int = 0
    keeper: int = 0
    command: tuple[str, ...] = ()


def check_name(name: object) -> str:
    """A container's name.

    :raises ValueError: it is none.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a container must be a str, not {name!r}")
    if not _NAME.match(name):
        raise ValueError(
            f"the name of a container has 1 to 64 letters, digits, '_', '.' and '-', the first no sign: not {name!r}"
        )
    return name


def base_directory() -> str:
    """/run/isolate/containers for root; below XDG_RUNTIME_DIR, /run/user/UID or ~/.local/state for others.

    The variable ISOLATE_CONTAINERS names another one.
    """
    given = os.environ.get("ISOLATE_CONTAINERS", "")
    if os.path.isabs(given):
        return given
    uid = os.geteuid()
    if uid == 0:
        return "/run/isolate/containers"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isabs(runtime):
        runtime = f"/run/user/{uid}"
    if os.path.isdir(runtime):
        return os.path.join(runtime, "isolate/containers")
    try:
        return expanded("~/.local/state/isolate/containers")
    except FileNotFoundError as error:
        raise SetupError(
            error.errno or errno.ENOENT,
            "find the directory of detached containers",
            part="Container",
            cause=f"{error.strerror}, and there is no {runtime}",
            remedy=_ELSEWHERE,
        ) from None


def _open_base() -> int:
    path = base_directory()
    try:
        return open_own(path, 0o700)
    except OSError as error:
        unsafe = isinstance(error, PermissionError) and error.errno == errno.EPERM
        raise SetupError(
            error.errno or errno.EIO,
            f"open the directory of detached containers, {path}",
            part="Container",
            path=error.filename,
            syscall="openat",
            cause=f"{error.filename} {error.strerror}: others could lead names elsewhere" if unsafe else None,
            remedy=_ELSEWHERE,
        ) from None


@contextlib.contextmanager
def _locked() -> Iterator[int]:
    """The base directory, while nobody else makes or removes a record in it.

    :raises SetupError: EBUSY: a process holds its lock.
    """
    fd = _open_base()
    try:
        if not lock_within(fd, _PATIENCE, exclusive=True):
            raise SetupError(
                errno.EBUSY,
                "lock the directory of detached containers",
                part="Container",
                path=base_directory(),
                syscall="flock",
                cause=f"another process of this user has held its lock for {_PATIENCE:g} s",
                remedy="lslocks(8) shows which; end it",
            )
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def opened(name: str) -> Iterator[int]:
    """A descriptor of a container's directory.

    :raises SetupError: ENOENT: no container has this name.
    """
    base = _open_base()
    try:
        fd = _enter(base, check_name(name))
    finally:
        os.close(base)
    if fd is None:
        raise SetupError(
            errno.ENOENT,
            f"open the container {name!r}",
            part="Container",
            cause="no detached container has this name",
            remedy="python -m isolate ps lists them",
        )
    try:
        yield fd
    finally:
        os.close(fd)


def _enter(base: int, name: str) -> int | None:
    try:
        fd = os.open(name, _FLAGS, dir_fd=base)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        os.close(fd)
        return None
    return fd


def _alive(directory: int) -> bool:
    """Whether a keeper holds the lock."""
    try:  # O_NONBLOCK: a FIFO may have the name
        fd = os.open("lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return False
    try:
        return not try_lock(fd, exclusive=False)
    finally:
        os.close(fd)


def read_file(directory: int, name: str, most: int = _MOST) -> bytes:
    """A small regular file of a container's directory."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", name)
        return file.read(most)


def _read(directory: int, name: str) -> Record:
    try:
        found = json.loads(read_file(directory, "record.json"))
        record = Record(
            name,
            str(found["state"]),
            float(found["created"]),
            None if found["ended"] is None else float(found["ended"]),
            int(found["pid"]),
            int(found["keeper"]),
            tuple(map(str, found["command"])),
        )
        if not all(map(math.isfinite, (record.created, record.ended or 0.0))):  # JSON of Python's has Infinity
            raise ValueError("no time")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        record = Record(name, "dead")
    # As long as the lock is held the keeper has not let go of what is here.
    state = "running" if _alive(directory) else "ended" if record.state == "ended" else "dead"
    return replace(record, state=state)


def read_records() -> list[Record]:
    """All that are known, by name. Without the directory there are none; nothing is made.

    A process that holds the lock keeps nobody from looking: then a container that is made or removed just now may be
    listed as dead.
    """
    if not os.path.isdir(base_directory()):
        return []
    found = []
    base = _open_base()
    try:
        lock_within(base, _LOOKING, exclusive=False)
        for name in sorted(os.listdir(base)):
            directory = _enter(base, name) if _NAME.match(name) else None
            if directory is not None:
                try:
                    found.append(_read(directory, name))
                finally:
                    os.close(directory)
    finally:
        os.close(base)
    return found


def write_record(directory: int, record: Record) -> None:
    """Put a record in the place of the one before, whole."""
    fd = os.open(
        "record.new",
        os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
        0o600,
        dir_fd=directory,
    )
    with open(fd, "w", encoding="utf-8") as file:
        json.dump(asdict(record), file)
    os.rename("record.new", "record.json", src_dir_fd=directory, dst_dir_fd=directory)


def reserve(name: str) -> tuple[int, int]:
    """Make a container's directory and hold its lock: both descriptors. One that has ended or is dead gives way.

    :raises SetupError: EEXIST: a container of this name runs.
    """
    with _locked() as base:
        present = _enter(base, name)
        if present is not None:
            try:
                alive = _alive(present)
            finally:
                os.close(present)
            if alive:
                raise SetupError(
                    errno.EEXIST,
                    f"open the container {name!r}",
                    part="Container",
                    cause="a container of this name runs",
                    remedy=f"isolate.reopen({name!r}) gives it; python -m isolate stop {name} ends it",
                )
            _clear(base, name)
        try:
            os.mkdir(name, 0o700, dir_fd=base)
        except FileExistsError:
            raise SetupError(
                errno.EEXIST,
                f"open the container {name!r}",
                part="Container",
                path=f"{base_directory()}/{name}",
                cause="something that is no container's record stands there",
            ) from None
        directory = os.open(name, _FLAGS, dir_fd=base)
        lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
        if not lock_within(lock, _LOOKING, exclusive=True):  # it is new: whoever looks has it for a moment
            os.close(lock)
            os.close(directory)
            raise SetupError(
                errno.EBUSY,
                f"open the container {name!r}",
                part="Container",
                path=f"{base_directory()}/{name}/lock",
                syscall="flock",
                cause="another process of this user has locked it",
            )
        return directory, lock


def remove(name: str) -> None:
    """Remove the record and the log of a container that does not run.

    :raises SetupError: ENOENT: there is none; EBUSY: it runs.
    """
    with opened(name), _locked() as base:
        directory = _enter(base, name)
        if directory is None:
            return
        try:
            if _alive(directory):
                raise SetupError(
                    errno.EBUSY,
                    f"remove the container {name!r}",
                    part="Container",
                    cause="it runs",
                    remedy=f"python -m isolate stop {name}",
                )
        finally:
            os.close(directory)
        _clear(base, name)


def _clear(base: int, name: str) -> None:
    directory = os.open(name, _FLAGS, dir_fd=base)
    try:
        for file in _FILES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file, dir_fd=directory)
    finally:
        os.close(directory)
    os.rmdir(name, dir_fd=base)
