"""From archives to trees: what is made, by whom, and what is kept as facts."""

from __future__ import annotations

import gzip
import io
import os
import stat
from typing import TYPE_CHECKING

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
