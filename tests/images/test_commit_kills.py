"""A program that commits is killed at random instants: what has a name is whole, and the rest can be collected."""

from __future__ import annotations

import random
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from isolate.images import Image, Layer, Store
from tests.images.make import collected

BUSYBOX = shutil.which("busybox")
pytestmark = pytest.mark.skipif(BUSYBOX is None, reason="the images of these tests are made of a static busybox")
PROGRAM = """
import os, sys
from isolate import *
from isolate.images import *
print("ready", flush=True)
with Store(sys.argv[1], share=True) as store:
    image = store.open("base:1")
    for turn in range(1000):
        with Upper(store) as upper:
            root = Root(ImageRoot(image, store=store, writable=upper), Proc(), Dev())
            box = Sandbox(UserNamespace(), PidNamespace(), root)
            box.run(["/bin/busybox", "sh", "-ec", f"echo {turn} {os.getpid()} > /made; busybox rm /etc/b"], check=True)
            store.add(image + upper.commit(), "made:1")
"""


def kills(place: Path, count: int, seed: int) -> None:
    assert BUSYBOX is not None
    with Store(place, share=True) as store:
        files = {"bin/busybox": Path(BUSYBOX).read_bytes(), "etc/b": b"2"}
        store.add(Image.empty() + Layer.files(files, mode=0o755), "base:1")
        rng = random.Random(seed)
        made = 0
        for turn in range(count):
            program = subprocess.Popen([sys.executable, "-c", PROGRAM, str(place)], stdout=subprocess.PIPE)
            assert program.stdout is not None
            assert program.stdout.readline() == b"ready\n"
            select.select([], [], [], rng.uniform(0, 1.2))
            program.send_signal(signal.SIGKILL)
            program.wait()
            program.stdout.close()
            if turn % 10 == 9 or turn == count - 1:
                assert list(store.check(deep=True)) == []
                made += "made:1" in {str(name.short) for name in store.tags()}
        collected(store, place / "uppers")
        assert list(store.check(deep=True)) == []
        assert made, "no program came far enough to be killed in a commit"
        image = store.open("made:1")
        assert len(image.diffids) == 2


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_while_it_commits(tmp_path: Path) -> None:
    kills(tmp_path / "store", 200, 3)
