"""A layer as a value: its digests, and where its bytes come from."""

from __future__ import annotations

import io
import os
import tempfile
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Protocol

from isolate.engine.descriptors import OwnedDescriptor
from isolate.images.archive import entry as kinds
from isolate.images.archive.entry import Entry
from isolate.images.archive.names import check_own, path_of
from isolate.images.archive.write import order
from isolate.images.pack.pack import pack_entries
from isolate.images.pack.start import difference, write_layer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from isolate.images.facts import Facts
    from isolate.namespaces.ids import IdMap

    Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

__all__ = ["MEDIA_TYPE", "FileBytes", "Layer", "LayerBytes", "unnamed"]

MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar"


class LayerBytes(Protocol):
    """The place of a layer's bytes."""

    def open(self) -> IO[bytes]:
        """A reader of their own, at their beginning."""
        ...


@dataclass(frozen=True)
class Layer:
    """A layer of an image: an archive of files, links and whiteouts that lies on top of the layers below.

    ``diffid`` is the digest of the plain archive, which names the layer; ``digest``, ``size`` and ``media_type`` are of
    the bytes that :meth:`open` reads. Two layers are equal if they have the same bytes. Layers that are made here are
    plain archives; a store compresses them when they leave.

    Needs no privileges: nothing is unpacked. Source: the OCI image-spec, layer.md.

    :param diffid: digest of the plain archive, ``"sha256:…"``.
    :param digest: digest of the bytes, packed or plain.
    :param size: of these bytes.
    :param media_type: how they are packed.
    :param source: where :meth:`open` has the bytes from; None makes a layer that is only a name.

    >>> Layer.files({"srv/app.py": b"print(1)"}).diffid[:7]
    'sha256:'
    """

    diffid: str
    digest: str
    size: int
    media_type: str = MEDIA_TYPE
    source: LayerBytes | None = field(default=None, compare=False, repr=False)

    def open(self) -> IO[bytes]:
        """Read the bytes from their beginning. Several readers do not disturb one another.

        :raises ValueError: the layer is only a name: its bytes are elsewhere.
        """
        if self.source is None:
            raise ValueError(f"the layer {self.diffid} is only a name: load, pull or make it first")
        return self.source.open()

    @classmethod
    def files(
        cls,
        files: Mapping[Path, bytes | str | Entry],
        *,
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        epoch: int = 0,
    ) -> Layer:
        """A layer of files with these contents: ``Layer.files({"srv/app.py": b"..."})``.

        Paths are relative to the root (a slash before them is left out). Parents are made, 0755 and root's. A name that
        ends with a slash is a directory. ``mode``, ``uid`` and ``gid`` are of all of them, ``epoch`` is their time in
        seconds.

        :raises LayerError: a path with ``..``, or twice the same. :raises TypeError: contents that are no bytes.
        """
        rows: dict[bytes, tuple[Entry, bytes]] = {}
        for name, data in files.items():
            raw = os.fsencode(name).lstrip(b"/")
            path = path_of(raw, "path of a file")
            check_own(path)
            if isinstance(data, str):
                data = data.encode()
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(f"Layer.files: {name!r} must be bytes or text, not {data!r}")
            if path in rows:
                raise ValueError(f"Layer.files: {name!r} is there twice")
            kind = kinds.DIRECTORY if raw.endswith(b"/") else kinds.FILE
            if kind == kinds.DIRECTORY and data:
                raise ValueError(f"Layer.files: {name!r} is a directory, and has no contents")
            its_mode = mode | (mode & 0o444) >> 2 if kind == kinds.DIRECTORY else mode
            entry = Entry(path, kind, mode=its_mode, uid=uid, gid=gid, size=len(data), mtime=epoch * 1_000_000_000)
            rows[path] = entry, bytes(data)
        for path in list(rows):
            parent = path.rpartition(b"/")[0]
            while parent and parent not in rows:
                rows[parent] = Entry(parent, kinds.DIRECTORY, mode=0o755, mtime=epoch * 1_000_000_000), b""
                parent = parent.rpartition(b"/")[0]
            if parent and rows[parent][0].kind != kinds.DIRECTORY:
                raise ValueError(f"Layer.files: {parent!r} is a file, and has {path!r} beneath it")
        parts: list[bytes] = []
        diffid, size = pack_entries((rows[path] for path in sorted(rows, key=order)), parts.append)
        return cls(diffid, diffid, size, source=_Bytes(b"".join(parts)))

    @classmethod
    def of(
        cls,
        tree: Path | int,
        *,
        below: Sequence[Path | int] = (),
        epoch: int | None = 0,
        facts: Facts | None = None,
        map: IdMap | None = None,
    ) -> Layer:
        """A layer of everything in a directory, or of what differs there from the directories ``below``.

        ``epoch``: no time is later (in seconds); 0 makes the same layer of the same files whenever they were made, None
        keeps the times. ``map``: read by a child with these ids, for trees whose owners are not the caller. ``below``
        are the lower trees, the uppermost first.

        The archive is kept in an unnamed temporary file until the layer is forgotten.

        :raises LayerError: the tree changes while it is read. :raises OSError: it cannot be read, or there is no room.
        """
        opened: list[OwnedDescriptor] = []
        try:
            fds = [_directory(place, opened) for place in (tree, *below)]
            out = unnamed()
            if below:
                _, written = difference(fds[0], fds[1:], out=out, epoch=epoch, map=map)
                assert written is not None
            else:
                written = write_layer(fds[0], out, epoch=epoch, facts=facts, map=map)
        finally:
            for fd in opened:
                fd.close()
        return cls(written.diffid, written.diffid, written.size, source=FileBytes(out))


def _directory(place: Path | int, opened: list[OwnedDescriptor]) -> int:
    if isinstance(place, int):
        return place
    fd = OwnedDescriptor(os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    opened.append(fd)
    return fd


def unnamed(place: str | None = None) -> OwnedDescriptor:
    """A file without a name, in a directory or where temporary files are."""
    place = place or tempfile.gettempdir()
    try:
        return OwnedDescriptor(os.open(place, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600))
    except OSError:  # a file system without unnamed files
        fd, name = tempfile.mkstemp(dir=place)
        os.unlink(name)
        return OwnedDescriptor(fd)


@dataclass(frozen=True)
class _Bytes:
    data: bytes

    def open(self) -> IO[bytes]:
        return io.BytesIO(self.data)


class FileBytes:
    """The bytes of an open file, which is closed when the last layer of it is forgotten."""

    def __init__(self, fd: OwnedDescriptor) -> None:
        self._fd = fd

    def open(self) -> IO[bytes]:
        """A reader with a position of its own."""
        return open(f"/proc/self/fd/{int(self._fd)}", "rb")
