"""Equal files of several layers are one file on disk, and nothing else changes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from isolate.images import Image, Layer, Store
from isolate.images.pack.start import write_layer
from isolate.images.sharing import share, unshared
from tests.images.archives import tree_of
from tests.images.make import contents, taken
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("shared", [True, False])
def test_an_image_that_shares_ninety_per_cent(tmp_path: Path, shared: bool) -> None:
    one = contents(1)
    two = {**one, **dict(list(contents(2).items())[:10])}
    with Store(tmp_path / "store", share=shared) as store:
        first = store.add(Image.empty() + Layer.files(one), "one:1")
        before = taken(tmp_path / "store/layers")
        second = store.add(Image.empty() + Layer.files(two), "two:1")
        more = taken(tmp_path / "store/layers") - before
        assert (more / before <= 0.15) is shared
        for image, files in ((first, one), (second, two)):
            lease, (tree,) = store.lease(image)
            with lease:
                for name, data in files.items():
                    fd = os.open(name, os.O_RDONLY, dir_fd=tree)
                    assert os.read(fd, 100_000) == data
                    os.close(fd)
                out = os.memfd_create("out")
                assert write_layer(tree, out, epoch=None, map=store.trees.reading_map()).diffid == image.diffids[0]
                os.close(out)


def test_what_nobody_has_any_more_is_collected(tmp_path: Path) -> None:
    with Store(tmp_path / "store", share=True) as store:
        store.add(Image.empty() + Layer.files(contents(1)), "one:1")
        store.add(Image.empty() + Layer.files({**contents(1), "more": b"x"}), "two:1")
        assert sum(len(files) for _, _, files in os.walk(tmp_path / "store/objects")) == 101
        store.untag("two:1")
        store.collect()
        assert sum(len(files) for _, _, files in os.walk(tmp_path / "store/objects")) == 100
        store.untag("one:1")
        store.collect()
        assert sum(len(files) for _, _, files in os.walk(tmp_path / "store/objects")) == 0


def test_only_what_is_equal_in_everything(tmp_path: Path) -> None:
    """Other modes, times, attributes: two files. Two equal files of one tree stay two."""
    for number, tree in enumerate(("a", "b", "c", "d", "e")):
        (tmp_path / tree / "in").mkdir(parents=True)
        for name in ("in/one", "in/two"):
            path = tmp_path / tree / name
            path.write_bytes(b"same")
            os.utime(path, ns=(0, 5 if number == 2 else 7))
        os.utime(tmp_path / tree / "in", ns=(0, 3))
    os.chmod(tmp_path / "d/in/one", 0o600)
    os.setxattr(tmp_path / "e/in/one", "user.note", b"x")
    before = {tree: tree_of(tmp_path / tree) for tree in "abcde"}
    (tmp_path / "objects").mkdir()
    objects = os.open(tmp_path / "objects", os.O_RDONLY)
    found = {}
    for tree in "abcde":
        fd = os.open(tmp_path / tree, os.O_RDONLY)
        found[tree] = share(fd, objects).files
        os.close(fd)
    # Within a tree the second of two equal ones is left alone: of "d" and "e" one file is as in "a".
    assert found == {"a": 0, "b": 1, "c": 0, "d": 1, "e": 1}
    after = {tree: tree_of(tmp_path / tree) for tree in "abcde"}
    for tree in "abcde":
        assert {k: v[:-1] for k, v in after[tree].items()} == {k: v[:-1] for k, v in before[tree].items()}
        assert len({(tmp_path / tree / "in" / name).stat().st_ino for name in ("one", "two")}) == 2
    assert unshared(objects)[0] == 0
    os.close(objects)


def test_as_an_ordinary_user_with_files_that_are_closed() -> None:
    as_ordinary_user("""
import os, tempfile
from isolate.images import *
from isolate.images.pack.start import remove
with tempfile.TemporaryDirectory() as place:
    with Store(place + "/store", share=True) as store:
        a = store.add(Image.empty() + Layer.files({"closed": b"x" * 5000}, mode=0))
        b = store.add(Image.empty() + Layer.files({"closed": b"x" * 5000, "other": "y"}, mode=0))
        layers = place + "/store/layers"
        inodes = {os.lstat(f"{layers}/{name}/tree/closed").st_ino for name in os.listdir(layers)}
        assert len(inodes) == 1, inodes
    top = os.open(place, os.O_RDONLY)
    remove(top, "store")
""")
