"""A program is killed at a system call: the store is whole afterwards, and the work can be done again.

Every system call of the program and of all that it starts is asked about, those of the confined children that extract
and pack included (:class:`~tests.fence.Fence`). The process that makes the n-th call is killed before it is carried
out, or the program itself is: once for each n of a stride through all of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolate import PidNamespace, Proc, Root, Sandbox, UserNamespace
from isolate.build import Dockerfile
from isolate.images import Image, ImageRoot, Layer, Store, Upper
from tests.fence import CONTINUE, NOTIF_SEND, Call, Fence, Outcome
from tests.images.make import image, noise

if TYPE_CHECKING:
    from collections.abc import Callable

BUSYBOX = shutil.which("busybox")
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(BUSYBOX is None, reason="the images of these tests are made of a static busybox"),
]
DOCKERFILE = """
FROM base:1
COPY a.txt /srv/
RUN --mount=type=cache,target=/c echo x > /c/x; echo made > /made; busybox rm /etc/b
"""


class Everywhere(Fence):
    """A fence that counts the calls of every process, also of what is executed, and kills at one of them."""

    number = 0
    at: int | None = None
    victim = "maker"  # of that call; or "caller"
    killed = False

    def _answer(self, decide: Any, calls: list[Call]) -> None:
        received = self._received()
        if received is None:
            return
        ident, pid, *_ = struct.unpack_from("<QI", received)
        if self._active:
            if self.number == self.at:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid if self.victim == "caller" else pid, signal.SIGKILL)
                self.killed = True
            self.number += 1
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.listener, NOTIF_SEND, struct.pack("<QqiI", ident, 0, 0, CONTINUE))


def extract(store: Store, place: Path) -> None:
    store.load(place / "archive", "t/loaded:1")


def commit(store: Store, place: Path) -> None:
    base = store.open("base:1")
    with Upper(store) as upper:
        root = Root(ImageRoot(base, store=store, writable=upper), Proc())
        box = Sandbox(UserNamespace(), PidNamespace(), root)
        box.run(["/bin/busybox", "sh", "-ec", "echo 1 > /made; busybox rm /etc/b"], check=True)
        store.add(base + upper.commit(), "t/committed:1")


def build(store: Store, place: Path) -> None:
    Dockerfile.parse(DOCKERFILE).build(store, place / "context", name="t/built:1", cache=False)


def collect(store: Store, place: Path) -> None:
    for name in list(store.tags()):
        if name.repository == "t/garbage":
            store.untag(name)
    store.collect()


WORK: dict[str, Callable[[Store, Path], None]] = {f.__name__: f for f in (extract, commit, build, collect)}


def prepare(place: Path) -> None:
    assert BUSYBOX is not None
    (place / "context").mkdir()
    (place / "context/a.txt").write_text("hello")
    with Store(place / "other") as other:
        other.add(image({"a": noise(50_000)}, {"b": noise(1000), "d/e": b"e"}), "t/loaded:1")
        other.save("t/loaded:1", place / "archive", format="oci-archive")
    with Store(place / "store") as store:
        program = Path(BUSYBOX).read_bytes()
        files = {"bin/busybox": program, "bin/sh": program, "etc/b": b"2"}
        store.add(Image.empty() + Layer.files({**files}, mode=0o755), "base:1")


def begin_again(store: Store, name: str) -> None:
    """As before the work: what it made is gone, and for a collection there is something."""
    for reference in list(store.tags()):
        if reference.short != "base:1":
            store.untag(reference)
    store.collect()
    if name == "collect":
        for number in (1, 2):
            store.add(image({"garbage": noise(3000, str(number))}), f"t/garbage:{number}")


def fenced(place: Path, name: str, at: int | None = None, victim: str = "maker") -> tuple[Everywhere, Outcome]:
    def program(begin: Any, end: Any) -> None:
        with Store(place / "store") as store:
            begin()
            WORK[name](store, place)
            end()

    fence = Everywhere(program)
    fence.at, fence.victim = at, victim
    return fence, fence.drive(limit=120)


def kills(place: Path, name: str, count: int) -> tuple[int, int, int]:
    """How many calls the work makes, at how many somebody was killed, and how often the work was done all the same."""
    prepare(place)
    with Store(place / "store") as store:
        begin_again(store, name)
        fence, outcome = fenced(place, name)
        assert outcome.error is None, outcome.error
        total = fence.number
        killed = done = 0
        for turn, at in enumerate(range(0, total, max(1, total // count))):
            begin_again(store, name)
            fence, outcome = fenced(place, name, at, ("maker", "caller")[turn % 2])
            what = f"{name}: the {fence.victim} killed at call {at} of {total}"
            assert outcome.gone is not None, f"{what}: left behind {outcome.left}"
            assert outcome.error != "hung", what
            killed += fence.killed
            done += outcome.status == 0 and outcome.error is None
            assert store.check(deep=True) == [], what
            WORK[name](store, place)
            assert store.check() == [], what
        begin_again(store, name)
        if name == "collect":
            collect(store, place)
        assert store.check(deep=True) == []
        assert os.listdir(place / "store/uppers") == os.listdir(place / "store/trash") == []
        assert [one for one in os.listdir(place / "store/layers") if one.startswith(".")] == []
    return total, killed, done


@pytest.mark.parametrize("name", WORK)
def test_killed_at_a_system_call(tmp_path: Path, name: str) -> None:
    total, killed, done = kills(tmp_path, name, 60)
    print(f"{name}: {total} calls, {killed} kills, done all the same {done} times")
    assert killed >= 50
