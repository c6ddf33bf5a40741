"""The changes of programs in an overlay: its directory for changes, compared with the layers below.

All that is read was made by somebody whom nobody vouches for. Each directory is opened beneath the layer's own
descriptor, no link is followed, nothing but a regular file is opened to be read, and everything is bounded: how many
files, how deep, how many bytes are compared, how long. What is beyond that is not looked at, and the answer says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from typing import TYPE_CHECKING

from isolate.engine.handing import Handed
from isolate.kernel.paths import PATH_MAX
from isolate.mounts.changes import Change, Changes
from isolate.mounts.outlines import contents_of
from isolate.mounts.telling import Told
from isolate.sandbox.containers.beneath import Opened, open_beneath, reopen_regular

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from isolate.engine.session import Session

__all__ = ["changes_of"]

FILES = 20_000  # rows, and names that are looked at
PATHS = 8 << 20  # bytes of the paths of the rows together
BYTES = 64 << 20  # compared, where a file has the size that it had
SECONDS = 2.0
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_PIECE = 1 << 18


class _Bounds(Exception):
    """There is more than is looked at."""


def changes_of(session: Session) -> Changes | None:
    """The changes so far in the overlays of a session whose changes are in memory; None without any."""
    kept = [each for held in session.held if isinstance(held, Handed) for each in held.kept]
    told = [each for each in kept if isinstance(each, Told) and each.layers]
    if not told:
        return None
    looks = [_Look(each, ended=session.end is not None) for each in told]
    rows = [row for look in looks for row in look.rows()]
    return Changes(rows, complete=all(look.complete for look in looks))


class _Look:
    """One overlay."""

    def __init__(self, told: Told, *, ended: bool) -> None:
        self._ended = ended
        self._upper, *self._lower = told.layers
        self._contents = told.contents
        self._prefix = told.place.strip(b"/") + b"/" if told.place != b"/" else b""
        self._stubs = told.stubs()
        self._found: dict[bytes, Change] = {}
        self._made: dict[
            bytes, bool
        ] = {}  # what the entries of the root made, if it is empty: whether it is a directory
        self._mark = told.mark
        self._left = FILES
        self._paths = PATHS
        self._bytes = BYTES
        self._until = time.monotonic() + SECONDS
        #: Whether everything was looked at.
        self.complete = True

    def rows(self) -> list[Change]:
        """The changes, in no order."""
        try:
            for path, below, opaque in self._directories():
                self._directory(path, below, opaque)
        except _Bounds:
            self.complete = False
        for path, directory in sorted(self._made.items(), reverse=True):  # the deepest first
            if not directory or not any(other.startswith(path + b"/") for other in self._found):
                self._found.pop(path, None)
        return list(self._found.values())

    # ---- walking -----------------------------------------------------------------------------------------------

    def _directories(self) -> Iterator[tuple[bytes, tuple[int, ...], bool]]:
        """Path, which layers below have it as a directory, whether it hides them."""
        self._todo: list[tuple[bytes, tuple[int, ...], bool]] = [(b"", tuple(range(len(self._lower))), False)]
        while self._todo:
            yield self._todo.pop()

    def _directory(self, path: bytes, below: tuple[int, ...], opaque: bool) -> None:
        if len(path) >= PATH_MAX - 256:
            raise _Bounds
        self._in_time()  # a directory may be empty
        with contextlib.ExitStack() as stack:
            try:
                here = stack.enter_context(Opened(self._opened(path)))
            except OSError:  # closed to who looks, or gone meanwhile
                self.complete = False
                return
            layers: list[tuple[int, int]] = []
            for index in below:
                with contextlib.suppress(OSError):
                    fd = open_beneath(self._lower[index], path, os.O_PATH | os.O_DIRECTORY)
                    layers.append((index, stack.enter_context(Opened(fd))))
            names = set()
            for entry in self._entries(here):
                self._count()
                name = os.fsencode(entry.name)
                names.add(name)
                with contextlib.suppress(FileNotFoundError):
                    self._entry(path, here, name, entry.stat(follow_symlinks=False), layers, opaque)
            if opaque:
                self._hidden(path, layers, names)

    def _entries(self, directory: int) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(directory) as entries:
                yield from entries
        except OSError:  # also for want of descriptors: how the program ended is told all the same
            self.complete = False

    def _opened(self, path: bytes) -> int:
        """A directory for changes, to read. One that a program has closed to its owner, who looks, is opened again, if
        nobody uses it any more."""
        try:
            return open_beneath(self._upper, path, _DIRECTORY)
        except PermissionError:
            if not self._ended:
                raise
        with Opened(open_beneath(self._upper, path, os.O_PATH | os.O_DIRECTORY)) as handle:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)
        return open_beneath(self._upper, path, _DIRECTORY)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _Bounds
        self._in_time()

    def _in_time(self) -> None:
        if time.monotonic() > self._until:
            raise _Bounds

    def _entry(
        self,
        path: bytes,
        here: int,
        name: bytes,
        found: os.stat_result,
        layers: Sequence[tuple[int, int]],
        opaque: bool,
    ) -> None:
        whole = path + b"/" + name if path else name
        first, old = _shown(layers, name)
        if _is_whiteout(found):
            if old is not None:
                self._row(whole, "removed")
            return
        directory = stat.S_ISDIR(found.st_mode)
        if directory:
            merged = _merged(layers[first:], name, self._mark) if old is not None and stat.S_ISDIR(old.st_mode) else ()
            self._todo.append((whole, merged, bool(merged) and (opaque or _is_opaque(here, name, self._mark))))
        if old is None:
            self._row(whole, "added", found)
            if self._is_stub(whole, here, name, found):
                self._made[self._prefix + whole] = directory
        else:
            kind = self._kind(name, here, found, layers[first][1], old)
            if kind is not None:
                self._row(whole, kind, found)

    def _is_stub(self, path: bytes, here: int, name: bytes, found: os.stat_result) -> bool:
        """Whether an entry of the root made it, and nobody has written to it."""
        place = self._prefix + path
        if place not in self._stubs:
            return False
        link = self._stubs[place]
        if link is None:
            return stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and not found.st_size)
        return stat.S_ISLNK(found.st_mode) and os.readlink(name, dir_fd=here) == link

    def _hidden(self, path: bytes, layers: Sequence[tuple[int, int]], names: set[bytes]) -> None:
        """The entries that a directory lost when it was removed and made again."""
        for _, fd in layers:
            try:
                with Opened(open_beneath(fd, b"", _DIRECTORY)) as reading, os.scandir(reading) as entries:
                    for entry in entries:
                        self._count()
                        name = os.fsencode(entry.name)
                        if name not in names and not _is_whiteout(entry.stat(follow_symlinks=False)):
                            self._row(path + b"/" + name, "removed")
                        names.add(name)
            except FileNotFoundError:
                continue
            except OSError:
                self.complete = False

    def _row(self, path: bytes, kind: str, found: os.stat_result | None = None) -> None:
        size = found.st_size if found is not None and stat.S_ISREG(found.st_mode) else 0
        place = self._prefix + path
        self._paths -= len(place)
        if self._paths < 0:
            raise _Bounds
        self._found[place] = Change(place, kind, size)

    # ---- comparing ---------------------------------------------------------------------------------------------

    def _kind(self, name: bytes, here: int, found: os.stat_result, there: int, old: os.stat_result) -> str | None:
        if stat.S_IFMT(found.st_mode) != stat.S_IFMT(old.st_mode) or not self._same(name, here, found, there, old):
            return "modified"
        return "metadata" if _about(found) != _about(old) else None

    def _same(self, name: bytes, here: int, found: os.stat_result, there: int, old: os.stat_result) -> bool:
        """Whether the contents are surely those that were: what cannot be read, or would take too long, is not."""
        form = stat.S_IFMT(found.st_mode)
        if form == stat.S_IFLNK:
            with contextlib.suppress(OSError):
                return os.readlink(name, dir_fd=here) == os.readlink(name, dir_fd=there)
            return False
        if form in (stat.S_IFCHR, stat.S_IFBLK):
            return found.st_rdev == old.st_rdev
        if form != stat.S_IFREG:
            return True
        if found.st_size != old.st_size or found.st_size > self._bytes:
            return False
        self._bytes -= found.st_size
        try:
            with _regular(here, name) as one, self._lower_file(there, name) as two:
                while True:
                    if time.monotonic() > self._until:
                        return False
                    data = os.read(one, _PIECE)
                    if data != os.read(two, _PIECE):
                        return False
                    if not data:
                        return True
        except (OSError, ValueError):
            return False

    def _lower_file(self, directory: int, name: bytes) -> Opened:
        handle = _regular(directory, name)
        try:
            return Opened(contents_of(handle.fd, self._contents))
        except BaseException:
            os.close(handle.fd)
            raise


def _regular(directory: int, name: bytes) -> Opened:
    with Opened(open_beneath(directory, name, os.O_PATH)) as handle:
        return Opened(reopen_regular(handle))


def _lstat(directory: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            return None
        raise


def _about(found: os.stat_result) -> tuple[int, int, int, int]:
    """Mode, owner, group, and of what is no directory the time of change."""
    time_ns = 0 if stat.S_ISDIR(found.st_mode) else found.st_mtime_ns
    return found.st_mode, found.st_uid, found.st_gid, time_ns


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _is_opaque(directory: int, name: bytes, mark: str) -> bool:
    try:
        with Opened(open_beneath(directory, name, _DIRECTORY)) as fd:
            return os.getxattr(fd, mark) == b"y"
    except OSError:
        return False  # there is none; or it is closed to who looks: what is in it is not looked at either


def _shown(layers: Sequence[tuple[int, int]], name: bytes) -> tuple[int, os.stat_result | None]:
    """Which layer has it, and what is there; nothing where it is hidden."""
    for number, (_, fd) in enumerate(layers):
        found = _lstat(fd, name)
        if found is not None:
            return number, None if _is_whiteout(found) else found
    return len(layers), None


def _merged(layers: Sequence[tuple[int, int]], name: bytes, mark: str) -> tuple[int, ...]:
    """The layers whose directories of this name show as one, from the first that has it on (overlayfs.rst)."""
    shown: list[int] = []
    for index, fd in layers:
        found = _lstat(fd, name)
        if found is None:
            continue
        if not stat.S_ISDIR(found.st_mode):
            break
        shown.append(index)
        if _is_opaque(fd, name, mark):
            break
    return tuple(shown)
