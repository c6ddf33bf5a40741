"""A program that builds is killed at random instants: what has a name is whole, and the build goes on."""

from __future__ import annotations

import io
import os
import random
import select
import signal
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING

import pytest

from isolate.build import Dockerfile
from isolate.images import Store
from tests.build.test_build import BUSYBOX, add_base
from tests.images.make import collected

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="busybox-static is not installed")

TEXT = """
FROM base:1 AS one
ARG TURN
COPY a.txt /srv/
RUN --mount=type=secret,id=s --mount=type=cache,sharing=private,target=/c echo $TURN > /made; busybox cp -r /srv /srv2
ADD some.tar.gz /srv/
FROM base:1 AS two
ARG TURN
COPY --from=one /made /srv/
RUN --mount=type=cache,sharing=locked,from=one,source=srv,target=/cache \\
    --mount=from=one,source=made,target=/f echo $TURN > /cache/x; busybox rm /usr/bin/tool
FROM scratch
COPY --from=one / /one/
COPY --from=two / /two/
"""
PROGRAM = """
import sys
from isolate.build import Context, Dockerfile
from isolate.images import Store
place, context, text, first = sys.argv[1:]
print("ready", flush=True)
with Store(place) as store:
    for turn in range(int(first), int(first) + 1000):
        recipe = Dockerfile.parse(text)
        recipe.build(store, Context(context), name="made:1", args={"TURN": str(turn)}, secrets={"s": b"secret"})
        print(turn, flush=True)
"""


def kills(place: Path, count: int, seed: int) -> None:
    context = place / "context"
    context.mkdir()
    (context / "a.txt").write_text("hello")
    with tarfile.open(context / "some.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("x/y")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"yes"))
    rng = random.Random(seed)
    next_turn = done = 0
    with Store(place / "store") as store:
        add_base(store)
        for number in range(count):
            words = [sys.executable, "-c", PROGRAM, store.path, str(context), TEXT, str(next_turn)]
            program = subprocess.Popen(words, stdout=subprocess.PIPE)
            assert program.stdout is not None
            assert program.stdout.readline() == b"ready\n"
            select.select([], [], [], rng.uniform(0, 3))
            program.send_signal(signal.SIGKILL)
            told = program.stdout.read().split()
            program.wait()
            program.stdout.close()
            done += len(told)
            next_turn = int(told[-1]) + 1 if told else next_turn  # what was cut off goes on
            if number % 20 == 19:
                assert list(store.check(deep=True)) == []
                store.collect()
        assert done, "no build came to its end"
        assert list(store.check(deep=True)) == []
        # The same as where nobody was killed, and nothing is left of the others.
        made = Dockerfile.parse(TEXT).build(store, context, args={"TURN": "last"}, secrets={"s": b"secret"})
        with Store(place / "another") as another:
            add_base(another)
            alone = Dockerfile.parse(TEXT).build(another, context, args={"TURN": "last"}, secrets={"s": b"secret"})
        assert made.digest == alone.digest
        collected(store, place / "store/uppers")
        assert [name for name in os.listdir(store.path) if name.startswith("isolate-")] == []
        assert [name for name in os.listdir(place / "store/layers") if name.startswith(".")] == []
        assert [name for name in os.listdir(place / "store/caches") if name.startswith(("begun-", "file-"))] == []
        assert list(store.check(deep=True)) == []


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_while_it_builds(tmp_path: Path) -> None:
    kills(tmp_path, 200, 5)
