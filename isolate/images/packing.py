"""A layer's bytes as a blob: those that are there, or made and compressed."""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING, Any

from isolate.images.archive.compression import decompressed
from isolate.images.blobs import chunks
from isolate.images.documents import layer_type, packing_of
from isolate.images.errors import DigestError, ImageError, StoreError
from isolate.images.layer import Layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.images.blobs import Lease
    from isolate.images.opening import Opened
    from isolate.images.progress import Reporter

__all__ = ["COMPRESSIONS", "compressed", "pack", "plain"]

COMPRESSIONS = ("none", "gzip", "zstd")
_LEVELS = {"gzip": 6, "zstd": 3}


def plain(blob: int, compression: str) -> Iterator[bytes]:
    """The archive of a blob, decompressed."""
    pieces = chunks(blob)
    return decompressed(next(pieces, b""), lambda: next(pieces, b""), compression)


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


def pack(opened: Opened, layer: Layer, compression: str, report: Reporter, lease: Lease) -> Layer:
    """A layer in a form whose blob is in the store, held by the lease.

    :raises StoreError: it is not, and there is nothing to make it from.
    """
    if compression not in COMPRESSIONS:
        raise ValueError(f"compression must be one of {', '.join(COMPRESSIONS)}, not {compression!r}")
    own = packing_of(layer.media_type)
    if own is None:
        raise ImageError("layer", f"is {layer.media_type!r}: no layer of a known kind")
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
