"""Generated archives: what is mounted of outlines over contents is bit for bit what was unpacked."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from isolate.engine.native import call
from isolate.images import StoreError
from isolate.images.contents import outline_here
from isolate.images.pack.start import write_layer
from isolate.images.trial import can_share_contents
from isolate.kernel.syscalls import number
from tests.images.archives import tree_of
from tests.images.generated import cases
from tests.images.test_differential import ours

if TYPE_CHECKING:
    from pathlib import Path

    from tests.images.generated import Case

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the owners of files are compared: for root to give")
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None, "derandomize": True}
FLAG, STRING, FD, CREATE = 0, 1, 5, 6
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def asked(name: str, *arguments: object) -> int:
    result = call(number(name), *arguments)
    assert result >= 0, (name, os.strerror(-result))
    return result


def mounted(tree: Path, contents: Path) -> int:
    """A mount of a tree with its contents that is attached nowhere."""
    context = asked("fsopen", b"overlay\0", 1)
    try:
        for key, place in ((b"lowerdir+\0", tree), (b"datadir+\0", contents)):
            fd = os.open(place, DIRECTORY)
            asked("fsconfig", context, FD, key, 0, fd)
            os.close(fd)
        for key, value in ((b"redirect_dir\0", b"nofollow\0"), (b"metacopy\0", b"off\0")):
            asked("fsconfig", context, STRING, key, value, 0)
        asked("fsconfig", context, FLAG, b"userxattr\0", 0, 0)
        asked("fsconfig", context, CREATE, 0, 0, 0)
        return asked("fsmount", context, 1, 1)  # read-only
    finally:
        os.close(context)


def compared(case: Case, top: Path) -> int:
    """How many contents there are afterwards; they stay for the next case."""
    for name in ("plain", "outlined", "contents", "own"):
        if name != "contents":
            shutil.rmtree(top / name, ignore_errors=True)
        (top / name).mkdir(exist_ok=True)
    data = case.archive()
    for name in ("plain", "outlined"):
        ours(data, top / name)
    fds = [os.open(top / name, DIRECTORY) for name in ("plain", "outlined", "contents", "own")]
    out = os.open(os.devnull, os.O_WRONLY)
    try:
        outline_here(fds[1], fds[2], fds[3])
        packed = write_layer(fds[0], out, epoch=None)
        assert write_layer(fds[1], out, epoch=None, contents=fds[2]) == packed
        mount = mounted(top / "outlined", top / "contents")
        fds.append(mount)
        assert tree_of(f"/proc/self/fd/{mount}/.") == tree_of(str(top / "plain"))
    finally:
        for fd in (*fds, out):
            os.close(fd)
    assert not any(path.stat().st_nlink < 2 for path in (top / "own").iterdir())
    return len(os.listdir(top / "contents"))


def differential(top: Path, count: int) -> None:
    try:
        can_share_contents()
    except StoreError as error:
        pytest.skip(f"contents cannot be shared here (Linux 6.16): {error}")
    made = []

    @settings(max_examples=count, phases=[Phase.generate], **QUIET)  # type: ignore[arg-type]
    @given(cases(devices=False))
    def check(case: Case) -> None:
        made.append(compared(case, top))

    check()
    assert made[-1] > 3


def test_thirty_archives(tmp_path: Path) -> None:
    differential(tmp_path, 30)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_ten_thousand_archives(tmp_path: Path) -> None:
    differential(tmp_path, 10_000)
