"""An image as a root: whose the files are, where changes go, what is held, what is refused."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import (
    Bind,
    ConflictError,
    Dev,
    IdMap,
    MountNamespace,
    PidNamespace,
    Proc,
    Root,
    Sandbox,
    SetupError,
    Tmpfs,
    UserNamespace,
)
from isolate.images import Bounds, Image, ImageRoot, Layer, LayerError, Store, StoreError, Upper
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator

BUSYBOX = shutil.which("busybox")
pytestmark = pytest.mark.skipif(BUSYBOX is None, reason="the images of these tests are made of a static busybox")
ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not ROOT, reason="only root has ids to give")
WAYS = {
    "plain": [],
    "user namespace": [UserNamespace()],
    "another range": [UserNamespace(map=IdMap([(0, 100_000, 65536)], [(0, 100_000, 65536)]))],
}
SHELL = ["/bin/busybox", "sh", "-ec"]


def base() -> Layer:
    assert BUSYBOX is not None
    files = {"bin/busybox": Path(BUSYBOX).read_bytes(), "etc/a": "one", "etc/b": "two", "etc/dir/c": "three"}
    return Layer.files(files, mode=0o755)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as store:
        yield store


@pytest.fixture
def image(store: Store) -> Image:
    return store.add(Image.empty() + base() + Layer.files({"etc/a": "upper", "home/u/x": ""}, uid=1000, gid=1001))


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> list[UserNamespace]:
    if not ROOT and request.param != "user namespace":
        pytest.skip("only root has ids to give")
    return list(WAYS[request.param])


def sandbox(entry: ImageRoot, parts: list[UserNamespace], *others: object) -> Sandbox:
    entries = [] if entry.read_only else [Proc(), Dev(), *others]
    return Sandbox(PidNamespace(), MountNamespace(), Root(entry, *entries), *parts)  # type: ignore[arg-type]


def out(box: Sandbox, script: str) -> str:
    result = box.run([*SHELL, script], env={"PATH": "/bin"}, text=True)
    assert result.verdict == "OK", result.stderr
    return str(result.stdout)


def test_layers_are_one_tree_and_belong_to_whom_the_image_says(
    store: Store, image: Image, way: list[UserNamespace]
) -> None:
    box = sandbox(ImageRoot(image, store=store), way)
    script = "cd /etc; busybox cat a b; busybox stat -c ' %u:%g %a' a b /; echo x > b; busybox cat b"
    owner = "1000:1001"
    if not ROOT:
        owner = "0:0"  # who has one id, has all files
    elif way and way[0].map is None:
        owner = "65534:65534"  # of the image's owners this namespace has root alone
    assert out(box, script).splitlines() == [f"uppertwo {owner} 644", " 0:0 755", " 0:0 755", "x"]
    assert out(box, "busybox cat /etc/b") == "two"  # nothing was kept


def test_read_only(store: Store, image: Image, way: list[UserNamespace]) -> None:
    box = sandbox(ImageRoot(image, store=store, read_only=True), way)
    assert "Read-only" in str(box.run([*SHELL, "echo x > /etc/b"], text=True).stderr)
    assert out(sandbox(ImageRoot(image, store=store), way), "echo x > /etc/b; busybox cat /etc/b") == "x\n"


CHANGING = (
    "echo new > /etc/new; busybox rm /etc/b; busybox rm -r /etc/dir; busybox mkdir /etc/dir; echo 4 > /etc/dir/d;"
    " busybox mkdir -p /x/y; busybox chmod 700 /etc"
)


def test_changes_are_told_committed_and_the_same_bytes_twice(
    store: Store, image: Image, way: list[UserNamespace]
) -> None:
    with Upper(store) as upper:
        box = sandbox(ImageRoot(image, store=store, writable=upper), way, Tmpfs("/mnt/room"))
        out(box, CHANGING)
        found = {(os.fsdecode(change.path), change.kind) for change in upper.changes()}
        assert found == {
            ("etc", "metadata"),
            ("etc/new", "added"),
            ("etc/b", "removed"),
            ("etc/dir", "metadata"),
            ("etc/dir/c", "removed"),
            ("etc/dir/d", "added"),
            ("x", "added"),
            ("x/y", "added"),
        } - {("etc/dir", "metadata")}
        layer = upper.commit()
        assert upper.commit() == layer
    changed = store.add(image + layer)
    lines = out(
        sandbox(ImageRoot(changed, store=store), way), "cd /etc; echo *; echo dir/*; echo /x/*; busybox stat -c %a ."
    )
    assert lines == "a dir new\ndir/d\n/x/y\n700\n"
    with Upper(store) as upper:
        out(sandbox(ImageRoot(image, store=store, writable=upper), way), CHANGING)
        assert upper.commit() == layer


def test_a_file_that_is_as_it_was_is_no_change(store: Store, image: Image) -> None:
    way = [] if ROOT else [UserNamespace()]
    with Upper(store) as upper:
        box = sandbox(ImageRoot(image, store=store, writable=upper), way)  # type: ignore[arg-type]
        out(
            box,
            "busybox cp /etc/b /tmp-b; echo more >> /etc/b; busybox cat /tmp-b > /etc/b; busybox touch -d @0 /etc/b",
        )
        out(box, "busybox rm /tmp-b")
        assert list(upper.changes()) == []
        out(box, "busybox touch -d @7 /etc/b")
        (change,) = upper.changes()
        assert (change.path, change.kind, change.bytes) == (b"etc/b", "metadata", 3)


def test_what_was_written_is_there_for_the_next_and_gone_with_the_block(store: Store, image: Image) -> None:
    way: list[UserNamespace] = [] if ROOT else [UserNamespace()]
    with Upper(store) as upper:
        box = sandbox(ImageRoot(image, store=store, writable=upper), way)
        out(box, "echo kept > /etc/kept")
        assert out(box, "busybox cat /etc/kept") == "kept\n"
        assert os.listdir(f"{store.path}/uppers")
    assert os.listdir(f"{store.path}/uppers") == []
    with pytest.raises(StoreError, match="discarded"):
        upper.changes()
    with pytest.raises(StoreError, match="discarded"):
        box.run([*SHELL, "true"])


def test_what_a_program_leaves_for_the_commit(store: Store, image: Image) -> None:
    """Names that would remove files of the image, and files that are larger than any disk: refused by name and rule."""
    way: list[UserNamespace] = [] if ROOT else [UserNamespace()]
    with Upper(store) as upper:
        box = sandbox(ImageRoot(image, store=store, writable=upper), way)
        out(box, "echo > /etc/.wh.a")
        with pytest.raises(LayerError, match=r"begins with \.wh\.") as caught:
            upper.commit()
        assert caught.value.entry == b"etc/.wh.a"
        out(box, "busybox rm /etc/.wh.a; busybox truncate -s 3000G /huge")
        assert upper.changes().bytes == 3000 << 30
        with pytest.raises(LayerError, match="beyond the bounds") as caught:
            upper.commit()
        assert caught.value.entry == b"huge"
        out(box, "busybox rm /huge; echo 12345 > /small")
        with pytest.raises(LayerError, match="beyond the bounds"):
            upper.commit(bounds=Bounds(file=5))
        assert upper.commit(bounds=Bounds(file=6)).size


def test_one_sandbox_at_a_time_writes_to_an_upper(store: Store, image: Image) -> None:
    way: list[UserNamespace] = [] if ROOT else [UserNamespace()]
    with Upper(store) as upper:
        box = sandbox(ImageRoot(image, store=store, writable=upper), way)
        with box.spawn(["/bin/busybox", "sleep", "60"]) as process:
            with pytest.raises(StoreError, match="in use"):
                box.run([*SHELL, "true"])
            with pytest.raises(StoreError, match="still"):
                upper.commit()
            process.kill()
            process.wait()
        out(box, "true")


def test_layers_cannot_be_collected_while_a_sandbox_lives(store: Store, image: Image) -> None:
    way: list[UserNamespace] = [] if ROOT else [UserNamespace()]
    box = sandbox(ImageRoot(image, store=store), way)

    def locked() -> list[bool]:
        found = []
        for name in os.listdir(f"{store.path}/layers"):
            fd = os.open(f"{store.path}/layers/{name}", os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found.append(False)
            except BlockingIOError:
                found.append(True)
            finally:
                os.close(fd)
        return found

    assert locked() == [False, False]
    with box.spawn(["/bin/busybox", "sleep", "60"]) as process:
        assert locked() == [True, True]
        process.kill()
        process.wait()
    assert locked() == [False, False]


def test_what_is_refused_before_anything_starts(store: Store, image: Image, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="store must be a Store"):
        ImageRoot(image, store=str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be an Image"):
        ImageRoot("debian:12", store=store)  # type: ignore[arg-type]
    with Upper(store) as upper:
        with pytest.raises(ConflictError, match="contradict"):
            ImageRoot(image, store=store, writable=upper, read_only=True)
        ImageRoot(image, store=store, writable=upper)
        with pytest.raises(ConflictError, match="one image"):
            ImageRoot(Image.empty() + base(), store=store, writable=upper)
        with Store(tmp_path / "other") as other, pytest.raises(ConflictError, match="lies in"):
            ImageRoot(image, store=other, writable=upper)
    absent = Image.empty() + Layer.files({"nothing": "here"})
    way: list[UserNamespace] = [] if ROOT else [UserNamespace()]
    with pytest.raises(StoreError, match="not unpacked"):
        sandbox(ImageRoot(absent, store=store), way).run(["/x"])


@only_root
@pytest.mark.parametrize(
    ("user", "directory"),
    [(UserNamespace(), "/home/u"), (UserNamespace(uid=5, gid=5), "/")],
    ids=["a directory of another's", "the store's own"],
)
def test_a_directory_that_the_sandbox_may_not_enter(store: Store, user: UserNamespace, directory: str) -> None:
    """Closed to others, and of an owner who is not in the map: the error says so, and what it says to do works."""
    closed = Layer.files({"home/": b"", "home/u/": b"", "home/u/x": b"x"}, uid=1000, gid=1001, mode=0o700)
    image = store.add(Image.empty() + closed + base())
    entry = ImageRoot(image, "/mnt", store=store, directory=directory)
    tool = Bind(str(BUSYBOX), "/busybox")
    with pytest.raises(SetupError, match="open layer") as caught:
        Sandbox(user, Root(tool, entry)).run(["/busybox", "ls", "/mnt"])
    assert "its owner is not in the sandbox's id map" in (caught.value.cause or "")
    assert "UserNamespace(map=IdMap.unprivileged())" in (caught.value.remedy or "")
    mapped = UserNamespace(map=IdMap.unprivileged())
    done = Sandbox(mapped, Root(tool, entry)).run(["/busybox", "stat", "-c", "%u", "/mnt"])
    assert done.stdout == (b"1000\n" if directory == "/home/u" else b"0\n")


def test_an_image_without_layers_is_an_empty_root(store: Store) -> None:
    way: list[UserNamespace] = [] if ROOT else [UserNamespace()]
    empty = store.add(Image.empty())
    for read_only in (False, True):
        with pytest.raises(SetupError, match="No such file"):
            sandbox(ImageRoot(empty, store=store, read_only=read_only), way).run(["/x"])
    with Upper(store) as upper, pytest.raises(ConflictError, match="the image has none"):
        ImageRoot(empty, store=store, writable=upper)


@pytest.mark.slow
def test_five_hundred_layers(tmp_path: Path) -> None:
    """And one more is refused; the descriptors that it takes are more than a program has by default."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        with Store(tmp_path / "store") as store:
            image = Image.empty() + base()
            for n in range(499):
                image = image + Layer.files({f"layer/{n}": str(n), "top": str(n)})
            image = store.add(image)
            way: list[UserNamespace] = [] if ROOT else [UserNamespace()]
            box = sandbox(ImageRoot(image, store=store), way)
            assert out(box, "set -- /layer/*; echo $#; busybox cat /top").split() == ["499", "498"]
            with pytest.raises(ConflictError, match="500"):
                ImageRoot(image + Layer.files({"a": ""}), store=store)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_as_an_ordinary_user(tmp_path: Path) -> None:
    """The same from the eyes of somebody who has one id."""
    print(
        as_ordinary_user(f"""
import os, tempfile
from pathlib import Path
from isolate import *
from isolate.images import *
with tempfile.TemporaryDirectory() as place, Store(place + "/store") as store:
    files = {{"bin/busybox": Path({BUSYBOX!r}).read_bytes(), "etc/a": "one", "etc/b": "two"}}
    image = store.add(Image.empty() + Layer.files(files, mode=0o755) + Layer.files({{"etc/a": "x"}}, uid=1000))
    with Upper(store) as upper:
        root = Root(ImageRoot(image, store=store, writable=upper), Proc(), Dev())
        box = Sandbox(UserNamespace(), PidNamespace(), root)
        script = "cd /; busybox rm etc/b; busybox mkdir closed; busybox cp etc/a closed"
        script += "; busybox chmod 0 closed/a closed; busybox stat -c %u etc/a"
        result = box.run(["/bin/busybox", "sh", "-ec", script], env={{"PATH": "/bin"}})
        assert result.stdout == b"0\\n", result
        assert [str(change) for change in upper.changes()] == ["A /closed", "A /closed/a", "D /etc/b"]
        layer = upper.commit()
    image = store.add(image + layer)
    box = Sandbox(UserNamespace(), PidNamespace(), Root(ImageRoot(image, store=store), Proc(), Dev()))
    script = "busybox ls /etc; busybox stat -c %a closed"
    result = box.run(["/bin/busybox", "sh", "-ec", script], env={{"PATH": "/bin"}})
    assert result.stdout == b"a\\n0\\n", result
    assert os.listdir(place + "/store/uppers") == []
    from isolate.images.pack.start import remove
    top = os.open(place, os.O_RDONLY)
    remove(top, "store")
""")
    )


def test_an_upper_of_a_program_that_was_killed_is_collected(store: Store, image: Image) -> None:
    code = f"""
import os, signal
from isolate import *
from isolate.images import *
store = Store({store.path!r})
upper = Upper(store)
root = Root(ImageRoot(store.open({image.digest!r}), store=store, writable=upper), Proc(), Dev())
box = Sandbox(UserNamespace(), PidNamespace(), root)
process = box.spawn(["/bin/busybox", "sleep", "60"])
store.collect(keep=[{image.digest!r}])
assert os.listdir(store.path + "/uppers")
print(process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    for _ in range(1000):  # its sandbox goes with it
        if not Path(f"/proc/{pid}").exists():
            break
        select.select([], [], [], 0.01)
    for _ in range(200):
        store.collect(keep=[image.digest])
        if not os.listdir(f"{store.path}/uppers"):
            break
        select.select([], [], [], 0.05)
    assert os.listdir(f"{store.path}/uppers") == []


@only_root
def test_a_full_disk_is_an_error_and_nothing_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    big = Layer.files({"big": os.urandom(3 << 20)})
    with Tmpfs(str(tmp_path / "small"), size="2M", inodes=500), Store(tmp_path / "small/store") as store:
        with pytest.raises((StoreError, LayerError), match=r"[Nn]o space"):
            store.add(Image.empty() + big, "big:1")
        assert os.listdir(f"{store.path}/layers") == []
        assert not store.tags()
        fitting = store.add(Image.empty() + Layer.files({"small": "x"}), "small:1")
        assert fitting.diffids


def test_owners_that_could_not_be_given_are_not_lost_by_a_commit() -> None:
    """A file of another owner is changed by somebody with one id: the layer says the owner of the image."""
    as_ordinary_user(f"""
import os, tarfile, tempfile
from pathlib import Path
from isolate import *
from isolate.images import *
from isolate.images.pack.start import remove
with tempfile.TemporaryDirectory() as place:
    with Store(place + "/store") as store:
        files = {{"bin/busybox": Path({BUSYBOX!r}).read_bytes()}}
        layers = Layer.files(files, mode=0o755), Layer.files({{"etc/shadow": "x", "etc/other": "x"}}, gid=42)
        image = store.add(Image.empty() + layers[0] + layers[1])
        with Upper(store) as upper:
            root = Root(ImageRoot(image, store=store, writable=upper), Proc(), Dev())
            box = Sandbox(UserNamespace(), PidNamespace(), root)
            script = "echo y >> /etc/shadow; echo z > /etc/new"
            box.run(["/bin/busybox", "sh", "-ec", script], env={{"PATH": "/bin"}}, check=True)
            layer = upper.commit()
        with layer.open() as data, tarfile.open(fileobj=data) as archive:
            owners = {{row.name: (row.uid, row.gid) for row in archive}}
        assert owners == {{"etc": (0, 0), "etc/shadow": (0, 42), "etc/new": (0, 0)}}, owners
    top = os.open(place, os.O_RDONLY)
    remove(top, "store")
""")
