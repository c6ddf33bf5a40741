"""From archives to trees: what is made, by whom, and what is kept as facts."""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from isolate.images.errors import DigestError, LayerError
from isolate.images.unpack.start import extract
from tests.images.archives import Maker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "tree").mkdir()
    fd = os.open(tmp_path / "tree", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_a_tree_with_everything(target: int, tmp_path: Path) -> None:
    made = Maker()
    made.directory("a", mode=0o2755, mtime=5)
    made.file("a/b", b"hello", mode=0o4755, mtime=7)
    made.link("a/hard", "a/b")
    made.symlink("a/soft", "../../etc/passwd")
    made.device("null", 1, 3)
    made.file("deep/down/here", b"x" * 300_000)
    made.file("gone/.wh.old")
    made.file("fresh/.wh..wh..opq")
    data = made.done()
    done = extract(io.BytesIO(gzip.compress(data)), target)
    tree = tmp_path / "tree"
    assert (tree / "a/b").read_bytes() == b"hello"
    assert stat.S_IMODE((tree / "a/b").stat().st_mode) == 0o4755
    assert stat.S_IMODE((tree / "a").stat().st_mode) == 0o2755
    assert (tree / "a").stat().st_mtime_ns == 5 * 10**9
    assert (tree / "a/b").stat().st_ino == (tree / "a/hard").stat().st_ino
    assert os.readlink(tree / "a/soft") == "../../etc/passwd"
    assert (tree / "deep/down/here").stat().st_size == 300_000
    whiteout = (tree / "gone/old").stat()
    assert stat.S_ISCHR(whiteout.st_mode)
    assert whiteout.st_rdev == 0
    assert os.getxattr(tree / "fresh", "user.overlay.opaque") == b"y"
    assert done.facts[b"null"].device == (1, 3)
    assert stat.S_ISCHR((tree / "null").stat().st_mode)
    assert done.compression == "gzip"
    assert done.entries == 12
    assert done.unpacked == len(data)


def test_the_digests_are_those_of_the_bytes(target: int) -> None:
    import hashlib

    data = Maker().file("a", b"b").done()
    packed = gzip.compress(data)
    done = extract(io.BytesIO(packed), target)
    assert done.diffid == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert done.digest == f"sha256:{hashlib.sha256(packed).hexdigest()}"
    assert done.size == len(packed)


def frames(zstd: Any, data: bytes) -> bytes:
    """As pzstd and zstd:chunked write it: several frames, and one to be skipped behind them."""
    half = len(data) // 2
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    return zstd.compress(data[:half]) + skipped + zstd.compress(data[half:]) + skipped


@pytest.mark.parametrize("form", ["isal", "zlib", "members", "zstd", "frames"])
def test_forms_of_compression(form: str, target: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isolate.images.archive import compression

    archive = Maker().file("a", b"x" * 3_000_000).done()
    if form in ("zstd", "frames"):
        zstd = pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
        packed = zstd.compress(archive) if form == "zstd" else frames(zstd, archive)
    elif form == "members":
        packed = gzip.compress(archive[:1000]) + gzip.compress(archive[1000:])
    else:
        packed = gzip.compress(archive)
        if form == "isal":
            pytest.importorskip("isal")
        else:
            monkeypatch.setattr(compression, "_inflate", lambda: (zlib, zlib.error))
    stream = io.BytesIO(packed)
    first = stream.read(5000)
    pieces = compression.decompressed(first, lambda: stream.read(5000), compression.compression_of(first))
    assert b"".join(pieces) == archive
    done = extract(io.BytesIO(packed), target)
    assert done.compression == ("zstd" if form in ("zstd", "frames") else "gzip")
    assert (tmp_path / "tree/a").stat().st_size == 3_000_000


def test_a_reader_of_something_else_is_not_taken_for_its_file(tmp_path: Path, target: int) -> None:
    """A buffered reader has a descriptor also where it reads what lies in that compressed."""
    archive = Maker().file("a", b"x").done()
    with gzip.open(tmp_path / "packed", "wb") as file:
        file.write(b"ignored" + archive)
    with gzip.open(tmp_path / "packed") as file, io.BufferedReader(file) as reader:  # type: ignore[type-var, arg-type]
        reader.read(7)
        assert extract(reader, target).compression == "none"


def test_other_bytes_than_those_asked_for(target: int) -> None:
    with pytest.raises(DigestError):
        extract(io.BytesIO(Maker().file("a", b"b").done()), target, diffid="sha256:" + "0" * 64)


def test_an_error_of_the_stream_is_the_callers(target: int) -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise ConnectionResetError("far end")

    with pytest.raises(ConnectionResetError):
        extract(Broken(), target)  # type: ignore[arg-type]


def test_a_cut_archive_is_an_error_and_taken_where_the_digest_is_known(target: int) -> None:
    import hashlib

    data = Maker().file("a", b"b").done()[:1024]
    with pytest.raises(LayerError, match="cut off"):
        extract(io.BytesIO(data), target)
    os.unlink("a", dir_fd=target)
    assert extract(io.BytesIO(data), target, diffid=f"sha256:{hashlib.sha256(data).hexdigest()}").entries == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_devices_for_root_where_they_are_asked_for(target: int, tmp_path: Path) -> None:
    done = extract(io.BytesIO(Maker().device("null", 1, 3).done()), target, devices=True)
    assert not done.facts
    assert (tmp_path / "tree/null").stat().st_rdev == os.makedev(1, 3)
