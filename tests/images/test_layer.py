"""Layers as values: the same bytes for the same files, and a tree that comes back as it was."""

from __future__ import annotations

import os
import random
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from isolate.images.confined.maps import map_for
from isolate.images.errors import LayerError
from isolate.images.layer import Layer
from isolate.images.pack.start import difference, remove, write_layer
from isolate.images.unpack.start import Extracted, extract
from tests.images.archives import opened, tree_of

if TYPE_CHECKING:
    from pathlib import Path


def unpacked(layer: Layer, target: int, **options: Any) -> Extracted:
    with layer.open() as data:
        return extract(data, target, **options)


def contents(layer: Layer) -> bytes:
    with layer.open() as data:
        return data.read()


def rich(top: Path) -> None:
    """A tree with something of each kind."""
    (top / "etc").mkdir(parents=True)
    (top / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    os.link(top / "etc/passwd", top / "etc/passwd-")
    (top / "usr/bin").mkdir(parents=True)
    (top / "bin").symlink_to("usr/bin")
    (top / "usr/bin/tool").write_bytes(os.urandom(70_000))
    os.chmod(top / "usr/bin/tool", 0o4755)
    (top / ("n" * 200)).mkdir()
    (top / ("n" * 200) / ("m" * 200)).write_text("long")
    os.mkfifo(top / "pipe")
    os.setxattr(top / "etc/passwd", "user.note", b"a\0b\n")
    (top / os.fsdecode(b"\xff\xfe")).write_text("not utf-8")
    os.utime(top / "usr/bin/tool", ns=(1, 1_234_567_890_123_456_789))
    if os.geteuid() == 0:
        os.chown(top / "usr/bin/tool", 3_000_000, 5)
        os.chmod(top / "usr/bin/tool", 0o4755)
        os.mknod(top / "null", 0o20666, os.makedev(1, 3))


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    rich(tmp_path / "a")
    layer = Layer.of(tmp_path / "a", epoch=None)
    done = unpacked(layer, opened(tmp_path / "b"), devices=os.geteuid() == 0)
    assert done.diffid == layer.diffid
    assert tree_of(tmp_path / "a") == tree_of(tmp_path / "b")
    # And by another's eyes.
    (tmp_path / "c").mkdir()
    tar = ["tar", "--xattrs", "--xattrs-include=*", "-C", str(tmp_path / "c"), "-xpf", "-"]
    subprocess.run(tar, input=contents(layer), check=True)
    assert tree_of(tmp_path / "a") == tree_of(tmp_path / "c")


def test_devices_that_were_not_made_are_written_again(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root makes devices")
    rich(tmp_path / "a")
    layer = Layer.of(tmp_path / "a", epoch=None)
    tree = opened(tmp_path / "b")
    done = unpacked(layer, tree)
    assert b"null" in done.facts
    assert Layer.of(tree, epoch=None, facts=done.facts).diffid == layer.diffid


def test_the_same_bytes_whenever_and_in_whatever_order_files_are_made(tmp_path: Path) -> None:
    names = [f"d{i % 7}/f{i}" for i in range(60)]
    layers = []
    for turn in range(2):
        random.Random(turn).shuffle(names)
        for name in names:
            path = tmp_path / str(turn) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        layers.append(Layer.of(tmp_path / str(turn)))
    assert layers[0] == layers[1]
    files = Layer.files({name: name for name in names})
    assert files.diffid == Layer.files(dict(sorted({name: name.encode() for name in names}.items()))).diffid


def test_files_are_read_by_the_standard_library(tmp_path: Path) -> None:
    layer = Layer.files({"srv/app.py": b"print(1)", "/empty/": b"", "x" * 150 + "/y": "text"}, uid=7, epoch=9)
    with tarfile.open(fileobj=layer.open()) as archive:
        rows = {row.name: row for row in archive}
        assert rows["srv/app.py"].uid == 7
        assert rows["srv/app.py"].mtime == 9
        assert rows["empty"].isdir()
        assert archive.extractfile("srv/app.py").read() == b"print(1)"  # type: ignore[union-attr]
        assert "x" * 150 + "/y" in rows
    assert layer.size == len(contents(layer))


def test_what_files_refuses() -> None:
    with pytest.raises(LayerError, match=r"'\.\.'"):
        Layer.files({"../a": b""})
    with pytest.raises(LayerError, match=r"begins with \.wh\."):
        Layer.files({"etc/.wh.passwd": b""})
    with pytest.raises(TypeError):
        Layer.files({"a": 5})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="beneath"):
        Layer.files({"a": b"", "a/b": b""})
    with pytest.raises(ValueError, match="only a name"):
        Layer("sha256:" + "0" * 64, "sha256:" + "0" * 64, 0).open()


def test_a_file_that_looks_like_a_whiteout_is_not_packed(tmp_path: Path) -> None:
    """Whoever may make files in a sandbox could else remove those of the image that it becomes."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/.wh.passwd").write_text("")
    with pytest.raises(LayerError, match=r"begins with \.wh\.") as caught:
        Layer.of(tmp_path)
    assert caught.value.entry == b"etc/.wh.passwd"


def test_the_difference_of_two_trees_and_back(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    rich(old)
    subprocess.run(["cp", "-a", str(old), str(new)], check=True)
    (new / "etc/passwd").unlink()
    (new / "usr/bin/tool").write_bytes(b"other")
    (new / "fresh/dir").mkdir(parents=True)
    (new / "fresh/dir/file").write_text("x")
    os.chmod(new / "etc", 0o700)
    subprocess.run(["rm", "-r", str(new / ("n" * 200))], check=True)
    changes, _ = difference(opened(new), [opened(old)])
    kinds = {change.path: change.kind for change in changes}
    assert kinds == {
        b"etc": "metadata",
        b"etc/passwd": "removed",
        b"usr/bin/tool": "modified",
        b"fresh": "added",
        b"fresh/dir": "added",
        b"fresh/dir/file": "added",
        b"n" * 200: "removed",
    }
    assert changes.bytes == 6
    layer = Layer.of(new, below=[old], epoch=None)
    unpacked(layer, opened(tmp_path / "layer"), devices=os.geteuid() == 0)
    names = set(tree_of(tmp_path / "layer"))
    assert names == {
        b"",
        b"etc",
        b"etc/passwd",
        b"usr",
        b"usr/bin",
        b"usr/bin/tool",
        b"fresh",
        b"fresh/dir",
        b"fresh/dir/file",
        b"n" * 200,
    }


def test_a_layer_tree_with_whiteouts_is_written_as_it_came(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    rich(old)
    (new / "etc").mkdir(parents=True)
    layer = Layer.of(new, below=[old], epoch=None)
    tree = opened(tmp_path / "tree")
    done = unpacked(layer, tree, devices=os.geteuid() == 0)
    out = os.memfd_create("x")
    ids = None if os.geteuid() == 0 else map_for(None)  # in whose eyes the tree was made
    assert write_layer(tree, out, epoch=None, facts=done.facts, map=ids).diffid == layer.diffid


def test_removing_takes_a_tree_whatever_its_modes_and_depth(tmp_path: Path) -> None:
    deep = tmp_path / "tree"
    deep.mkdir()
    fd = os.open(deep, os.O_RDONLY)
    for _ in range(700):
        os.mkdir(b"d", 0o755, dir_fd=fd)
        below = os.open(b"d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    (deep / "closed").mkdir()
    (deep / "closed/file").write_text("x")
    os.chmod(deep / "closed", 0)
    (tmp_path / "kept").write_text("kept")
    (deep / "link").symlink_to(tmp_path)
    top = os.open(tmp_path, os.O_RDONLY)
    remove(top, "tree")
    remove(top, "tree")
    os.close(top)
    assert sorted(os.listdir(tmp_path)) == ["kept"]
