"""The power fails: the store is whole on every disk that could be left, and what was told as done is there.

Every write and every flush of a file system is recorded (:mod:`tests.images.recorder`). At random places of the record
the disk is made again as a power cut may leave it: all that was written before the last flush, and of what came after
it any part, in any order. It is mounted, and the store is looked at.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate.images import Image, Layer, Store, StoreError
from isolate.images.trial import can_share_contents
from tests.images.make import image, noise
from tests.images.recorder import FLUSH, FORCED, MARK, WRITE, entries

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
REPO = Path(__file__).parents[2]
SIZE = 64 << 20
PROGRAM = """
import os, sys
from isolate import Dev, PidNamespace, Proc, Root, Sandbox
from isolate.images import *
from tests.images.make import image, noise
place, marks, name, archive = sys.argv[1:]
def done(what):
    fd = os.open(marks, os.O_WRONLY)
    os.write(fd, what.encode())
    os.close(fd)
with Store(place, share=True) as store:
    for turn in range(3):
        made = image({"shared": noise(60_000)}, {"own": noise(20_000, str(turn)), "shared": noise(60_000)})
        store.add(made, f"t/{turn}:1")
        done(f"t/{turn}")
    store.pull(name)
    done("t/pulled")
    store.untag("t/0:1")
    store.collect()
    store.load(archive, "t/loaded:1")
    done("t/loaded")
    with open("/bin/busybox", "rb") as file:
        base = store.add(Image.empty() + Layer.files({"bin/busybox": file.read()}, mode=0o755))
    with Upper(store) as upper:
        root = Root(ImageRoot(base, store=store, writable=upper), Proc(), Dev())
        Sandbox(PidNamespace(), root).run(["/bin/busybox", "sh", "-ec", "echo committed > /committed"], check=True)
        store.add(base + upper.commit(), "t/committed:1")
    done("t/committed")
    store.untag("t/1:1")
    store.collect()
"""


def tool(*words: str, seconds: float = 120) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=seconds, cwd=REPO)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout.strip()


@contextlib.contextmanager
def mounted(disk: Path, place: Path) -> Iterator[Path]:
    """An ext4 in a file, by a loop device."""
    place.mkdir(exist_ok=True)
    device = tool("losetup", "--find", "--show", str(disk))
    try:
        tool("mount", "-t", "ext4", device, str(place))
        try:
            yield place
        finally:
            tool("umount", str(place))
    finally:
        tool("losetup", "--detach", device)


@contextlib.contextmanager
def recorded(top: Path) -> Iterator[Path]:
    """The directory with the file ``disk``, whose writes are recorded, and the file ``mark``."""
    place = top / "recorder"
    place.mkdir()
    words = [sys.executable, str(REPO / "tests/images/recorder.py"), str(place), str(top / "disk"), str(top / "log")]
    server = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *words], stdout=subprocess.PIPE)
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == b"mounted\n"
        try:
            yield place
        finally:
            # The loop device lets go of its file a moment after it was detached.
            end = time.monotonic() + 20
            while subprocess.run(["umount", str(place)], capture_output=True, check=False).returncode:
                assert time.monotonic() < end, "the recorder stays in use"
                select.select([], [], [], 0.05)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.mark.root
@pytest.mark.parametrize("share", [True, "contents"])
def test_whatever_disk_is_left_the_store_is_whole(tmp_path: Path, registry: str, share: bool | str) -> None:
    if share == "contents":
        try:
            can_share_contents()
        except StoreError as error:
            pytest.skip(f"contents cannot be shared here (Linux 6.16): {error}")
    flushes = cut_and_look(tmp_path, registry, PROGRAM.replace("share=True", f"share={share!r}"))
    assert flushes > 30


@pytest.mark.root
def test_a_store_that_forces_nothing_to_disk_is_found_out(tmp_path: Path, registry: str) -> None:
    """The control."""
    careless = "import os\nimport isolate.images.trees\nisolate.images.trees.syncfs = os.fsync = lambda fd: None\n"
    with pytest.raises(AssertionError, match="done - "):
        cut_and_look(tmp_path, registry, careless + PROGRAM)


def cut_and_look(tmp_path: Path, registry: str, program: str) -> int:
    """Record a program, and look at what cuts may leave; how many flushes there were."""
    if not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"):
        pytest.skip("this host has no FUSE or no loop devices")
    for name in ("losetup", "mkfs.ext4", "setpriv", "busybox"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    with open(tmp_path / "disk", "wb") as file:
        file.truncate(SIZE)
    tool("mkfs.ext4", "-q", "-F", str(tmp_path / "disk"))
    shutil.copyfile(tmp_path / "disk", tmp_path / "before")
    with Store(tmp_path / "other") as other:
        other.push(image({"pulled": noise(200_000, "pulled")}), f"{registry}/t/pulled:1")
        other.add(Image.empty() + Layer.files({"loaded": noise(50_000, "loaded")}), "t/loaded:1")
        other.save("t/loaded:1", tmp_path / "archive", format="oci-archive")
    with recorded(tmp_path) as disk, mounted(disk / "disk", tmp_path / "mount") as place:
        words = [str(place / "store"), str(disk / "mark"), f"{registry}/t/pulled:1", str(tmp_path / "archive")]
        tool(sys.executable, "-c", program, *words, seconds=600)
    log = list(entries(tmp_path / "log"))
    marks = [number for number, entry in enumerate(log) if entry[0] == MARK]
    assert len(marks) == 6
    chance = random.Random(7)
    for cut in [*marks, *chance.sample(range(len(log)), 30), len(log) - 1]:
        (tmp_path / "cut").unlink(missing_ok=True)
        shutil.copyfile(tmp_path / "before", tmp_path / "cut")
        leave(tmp_path / "cut", log[: cut + 1], chance)
        looked_at(tmp_path, {log[number][2].decode() for number in marks if number <= cut})
    return sum(entry[0] == FLUSH for entry in log)


def leave(disk: Path, log: list[tuple[int, int, bytes]], chance: random.Random) -> None:
    """Write what a power cut at the end of the log may leave."""
    last = max((number for number, entry in enumerate(log) if entry[0] == FLUSH), default=0)
    flying = [number for number in range(last, len(log)) if log[number][0] == WRITE]
    flying = chance.sample(flying, chance.randint(0, len(flying)))
    # What is forced to the disk may be among them, but is there.
    flying += [number for number in range(last, len(log)) if log[number][0] == FORCED]
    with open(disk, "r+b", buffering=0) as file:
        for kind, offset, data in [*log[:last], *(log[number] for number in flying)]:
            if kind in (WRITE, FORCED):
                os.pwrite(file.fileno(), data, offset)


LOOK = """
import os, sys
from isolate.images import Store
from tests.images.make import image, noise
place, *done = sys.argv[1:]
with Store(place, share=True) as store:
    assert store.check(deep=True) == []
    names = {"/".join(["t", name.repository.rpartition("/")[2]]) for name in store.tags()}
    assert set(done) - {"t/0", "t/1"} <= names, f"done - names: {done} {names}"
    store.add(image({"after": noise(10_000, "after")}), "t/after:1")
    store.collect()
    assert [name for name in os.listdir(f"{place}/layers") if name.startswith(".")] == []
    assert os.listdir(f"{place}/partial") == []
    assert store.check() == []
"""


def looked_at(top: Path, done: set[str]) -> None:
    """Nothing is wrong, all that was told as done is there, and it goes on.

    By a process of its own: what waits for its next sandbox has a copy of its mounts, and ends with it.
    """
    with mounted(top / "cut", top / "again") as place:
        tool(sys.executable, "-c", LOOK, str(place / "store"), *sorted(done), seconds=300)
