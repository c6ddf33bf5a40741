"""Images to a directory or an archive: image-spec's layout, and what ``docker load`` reads. Always the same bytes."""

from __future__ import annotations

import hashlib
import os
from typing import IO, TYPE_CHECKING

from isolate.images.archive import entry as kinds
from isolate.images.archive.entry import Entry
from isolate.images.archive.write import END, header, padding
from isolate.images.blobs import chunks
from isolate.images.disk import Unnamed, open_directory, read_small, replace, subdirectory
from isolate.images.documents import (
    INDEX_TYPES,
    LARGEST,
    OCI_INDEX,
    Descriptor,
    dump,
    packing_of,
    read_index,
    read_manifest,
)
from isolate.images.errors import DigestError, StoreError
from isolate.images.packing import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from isolate.images.image import Image
    from isolate.images.opening import Opened
    from isolate.images.progress import Reporter
    from isolate.images.reference import Reference

__all__ = ["write_docker", "write_layout", "write_layout_archive"]

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


def _blobs_of(opened: Opened, digest: str, kind: str) -> Iterator[str]:
    """Everything that a manifest or an index names, and itself."""
    data = opened.blobs.read(digest, LARGEST["manifest"])
    if data is None:
        raise StoreError(f"{digest} is not in the store", path=opened.path, remedy="pull, load or add it first")
    yield digest
    if kind in INDEX_TYPES:
        for row in read_index(data, kind).manifests:
            if opened.blobs.size(row.digest) is not None:
                yield from _blobs_of(opened, row.digest, row.media_type)
        return
    manifest = read_manifest(data, kind)
    yield manifest.config.digest
    for layer in manifest.layers:
        yield layer.digest


def _index(rows: Sequence[tuple[str, str, int, Reference | None]], known: Iterable[Descriptor] = ()) -> bytes:
    tags = [name.tag for _, _, _, name in rows if name is not None]
    own = []
    for digest, kind, size, name in rows:
        notes: dict[str, str] = {}
        if name is not None:
            # The tag alone, as other tools have it, unless another image has the same.
            short = name.tag if tags.count(name.tag) == 1 and name.tag is not None else str(name)
            notes = {"io.containerd.image.name": str(name), "org.opencontainers.image.ref.name": short}
        own.append(Descriptor(kind, digest, size, tuple(sorted(notes.items()))))
    names = {dict(row.annotations).get("org.opencontainers.image.ref.name") for row in own} - {None}
    kept = [
        row
        for row in known
        if dict(row.annotations).get("org.opencontainers.image.ref.name") not in names and row not in own
    ]
    documents = [row.document() for row in (*kept, *own)]
    return dump({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": documents})


def write_layout(
    opened: Opened, path: str, rows: Sequence[tuple[str, str, int, Reference | None]], report: Reporter
) -> None:
    """A directory in image-spec's layout; one that is there already gets the images added."""
    os.makedirs(path, exist_ok=True)
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        known: tuple[Descriptor, ...] = ()
        if "oci-layout" in os.listdir(top):
            known = read_index(read_small(top, "index.json", LARGEST["index"])).manifests
        elif os.listdir(top):
            raise StoreError("the directory is not empty, and no layout of images", path=path, remedy="name another")
        blobs = subdirectory(top, "blobs", mode=0o755)
        try:
            for digest in dict.fromkeys(d for row in rows for d in _blobs_of(opened, row[0], row[1])):
                algorithm, _, name = digest.partition(":")
                at = subdirectory(blobs, algorithm, mode=0o755)
                try:
                    if name not in os.listdir(at):
                        with Unnamed(at) as file:
                            for piece in _pieces(opened, digest, report):
                                file.write(piece)
                            file.name(name)
                finally:
                    os.close(at)
        finally:
            os.close(blobs)
        replace(top, "index.json", _index(rows, known))
        replace(top, "oci-layout", _LAYOUT)
    finally:
        os.close(top)


def _pieces(opened: Opened, digest: str, report: Reporter) -> Iterator[bytes]:
    fd = opened.blobs.hold(digest)
    if fd is None:
        raise StoreError(f"the blob {digest} is not in the store", path=opened.path, remedy="pull the image again")
    try:
        size, done = os.fstat(fd).st_size, 0
        state = hashlib.new(digest.partition(":")[0])
        for piece in chunks(fd):
            state.update(piece)
            done += len(piece)
            report("save", digest, done, size)
            yield piece
        got = f"{state.name}:{state.hexdigest()}"
        if got != digest:
            raise DigestError(digest, got, "a blob of the store")
    finally:
        os.close(fd)


class _Archive:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._made: set[str] = set()

    def add(self, name: str, size: int, pieces: Iterable[bytes]) -> None:
        """One file, and the directories above it."""
        parent = name.rpartition("/")[0]
        for end in [i for i, c in enumerate(parent) if c == "/"] + ([len(parent)] if parent else []):
            if parent[:end] not in self._made:
                self._made.add(parent[:end])
                self._file.write(header(Entry(parent[:end].encode(), kinds.DIRECTORY, mode=0o755)))
        self._file.write(header(Entry(name.encode(), kinds.FILE, size=size)))
        done = 0
        for piece in pieces:
            self._file.write(piece)
            done += len(piece)
        if done != size:
            raise StoreError(f"{name} had {size} bytes and has {done}", remedy="check() the store")
        self._file.write(padding(size))

    def end(self) -> None:
        """The end of the archive."""
        self._file.write(END)


def write_layout_archive(
    opened: Opened, file: IO[bytes], rows: Sequence[tuple[str, str, int, Reference | None]], report: Reporter
) -> None:
    """The same layout as an archive."""
    archive = _Archive(file)
    for digest in sorted({d for row in rows for d in _blobs_of(opened, row[0], row[1])}):
        size = opened.blobs.size(digest)
        if size is None:
            raise StoreError(f"the blob {digest} is not in the store", path=opened.path, remedy="pull the image again")
        archive.add(f"blobs/{digest.replace(':', '/')}", size, _pieces(opened, digest, report))
    index = _index(rows)
    archive.add("index.json", len(index), [index])
    archive.add("oci-layout", len(_LAYOUT), [_LAYOUT])
    archive.end()


def write_docker(
    opened: Opened, file: IO[bytes], images: Sequence[tuple[Image, Reference | None]], report: Reporter
) -> None:
    """The format of ``docker save`` and ``docker load``: layers not compressed, named by their digests."""
    archive = _Archive(file)
    rows: dict[str, dict[str, object]] = {}
    done: set[str] = set()
    for image, name in images:
        digits = image.id.partition(":")[2]
        row = rows.setdefault(
            image.id,
            {
                "Config": f"{digits}.json",
                "RepoTags": [],
                "Layers": [f"{d.partition(':')[2]}.tar" for d in image.diffids],
            },
        )
        if name is not None and isinstance(row["RepoTags"], list):
            row["RepoTags"].append(str(name))
        if image.id not in done:
            done.add(image.id)
            archive.add(f"{digits}.json", len(image.document), [image.document])
        for layer in image.layers:
            if layer.diffid not in done:
                done.add(layer.diffid)
                _plain_layer(opened, archive, layer.digest, layer.diffid, layer.media_type, report)
    data = dump(list(rows.values()))
    archive.add("manifest.json", len(data), [data])
    archive.end()


def _plain_layer(
    opened: Opened, archive: _Archive, digest: str, diffid: str, media_type: str, report: Reporter
) -> None:
    name = f"{diffid.partition(':')[2]}.tar"
    compression = packing_of(media_type)
    fd = opened.blobs.hold(digest)
    if fd is None or compression is None:
        raise StoreError(f"the layer {digest} is not in the store", path=opened.path, remedy="pull the image again")
    try:
        if compression == "none":
            archive.add(name, os.fstat(fd).st_size, _pieces(opened, digest, report))
            return
        # The header needs the size, which only a whole decompression tells.
        state, size = hashlib.sha256(), 0
        at = open_directory(".", opened.blobs.partial_fd)
        try:
            with Unnamed(at) as file:
                for piece in plain(fd, compression):
                    state.update(piece)
                    file.write(piece)
                    size += len(piece)
                    report("save", diffid, size, None)
                got = f"sha256:{state.hexdigest()}"
                if got != diffid:
                    raise DigestError(diffid, got, "a layer of the store, decompressed,")
                archive.add(name, size, chunks(file.fd))
                report("save", diffid, size, size)
        finally:
            os.close(at)
    finally:
        os.close(fd)
