"""A layer above others: hard links to their files, links of theirs that are replaced or followed."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import pytest

from isolate.images.errors import LayerError
from isolate.images.unpack.start import Extracted, extract
from tests.images.archives import Maker

if TYPE_CHECKING:
    from pathlib import Path

ROOT = os.geteuid() == 0


def opened(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def above(tmp_path: Path, lower: list[Maker], upper: Maker, **options: str) -> Extracted:
    """Extract the upper archive above the lower ones, the lowest first."""
    fds = [opened(tmp_path / f"lower{n}") for n in range(len(lower))]
    for fd, archive in zip(fds, lower, strict=True):
        extract(io.BytesIO(archive.done()), fd)
    done = extract(io.BytesIO(upper.done()), opened(tmp_path / "tree"), lower=fds[::-1], **options)  # type: ignore[arg-type]
    for fd in fds:
        os.close(fd)
    return done


LINKED = Maker().directory("usr/lib").symlink("lib", "usr/lib").file("usr/lib/a", b"a")


def test_a_directory_replaces_a_link_and_is_named(tmp_path: Path) -> None:
    done = above(tmp_path, [LINKED], Maker().file("lib/b", b"b").file("usr/lib/c", b"c"))
    assert done.replaced_links == ((b"lib", b"usr/lib"),)
    assert (tmp_path / "tree/lib/b").read_bytes() == b"b"
    assert not (tmp_path / "tree/lib").is_symlink()


def test_a_link_is_followed_where_that_is_wanted(tmp_path: Path) -> None:
    upper = Maker().directory("lib").file("lib/b", b"b").symlink("lib64", "x")
    done = above(tmp_path, [LINKED], upper, links="follow")
    assert done.replaced_links == ()
    assert (tmp_path / "tree/usr/lib/b").read_bytes() == b"b"
    assert not (tmp_path / "tree/lib").exists()


@pytest.mark.parametrize("target", ["/../../../escape", "../../escape", "/escape"])
def test_links_lead_nowhere_outside(tmp_path: Path, target: str) -> None:
    lower = Maker().symlink("l", target)
    above(tmp_path, [lower], Maker().file("l/f", b"x"), links="follow")
    assert (tmp_path / "tree/escape/f").read_bytes() == b"x"
    assert not (tmp_path / "escape").exists()


def test_links_in_a_circle(tmp_path: Path) -> None:
    lower = Maker().symlink("a", "b").symlink("b", "a")
    with pytest.raises(LayerError, match="too many symbolic links"):
        above(tmp_path, [lower], Maker().file("a/f", b"x"), links="follow")


def test_a_hard_link_to_a_file_below(tmp_path: Path) -> None:
    lower = Maker().directory("etc", mode=0o711, mtime=3).file("etc/a", b"below", mode=0o640, mtime=9)
    hidden = Maker().file("etc/b", b"other")
    done = above(tmp_path, [lower, hidden], Maker().link("x/hard", "etc/a"))
    tree = tmp_path / "tree"
    assert done.from_lower == (b"etc/a",)
    assert (tree / "x/hard").read_bytes() == b"below"
    assert (tree / "x/hard").stat().st_ino == (tree / "etc/a").stat().st_ino
    assert (tree / "etc/a").stat().st_mode & 0o7777 == 0o640
    assert (tree / "etc/a").stat().st_mtime == 9
    # What a directory is copied for is what shows: that of the upper of the two below.
    assert (tree / "etc").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    ("lower", "target", "rule"),
    [
        ([Maker().directory("d")], "a", "not in this layer"),
        ([Maker().directory("a")], "a", "neither a file nor a link"),
        ([Maker().file("a", b"x"), Maker().file(".wh.a")], "a", "not in this layer"),
        ([Maker().file("d/a"), Maker().file("d/.wh..wh..opq")], "d/a", "not in this layer"),
        ([Maker().symlink("d", "/etc")], "d/shadow", "not in this layer"),
    ],
)
def test_hard_links_below_that_are_refused(tmp_path: Path, lower: list[Maker], target: str, rule: str) -> None:
    with pytest.raises(LayerError, match=rule):
        above(tmp_path, lower, Maker().link("x", target))
