"""A layer's bytes as a blob: those that are there, or made and compressed."""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING, Any

from isolate.images.archive.compression import decompressed, form_of
from isolate.images.blobs import chunks
from isolate.images.documents import LARGEST, layer_type, packing_of, read_manifest
from isolate.images.errors import DigestError, ImageError, StoreError
from isolate.images.image import Image
from isolate.images.layer import Layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.images.blobs import Lease
    from isolate.images.opening import Opened
    from isolate.images.progress import Reporter

__all__ = ["COMPRESSIONS", "Forms", "compressed", "pack", "plain"]

COMPRESSIONS = ("none", "gzip", "zstd")
_LEVELS = {"gzip": 6, "zstd": 3}


def plain(blob: int, compression: str) -> Iterator[bytes]:
    """The archive of a blob, decompressed."""
    pieces = chunks(blob)
    first = next(pieces, b"")
    return decompressed(first, lambda: next(pieces, b""), form_of(first, compression))


def compressed(pieces: Iterable[bytes], compression: str) -> Iterator[bytes]:
    """Pieces, compressed: the same bytes for the same pieces and the same library."""
    if compression == "none":
        yield from pieces
        return
    packer = _packer(compression)
    for piece in pieces:
        out = packer.compress(piece)
        if out:
            yield out
    yield packer.flush()


def _packer(compression: str) -> Any:
    if compression == "gzip":
        return zlib.compressobj(_LEVELS["gzip"], zlib.DEFLATED, 31)  # a header without a time (RFC 1952)
    if compression != "zstd":
        raise ValueError(f"compression must be one of {', '.join(COMPRESSIONS)}, not {compression!r}")
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        try:
            from backports import zstd  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ImageError(
                "layer", "zstd needs Python 3.14 or the package backports.zstd (isolate-linux[images])"
            ) from None
    return zstd.ZstdCompressor(level=_LEVELS["zstd"])


class Forms:
    """In which forms the images that have names have their layers: what was compressed once is not once more."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._found: dict[tuple[str, str], Layer] | None = None

    def get(self, diffid: str, compression: str) -> Layer | None:
        """The layer in that form, if its blob is in the store."""
        if self._found is None:
            self._found = dict(self._look())
        return self._found.get((diffid, compression))

    def _look(self) -> Iterator[tuple[tuple[str, str], Layer]]:
        blobs = self._opened.blobs
        for _, digest in self._opened.refs.all():
            try:
                manifest = blobs.read(digest, LARGEST["manifest"])
                if manifest is None:
                    continue
                config = blobs.read(read_manifest(manifest).config.digest, LARGEST["config"])
                layers = () if config is None else Image.read(manifest, config, source=self._opened.source).layers
            except (ImageError, DigestError, StoreError):
                continue  # an index, or damaged: it only helps to save time
            for layer in layers:
                if blobs.size(layer.digest) == layer.size:
                    yield (layer.diffid, packing_of(layer.media_type) or "none"), layer


def pack(opened: Opened, layer: Layer, compression: str, report: Reporter, lease: Lease, forms: Forms) -> Layer:
    """A layer in a form whose blob is in the store, held by the lease.

    :raises StoreError: it is not, and there is nothing to make it from.
    """
    if compression not in COMPRESSIONS:
        raise ValueError(f"compression must be one of {', '.join(COMPRESSIONS)}, not {compression!r}")
    own = packing_of(layer.media_type)
    if own is None:
        raise ImageError("layer", f"is {layer.media_type!r}: no layer of a known kind")
    if own == "none" and compression != "none":
        known = forms.get(layer.diffid, compression)
        held = None if known is None else opened.blobs.hold(known.digest)
        if known is not None and held is not None:
            lease.add(held)
            report("exists", known.digest, known.size, known.size)
            return known
    held = opened.blobs.hold(layer.digest)
    if held is None and layer.source is None:
        raise StoreError(
            f"the layer {layer.digest} is not in this store", path=opened.path, remedy="pull or load its image here"
        )
    if held is not None:
        lease.add(held)
    if compression == "none" or own != "none":
        # A form that came compressed stays: others know it.
        return layer if held is not None else _make(opened, layer, _pieces(layer), "none", report, lease)
    return _make(opened, layer, chunks(held) if held is not None else _pieces(layer), compression, report, lease)


def _pieces(layer: Layer) -> Iterator[bytes]:
    with layer.open() as file:
        while piece := file.read(1 << 18):
            yield piece


def _make(
    opened: Opened, layer: Layer, pieces: Iterable[bytes], compression: str, report: Reporter, lease: Lease
) -> Layer:
    """Keep the bytes of a layer's form, compressed further."""
    inner, outer = hashlib.sha256(), hashlib.sha256()

    def hashed() -> Iterator[bytes]:
        done = 0
        for piece in pieces:
            inner.update(piece)
            done += len(piece)
            report("compress", layer.diffid, done, layer.size)
            yield piece

    size = 0
    with opened.blobs.unnamed() as file:
        for piece in compressed(hashed(), compression):
            outer.update(piece)
            file.write(piece)
            size += len(piece)
        got = f"sha256:{inner.hexdigest()}"
        if got != layer.digest:
            raise DigestError(layer.digest, got, "the content of the layer")
        digest = f"sha256:{outer.hexdigest()}"
        lease.add(opened.blobs.keep(file, digest))
    if compression == "none":
        return layer
    return Layer(layer.diffid, digest, size, layer_type(compression))
