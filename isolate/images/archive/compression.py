"""Decompression as a stream of pieces, each bounded, whatever the input does."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from isolate.images.errors import LayerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["COMPRESSIONS", "PIECE", "compression_of", "decompressed", "form_of"]

COMPRESSIONS = ("none", "gzip", "zstd")
PIECE = 1 << 18  # what is read at once; what comes out of it at once is at most four times as much
_OUT = 1 << 20
_WINDOW = 27  # zstd: 128 MiB, as the zstd program has it without --long


def compression_of(head: bytes) -> str:
    """Told by the first bytes. What is neither gzip nor zstd is taken for a plain archive."""
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    if head[:4] == b"\x28\xb5\x2f\xfd" or (head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        return "zstd"
    return "none"


def form_of(first: bytes, declared: str | None) -> str:
    """The compression of an archive, as far as its media type declares it.

    The bytes have the last word where that is a compression: Docker 20.10 pushes a plain archive under gzip's type when
    the registry has it as one already, and the other tools take it. The digest of what comes out decides in any case.
    """
    return "none" if declared == "none" else compression_of(first)


def decompressed(first: bytes, read: Callable[[], bytes], compression: str) -> Iterator[bytes]:
    """The pieces behind ``first`` and what ``read`` gives until it gives nothing.

    :raises LayerError: damaged or cut off, or no such compression.
    """
    if compression == "none":
        return _plain(first, read)
    if compression == "gzip":
        return _gzip(first, read)
    if compression == "zstd":
        return _zstd(first, read)
    raise LayerError(b"", f"compressed by {compression!r}, which is none of {', '.join(COMPRESSIONS)}")


def _plain(data: bytes, read: Callable[[], bytes]) -> Iterator[bytes]:
    while data:
        yield data
        data = read()


def _inflate() -> tuple[Any, Any]:
    """The fastest inflate that is installed: isal takes half of zlib's time."""
    try:
        from isal import isal_zlib  # pyright: ignore[reportMissingImports]
    except ImportError:
        return zlib, zlib.error
    return isal_zlib, isal_zlib.error


def _gzip(data: bytes, read: Callable[[], bytes]) -> Iterator[bytes]:
    module, error = _inflate()
    try:
        while data:
            member = module.decompressobj(wbits=31)
            while not member.eof:
                if not data:
                    data = read()
                    if not data:
                        raise LayerError(b"", "gzip: the stream is cut off")
                out = member.decompress(data, _OUT)
                data = member.unconsumed_tail
                if out:
                    yield out
            # Another member may follow (RFC 1952, 2.2); anything else is refused by its header.
            data = member.unused_data or read()
    except error as problem:
        raise LayerError(b"", f"gzip: the stream is damaged: {problem}") from None


def _zstandard() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        try:
            from backports import zstd  # type: ignore[import-not-found,no-redef,unused-ignore]
        except ImportError:
            raise LayerError(
                b"", "compressed by zstd, which needs Python 3.14 or the package backports.zstd (isolate-linux[images])"
            ) from None
    return zstd


def _zstd(data: bytes, read: Callable[[], bytes]) -> Iterator[bytes]:
    zstd = _zstandard()
    options = {zstd.DecompressionParameter.window_log_max: _WINDOW}
    try:
        while data:
            frame = zstd.ZstdDecompressor(options=options)
            while not frame.eof:
                if frame.needs_input and not data:
                    data = read()
                    if not data:
                        raise LayerError(b"", "zstd: the stream is cut off")
                out = frame.decompress(data, _OUT)
                data = b""
                if out:
                    yield out
            data = frame.unused_data or read()
    except zstd.ZstdError as problem:
        raise LayerError(b"", f"zstd: the stream is damaged: {problem}") from None
