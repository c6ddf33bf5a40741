"""The store on disk: what it opens, what it keeps, what goes when it is collected, what a check finds."""

from __future__ import annotations

import os
import select
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from isolate.images import DigestError, Image, LayerError, Reference, Store, StoreError
from isolate.images.disk import open_directory, try_lock
from tests.images.make import image, layer, noise
from tests.ordinary import as_ordinary_user


def names(place: str) -> set[str]:
    return set(os.listdir(place))


def test_a_store_is_made_once_and_opened_by_all(tmp_path: Path) -> None:
    with Store(tmp_path / "a" / "store") as first, Store(tmp_path / "a" / "store") as second:
        assert first.path == second.path
        assert stat.S_IMODE(os.stat(first.path).st_mode) == 0o700
        first.add(image({"a": b"1"}), "x/y:1")
        assert second.open("x/y:1").layers
        assert (tmp_path / "a" / "store" / "format").read_text() == "isolate-store 1\n"


def test_what_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(StoreError, match="no store, and not empty") as caught:
        Store(tmp_path / "full")
    assert "mine" in str(caught.value)
    with pytest.raises(StoreError, match="there is no store"):
        Store(tmp_path / "none", read_only=True)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="a store is a directory"):
        Store(tmp_path / "file")
    Store(tmp_path / "new").close()
    (tmp_path / "new" / "format").write_text("isolate-store 3\n")
    with pytest.raises(StoreError, match=r"has format 3, and this version of isolate knows 2"):
        Store(tmp_path / "new")
    (tmp_path / "new" / "format").write_text("something\n")
    with pytest.raises(StoreError, match="not a store's"):
        Store(tmp_path / "new")
    (tmp_path / "new" / "format").write_text("isolate-store 1\n")
    os.chmod(tmp_path / "new", 0o777)
    with pytest.raises(StoreError, match="others may write"):
        Store(tmp_path / "new")


def test_half_made_directories_are_gone_on_with(tmp_path: Path) -> None:
    """A program that was killed while it made a store has left some of it."""
    (tmp_path / "half" / "blobs").mkdir(parents=True, mode=0o700)
    os.chmod(tmp_path / "half", 0o700)
    with Store(tmp_path / "half") as store:
        store.add(image({"a": b"1"}))


def test_somebody_elses_store_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a directory somebody else's")
    Store(tmp_path / "store").close()
    os.chown(tmp_path / "store", 65534, 65534)
    with pytest.raises(StoreError, match="belongs to uid 65534"):
        Store(tmp_path / "store")
    Store(tmp_path / "store", read_only=True).close()


def test_names(store: Store) -> None:
    first, second = store.add(image({"a": b"1"}), "a/b:1"), store.add(image({"a": b"2"}), "a/b/c:1")
    assert store.tags() == {Reference.parse("a/b/c:1"): second.digest, Reference.parse("a/b:1"): first.digest}
    store.tag(first, "localhost:5000/x:v")
    store.tag("a/b/c:1", "a/b:1")
    assert store.open("a/b:1") == second
    assert store.open("localhost:5000/x:v") == first
    assert store.untag("a/b/c:1")
    assert not store.untag("a/b/c:1")
    with pytest.raises(StoreError, match=r"did you mean a/b:1\?"):
        store.open("a/c:1")
    with pytest.raises(ValueError, match="a name in a store has a tag"):
        store.tag(first, f"a/b@{first.digest}")
    with pytest.raises(StoreError, match="not in this store"):
        store.tag(image({"b": b"3"}), "a/b:3")


def test_the_same_image_has_the_same_digest_everywhere(store: Store, other: Store) -> None:
    made = image({"a": b"1"}, {"b": b"2"}, cmd=("x",))
    assert store.add(made).digest == other.add(made).digest == made.digest
    assert store.open(made.digest) == other.open(made.digest)
    assert (made + layer({"c": b"3"})).id != made.id


def test_a_layer_whose_content_is_another_is_refused(store: Store) -> None:
    good = layer({"a": b"1"})
    bad = type(good)(good.diffid, good.digest, good.size, good.media_type, layer({"a": b"2"}).source)
    with pytest.raises(DigestError):
        store.add(Image.empty() + bad, "a/b:1")
    assert store.tags() == {}
    store.add(Image.empty() + good, "a/b:1")


def test_nothing_of_a_refused_layer_has_a_name(store: Store) -> None:
    with pytest.raises(LayerError):
        store.add(image({"a": b"1"}, {"../escape": b"2"}), "a/b:1")
    assert store.tags() == {}
    assert names(f"{store.path}/layers") == set()
    assert names(f"{store.path}/trash") == set()
    assert store.check(deep=True) == []


def test_collection_takes_what_nothing_names(store: Store) -> None:
    base = image({"base": noise(10_000)})
    store.add(base, "a/base:1")
    store.add(base + layer({"more": b"1"}), "a/more:1")
    loose = store.add(image({"loose": noise(5000, "loose")}))
    kept = store.add(image({"kept": b"1"}))
    done = store.collect(keep=[kept])
    assert (done.layers, done.in_use, done.failed) == (1, 0, ())
    assert done.bytes > 5000
    with pytest.raises(StoreError):
        store.open(loose.digest)
    assert store.open(kept.digest) == kept
    assert store.check(deep=True) == []
    store.untag("a/base:1")
    assert store.collect(keep=[kept]).layers == 0  # the other image has the layer as well
    store.untag("a/more:1")
    assert store.collect().layers == 3
    assert names(f"{store.path}/layers") == set() == names(f"{store.path}/blobs/sha256")


def test_what_is_in_use_stays(store: Store) -> None:
    made = store.add(image({"a": b"1"}))
    lease, trees = store.lease(made)
    with lease:
        done = store.collect()
        assert done.layers == 0
        assert done.in_use == 1
        assert os.listdir(trees[0]) == ["a"]
    assert store.collect().layers == 1


def test_a_lease_ends_with_a_killed_process(store: Store) -> None:
    made = store.add(image({"a": b"1"}))
    code = (
        f"import sys\nfrom isolate.images import Store\nstore = Store({store.path!r})\n"
        f"lease, trees = store.lease(store.open({made.digest!r}))\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == b"held\n"
        assert store.collect().layers == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()
    assert store.collect().layers == 1


def test_leftovers_of_killed_programs_are_collected_and_no_fault(store: Store) -> None:
    os.mkdir(f"{store.path}/layers/.new-0123", 0o700)
    os.makedirs(f"{store.path}/layers/.new-0123/tree/x")
    open(f"{store.path}/partial/sha256-{'a' * 64}", "wb").close()
    os.makedirs(f"{store.path}/trash/0123/y")
    held = open_directory(f"{store.path}/layers/.new-0123")
    assert try_lock(held, exclusive=True)
    assert store.check(deep=True) == []
    assert store.collect().leftovers == 1
    os.close(held)
    assert store.collect().leftovers == 1
    for place in ("layers", "partial", "trash"):
        assert names(f"{store.path}/{place}") == set()


def test_a_check_finds_what_is_wrong(store: Store) -> None:
    made = store.add(image({"a": noise(1000), "b": b"2"}), "a/b:1")
    one = made.layers[0]
    tree = f"{store.path}/layers/{one.diffid[7:]}/tree"
    assert store.check(deep=True) == []
    with open(f"{tree}/b", "wb") as file:
        file.write(b"3")
    assert store.check() == []
    (fault,) = store.check(deep=True)
    assert "is not what the layer" in str(fault)
    with open(f"{store.path}/blobs/sha256/{one.digest[7:]}", "r+b") as file:
        file.write(b"X")
    found = [str(fault) for fault in store.check(deep=True)]
    assert any("the bytes have the digest" in text for text in found)
    os.unlink(f"{store.path}/blobs/sha256/{one.digest[7:]}")
    assert "missing" in str(store.check()[0])
    os.unlink(f"{store.path}/blobs/sha256/{made.digest[7:]}")
    assert any("a/b:1" in str(fault) for fault in store.check())
    with pytest.raises(StoreError, match="cannot be told"):
        store.collect()
    with open(f"{store.path}/refs/docker.io/a/b/:1", "w") as file:
        file.write("nonsense\n")
    with pytest.raises(StoreError, match="holds no digest"):
        store.tags()


def test_a_read_only_store(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        made = store.add(image({"a": b"1"}), "a/b:1")
    with Store(tmp_path / "s", read_only=True) as store:
        assert store.open("a/b:1") == made
        lease, trees = store.lease(made)
        with lease:
            assert os.listdir(trees[0]) == ["a"]
        assert store.check(deep=True) == []
        for attempt in (
            lambda: store.add(image({"b": b"1"})),
            lambda: store.tag(made, "c/d:1"),
            store.collect,
            lambda: store.untag("a/b:1"),
            lambda: store.pull("localhost:1/a:1"),
            lambda: store.load("/nonexistent"),
        ):
            with pytest.raises(StoreError, match="read-only"):
                attempt()


def test_a_full_disk_says_so_and_leaves_no_name() -> None:
    from isolate import Bind, Capabilities, PidNamespace, Proc, Root, Sandbox, Tmpfs, UserNamespace

    code = (
        "import os\nfrom isolate.images import Store, StoreError, LayerError\n"
        "from tests.images.make import image, noise\nstore = Store('/mnt/store')\n"
        "first = store.add(image({'a': b'1'}), 'a/b:1')\n"
        "try:\n    store.add(image({'big': noise(6_000_000)}), 'a/c:1')\n"
        "except (StoreError, LayerError) as error:\n    print(type(error).__name__, error)\n"
        "print(store.check(deep=False), [r.short for r in store.tags()], len(store.collect().failed))\n"
        "store.add(image({'small': b'1'}), 'a/d:1')\nprint(len(store.tags()))\n"
    )
    box = Sandbox(
        UserNamespace(nested=True),
        Capabilities.all(),
        PidNamespace(),
        Root(Bind("/"), Proc(), Tmpfs("/mnt", size="4M")),
    )
    env = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin", "HOME": "/"}
    result = box.run([sys.executable, "-c", code], env=env, timeout=60, cwd="/", text=True)
    assert result.returncode == 0, (result.stdout, result.stderr)
    lines = (result.stdout or "").splitlines()
    assert "StoreError" in lines[0]
    assert "errno 28" in (result.stdout or "")
    assert "[] ['a/b:1'] 0" in (result.stdout or "")
    assert lines[-1] == "2"


def test_threads_add_and_collect_at_once(store: Store) -> None:
    """Whatever has a name at the end is whole."""
    errors: list[BaseException] = []
    stop = threading.Event()

    def add(number: int) -> None:
        try:
            for turn in range(2):
                store.add(image({"shared": b"s" * 1000}, {f"own-{number}": f"{turn}".encode()}), f"t/{number}:{turn}")
        except BaseException as error:
            errors.append(error)

    def collect() -> None:
        try:
            while not stop.is_set():
                store.collect()
        except BaseException as error:
            errors.append(error)

    adders = [threading.Thread(target=add, args=(number,)) for number in range(3)]
    collector = threading.Thread(target=collect)
    for thread in (*adders, collector):
        thread.start()
    for thread in adders:
        thread.join()
    stop.set()
    collector.join()
    assert errors == []
    assert len(store.tags()) == 6
    assert store.check(deep=True) == []
    for reference in store.tags():
        lease, _ = store.lease(store.open(reference))
        lease.close()


KILLED = """
import os, random, signal, sys, threading, time
from isolate.images import Store
from tests.images.make import image, noise
def end():
    time.sleep(float(sys.argv[2]))
    os.kill(os.getpid(), signal.SIGKILL)
store = Store(sys.argv[1])
print("ready", flush=True)
threading.Thread(target=end, daemon=True).start()
for turn in range(1000):
    store.add(image({"a": noise(20000)}, {"b": str(turn % 3).encode() * 50000}), f"k/{turn % 3}:1")
    store.untag(f"k/{turn % 3}:1")
    store.add(image({"c": noise(30000, "c")}), "k/c:1")
    store.collect()
"""


def kills(store: Store, rounds: int, seed: int = 1) -> None:
    import random

    chance = random.Random(seed)
    for number in range(rounds):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, store.path, str(chance.uniform(0, 0.8))],
            check=False,
            timeout=60,
            stdout=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
        )
        assert done.returncode == -9
        assert store.check(deep=number % 5 == 0) == []
    assert store.check(deep=True) == []

    def left() -> set[str]:
        store.collect()
        begun = {name for name in names(f"{store.path}/layers") if name.startswith(".")}
        return begun | names(f"{store.path}/partial") | names(f"{store.path}/trash")

    for _ in range(200):  # the child that worked for the last one is on its way out
        if not left():
            break
        select.select([], [], [], 0.05)
    assert left() == set()


def test_kills_at_random_instants(store: Store) -> None:
    kills(store, 2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_kills_at_random_instants(store: Store) -> None:
    kills(store, 250, seed=2)


def test_an_ordinary_user_has_a_store(tmp_path: Path) -> None:
    place = tmp_path / "user"
    place.mkdir()
    os.chmod(tmp_path, 0o755)
    if os.geteuid() == 0:
        os.chown(place, 65534, 65534)
    code = (
        "import json, os\nfrom isolate.images import Store, Image, Layer\n"
        f"store = Store({str(place / 'store')!r})\n"
        "made = store.add(Image.empty() + Layer.files({'etc/a': b'1', 'srv/b': b'22'}, uid=7), 'a/b:1')\n"
        "lease, trees = store.lease(made)\nprint(sorted(os.listdir(trees[0])))\nlease.close()\n"
        "print(store.check(deep=True))\nstore.untag('a/b:1')\nprint(store.collect().layers)\n"
        f"print(os.listdir({str(place / 'store' / 'layers')!r}))\n"
    )
    reachable = all(os.stat(parent).st_mode & 0o001 for parent in place.parents)
    if not reachable:
        import tempfile

        with tempfile.TemporaryDirectory(dir="/tmp") as directory:
            os.chmod(directory, 0o777)
            out = as_ordinary_user(code.replace(str(place), directory))
    else:
        out = as_ordinary_user(code)
    assert out.splitlines() == ["['etc', 'srv']", "[]", "1", "[]"]


def test_who_was_stopped_while_it_collected_is_not_waited_for_without_an_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store.add(image({"a": b"1"}), "x/y:1")
    layers, blobs = Path(store.path, "layers"), Path(store.path, "blobs/sha256")
    (tree,) = layers.iterdir()
    held = [open_directory(tree), os.open(blobs / made.digest.partition(":")[2], os.O_RDONLY)]
    assert all(try_lock(fd, exclusive=True) for fd in held)
    monkeypatch.setattr("isolate.images.trees.HELD", 0.05)
    monkeypatch.setattr("isolate.images.blobs.HELD", 0.05)
    with pytest.raises(StoreError, match=r"the layer .* is in use by another process"):
        store.lease(made)
    with pytest.raises(StoreError, match=r"the blob .* is in use by another process"):
        store.tag(made, "x/y:2")
    for fd in held:
        os.close(fd)
    store.tag(made, "x/y:2")
    store.lease(made)[0].close()
