"""COPY and ADD: files of a context or an image become a layer on top of another, by the rules that Docker has."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import stat
from typing import TYPE_CHECKING, Final

from isolate.build.errors import BuildError
from isolate.build.ignore import Ignore
from isolate.images.archive import entry as kinds
from isolate.images.archive.entry import Entry
from isolate.images.archive.names import check_own
from isolate.images.archive.write import header, order, padding
from isolate.images.layer import FileBytes, Layer, unnamed
from isolate.images.pack.pack import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from isolate.build.context import Files

__all__ = ["Plan", "copy_into", "copy_with_parents", "expand", "is_archive", "target_of"]

_PIECE: Final = 1 << 20
_WILD: Final = re.compile(r"[*?\[\\]")
_ARCHIVE: Final = re.compile(rb"\x1f\x8b|\x28\xb5\x2f\xfd|BZh|\xfd7zXZ")


class Plan:
    """The result of a copy, before it is made: entries by path, and where their bytes are."""

    def __init__(self, base: Files | None, owner: tuple[int, int] | None = (0, 0), mode: int | None = None) -> None:
        """``owner`` None: each file keeps its own."""
        self._base = base
        self._owner = owner
        self._mode = mode
        self.rows: dict[bytes, tuple[Entry, tuple[Files, bytes] | bytes | None]] = {}
        #: The inodes of files that have several names.
        self._inodes: dict[bytes, tuple[int, int, int]] = {}

    # ---- what is to be there -----------------------------------------------------------------------------------

    def parents(self, path: bytes) -> None:
        """Directories above a path: as they are below, or 0755 and of the owner.

        A layer that left out those below would leave their modes and owners to whoever unpacks it.
        """
        parts = path.split(b"/")[:-1]
        for n in range(1, len(parts) + 1):
            above = b"/".join(parts[:n])
            if above in self.rows:
                continue
            found = self._base.look(above) if self._base is not None else None
            if found is None:
                self._put(Entry(above, kinds.DIRECTORY, mode=0o755), None)
            elif not stat.S_ISDIR(found.st_mode):
                raise BuildError(f"/{os.fsdecode(above)} is no directory")
            else:
                assert self._base is not None
                mode, xattrs = stat.S_IMODE(found.st_mode), self._base.attributes(above)
                entry = Entry(above, kinds.DIRECTORY, mode=mode, xattrs=xattrs)
                entry.uid, entry.gid = self._base.owner(above, found)
                self.rows[above] = entry, None

    def _put(self, entry: Entry, data: tuple[Files, bytes] | bytes | None, own: tuple[int, int] = (0, 0)) -> None:
        check_own(entry.path)  # a file of a context may be called .wh.etc, and would remove /etc from the image
        entry.uid, entry.gid = own if self._owner is None else self._owner
        known = self.rows.get(entry.path)
        if known is not None and (known[0].kind == kinds.DIRECTORY) != (entry.kind == kinds.DIRECTORY):
            raise BuildError(f"/{os.fsdecode(entry.path)} would be a directory and a file")
        self.rows[entry.path] = entry, data
        self._inodes.pop(entry.path, None)

    def data(self, path: bytes, data: bytes, mode: int = 0o644) -> None:
        """A file with this content."""
        self.parents(path)
        self._put(Entry(path, kinds.FILE, mode=mode if self._mode is None else self._mode, size=len(data)), data)

    def directory(
        self, path: bytes, mode: int = 0o755, xattrs: dict[bytes, bytes] | None = None, own: tuple[int, int] = (0, 0)
    ) -> None:
        """A directory, unless there is one."""
        if not path:
            return
        found = self._base.look(path) if self._base is not None else None
        self.parents(path)
        if found is None and path not in self.rows:
            self._put(Entry(path, kinds.DIRECTORY, mode=mode, xattrs=xattrs), None, own)

    def one(self, files: Files, source: bytes, found: os.stat_result, path: bytes) -> None:
        """The source's entry at another path: a file, link, directory or FIFO, or a device of an image."""
        mode = stat.S_IMODE(found.st_mode) if self._mode is None else self._mode
        below = self._base.look(path) if self._base is not None else None
        directory = stat.S_ISDIR(found.st_mode)
        if (
            below is not None
            and stat.S_ISDIR(below.st_mode) != directory
            and (directory or stat.S_ISDIR(below.st_mode))
        ):
            what = "a directory over a file" if directory else "a file over a directory"
            raise BuildError(f"/{os.fsdecode(path)}: {what} cannot be copied")
        self.parents(path)
        own = files.owner(source, found) if self._owner is None else self._owner
        if directory:
            self._put(Entry(path, kinds.DIRECTORY, mode=mode, xattrs=files.attributes(source)), None, own)
        elif stat.S_ISLNK(found.st_mode):
            self._put(Entry(path, kinds.SYMLINK, mode=0o777, link=files.link(source)), None, own)
        elif stat.S_ISREG(found.st_mode):
            self._put(Entry(path, kinds.FILE, mode=mode, size=found.st_size), (files, source), own)
            if found.st_nlink > 1:
                self._inodes[path] = files.same(source)
        elif stat.S_ISFIFO(found.st_mode):
            self._put(Entry(path, kinds.FIFO, mode=mode), None, own)
        else:
            device = files.device(source)
            if device is None:
                raise BuildError(f"{os.fsdecode(source)} is a device or a socket, which is not copied")
            device.path, device.mode = path, device.mode if self._mode is None else self._mode
            self._put(device, None, own)

    def tree(
        self, files: Files, source: bytes, path: bytes, exclude: Ignore, implied: Collection[bytes] = frozenset()
    ) -> None:
        """Copy the content of a directory of the source into a directory, which is 0755 if it is new: the content alone
        is copied, not what the source's directory is itself. So are those that are ``implied``."""
        self.directory(path)
        for each, found in files.walk(source):
            below = each[len(source) :].lstrip(b"/")
            if exclude.matches(os.fsdecode(below)):
                continue
            if each in implied:
                self.directory(_join(path, below))
            else:
                self.one(files, each, found, _join(path, below))

    # ---- what is made of it ------------------------------------------------------------------------------------

    def _sorted(self) -> Iterator[tuple[Entry, tuple[Files, bytes] | bytes | None]]:
        """The rows in the order of an archive; of the names of one inode all but the first are hard links to that."""
        first: dict[tuple[int, int, int], bytes] = {}
        for path in sorted(self.rows, key=order):
            entry, data = self.rows[path]
            inode = self._inodes.get(path)
            original = path if inode is None else first.setdefault(inode, path)
            if original is not path:
                link = Entry(path, kinds.HARD_LINK, mode=entry.mode, uid=entry.uid, gid=entry.gid, link=original)
                yield link, None
            else:
                yield entry, data

    def layer(self) -> Layer:
        """The layer: the same files give the same bytes, whenever and by whom it is made."""
        out = unnamed()
        with open(os.dup(out), "wb") as file:
            writer = Writer(file.write)
            for entry, data in self._sorted():
                if isinstance(data, tuple):
                    self._stream(writer, entry, *data)
                else:
                    writer.put(header(entry))
                    if data:
                        writer.put(data + padding(len(data)))
            diffid = writer.end()
        return Layer(diffid, diffid, writer.size, source=FileBytes(out))

    @staticmethod
    def _stream(writer: Writer, entry: Entry, files: Files, source: bytes) -> None:
        fd = files.read(source)
        try:
            entry.size = os.fstat(fd).st_size
            entry.xattrs = files.attributes(source, fd)
            writer.put(header(entry))
            left = entry.size
            while left:
                piece = os.read(fd, min(_PIECE, left))
                if not piece:
                    raise BuildError(f"{os.fsdecode(source)} became shorter while it was read")
                writer.put(piece)
                left -= len(piece)
            writer.put(padding(entry.size))
        finally:
            os.close(fd)

    def digest(self) -> str:
        """The inputs, for a cache key: names, modes, owners, links, attributes and contents; no times."""
        whole = hashlib.sha256()
        for entry, data in self._sorted():
            xattrs = entry.xattrs
            content = hashlib.sha256()
            if isinstance(data, tuple):
                fd = data[0].read(data[1])
                try:
                    xattrs = data[0].attributes(data[1], fd)
                    while piece := os.read(fd, _PIECE):
                        content.update(piece)
                finally:
                    os.close(fd)
            elif data:
                content.update(data)
            # Each content by its digest, which has a fixed length: what stands in a file cannot pass for another entry.
            row = (entry.path, entry.kind, entry.mode, entry.uid, entry.gid, entry.link, content.hexdigest())
            # Only where there are any: most keys stay as they were.
            row = (*row, entry.device) if entry.device != (0, 0) else row  # type: ignore[assignment]
            whole.update(repr((*row, sorted(xattrs.items())) if xattrs else row).encode() + b"\n")
        return whole.hexdigest()


def expand(files: Files, pattern: str) -> list[bytes]:
    """The paths that a source names: itself, or what a wildcard matches (Go's filepath.Match), in order.

    Links are followed within the files in the part before the first wildcard, and behind it not. A wildcard may match
    nothing, as ``yarn.lock*`` does where there is none.

    :raises BuildError: it leads out of the context, or there is nothing.
    """
    clean = _clean(pattern)
    if not _WILD.search(clean):
        return [_there(files, clean)]
    plain, wild = _split(clean)
    found = [_directory(files, plain)]
    for part in wild.split("/"):
        # Behind a "./" no "!" makes it an exception.
        matches = Ignore(["./" + part.replace("**", "*")]).matches if _WILD.search(part) else part.__eq__
        found = [
            _join(above, name)
            for above in found
            if _is_directory(files, above)
            for name in files.names(above)
            if matches(os.fsdecode(name))
        ]
    return [path for path in found if not files.left_out(path)]


def _clean(pattern: str) -> str:
    return posixpath.normpath("/" + pattern).lstrip("/")


def _join(above: bytes, name: bytes) -> bytes:
    return b"/".join(filter(None, [above, name]))


def _split(clean: str) -> tuple[str, str]:
    """The parts before the first one with a wildcard, and the rest."""
    parts = clean.split("/")
    first = next((number for number, part in enumerate(parts) if _WILD.search(part)), len(parts))
    return "/".join(parts[:first]), "/".join(parts[first:])


def _there(files: Files, clean: str) -> bytes:
    """A file by its name, a link for itself; the links on the way to it are followed."""
    raw = os.fsencode(clean)
    real = files.followed(raw) if files.look(raw) is None else raw
    files.refuse_ignored(real)
    return real


def _directory(files: Files, clean: str) -> bytes:
    """A directory by its name, with every link followed; where there is none, nothing is in it."""
    raw = os.fsencode(clean)
    return raw if files.look(raw) is None and files.real(raw, missing=True) == raw else files.real(raw)


def _is_directory(files: Files, path: bytes) -> bool:
    found = files.look(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def target_of(base: Files | None, workdir: str, target: str) -> tuple[bytes, bool]:
    """The path of a target, its links followed beneath the root, and whether it is a directory."""
    whole = posixpath.join("/", workdir, target)
    raw = os.fsencode(posixpath.normpath(whole).lstrip("/"))
    directory = whole.endswith(("/", "/."))
    if base is not None:
        raw = base.real(raw, missing=True)
        directory = directory or not raw or _is_directory(base, raw)
    return raw, directory or not raw


def copy_into(
    plan: Plan,
    files: Files,
    sources: Iterable[bytes],
    target: bytes,
    directory: bool,
    *,
    exclude: Ignore | None = None,
    unpack: Callable[[Files, bytes, bytes], bool] | None = None,
) -> None:
    """Plan the copy of some sources.

    :raises BuildError: several sources and a target that is no directory, or what cannot be copied.
    """
    several = list(sources)
    leave_out = exclude or Ignore()
    if len(several) > 1 and not directory:
        raise BuildError(f"several sources go into a directory: write /{os.fsdecode(target)}/")
    for source in several:
        base = source.rpartition(b"/")[2]  # also of a link, which is followed: it keeps its name
        found = files.look(source)
        if found is not None and stat.S_ISLNK(found.st_mode):
            source = files.followed(source)
            found = files.look(source)
        if found is None:
            raise BuildError(f"/{os.fsdecode(source)}: there is no such file")
        if stat.S_ISDIR(found.st_mode):
            plan.tree(files, source, target, leave_out)
            continue
        if leave_out.matches(os.fsdecode(source)):
            continue
        if unpack is not None and stat.S_ISREG(found.st_mode) and unpack(files, source, target):
            continue
        plan.one(files, source, found, _join(target, base) if directory else target)


def copy_with_parents(plan: Plan, files: Files, source: str, target: bytes, exclude: Ignore) -> bool:
    """Plan the copy of a source with the directories that it lies in (``COPY --parents``); whether there is any.

    Only those behind ``/./`` are kept, where that is in the source. ``**`` is any number of directories, and no link is
    followed behind a wildcard.

    :raises BuildError: there is nothing of a name without wildcards.
    """
    before, cut, pattern = source.partition("/./")
    tops = expand(files, before) if cut else [b""]
    clean = _clean(pattern if cut else source)
    matched = False
    for top in tops:
        for below, path in _below(files, top, clean):
            matched = True
            if exclude.matches(os.fsdecode(below)):
                continue
            found = files.look(path)
            assert found is not None
            _keep_parents(plan, files, top, below, target)
            plan.one(files, path, found, _join(target, below))
    return matched


def _below(files: Files, top: bytes, clean: str) -> Iterator[tuple[bytes, bytes]]:
    """The files that a source stands for below a directory: the name there, and the place."""
    if not _WILD.search(clean):
        path = _there(files, os.fsdecode(_join(top, os.fsencode(clean))))
        own = os.fsencode(clean)
        if own:
            yield own, path
        if _is_directory(files, path):
            yield from ((_join(own, each[len(path) :].lstrip(b"/")), each) for each, _ in files.walk(path))
        return
    matches = Ignore(["./" + clean]).matches
    for each, _ in files.walk(top):
        below = each[len(top) :].lstrip(b"/")
        if matches(os.fsdecode(below)):
            yield below, each


def _keep_parents(plan: Plan, files: Files, top: bytes, below: bytes, target: bytes) -> None:
    """The directories on the way, with their modes and owners."""
    parts = below.split(b"/")
    for count in range(1, len(parts)):
        kept = b"/".join(parts[:count])
        path = files.real(_join(top, kept))
        found = files.look(path)
        assert found is not None
        mode, own = stat.S_IMODE(found.st_mode), files.owner(path, found)
        plan.directory(_join(target, kept), mode, files.attributes(path), own)


def is_archive(files: Files, source: bytes) -> bool:
    """Whether ADD unpacks the file: a tar archive, plain, gzip or zstd, told by its first bytes."""
    fd = files.read(source)
    try:
        start = os.read(fd, 512)
    finally:
        os.close(fd)
    if _ARCHIVE.match(start):
        return True
    return len(start) == 512 and start[257:262] == b"ustar"
