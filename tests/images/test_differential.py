"""One archive by GNU tar, bsdtar, the standard library, umoci and containers-storage: each difference has a reason."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from hashlib import sha256
from pathlib import Path
from stat import S_ISCHR, S_ISLNK
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from isolate.images.archive import entry as kinds
from isolate.images.archive.entry import Entry
from isolate.images.pack.pack import pack_entries
from isolate.images.unpack.owners import Owners
from isolate.images.unpack.place import Placer
from isolate.images.unpack.read import Pass, unpack
from tests.images.archives import Maker, tree_of
from tests.images.generated import Case, cases

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = os.geteuid() == 0
pytestmark = pytest.mark.skipif(not ROOT, reason="the owners of files, which are compared, are for root to give")
ENVIRONMENT = {**os.environ, "LC_ALL": "C.UTF-8"}
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None, "derandomize": True}
Tree = dict[bytes, tuple[Any, ...]]


def ours(data: bytes, target: Path) -> None:
    fd = os.open(target, os.O_RDONLY)
    limits = (1 << 40, 1 << 30, 1 << 40, 0)
    every = [(0, 2**32 - 1)]
    old = os.umask(0)
    try:
        placer = Placer(fd, owners=Owners(every, every), limits=limits, devices=True)
        unpack(Pass(io.BytesIO(data).read, None, limits), placer)
    finally:
        os.umask(old)
        os.close(fd)


def gnu_tar(data: bytes, target: Path) -> None:
    command = ["tar", "-C", str(target), "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", "-"]
    command.append(
        "--delay-directory-restore"
    )  # else it sets the times of a directory before later entries change them
    done = subprocess.run(command, input=data, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def bsdtar(data: bytes, target: Path) -> None:
    command = ["bsdtar", "-C", str(target), "--numeric-owner", "--xattrs", "-xpf", "-"]
    done = subprocess.run(command, input=data, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def standard_library(data: bytes, target: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
        archive.errorlevel = 2
        archive.extractall(target, numeric_owner=True)


def whole_seconds(tree: Tree) -> Tree:
    """Without what the standard library drops: fractions of seconds (rounded), attributes, and the times of links."""
    return {
        path: (
            mode,
            uid,
            gid,
            device,
            None if mtime is None or S_ISLNK(mode) else (mtime + 1000) // 10**9,
            what,
            None,
            same,
        )
        for path, (mode, uid, gid, device, mtime, what, _, same) in tree.items()
    }


def compare(case: Case, tools: dict[str, Callable[[bytes, Path], None]]) -> None:
    data = case.archive()
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "ours").mkdir()
        ours(data, Path(place) / "ours")
        mine = tree_of(Path(place) / "ours")
        for name, tool in tools.items():
            if name == "bsdtar" and any(b"\\" in entry.path + entry.link for entry, _ in case.rows):
                continue  # to which a backslash at the beginning is a slash, as on another system
            (Path(place) / name).mkdir()
            tool(data, Path(place) / name)
            theirs = tree_of(Path(place) / name)
            if name == "standard library":
                assert whole_seconds(theirs) == whole_seconds(mine), name
            else:
                assert theirs == mine, name


EVERYDAY = {"GNU tar": gnu_tar, "standard library": standard_library}


@settings(max_examples=100, phases=[Phase.generate, Phase.shrink], **QUIET)  # type: ignore[arg-type]
@given(cases(devices=True))
def test_a_hundred_archives(case: Case) -> None:
    compare(case, EVERYDAY)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@settings(max_examples=10_000, **QUIET)  # type: ignore[arg-type]
@given(cases(devices=True))
def test_ten_thousand_archives(case: Case) -> None:
    compare(case, {**EVERYDAY, "bsdtar": bsdtar})


def kaniko() -> Maker:
    """Names as kaniko writes them: the top as a slash, absolute targets of hard links."""
    made = Maker().directory("/", mtime=7).directory("/usr/", mtime=5).file("/usr/a", b"abc")
    return made.link("/usr/b", "/usr/a").link("usr/c", "//usr/b").symlink("/usr/l", "/usr/a").file("x", b"x")


@pytest.mark.parametrize("tool", [gnu_tar, bsdtar], ids=["GNU tar", "bsdtar"])
def test_absolute_names_are_below_the_top(tool: Callable[[bytes, Path], None], tmp_path: Path) -> None:
    if tool is bsdtar and shutil.which("bsdtar") is None:
        pytest.skip("bsdtar is not installed")
    for name, which in (("ours", ours), ("theirs", tool)):
        (tmp_path / name).mkdir()
        which(kaniko().done(), tmp_path / name)
    mine, theirs = tree_of(tmp_path / "ours"), tree_of(tmp_path / "theirs")
    assert mine == theirs
    assert mine[b"usr/c"][5] == b"abc"


# ---- tools that take a second to start: many cases in one archive ----------------------------------------------------


def together(count: int) -> bytes:
    """One archive of many cases, each in a directory of its own."""
    rows: list[tuple[Entry, bytes]] = []

    @settings(max_examples=count, phases=[Phase.generate], **QUIET)  # type: ignore[arg-type]
    @given(cases(devices=True, forms=("ours",)))
    def gather(case: Case) -> None:
        top = b"case%d" % len(rows)
        rows.append((Entry(top, kinds.DIRECTORY, mode=0o755, mtime=5), b""))
        for entry, data in case.rows:
            entry.path = top + b"/" + entry.path
            if entry.kind == kinds.HARD_LINK:
                entry.link = top + b"/" + entry.link
            rows.append((entry, data))

    gather()
    parts: list[bytes] = []
    pack_entries(rows, parts.append)
    return b"".join(parts)


def umoci(place: Path) -> Path:
    command = ["umoci", "unpack", "--image", f"{place}/layout:test", f"{place}/bundle"]
    subprocess.run(command, check=True, capture_output=True)
    return place / "bundle/rootfs"


def containers_storage(place: Path) -> Path:
    """The storage of podman, buildah and skopeo, with the driver that has a plain directory for each layer."""
    target = f"containers-storage:[vfs@{place}/storage+{place}/run]test:1"
    subprocess.run(["skopeo", "copy", f"oci:{place}/layout:test", target], check=True, capture_output=True)
    (tree,) = (place / "storage/vfs/dir").iterdir()
    return tree


def both_trees(
    data: bytes, tool: Callable[[Path], Path], place: Path
) -> tuple[dict[bytes, tuple[Any, ...]], dict[bytes, tuple[Any, ...]]]:
    """The tree of an archive as this library makes it, and as another tool does."""
    program = "umoci" if tool is umoci else "skopeo"
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    layout(place / "layout", data)
    (place / "ours").mkdir()
    ours(data, place / "ours")
    return tree_of(place / "ours"), tree_of(tool(place))


@pytest.mark.slow
@pytest.mark.parametrize("tool", [umoci, containers_storage], ids=["umoci", "containers-storage"])
def test_the_tools_of_images_make_the_same_tree(tool: Callable[[Path], Path], tmp_path: Path) -> None:
    mine, theirs = both_trees(together(1000), tool, tmp_path)
    rows = {path: (mine.get(path), theirs.get(path)) for path in {*mine, *theirs} if path}
    different = {path: row for path, row in rows.items() if without_empty(row[0]) != row[1]}
    assert different == {}
    assert len(mine) > 3000


@pytest.mark.slow
@pytest.mark.parametrize("tool", [umoci, containers_storage], ids=["umoci", "containers-storage"])
def test_names_of_kaniko_by_the_tools_of_images(tool: Callable[[Path], Path], tmp_path: Path) -> None:
    data = kaniko().file("/usr/.wh.gone").link("/usr/.wh.too", "/usr/.wh.gone").done()
    mine, theirs = both_trees(data, tool, tmp_path)
    assert {path for path, row in mine.items() if S_ISCHR(row[0])} == {b"usr/gone", b"usr/too"}
    shown = {path: row for path, row in mine.items() if not S_ISCHR(row[0]) and path}
    assert {path: row for path, row in theirs.items() if path} == shown


def without_empty(row: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """Without attributes that have no value: Go takes an empty PAX record for one that is not there."""
    if row is None:
        return None
    xattrs = {key: value for key, value in row[6].items() if value}
    return (*row[:6], xattrs, *row[7:])


def layout(place: Path, data: bytes) -> None:
    """An OCI layout of an image with one layer, not compressed."""
    blobs = place / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(content: bytes, kind: str) -> dict[str, Any]:
        digest = sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    layer = put(data, "layer.v1.tar")
    rootfs = {"type": "layers", "diff_ids": [layer["digest"]]}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    manifest = {"schemaVersion": 2, "config": put(json.dumps(config).encode(), "config.v1+json"), "layers": [layer]}
    row = put(json.dumps(manifest).encode(), "manifest.v1+json")
    row["annotations"] = {"org.opencontainers.image.ref.name": "test"}
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [row]}))
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
