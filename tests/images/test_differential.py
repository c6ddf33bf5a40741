"""One archive by GNU tar, bsdtar, the standard library, umoci and containers-storage: each difference has a reason."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from stat import S_ISLNK
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from isolate.images.unpack.owners import Owners
from isolate.images.unpack.place import Placer
from isolate.images.unpack.read import Pass, unpack
from tests.images.archives import tree_of
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
