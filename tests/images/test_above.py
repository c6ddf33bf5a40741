"""A layer above others: hard links to their files, links of theirs that are replaced or followed."""

from __future__ import annotations

import io
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from isolate import IdMap
from isolate.images import Image, Store
from isolate.images.errors import LayerError
from isolate.images.unpack.start import Extracted, extract
from tests.images.archives import Maker, opened
from tests.images.make import of_archive

if TYPE_CHECKING:
    from pathlib import Path

ROOT = os.geteuid() == 0


def above(tmp_path: Path, lower: list[Maker], upper: Maker, **options: str) -> Extracted:
    """Extract the upper archive above the lower ones, the lowest first."""
    fds = [opened(tmp_path / f"lower{n}") for n in range(len(lower))]
    for fd, archive in zip(fds, lower, strict=True):
        extract(io.BytesIO(archive.done()), fd)
    return extract(io.BytesIO(upper.done()), opened(tmp_path / "tree"), lower=fds[::-1], **options)  # type: ignore[arg-type]


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


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_a_directory_that_the_archive_left_out_is_as_below(tmp_path: Path) -> None:
    """As it is for everybody who unpacks one layer over another: GNU tar here."""
    lower = Maker().directory("tmp", mode=0o1777).directory("home/me", mode=0o2750, uid=1000, gid=1000)
    lower = lower.directory("gone/a", mode=0o700).directory("said", mode=0o700).symlink("lib", "tmp")
    upper = (
        Maker().file("tmp/x").file("home/me/x").file("gone/.wh..wh..opq").file("gone/a/x").file("new/x").file("lib/x")
    )
    upper = upper.file("said/x").directory("said", mode=0o751).file("home/.wh.other")
    done = above(tmp_path, [lower], upper)
    tree = tmp_path / "tree"
    modes = {name: mode(tree / name) for name in ("tmp", "home", "home/me", "gone", "gone/a", "new", "lib", "said")}
    assert modes == {
        "tmp": 0o1777,
        "home": 0o755,
        "home/me": 0o2750,
        "gone": 0o755,
        "gone/a": 0o755,  # the one below is hidden
        "new": 0o755,
        "lib": 0o755,  # it replaces a link
        "said": 0o751,
    }
    assert done.left_out == 7
    if ROOT:
        assert ((tree / "home/me").stat().st_uid, (tree / "home/me").stat().st_gid) == (1000, 1000)


def test_a_directory_that_a_whiteout_removed_is_a_new_one(tmp_path: Path) -> None:
    """An opaque directory stays what it is below; one that is removed and made once more does not."""
    lower = Maker().directory("a", mode=0o700).directory("b", mode=0o700)
    above(tmp_path, [lower], Maker().file(".wh.a").file("a/x").file("b/.wh..wh..opq").file("b/x"))
    assert (mode(tmp_path / "tree/a"), mode(tmp_path / "tree/b")) == (0o755, 0o700)


def test_owners_that_are_not_mapped_are_those_below(tmp_path: Path) -> None:
    """What the tree below could not hold is known of a directory that was left out, and of a file that is linked to."""
    ids = IdMap.single(0, 0, host_uid=os.geteuid(), host_gid=os.getegid())
    lower = Maker().directory("home/me", mode=0o750, uid=5, gid=6).file("home/me/f", b"1", uid=5, gid=6)
    fds = opened(tmp_path / "lower"), opened(tmp_path / "tree")
    below = extract(io.BytesIO(lower.done()), fds[0], map=ids)
    upper = Maker().link("x", "home/me/f").file("home/me/g").directory("home", mode=0o711)
    done = extract(io.BytesIO(upper.done()), fds[1], map=ids, lower=fds[:1], known=(below.facts,))
    assert {path: (done.facts[path].uid, done.facts[path].gid) for path in done.facts} == dict.fromkeys(
        (b"home/me", b"home/me/f", b"x"), (5, 6)
    )
    assert (mode(tmp_path / "tree/home"), mode(tmp_path / "tree/home/me")) == (0o711, 0o750)


@pytest.mark.skipif(not ROOT, reason="gives files away")
def test_gnu_tar_leaves_directories_as_they_are(tmp_path: Path) -> None:
    lower = Maker().directory("tmp", mode=0o1777).directory("home/me", mode=0o2750, uid=1000, gid=1000, mtime=5)
    upper = Maker().file("tmp/x").file("home/me/x")
    above(tmp_path, [lower], upper)
    other = tmp_path / "other"
    other.mkdir()
    for archive in (lower, upper):
        command = ["tar", "-x", "-p", "--numeric-owner", "-C", str(other)]
        subprocess.run(command, input=archive.done(), check=True)
    for name in ("tmp", "home/me"):
        ours, theirs = ((top / name).stat() for top in (tmp_path / "tree", other))
        assert (ours.st_mode, ours.st_uid, ours.st_gid) == (theirs.st_mode, theirs.st_uid, theirs.st_gid)


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


def test_a_check_knows_a_layer_above_layers_that_nothing_names_any_more(tmp_path: Path) -> None:
    """Its tree is as those below had it, and is compared with nothing else."""
    upper = of_archive(Maker().file("d/x").done())
    with Store(tmp_path / "store") as store:
        for number, base in enumerate((0o700, 0o711)):
            lower = of_archive(Maker().directory("d", mode=base).done())
            store.add(Image.empty() + lower + upper, f"x/y:{number}")
        store.untag("x/y:0")
        assert store.check(deep=True) == []
