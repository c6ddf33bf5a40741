"""The same as an ordinary user, and as a login user with subordinate ids; nothing is left open behind any verb."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import presets
from isolate.images import Config, Image, Layer, Registry, RegistryError, Store
from tests.images.make import image, noise
from tests.login import Login, make_login_user
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.snapshot import Snapshot

BUSYBOX = Path("/bin/busybox")


@pytest.fixture
def open_place() -> Iterator[str]:
    """A directory that every user may make things in."""
    with tempfile.TemporaryDirectory(prefix="isolate-images-") as directory:
        os.chmod(directory, 0o1777)
        yield directory


@pytest.fixture
def box(registry: str, store: Store) -> str:
    """An image in the registry with files of several owners."""
    if not BUSYBOX.exists():
        pytest.skip("busybox (Debian's busybox-static) is not installed")
    program = Layer.files({"bin/busybox": BUSYBOX.read_bytes()}, mode=0o755)
    mine = Layer.files({"srv/mine": b"1"}, uid=33, gid=33, mode=0o600)
    made = (Image.empty() + program + mine).with_(Config(entrypoint=("/bin/busybox", "sh", "-c"), env={"PATH": "/bin"}))
    store.push(made, f"{registry}/users/box:1")
    return f"{registry}/users/box:1"


CODE = """
from isolate import IdMap, presets
from isolate.images import Store
store = Store({place!r} + "/store", map={map})
image = store.pull({name!r})
line = "busybox stat -c %u:%g:%a /srv/mine; echo 2 > /srv/new; busybox cat /srv/new"
result = presets.container(image, store=store).run([line], text=True)
print(result.stdout.split(), result.stderr)
print(store.check(deep=True))
print(store.push(image, {name!r}.replace(":1", ":2")).skipped)
store.save({name!r}, {place!r} + "/out.tar", format="docker-archive")
print(len(store.load({place!r} + "/out.tar")))
for name in store.tags(): store.untag(name)
print(store.collect().layers)
"""


def test_an_ordinary_user(box: str, open_place: str) -> None:
    out = as_ordinary_user(CODE.format(place=open_place, name=box, map=None))
    assert out.splitlines() == ["['0:0:600', '2'] ", "[]", "3", "1", "2"]


@pytest.fixture
def login() -> Iterator[Login]:
    yield from make_login_user()


def test_a_login_user_with_subordinate_ids(box: str, open_place: str, login: Login) -> None:
    if f"{login.name}:" not in Path("/etc/subuid").read_text():
        pytest.skip("useradd gives no subordinate ids here")
    out = login.python(CODE.format(place=open_place, name=box, map="IdMap.subordinate()"))
    assert out.splitlines() == ["['33:33:600', '2'] ", "[]", "3", "1", "2"]


def test_nothing_is_left_open(registry: str, tmp_path: Path, clean: Snapshot) -> None:
    with Store(tmp_path / "leaks") as store, Registry(registry, credentials=()) as client:
        made = store.add(image({"a": noise(1000, "leaks")}), "x/y:1")
        store.push(made, client, "leaks/app:1")
        store.pull(f"{registry}/leaks/app:1", registry=client)
        store.save(made, tmp_path / "out", format="oci-archive")
        store.load(tmp_path / "out")
        lease, _ = store.lease(made)
        lease.close()
        store.check(deep=True)
        with pytest.raises(RegistryError, match="manifest unknown"):
            store.pull(f"{registry}/no/such:1", registry=client)
        store.collect()
        if BUSYBOX.exists():
            run = store.add(Image.empty() + Layer.files({"bin/busybox": BUSYBOX.read_bytes()}, mode=0o755))
            assert presets.container(run, store=store).run(["/bin/busybox", "true"]).returncode == 0


def test_removing_what_others_own(store: Store) -> None:
    """Modes that forbid the owner everything do not keep a tree from being removed."""
    made = store.add(Image.empty() + Layer.files({"a/b/c": b"1"}, mode=0), "x/y:1")
    assert made.layers
    store.untag("x/y:1")
    assert store.collect().failed == ()
