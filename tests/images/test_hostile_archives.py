"""Archives that lead other tools astray: each is refused, by the name of the entry and of the rule; nothing is outside.

Classes: umoci CVE-2021-29136; moby CVE-2019-14271; docker cp CVE-2018-15664; containerd CVE-2023-25153;
containers/storage CVE-2024-9676 and 1753; BuildKit CVE-2024-23652; Go CVE-2025-58183 (sparse maps); Python's tarfile
CVE-2007-4559, 2024-12718, 2025-4138, 2025-4330, 2025-4435, 2025-4517; GNU tar CVE-2025-45582; tar-rs and tokio-tar
CVE-2025-62518.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from isolate.images.bounds import Bounds
from isolate.images.errors import LayerError
from isolate.images.pack.start import remove
from isolate.images.unpack.owners import Owners
from isolate.images.unpack.place import Placer
from isolate.images.unpack.read import Pass, unpack
from isolate.images.unpack.start import extract
from tests.images.archives import Maker, header, octal, padded, pax

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SMALL = Bounds(bytes="64M", entries=1000, file="4M")
END = bytes(1024)


def base256(number: int, width: int) -> bytes:
    return (
        (number % (1 << 8 * width)).to_bytes(width, "big")
        if number < 0
        else (bytes([0x80]) + number.to_bytes(width - 1, "big"))
    )


def sparse() -> bytes:
    return header(b"hole", b"S", 512, raw={386: octal(0, 12) + octal(512, 12), 483: octal(1 << 40, 12)}) + bytes(512)


def pax_then(records: dict[bytes, bytes], entry: bytes) -> bytes:
    return pax(records) + entry


FILE = header(b"f", b"0", 3) + padded(b"abc")

# name: (archive, entry, words of the rule)
HOSTILE: dict[str, tuple[bytes, bytes, str]] = {
    # Names that lead out.
    "parent": (Maker().file("../evil", b"x").done(), b"../evil", r"'\.\.' in the name"),
    "parent in the middle": (Maker().file("a/../../evil").done(), b"a/../../evil", r"'\.\.' in the name"),
    "parent at the end": (Maker().directory("a/..").done(), b"a/..", r"'\.\.' in the name"),
    "absolute and parent": (Maker().file("/../etc/evil").done(), b"/../etc/evil", r"'\.\.' in the name"),
    "absolute by slashes": (Maker().file("//../evil").done(), b"//../evil", r"'\.\.' in the name"),
    "parent by PAX": (pax_then({b"path": b"../evil"}, FILE) + END, b"../evil", r"'\.\.'"),
    "parent by a long name": (header(b"L", b"L", 8) + padded(b"../evil\0") + FILE + END, b"../evil", r"'\.\."),
    "absolute by prefix": (header(b"../evil", prefix=b"/..") + END, b"/../../evil", r"'\.\.' in the name"),
    "absolute by PAX": (pax_then({b"path": b"/a/../../evil"}, FILE) + END, b"/a/../../evil", r"'\.\.'"),
    "NUL in a PAX name": (pax_then({b"path": b"safe\0/../evil"}, FILE) + END, b"safe\0/../evil", "NUL"),
    "empty name": (header(b"") + END, b"", "an empty name"),
    "long component": (pax_then({b"path": b"n" * 256}, FILE) + END, b"n" * 256, "component of 256"),
    "long path": (pax_then({b"path": b"a/" * 2050 + b"f"}, FILE) + END, (b"a/" * 32) + b"...", "4101 bytes"),
    # Links.
    "file through a link": (
        Maker().symlink("a", "/tmp").file("a/evil").done(),
        b"a/evil",
        "symbolic link of this layer",
    ),
    "file through two links": (
        Maker().symlink("a", "b").symlink("b", "/tmp").file("a/evil").done(),
        b"a/evil",
        "symbolic link of this layer",
    ),
    "absolute through a link": (
        Maker().symlink("a", "/tmp").file("/a/evil").done(),
        b"a/evil",
        "symbolic link of this layer",
    ),
    "directory through a link": (
        Maker().symlink("a", "..").directory("a/evil").done(),
        b"a/evil",
        "symbolic link of this layer",
    ),
    "link then the file itself": (Maker().symlink("a", "/etc/passwd").file("a", b"x").done(), b"a", "second entry"),
    "directory then a link": (Maker().directory("a").symlink("a", "/tmp").done(), b"a", "second entry"),
    "file as a parent": (Maker().file("a").file("a/b").done(), b"a/b", "not a directory"),
    "hard link to the host": (Maker().link("a", "/etc/shadow").done(), b"a", "not in this layer"),
    "absolute hard link out": (Maker().link("a", "/../etc/shadow").done(), b"/../etc/shadow", r"'\.\.' in the target"),
    "hard link to the top": (Maker().link("a", "/").done(), b"a", "hard link to a directory"),
    "hard link out": (Maker().link("a", "../../etc/shadow").done(), b"../../etc/shadow", r"'\.\.'"),
    "hard link through a link": (Maker().symlink("d", "/etc").link("a", "d/shadow").done(), b"a", "not in this layer"),
    "absolute hard link through a link": (
        Maker().symlink("d", "/etc").link("/a", "/d/shadow").done(),
        b"a",
        "not in this layer",
    ),
    "hard link to a directory": (Maker().directory("d").link("a", "d").done(), b"a", "hard link to a directory"),
    "hard link to what comes later": (Maker().link("a", "b").file("b").done(), b"a", "not in this layer"),
    "hard link with bytes": (
        header(b"f") + header(b"a", b"1", 3, link=b"f") + padded(b"abc") + END,
        b"a",
        "bytes of its own",
    ),
    "link to nothing": (Maker().symlink("a", "").done(), b"a", "symbolic link to nothing"),
    "NUL in a link": (
        pax_then({b"linkpath": b"/etc\0x"}, header(b"a", b"2", link=b"x")) + END,
        b"a",
        "NUL in the target",
    ),
    # The tree's own top.
    "top as a link": (Maker().symlink(".", "/tmp").done(), b".", "top of the tree"),
    "top as a file": (header(b"./.", b"0") + END, b"./.", "top of the tree"),
    # Whiteouts.
    "whiteout of the directory": (Maker().file("a/.wh..").done(), b"a/.wh..", "a whiteout of nothing"),
    "whiteout of the parent": (Maker().file("a/.wh...").done(), b"a/.wh...", "a whiteout of nothing"),
    "whiteout of nothing": (Maker().file(".wh.").done(), b".wh.", "a whiteout of nothing"),
    "reserved name": (Maker().file(".wh..wh.plnk").done(), b".wh..wh.plnk", "reserved name"),
    "whiteout as a link": (Maker().symlink(".wh.a", "/tmp").done(), b".wh.a", "not an empty file"),
    "whiteout with bytes": (Maker().file(".wh.a", b"x").done(), b".wh.a", "not an empty file"),
    "whiteout as a directory": (Maker().directory(".wh.a").done(), b".wh.a", "not an empty file"),
    "whiteout as a device": (Maker().device(".wh.a", 0, 0).done(), b".wh.a", "not an empty file"),
    "whiteout as a hard link with bytes": (
        header(b".wh.a", b"1", 3, link=b"f") + padded(b"abc") + END,
        b".wh.a",
        "bytes of its own",
    ),
    "whiteout as a hard link out": (Maker().link(".wh.a", "../f").done(), b"../f", r"'\.\.' in the target"),
    "hard link to a whiteout": (Maker().file(".wh.a").link("b", ".wh.a").done(), b"b", "hard link to a whiteout"),
    "whiteout through a link": (Maker().symlink("a", "/").file("a/.wh.etc").done(), b"a/.wh.etc", "symbolic link"),
    "device 0:0": (Maker().device("a", 0, 0).done(), b"a", "would be a whiteout"),
    "overlay's own attribute": (
        pax_then({b"SCHILY.xattr.trusted.overlay.redirect": b"/etc"}, header(b"d/", b"5")) + END,
        b"d/",
        "overlayfs's own",
    ),
    "overlay's own attribute for users": (
        pax_then({b"SCHILY.xattr.user.overlay.opaque": b"y"}, header(b"d/", b"5")) + END,
        b"d/",
        "overlayfs's own",
    ),
    "overlay's own attribute in base64": (
        pax_then({b"LIBARCHIVE.xattr.trusted%2Eoverlay.metacopy": b""}, FILE) + END,
        b"f",
        "overlayfs's own",
    ),
    # Numbers.
    "negative size": (header(b"a", raw={124: base256(-512, 12)}) + END, b"a", "negative size"),
    "absurd size": (header(b"a", raw={124: base256(1 << 80, 12)}) + END, b"a", "absurd size"),
    "negative owner": (header(b"a", raw={108: base256(-1, 8)}) + END, b"a", "negative uid"),
    "owner that is none": (pax_then({b"uid": b"4294967295"}, FILE) + END, b"f", "an owner beyond"),
    "negative time": (header(b"a", raw={136: base256(-1, 12)}) + END, b"a", "negative time"),
    "size in words": (header(b"a", raw={124: b"+777\0"}) + END, b"a", "no octal number"),
    "size with an underscore": (header(b"a", raw={124: b"1_0\0"}) + END, b"a", "no octal number"),
    "size beyond the bounds": (header(b"a", size=5 << 20) + END, b"a", "beyond the bounds"),
    "PAX size that hides an entry": (pax_then({b"size": b"-1"}, FILE) + END, b"f", "PAX: the size is no number"),
    # Formats that tools read apart.
    "sparse": (sparse() + END, b"hole", "sparse"),
    "sparse by PAX": (
        pax_then({b"GNU.sparse.major": b"1", b"GNU.sparse.name": b"../evil"}, FILE) + END,
        b"f",
        "sparse",
    ),
    "unknown type": (header(b"a", b"Z") + END, b"a", "unknown type"),
    "contiguous": (header(b"a", b"7") + END, b"a", "contiguous"),
    "multi-volume": (header(b"a", b"M") + END, b"a", "began in another"),
    "twice": (Maker().file("a", b"good").file("./a", b"evil").done(), b"a", "second entry"),
    "twice by a slash": (Maker().file("a", b"good").file("/a", b"evil").done(), b"a", "second entry"),
    "twice as directories": (Maker().directory("a").directory("a/").done(), b"a", "second entry"),
    "two PAX headers": (pax({b"path": b"a"}) + pax({b"path": b"b"}) + FILE + END, b"pax", "two extended headers"),
    "two long names": (
        header(b"L", b"L", 2) + padded(b"a\0") + pax({b"path": b"b"}) + FILE + END,
        b"a",
        "two long names",
    ),
    "global path": (pax({b"path": b"evil"}, b"g") + FILE + END, b"pax", "global header"),
    "file with a slash": (header(b"a/", b"0") + END, b"a/", "a slash behind its name"),
    "directory with bytes": (header(b"a/", b"5", 512) + FILE + END, b"a/", "bytes of its own"),
    "wrong checksum": (header(b"a", checksum=b"000000\0 ") + END, b"", "no tar archive: its first 512"),
    "wrong checksum later": (
        FILE + header(b"\x1b[31m", checksum=b"000000\0 ") + END,
        b"",
        r"header at byte \d+ is wrong",
    ),
    "no number of a checksum": (
        FILE + header(b"\x1b[31m", checksum=b"\x1b]0;x\7x") + END,
        b"",
        r"header at byte \d+ is",
    ),
    "PAX record that lies": (header(b"p", b"x", 12) + padded(b"99 path=a/b\n") + FILE + END, b"p", "PAX"),
    "PAX record of nothing": (header(b"p", b"x", 4) + padded(b"4 =\n") + FILE + END, b"p", "PAX"),
    "PAX without bound": (header(b"p", b"x", 2 << 20) + END, b"p", "the limit is"),
    "long name without bound": (header(b"p", b"L", 1 << 16) + END, b"p", "the limit is"),
    "PAX behind which nothing comes": (pax({b"path": b"a"}) + END, b"", "without an entry"),
    "bytes behind the end": (FILE + END + FILE + END, b"", "behind the end"),
    "one block of zeros": (FILE + bytes(512) + FILE + END, b"", "one block of zeros"),
    "cut within a file": (header(b"a", size=5000) + bytes(512), b"a", "cut off within a file"),
    "cut within a header": (FILE + header(b"b")[:100], b"", "cut off within a header"),
    "cut between entries": (FILE, b"", "cut off"),
    "not an archive": (b"\x7fELF" + bytes(600), b"", r"no tar archive: its first 512 bytes are no header"),
    "xz": (b"\xfd7zXZ\0" + bytes(600), b"", "no tar archive: it is compressed by xz"),
    "gzip in gzip": (
        gzip.compress(gzip.compress(FILE + END)),
        b"",
        "no tar archive: it is compressed by gzip once more",
    ),
    "a short text": (b"FROM scratch\n", b"", "no tar archive: it has 13 bytes"),
    "damaged gzip": (gzip.compress(FILE + END)[:-9] + b"123456789", b"", "gzip"),
    "cut gzip": (gzip.compress(header(b"a", size=3000) + os.urandom(3000))[:-100], b"", "gzip"),
    "gzip and more": (gzip.compress(FILE + END) + b"more", b"", "gzip"),
    "a bomb": (gzip.compress(bytes(70 << 20)), b"", "beyond the bounds"),
    "too many entries": (
        b"".join(header(b"d%d/" % n, b"5") for n in range(1001)) + END,
        b"d1000",
        "more than 1000 entries",
    ),
    "a path of a thousand": (pax_then({b"path": b"d/" * 1001 + b"f"}, FILE) + END, b"d/" * 1000 + b"d", "1000 entries"),
    "large attribute": (pax_then({b"SCHILY.xattr.user.a": b"x" * 65537}, FILE) + END, b"f", "the limit is 65536"),
    "attribute without a space": (pax_then({b"SCHILY.xattr.evil": b"x"}, FILE) + END, b"f", "with the name"),
    "two values of an attribute": (
        pax_then({b"SCHILY.xattr.user.a": b"x", b"LIBARCHIVE.xattr.user.a": b"eQ"}, FILE) + END,
        b"f",
        "two values",
    ),
    "capabilities that are none": (
        pax_then({b"SCHILY.xattr.security.capability": b"xyz"}, FILE) + END,
        b"f",
        "none of the kernel's",
    ),
    "other character set": (pax_then({b"hdrcharset": b"EBCDIC"}, FILE) + END, b"f", "character set"),
}


def in_this_process(data: bytes, target: int, bounds: Bounds = SMALL) -> Placer:
    """Without the child around it: what keeps an archive inside is then only what this library does itself."""
    stream = io.BytesIO(data)
    every = [(0, 2**32 - 1)] if os.geteuid() == 0 else [(0, 1)]
    placer = Placer(target, owners=Owners(every, every), limits=bounds.limits())
    unpack(Pass(stream.read, None, bounds.limits()), placer)
    return placer


def seen(top: Path) -> list[tuple[str, int, int]]:
    """Everything around the target, with sizes and times."""
    rows = []
    for place, directories, files in os.walk(top):
        if "target" in directories:
            directories.remove("target")
        for name in directories + files:
            row = os.lstat(os.path.join(place, name))
            rows.append((os.path.join(place, name), row.st_size, row.st_mode))
    return sorted(rows)


@pytest.fixture
def field(tmp_path: Path) -> Iterator[Path]:
    """A directory with a target in it, and beside it what must not be touched."""
    (tmp_path / "target").mkdir()
    (tmp_path / "shadow").write_text("secret")
    (tmp_path / "etc").mkdir()
    yield tmp_path
    top = os.open(tmp_path, os.O_RDONLY)
    remove(top, "target")  # some are too deep for whoever removes temporary directories
    os.close(top)


def test_there_are_more_than_forty() -> None:
    assert len(HOSTILE) >= 80


def refused(name: str, field: Path, unpack: Callable[[bytes, int], object]) -> None:
    data, entry, rule = HOSTILE[name]
    before = seen(field)
    target = os.open(field / "target", os.O_RDONLY)
    try:
        with pytest.raises(LayerError, match=rule) as caught:
            unpack(data, target)
    finally:
        os.close(target)
    assert caught.value.entry == entry
    assert seen(field) == before
    assert len(str(caught.value)) < 1000


def by_the_child(data: bytes, target: int) -> None:
    extract(io.BytesIO(data), target, bounds=SMALL)


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_by_entry_and_rule(name: str, field: Path) -> None:
    refused(name, field, in_this_process)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_refused_by_the_child_as_well(name: str, field: Path) -> None:
    refused(name, field, by_the_child)


def test_one_of_them_by_the_child(field: Path) -> None:
    data, entry, rule = HOSTILE["file through a link"]
    target = os.open(field / "target", os.O_RDONLY)
    try:
        with pytest.raises(LayerError, match=rule) as caught:
            extract(io.BytesIO(data), target)
    finally:
        os.close(target)
    assert caught.value.entry == entry


def test_the_same_without_what_is_hostile(field: Path) -> None:
    """The control: what is near to the above, and right."""
    made = Maker().directory("./").directory("a").file("a/b", b"x").link("a/c", "a/b").symlink("l", "../../etc")
    made.add(pax({b"path": "lang/ü".encode(), b"mtime": b"1.5", b"comment": b"x"}) + FILE)
    made.add(pax({b"comment": b"from git"}, b"g"))
    made.add(header(b"old/", b"\0")).file("gone/.wh.x").file("gone/.wh..wh..opq")
    made.add(header(b"big", raw={108: base256(70000, 8), 124: base256(3, 12)}) + padded(b"abc"))
    made.add(header(b"L", b"L", 151) + padded(b"n" * 150 + b"\0") + FILE)
    target = os.open(field / "target", os.O_RDONLY)
    placer = in_this_process(made.done() + bytes(9216), target)
    os.close(target)
    assert placer.known[b"old"] == "5"
    assert (field / "target/a/c").read_bytes() == b"x"
    assert (field / "target/lang/ü").stat().st_mtime_ns == 1_500_000_000
    assert (field / "target" / ("n" * 150)).read_bytes() == b"abc"
    assert struct.calcsize("P") == 8


def test_absolute_names_are_below_the_top(field: Path) -> None:
    """As kaniko writes them. Each leads to a file that is there, beside the target: what is there stays as it is."""
    outside = os.fsencode(field / "shadow")
    made = Maker().directory("/").add(pax({b"path": outside}) + FILE)
    made.add(pax({b"path": b"//same", b"linkpath": b"/" + outside}) + header(b"same", b"1"))
    made.file("/low/.wh.gone").link("/low/.wh.too", "/low/.wh.gone").link("/low/.wh.third", "nothing/there")
    before = seen(field)
    target = os.open(field / "target", os.O_RDONLY)
    try:
        in_this_process(made.done(), target)
    finally:
        os.close(target)
    assert seen(field) == before
    assert (field / "shadow").read_text() == "secret"
    inside = field / "target" / os.fsdecode(outside.lstrip(b"/"))
    assert inside.read_bytes() == b"abc"
    assert os.path.samefile(inside, field / "target/same")
    for name in ("gone", "too", "third"):
        row = os.lstat(field / "target/low" / name)
        assert stat.S_ISCHR(row.st_mode)
        assert row.st_rdev == 0
    assert sorted(os.listdir(field / "target/low")) == ["gone", "third", "too"]
    # The control: who takes such a name as it stands writes beside the target.
    only = Maker().add(pax({b"path": outside}) + FILE).done()
    subprocess.run(["tar", "-C", str(field / "target"), "-xPf", "-"], input=only, check=True)
    assert (field / "shadow").read_bytes() == b"abc"
