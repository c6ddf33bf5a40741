"""Owners, modes and kinds of what COPY, ADD and WORKDIR make: as BuildKit has them (compared with docker 20.10)."""

from __future__ import annotations

import io
import os
import socket
import tarfile
from typing import TYPE_CHECKING

import pytest

from isolate.build import BuildError, Dockerfile, DockerfileError
from isolate.images import Image, Store
from tests.images.archives import Maker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as made:
        yield made


@pytest.fixture
def context(tmp_path: Path) -> Path:
    where = tmp_path / "context"
    (where / "sub/deep").mkdir(parents=True)
    (where / "sub").chmod(0o700)
    (where / "sub/deep").chmod(0o711)
    (where / "sub/deep/f").write_text("x")
    (where / "sub/deep/f").chmod(0o644)
    return where


def shown(image: Image) -> dict[str, tuple[int, int, int]]:
    """Owner, group and mode of all that an image's layers have an entry for, the last one of each."""
    return {name: (entry.uid, entry.gid, entry.mode) for name, entry in entries(image).items()}


def entries(image: Image) -> dict[str, tarfile.TarInfo]:
    found = {}
    for layer in image.layers:
        with layer.open() as file, tarfile.open(fileobj=io.BytesIO(file.read())) as archive:
            found.update({entry.name: entry for entry in archive})
    return found


def test_a_new_directory_for_contents_is_nobody_s_copy(store: Store, context: Path) -> None:
    """The contents of a directory are copied: a context that only its owner may read gives no image like it."""
    image = Dockerfile.parse("FROM scratch\nCOPY sub /x\nCOPY --chown=3:4 sub /y\n").build(store, context)
    rows = shown(image)
    assert (rows["x"], rows["x/deep"]) == ((0, 0, 0o755), (0, 0, 0o711))
    assert (rows["y"], rows["y/deep"]) == ((3, 4, 0o755), (3, 4, 0o711))


ROOTFS = (
    Maker()
    .directory("d", mode=0o2750, uid=5, gid=6)
    .file("d/f", mode=0o4755, uid=5, gid=6)
    .link("d/h", "d/f")
    .file("keep/f", mode=0o600, uid=3, gid=3)
    .file("new/f", mode=0o600, uid=3, gid=3)
)


def test_parents_keep_the_owners_of_a_stage(store: Store, context: Path) -> None:
    (context / "root.tar").write_bytes(ROOTFS.done())
    text = "FROM scratch AS one\nADD root.tar /\nFROM scratch\n"
    text += "COPY --parents --from=one d/f /x/\nCOPY --parents --from=one --chown=8 /./d/f /y/\n"
    rows = shown(Dockerfile.parse(text).build(store, context))
    assert (rows["x"], rows["x/d"]) == ((0, 0, 0o755), (5, 6, 0o2750))
    assert (rows["y"], rows["y/d"]) == ((8, 8, 0o755), (8, 8, 0o2750))


def test_a_directory_that_an_added_archive_left_out_stays(store: Store, context: Path) -> None:
    base = Maker().directory("t/keep", mode=0o700, uid=9, gid=9)
    (context / "base.tar").write_bytes(base.done())
    (context / "root.tar").write_bytes(ROOTFS.done())
    rows = shown(Dockerfile.parse("FROM scratch\nADD base.tar /\nADD root.tar /t/\n").build(store, context))
    assert rows["t/keep"] == (9, 9, 0o700)
    assert rows["t/new"] == (0, 0, 0o755)
    assert rows["t/d"] == (5, 6, 0o2750)


def test_devices_and_fifos_of_an_image_are_copied(store: Store, context: Path) -> None:
    """They were left out without a word: a tree of a store keeps devices as facts, and has whiteouts there."""
    archive = (
        Maker().device("dev/null", 1, 3).link("dev/zilch", "dev/null").add(Maker().device("dev/sda", 8, 0, b"4").data)
    )
    archive.add(Maker().device("dev/pipe", 0, 0, b"6").data)
    (context / "root.tar").write_bytes(archive.done())
    text = "FROM scratch AS one\nADD root.tar /a/\nFROM scratch\nCOPY --from=one /a/dev /b/\n"
    rows = entries(Dockerfile.parse(text).build(store, context))
    kinds = {name: (row.type, row.devmajor, row.devminor) for name, row in rows.items() if name != "b"}
    assert kinds == {
        "b/null": (tarfile.CHRTYPE, 1, 3),
        "b/zilch": (tarfile.CHRTYPE, 1, 3),
        "b/sda": (tarfile.BLKTYPE, 8, 0),
        "b/pipe": (tarfile.FIFOTYPE, 0, 0),
    }
    assert store.check(deep=True) == []
    os.mkfifo(context / "fifo", 0o600)
    (row,) = entries(Dockerfile.parse("FROM scratch\nADD fifo /\n").build(store, context)).values()
    assert (row.name, row.type) == ("fifo", tarfile.FIFOTYPE)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{context}/socket")
        with pytest.raises(BuildError, match="a device or a socket, which is not copied"):
            Dockerfile.parse("FROM scratch\nCOPY socket /\n").build(store, context)


@pytest.mark.parametrize(
    "line",
    [
        "COPY .wh.etc /",
        "COPY sub/deep/f /.wh.etc",
        "COPY . /",
        "ADD root.tar /",
        "COPY <<.wh.etc /x/\n.wh.etc",
        "WORKDIR /.wh.x",
    ],
)
def test_no_name_removes_what_the_base_has(store: Store, context: Path, line: str) -> None:
    """A file called .wh.etc would be a whiteout in the layer, and one in an archive that ADD unpacks is none."""
    (context / ".wh.etc").write_text("")
    (context / "root.tar").write_bytes(Maker().file("a").file(".wh.etc").done())
    with pytest.raises(BuildError, match=r"\.wh\..*a name that begins with \.wh\."):
        Dockerfile.parse(f"FROM scratch\n{line}\n").build(store, context)


def test_a_working_directory_is_the_user_s(store: Store, context: Path) -> None:
    text = "FROM scratch\nWORKDIR /a\nUSER 5:6\nWORKDIR b/c\nUSER 7\nWORKDIR /d\nWORKDIR /a/b\n"
    text += "COPY <<passwd /etc/\nme:x:8:9::/:\npasswd\nUSER me\nWORKDIR /e\n"
    rows = shown(Dockerfile.parse(text).build(store, context))
    assert {name: rows[name][:2] for name in ("a", "a/b", "a/b/c", "d", "e")} == {
        "a": (0, 0),
        "a/b": (5, 6),
        "a/b/c": (5, 6),
        "d": (7, 7),
        "e": (8, 9),
    }
    with pytest.raises(BuildError, match="no user 'you'"):
        Dockerfile.parse("FROM scratch\nUSER you\nWORKDIR /x\n").build(store, context)


def test_a_stage_is_not_named_by_a_variable() -> None:
    """As BuildKit has it: which stages are needed is known before there are values."""
    for line in ("COPY --from=$X / /", "COPY --from=${X:-a} / /", "ONBUILD COPY --from=$X / /"):
        with pytest.raises(DockerfileError, match=r"takes no variable: name a stage \(FROM \$.* AS name\)"):
            Dockerfile.parse(f"FROM scratch AS a\nFROM scratch\nARG X=a\n{line}\n")
