"""Images from a directory or an archive: image-spec's layout, and what ``docker save`` writes.

An archive is read once, from its beginning to its end, so it can be a pipe. Each file that is named by its digest is
verified; nothing in it is taken at its word.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from isolate.images.archive import entry as kinds
from isolate.images.archive.compression import compression_of, decompressed
from isolate.images.archive.read import entries
from isolate.images.archive.source import Source
from isolate.images.blobs import CHUNK, chunks
from isolate.images.digests import digest_of, is_digest, verify
from isolate.images.disk import open_directory
from isolate.images.documents import INDEX_TYPES, LARGEST, MANIFEST_TYPES, Descriptor, layer_type, parse, read_index
from isolate.images.errors import DigestError, ImageError, LayerError
from isolate.images.image import Image, make_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.images.blobs import Lease
    from isolate.images.opening import Opened
    from isolate.images.progress import Reporter

__all__ = ["Content", "Found", "images_of", "read_archive", "read_directory"]

_MOST_FILES = 100_000
_LARGEST_DOCUMENT = 8 << 20
_MOST_DOCUMENTS = 256 << 20  # bytes of all of them
_LINKS = 8
_NAME = "org.opencontainers.image.ref.name"
_FULL_NAME = "io.containerd.image.name"


@dataclass
class Content:
    """The contents of an archive or a directory: documents by name, blobs by digest (they are in the store by now)."""

    documents: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, tuple[str, int, str]] = field(default_factory=dict)  # name: digest, size, compression
    links: dict[str, str] = field(default_factory=dict)
    blobs: set[str] = field(default_factory=set)

    def document(self, name: str) -> bytes:
        """A document by its name.

        :raises ImageError: it is not there.
        """
        found = self.documents.get(self.resolve(name))
        if found is None:
            raise ImageError("archive", f"has no {name}, which it names")
        return found

    def resolve(self, name: str) -> str:
        """The name behind links, which stay inside."""
        for _ in range(_LINKS):
            target = self.links.get(name)
            if target is None:
                return name
            name = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
            if name.startswith(("..", "/")):
                raise ImageError("archive", "has a link that leads outside")
        raise ImageError("archive", "has links in a circle")


@dataclass(frozen=True)
class Found:
    """An image, or an index of several, and the names that it came with."""

    digest: str
    names: tuple[str, ...]
    image: Image | None


class _Keeper:
    """Puts what comes into the store."""

    def __init__(self, opened: Opened, lease: Lease, report: Reporter, largest: int) -> None:
        self.opened = opened
        self.lease = lease
        self.report = report
        self.largest = largest
        self.content = Content()
        self._documents = 0

    def keep(self, name: str, size: int, pieces: Iterator[bytes | memoryview]) -> None:
        """One file: a small one that may be a document in memory, anything else as a blob."""
        content = self.content
        if len(content.documents) + len(content.files) >= _MOST_FILES:
            raise ImageError("archive", f"has more than {_MOST_FILES} files")
        if size > self.largest:
            raise ImageError("archive", f"{name} has {size} bytes: beyond the bounds")
        asked = _digest_in(name)
        if size <= _LARGEST_DOCUMENT and (asked is not None or name.endswith(".json") or "/" not in name):
            self._small(name, b"".join(pieces), asked)
            return
        self._large(name, size, asked, pieces)

    def _small(self, name: str, data: bytes, asked: str | None) -> None:
        if asked is not None:
            verify(data, asked, name)
        if data[:1] in (b"{", b"["):
            self._documents += len(data)
            if self._documents > _MOST_DOCUMENTS:
                raise ImageError("archive", f"has documents of more than {_MOST_DOCUMENTS} bytes")
            self.content.documents[name] = data
            if asked is None:
                return
        digest = asked or digest_of(data)
        self.lease.add(self.opened.blobs.add(data, digest))
        self.content.blobs.add(digest)
        self.content.files[name] = digest, len(data), compression_of(data[:4])

    def _large(self, name: str, size: int, asked: str | None, pieces: Iterator[bytes | memoryview]) -> None:
        state = hashlib.new("sha512" if asked is not None and asked.startswith("sha512") else "sha256")
        head, done = b"", 0
        with self.opened.blobs.unnamed() as file:
            for piece in pieces:
                if len(head) < 4:
                    head += bytes(piece[:4])
                state.update(piece)
                file.write(piece)
                done += len(piece)
                self.report("load", asked or name, done, size)
            digest = f"{state.name}:{state.hexdigest()}"
            if asked is not None and digest != asked:
                raise DigestError(asked, digest, name)
            self.lease.add(self.opened.blobs.keep(file, digest))
        self.content.blobs.add(digest)
        self.content.files[name] = digest, done, compression_of(head)


def _digest_in(name: str) -> str | None:
    words = name.split("/")
    if len(words) == 3 and words[0] == "blobs":
        digest = f"{words[1]}:{words[2]}"
        if is_digest(digest):
            return digest
        raise ImageError("archive", f"{name} is no name that image-spec's layout gives")
    return None


def read_archive(opened: Opened, file: IO[bytes], lease: Lease, report: Reporter, largest: int) -> Content:
    """All of an archive, compressed or not.

    :raises LayerError: it is no archive. :raises ImageError, DigestError: what is in it breaks a rule.
    """
    keeper = _Keeper(opened, lease, report, largest)

    def read() -> bytes:
        report.check()
        return file.read(CHUNK) or b""

    first = read()
    source = Source(decompressed(first, read, compression_of(first)))
    seen: set[str] = set()
    for entry in entries(source, ended=False):
        name = os.fsdecode(entry.path)
        if entry.kind == kinds.DIRECTORY:
            continue
        if name in seen:
            raise LayerError(entry.path, "a name that stands there twice")
        seen.add(name)
        if entry.kind == kinds.FILE:
            keeper.keep(name, entry.size, source.pieces(entry.size, entry.path))
        elif entry.kind in (kinds.SYMLINK, kinds.HARD_LINK):
            target = os.fsdecode(entry.link)
            # The target of a hard link counts from the top.
            own = target if entry.kind == kinds.SYMLINK else posixpath.relpath(target, posixpath.dirname(name) or ".")
            keeper.content.links[name] = own
        else:
            raise LayerError(entry.path, "an archive of images has files, directories and links")
        if len(seen) > _MOST_FILES:
            raise ImageError("archive", f"has more than {_MOST_FILES} files")
    return keeper.content


def read_directory(opened: Opened, path: str, lease: Lease, report: Reporter, largest: int) -> Content:
    """The contents of a layout in a directory: ``oci-layout``, ``index.json`` and the blobs beneath them."""
    keeper = _Keeper(opened, lease, report, largest)
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in ("oci-layout", "index.json"):
            _keep_file(keeper, top, name, name)
        blobs = open_directory("blobs", top)
        try:
            for algorithm in sorted(os.listdir(blobs)):
                at = open_directory(algorithm, blobs)
                try:
                    for name in sorted(os.listdir(at)):
                        report.check()
                        whole = f"blobs/{algorithm}/{name}"
                        if is_digest(f"{algorithm}:{name}"):
                            _keep_file(keeper, at, name, whole)
                finally:
                    os.close(at)
        finally:
            os.close(blobs)
    except FileNotFoundError as error:
        raise ImageError(path, f"is no layout of images: {error.filename} is missing") from None
    finally:
        os.close(top)
    return keeper.content


def _keep_file(keeper: _Keeper, at: int, name: str, whole: str) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ImageError("layout", f"{whole} is no regular file")
        digest = _digest_in(whole)
        if digest is not None and found.st_size > _LARGEST_DOCUMENT:
            held = keeper.opened.blobs.hold(digest)
            if held is not None:  # here already, and verified when it came
                keeper.lease.add(held)
                keeper.content.blobs.add(digest)
                keeper.report("exists", digest, found.st_size, found.st_size)
                return
        keeper.keep(whole, found.st_size, chunks(fd))
    finally:
        os.close(fd)


def images_of(content: Content, opened: Opened, lease: Lease) -> list[Found]:
    """The images that are named in it."""
    if "oci-layout" in content.documents or "index.json" in content.documents:
        return list(_of_layout(content, opened))
    if "manifest.json" in content.documents:
        return list(_of_docker(content, opened, lease))
    raise ImageError("archive", "has neither an index.json (OCI layout) nor a manifest.json (docker save)")


def _of_layout(content: Content, opened: Opened) -> Iterator[Found]:
    layout = parse(content.document("oci-layout"), "oci-layout")
    if layout.get("imageLayoutVersion") != "1.0.0":
        raise ImageError("oci-layout", f"has version {layout.get('imageLayoutVersion')!r}, not '1.0.0'")
    index = read_index(content.document("index.json"), None)
    for row in index.manifests:
        data = opened.blobs.read(row.digest, LARGEST["manifest"]) if row.digest in content.blobs else None
        if data is None:
            raise ImageError("index.json", f"names {row.digest}, which is not there")
        notes = dict(row.annotations)
        names = tuple(filter(None, (notes.get(_FULL_NAME), notes.get(_NAME))))[:1]
        if row.media_type in MANIFEST_TYPES:
            yield Found(row.digest, names, _image(data, row.media_type, opened))
        elif row.media_type in INDEX_TYPES:
            for inner in read_index(data, row.media_type).manifests:
                below = opened.blobs.read(inner.digest, LARGEST["manifest"]) if inner.digest in content.blobs else None
                if below is not None and inner.media_type in MANIFEST_TYPES:
                    _image(below, inner.media_type, opened)
            yield Found(row.digest, names, None)
        # Anything else is for somebody else: "implementations SHOULD NOT error" (image-layout.md).


def _image(manifest: bytes, media_type: str, opened: Opened) -> Image:
    document = parse(manifest, "manifest")
    config = document.get("config")
    digest = config.get("digest") if isinstance(config, dict) else None
    data = opened.blobs.read(str(digest), LARGEST["config"]) if is_digest(digest) else None
    if data is None:
        raise ImageError("manifest", f"names the config {digest!r}, which is not there")
    image = Image.read(manifest, data, media_type=media_type, source=opened.source)
    for layer in image.layers:
        if opened.blobs.size(layer.digest) != layer.size:
            raise ImageError("manifest", f"names the layer {layer.digest} of {layer.size} bytes, which is not there")
    return image


def _of_docker(content: Content, opened: Opened, lease: Lease) -> Iterator[Found]:
    data = content.document("manifest.json")
    rows: Any = parse(b'{"images":' + data + b"}", "manifest")["images"]
    if not isinstance(rows, list):
        raise ImageError("manifest.json", "must be a list")
    for row in rows:
        if not isinstance(row, dict):
            raise ImageError("manifest.json", "must be a list of objects")
        config_name, layers, tags = row.get("Config"), row.get("Layers"), row.get("RepoTags") or []
        if not isinstance(config_name, str) or not isinstance(layers, list) or not isinstance(tags, list):
            raise ImageError("manifest.json", "an image has Config, RepoTags and Layers")
        config = content.document(config_name)
        asked = config_name.rpartition("/")[2].removesuffix(".json")
        if is_digest(f"sha256:{asked}"):
            verify(config, f"sha256:{asked}", "the configuration in the archive")
        forms = []
        for name in layers:
            found = content.files.get(content.resolve(str(name)))
            if found is None:
                raise ImageError("manifest.json", f"names the layer {name!r}, which is not there")
            digest, size, compression = found
            forms.append(Descriptor(layer_type(compression), digest, size))
        manifest = make_manifest(config, forms)
        image = Image.read(manifest, config, source=opened.source)
        for layer in image.layers:
            if layer.media_type == layer_type("none") and layer.digest != layer.diffid:
                raise DigestError(layer.diffid, layer.digest, "a layer in the archive")
        for document in (config, manifest):
            lease.add(opened.blobs.add(document, digest_of(document)))
        yield Found(image.digest, tuple(str(tag) for tag in tags), image)
