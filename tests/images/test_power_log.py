"""The power fails, by the kernel's own log of a disk: dm-log-writes, which a stock Debian kernel has as a module.

The same as :mod:`tests.images.test_power`, with fewer cuts: there a recorder of ours makes the log on any host that has
FUSE, and a control shows that a store that forces nothing to disk is found out.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.images.logwrites import entries
from tests.images.recorder import FLUSH, MARK
from tests.images.test_power import leave, tool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.timeout(600)]
SIZE, LOG = 24 << 20, 128 << 20
NAME = "isolate-test-power"
PROGRAM = """
import subprocess, sys
from isolate.images import *
from tests.images.make import image, noise
place, device = sys.argv[1:]
def done(what):
    subprocess.run(["dmsetup", "message", device, "0", "mark", what], check=True)
with Store(place, share=True) as store:
    for turn in range(2):
        store.add(image({"own": noise(60_000, str(turn)), "shared": noise(60_000)}), f"t/{turn}:1")
        done(f"t/{turn}")
    store.untag("t/0:1")
    store.collect()
    done("t/1")
"""
LOOK = """
import os, subprocess, sys
from isolate.images import Store
from tests.images.make import image, noise
top, *rows = sys.argv[1:]
for number, row in enumerate(rows):
    disk, *done = row.split(",")
    place = f"{top}/again"
    subprocess.run(["mount", "-t", "ext4", "-o", "loop", disk, place], check=True)
    with Store(f"{place}/store", share=True) as store:
        assert store.check(deep=number != 1) == [], disk  # emulated, each tree takes seconds
        names = {"/".join(["t", name.repository.rpartition("/")[2]]) for name in store.tags()}
        assert set(done) - {"t/0"} <= names, f"done - names: {done} {names}"
        store.collect()
        assert [name for name in os.listdir(f"{place}/store/layers") if name.startswith(".")] == []
    subprocess.run(["umount", "-l", place], check=True)
print("looked")
"""


@contextlib.contextmanager
def looped(file: Path) -> Iterator[str]:
    device = tool("losetup", "--find", "--show", str(file))
    try:
        yield device
    finally:
        tool("losetup", "--detach", device)


@contextlib.contextmanager
def logged(disk: Path, log: Path, place: Path) -> Iterator[None]:
    """The disk's file system, whose writes the kernel records in the other file."""
    place.mkdir()
    with looped(disk) as first, looped(log) as second:
        table = f"0 {SIZE // 512} log-writes {first} {second}"
        # Without udev there is no /dev/mapper/NAME.
        tool("dmsetup", "--noudevsync", "--noudevrules", "create", NAME, "--table", table)
        try:
            device = tool("dmsetup", "info", "--columns", "--noheadings", "-o", "blkdevname", NAME)
            tool("mount", "-t", "ext4", f"/dev/{device}", str(place))
            try:
                yield
            finally:
                tool("umount", str(place))
        finally:
            tool("dmsetup", "--noudevsync", "--noudevrules", "remove", "--retry", NAME)


def test_whatever_the_kernel_s_log_leaves_the_store_is_whole(tmp_path: Path) -> None:
    for name in ("losetup", "mkfs.ext4", "dmsetup"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    if subprocess.run(["modprobe", "-q", "dm-log-writes"], check=False).returncode:
        pytest.skip("this kernel has no dm-log-writes")
    for name, size in (("disk", SIZE), ("log", LOG)):
        with open(tmp_path / name, "wb") as file:
            file.truncate(size)
    tool("mkfs.ext4", "-q", "-F", str(tmp_path / "disk"))
    shutil.copyfile(tmp_path / "disk", tmp_path / "before")
    with logged(tmp_path / "disk", tmp_path / "log", tmp_path / "mount"):
        tool(sys.executable, "-c", PROGRAM, str(tmp_path / "mount/store"), NAME, seconds=300)
    log = [entry for entry in entries(tmp_path / "log") if entry[2] != b"dm-log-writes-end"]
    marks = [number for number, entry in enumerate(log) if entry[0] == MARK]
    assert [log[number][2] for number in marks] == [b"t/0", b"t/1", b"t/1"]
    assert sum(entry[0] == FLUSH for entry in log) > 10
    chance = random.Random(7)
    (tmp_path / "again").mkdir()
    rows = []
    for cut in [*marks[:2], chance.randrange(marks[0], marks[-1])]:
        disk = tmp_path / f"cut-{cut}"
        shutil.copyfile(tmp_path / "before", disk)
        leave(disk, log[: cut + 1], chance)
        done = sorted(log[number][2].decode() for number in marks if number <= cut)
        rows.append(",".join([str(disk), *done]))
    said = tool(sys.executable, "-c", LOOK, str(tmp_path), *rows, seconds=400)
    assert said == "looked"
