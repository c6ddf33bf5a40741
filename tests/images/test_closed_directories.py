"""Images whose ``/``, or a directory in it, is closed to others: root, other users, and who has one id alone."""

from __future__ import annotations

import errno
import os
import tempfile
from typing import TYPE_CHECKING

import pytest

import isolate
from isolate import Credentials, PidNamespace, Proc, Root, Sandbox, SetupError, UserNamespace
from isolate.images import Image, ImageRoot, Layer, Store, Upper
from isolate.namespaces.ids import IdMap
from tests.images.registries import need
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: users with other ids")

TREE = """
import os, shutil
def tree(top, mode, inner):
    for name in ("bin", "data", "proc", "dev", "etc", "tmp"):
        os.makedirs(f"{top}/{name}")
        os.chmod(f"{top}/{name}", 0o755)
    shutil.copy(BUSYBOX, f"{top}/bin/busybox")
    with open(f"{top}/data/f", "w") as file:
        file.write("x")
    os.chmod(f"{top}/bin/busybox", 0o755)
    os.chmod(f"{top}/data", inner)
    os.chmod(top, mode)
"""
SAYS = ["/bin/busybox", "sh", "-c", "busybox id -u; busybox stat -c %a / /data; busybox cat /data/f"]


@pytest.fixture
def place() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="isolate-test-") as directory:
        os.chmod(directory, 0o755)
        yield directory


def added(store: Store, place: str, mode: int, inner: int) -> Image:
    names = {"BUSYBOX": need("busybox")}
    exec(TREE, names)
    names["tree"](f"{place}/tree", mode, inner)  # type: ignore[operator]
    return store.add(Image.empty() + Layer.of(f"{place}/tree"))


def says(box: Sandbox) -> bytes:
    result = box.run(SAYS, env={"PATH": "/bin"})
    return (result.stdout or b"") + (b"" if result.ok else b"failed")


@root
def test_a_root_that_is_closed_to_others(place: str) -> None:
    with Store(f"{place}/store") as store:
        image = added(store, place, 0o750, 0o755)

        def box(image: Image, *parts: isolate.plan.Part, writable: Upper | None = None) -> Sandbox:
            return Sandbox(*parts, PidNamespace(), Root(ImageRoot(image, store=store, writable=writable), Proc()))

        ids = IdMap.unprivileged()
        assert says(box(image)) == says(box(image, UserNamespace(map=ids))) == b"0\n750\n755\nx"
        others = [Credentials(uid=1000, gid=1000)], [UserNamespace(map=ids, uid=1000, gid=1000)]
        for parts in others:
            with pytest.raises(SetupError) as caught:
                says(box(image, *parts))
            assert caught.value.errno == errno.EACCES
            assert "root's `chmod o+x /` in a layer more" in (caught.value.remedy or "")
        # The remedy: an image with one layer more.
        with Upper(store) as upper:
            box(image, writable=upper).run(["/bin/busybox", "chmod", "o+x", "/"]).check()
            opened = store.add(image + upper.commit(epoch=0))
        for parts in others:
            assert says(box(opened, *parts)) == b"1000\n751\n755\nx"


@root
def test_a_directory_that_is_closed_to_others(place: str) -> None:
    """It is, as everywhere: what is inside decides, not what made the sandbox."""
    with Store(f"{place}/store") as store:
        image = added(store, place, 0o755, 0o750)
        parts = PidNamespace(), Root(ImageRoot(image, store=store), Proc())
        ids = IdMap.unprivileged()
        assert says(Sandbox(*parts)) == b"0\n755\n750\nx"
        assert says(Sandbox(Credentials(uid=1000, gid=1000), *parts)) == b"1000\n755\n750\nfailed"
        assert says(Sandbox(UserNamespace(map=ids, uid=1000, gid=1000), *parts)) == b"1000\n755\n750\nfailed"
        # A map without root's id shows an image of which nothing could be entered; the error says what to take.
        with pytest.raises(SetupError, match="open layer") as caught:
            Sandbox(UserNamespace(uid=1000, gid=1000), *parts).run(SAYS)
        assert "UserNamespace(map=IdMap.unprivileged()) for root, with the same uid= and gid=" in str(caught.value)


def test_all_files_are_those_of_a_user_with_one_id() -> None:
    code = f"BUSYBOX = {need('busybox')!r}\n{TREE}\nSAYS = {SAYS!r}\n" + (
        "import tempfile\n"
        "from isolate import *\n"
        "from isolate.images import *\n"
        "for mode, inner in ((0o700, 0o755), (0o755, 0o750)):\n"
        "    with tempfile.TemporaryDirectory() as place, Store(place + '/store') as store:\n"
        "        tree(place + '/tree', mode, inner)\n"
        "        image = store.add(Image.empty() + Layer.of(place + '/tree'))\n"
        "        for uid in (0, 1000):\n"
        "            root = Root(ImageRoot(image, store=store), Proc())\n"
        "            box = Sandbox(UserNamespace(uid=uid, gid=uid), PidNamespace(), root)\n"
        "            print(box.run(SAYS, env={'PATH': '/bin'}).check().stdout.decode().split())\n"
    )
    assert as_ordinary_user(code).splitlines() == [
        "['0', '700', '755', 'x']",
        "['1000', '700', '755', 'x']",
        "['0', '755', '750', 'x']",
        "['1000', '755', '750', 'x']",
    ]
