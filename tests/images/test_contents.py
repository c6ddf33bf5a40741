"""Files of which the contents are stored once, whatever else differs: ``Store(share="contents")``."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import IdMap, PidNamespace, Sandbox, UserNamespace
from isolate.images import Config, Image, ImageRoot, Layer, LayerError, Store, StoreError, Upper
from isolate.images.accounts import account
from isolate.images.comparing import compare
from isolate.images.contents import names_of, outline, unused
from isolate.images.pack.start import write_layer
from isolate.images.trial import can_share_contents
from isolate.mounts import Bind, Root, Tmpfs
from tests.images.make import contents, taken
from tests.login import Login, make_login_user
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.snapshot import Snapshot

AT = "/tmp/image"
Name = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def inside(image: Image, store: Store, code: str, *parts: object, **options: object) -> str:
    """What Python code prints that sees the image at AT, with all else of the host."""
    root = Root(Bind("/", "/"), Tmpfs("/tmp"), ImageRoot(image, AT, store=store, **options))  # type: ignore[arg-type]
    box = Sandbox(*(parts or (UserNamespace(),)), root)  # type: ignore[arg-type]
    text = f"import hashlib, os, stat, sys\nos.chdir({AT!r})\n{code}"
    done = box.run([sys.executable, "-I", "-S", "-c", text], text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout is not None
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def _able() -> None:
    """Tried once, by really mounting such layers."""
    try:
        can_share_contents()
    except StoreError as error:
        pytest.skip(f"contents cannot be shared here (Linux 6.16): {error}")


LOOK = """
rows = []
for top, names, files in os.walk('.'):
    for name in sorted(names + files):
        path = os.path.join(top, name)
        row = os.lstat(path)
        kind = stat.S_IFMT(row.st_mode)
        if kind == stat.S_IFREG:
            try:
                data = hashlib.sha256(open(path, 'rb').read()).hexdigest()
            except PermissionError:
                data = 'closed'
        else:
            data = os.readlink(path) if kind == stat.S_IFLNK else ''
        attributes = [] if kind == stat.S_IFLNK else [(n, os.getxattr(path, n)) for n in sorted(os.listxattr(path))]
        size = row.st_size if kind != stat.S_IFDIR else 0
        rows.append((path, row.st_mode, row.st_uid, row.st_gid, row.st_mtime_ns, size, data, attributes))
print(sorted(rows))
"""


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A tree with all that a layer can have."""
    top = tmp_path / "many"
    (top / "in/deep").mkdir(parents=True)
    (top / "in/plain").write_bytes(b"plain" * 3000)
    (top / "in/same").write_bytes(b"plain" * 3000)
    os.link(top / "in/plain", top / "in/deep/link")
    (top / "in/empty").touch()
    (top / "in/small").write_bytes(b"x")
    with (top / "in/holes").open("wb") as file:
        file.seek(5_000_000)
        file.write(b"end")
    with (top / "in/hole").open("wb") as file:
        file.truncate(1_000_000)
    (top / "in/closed").write_bytes(b"closed" * 900)
    (top / "in/closed").chmod(0)
    (top / "in/su").write_bytes(b"su" * 9000)
    (top / "in/su").chmod(0o4755)
    os.setxattr(top / "in/small", "user.note", b"y" * 90)
    os.symlink("plain", top / "in/symbolic")
    os.mkfifo(top / "in/fifo")
    if os.geteuid() == 0:
        (top / "in/owned").write_bytes(b"owned" * 1000)
        os.setxattr(top / "in/owned", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
        os.chown(top / "in/closed", 33, 34)
    (top / os.fsdecode(b"in/\xff")).write_bytes(b"name" * 2000)
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        os.utime(path, ns=(0, 1_000_000_007 * (number + 1)), follow_symlinks=False)
    os.utime(top, ns=(0, 5))
    return top


def test_the_same_as_without(many: Path, tmp_path: Path, clean: Snapshot) -> None:
    """Differential: what is mounted is bit for bit what is mounted of an ordinary store, also with an id map."""
    image = Image.empty() + Layer.of(many, epoch=None) + Layer.files({"more/a": b"a" * 9000, "in/b": b"b" * 9000})
    shown = []
    for share in (False, "contents"):
        with Store(tmp_path / f"store-{share}", share=share) as store:
            store.add(image, "many:1")
            rows = [inside(image, store, LOOK), inside(image, store, LOOK, read_only=True)]
            if os.geteuid() == 0:
                rows.append(inside(image, store, LOOK, UserNamespace(map=IdMap.unprivileged())))
                rows.append(inside(image, store, LOOK, PidNamespace()))
            shown.append(rows)
            assert store.check(deep=True) == []
            lease, trees = store.lease(image)
            with lease:
                out = os.memfd_create("out")
                where = store.opened.contents()
                assert (where is None) == (share is False)
                done = write_layer(trees[0], out, epoch=None, contents=where, map=store.trees.reading_map())
                os.close(out)
                if os.geteuid() == 0:
                    assert done.diffid == image.diffids[0]
    assert shown[0] == shown[1]
    assert "b'y" in shown[1][0]
    assert f"'{hashlib.sha256(b'plain' * 3000).hexdigest()}'" in shown[1][0]


def test_what_it_takes(tmp_path: Path) -> None:
    """Another image with other times, modes and owners takes next to nothing; by links it would take all again."""
    files = contents(1, 60)
    first = Image.empty() + Layer.files(files)
    other = Image.empty() + Layer.files(files, epoch=77, mode=0o600)
    tenth = Image.empty() + Layer.files({**files, **dict(list(contents(2, 60).items())[:6])})
    more = {}
    for share in (True, "contents"):
        with Store(tmp_path / f"store-{share}", share=share) as store:
            places = [tmp_path / f"store-{share}" / name for name in ("layers", "contents", "objects")]
            store.add(first, "first:1")
            base = before = sum(map(taken, places[:2]))
            for name, image in (("other", other), ("tenth", tenth)):
                store.add(image, f"{name}:1")
                now = taken_together(places)
                more[share, name] = (now - before) / base
                before = now
    assert more["contents", "other"] <= 0.05
    assert more[True, "other"] >= 0.9  # the control
    assert more["contents", "tenth"] <= 0.15
    assert more[True, "tenth"] <= 0.15


def taken_together(places: list[Path]) -> int:
    """As :func:`taken`, each file once over all of them."""
    seen: dict[int, int] = {}
    for place in places:
        for top, directories, files in os.walk(place):
            for name in [*directories, *files]:
                row = os.lstat(os.path.join(top, name))
                seen[row.st_ino] = row.st_blocks * 512
    return sum(seen.values())


def test_only_the_lowest_layer(tmp_path: Path) -> None:
    """The kernel finds contents for no other (EPERM); the rest share by links, and one layer may have both forms."""
    data: dict[Name, bytes] = {name: name.encode() * 9000 for name in ("both/up", "own/up", "top")}
    image = Image.empty() + Layer.files({"both/low": b"low" * 9000}) + Layer.files(data)
    with Store(tmp_path / "store", share="contents") as store:
        alone = store.add(Image.empty() + Layer.files(data))  # a layer that is in both images has two forms
        store.add(image, "a:1")
        read = "print([len(open(p).read()) for p in ('both/low', 'both/up', 'own/up', 'top')])"
        assert inside(image, store, read).strip() == str([27000, 63000, 54000, 27000])
        other = store.add(Image.empty() + Layer.files({"x": b"x" * 9000}) + Layer.files({**data, "more": b"m"}))
        blocks = []
        for one in (image, alone, other):
            lease, trees = store.lease(one)
            with lease:
                blocks.append([os.stat("top", dir_fd=trees[-1]).st_blocks, os.stat("top", dir_fd=trees[-1]).st_ino])
        assert [bool(row[0]) for row in blocks] == [True, False, True]
        assert blocks[0] == blocks[2]  # one file
        assert inside(alone, store, "print(len(open('top').read()))").strip() == "27000"
        assert store.check(deep=True) == []


def test_changes_commit_and_hard_links(many: Path, tmp_path: Path) -> None:
    """An upper over outlines: what was written, and nothing else, is in the layer."""
    base = Image.empty() + Layer.of(many, epoch=None)
    code = "open('in/plain', 'ab').write(b'!'); os.utime('in/same', (9, 9)); open('in/small', 'r+b').close()"
    digests = []
    for share in (False, "contents"):
        with Store(tmp_path / f"store-{share}", share=share) as store, Upper(store) as upper:
            image = store.add(base)
            assert inside(image, store, code, writable=upper) == ""
            assert [str(c) for c in upper.changes() if b"link" not in c.path] == ["C /in/plain", "M /in/same"]
            layer = upper.commit()
            digests.append(layer.diffid)
            changed = store.add(image + layer)
            assert inside(changed, store, "print(open('in/plain').read()[-6:])").strip() == "plain!"
            assert store.check(deep=True) == []
            assert "C /in/plain" in [str(c) for c in compare(store, image, changed)]
    assert digests[0] == digests[1]


def test_what_has_changed_without_an_upper(tmp_path: Path) -> None:
    """Result.changes compares with the contents, not with the holes that stand for them."""
    with Store(tmp_path / "store", share="contents") as store:
        image = store.add(Image.empty() + Layer.files({"d/a": b"a" * 5000, "d/b": b"b" * 5000}))
        root = Root(Bind("/", "/"), Tmpfs("/tmp"), ImageRoot(image, AT, store=store))
        code = f"os.chdir({AT!r}); os.chmod('d/a', 0o600); open('d/b', 'w').write('\\0' * 5000)"
        done = Sandbox(UserNamespace(), root).run([sys.executable, "-c", f"import os; {code}"])
        assert done.returncode == 0, done.stderr
        assert done.changes is not None
        kinds = {change.path: change.kind for change in done.changes}
        assert kinds[b"tmp/image/d/a"] == "metadata"
        assert kinds[b"tmp/image/d/b"] == "modified"


def test_readers_of_the_trees(tmp_path: Path) -> None:
    """Accounts, hard links to lower layers, differences, builds."""
    from isolate.build import Recipe

    passwd = b"".join(b"u%d:x:%d:7::/home:/bin/sh\n" % (n, n) for n in range(100, 300))
    with Store(tmp_path / "store", share="contents") as store:
        image = store.add(Image.empty() + Layer.files({"etc/passwd": passwd}), "accounts:1")
        assert account(image.with_(Config(user="u250")), store).uid == 250
        raw = BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
            link = tarfile.TarInfo("etc/again")
            link.type, link.linkname = tarfile.LNKTYPE, "etc/passwd"
            archive.addfile(link)
        diffid = f"sha256:{hashlib.sha256(raw.getvalue()).hexdigest()}"
        linked = image + Layer(diffid, diffid, len(raw.getvalue()), source=_Bytes(raw.getvalue()))
        store.add(linked)
        code = "print(open('etc/again', 'rb').read() == open('etc/passwd', 'rb').read(), os.path.getsize('etc/again'))"
        assert inside(linked, store, code).split() == ["True", str(len(passwd))]
        other = store.add(Image.empty() + Layer.files({"etc/passwd": passwd[::-1]}))
        assert [str(c) for c in compare(store, image, other)] == ["C /etc/passwd"]
        same = store.add(Image.empty() + Layer.files({"etc/passwd": passwd}, epoch=50))
        assert [c for c in compare(store, image, same) if c.kind == "modified"] == []
        built = Recipe(Image.empty()).copy(image, "/etc/passwd", target="/got").build(store)
        assert inside(built, store, "print(os.path.getsize('got'), open('got').read()[:4])").split() == [
            str(len(passwd)),
            "u100",
        ]
        assert store.check(deep=True) == []


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def open(self) -> BytesIO:
        return BytesIO(self.data)


@pytest.mark.parametrize("prefix", ["user.overlay.", "trusted.overlay."])
def test_an_archive_cannot_name_contents(tmp_path: Path, prefix: str) -> None:
    """Attributes that would make a file of an image another image's: the archive is refused, or they are not set."""
    secret = b"secret" * 2000
    (name, *_) = names_of(hashlib.sha256(secret).digest())
    with Store(tmp_path / "store", share="contents") as store:
        store.add(Image.empty() + Layer.files({"of/another": secret}), "another:1")
        assert (tmp_path / "store/contents" / name).read_bytes() == secret
        raw = BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
            row = tarfile.TarInfo("d/thief")
            row.size = len(secret)
            row.pax_headers = {
                f"SCHILY.xattr.{prefix}metacopy": "",
                f"SCHILY.xattr.{prefix}redirect": f"/{name}",
            }
            archive.addfile(row, BytesIO(bytes(len(secret))))
        diffid = f"sha256:{hashlib.sha256(raw.getvalue()).hexdigest()}"
        image = Image.empty() + Layer(diffid, diffid, len(raw.getvalue()), source=_Bytes(raw.getvalue()))
        with pytest.raises(LayerError, match="overlay"):
            store.add(image)


def test_a_program_cannot_name_contents(tmp_path: Path) -> None:
    """What it sets on its own files names nothing, neither at once nor when the upper is mounted again."""
    secret = b"secret" * 2000
    (name, *_) = names_of(hashlib.sha256(secret).digest())
    code = f"""
with open('thief', 'wb') as file:
    file.truncate({len(secret)})
for prefix in ('user.overlay.', 'trusted.overlay.'):
    for key, value in (('metacopy', b''), ('redirect', b'/{name}')):
        try:
            os.setxattr('thief', prefix + key, value)
        except OSError:
            pass
"""
    look = "print(open('thief', 'rb').read().count(b'secret'), open('own/x', 'rb').read().count(b'x'))"
    with Store(tmp_path / "store", share="contents") as store, Upper(store) as upper:
        store.add(Image.empty() + Layer.files({"of/another": secret}), "another:1")
        image = store.add(Image.empty() + Layer.files({"own/x": b"x" * 9000}))
        inside(image, store, code, writable=upper)
        assert inside(image, store, look, writable=upper).split() == ["0", "9000"]
        again = store.add(image + upper.commit())
        assert inside(again, store, look).split() == ["0", "9000"]


def test_collection(tmp_path: Path) -> None:
    """Contents go with the last layer that has them, and not before; an image that runs keeps its own."""
    with Store(tmp_path / "store", share="contents") as store:
        files = contents(1, 20)
        store.add(Image.empty() + Layer.files(files), "one:1")
        two = store.add(Image.empty() + Layer.files({**files, "more/x": b"x" * 5000}, epoch=9), "two:1")
        where = tmp_path / "store/contents"
        assert len(os.listdir(where)) == 21
        store.untag("one:1")
        assert store.collect().layers == 1
        assert len(os.listdir(where)) == 21
        store.untag("two:1")
        root = Root(Bind("/", "/"), Tmpfs("/tmp"), ImageRoot(two, AT, store=store))
        with Sandbox(UserNamespace(), root).spawn(["cat", "-", f"{AT}/d0/f0"], stdin=-1, stdout=-1) as process:
            assert store.collect().layers == 0
            assert len(os.listdir(where)) == 21
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            assert process.stdout.read() == files["d0/f0"]
        for _ in range(200):  # its launcher may be on its way out
            if store.collect().layers:
                break
            select.select([], [], [], 0.05)
        assert os.listdir(where) == []
        assert store.check(deep=True) == []


def test_not_while_a_layer_is_made(tmp_path: Path) -> None:
    """The lock: contents that nobody has yet are not taken from under a layer that is being made of them."""
    (tmp_path / "contents").mkdir()
    (tmp_path / "contents/aaaaaaaaaaa").write_bytes(b"x")
    where = os.open(tmp_path / "contents", os.O_RDONLY)
    import fcntl

    other = os.open(tmp_path / "contents", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_SH)
    assert unused(where) == (0, 0)
    fcntl.flock(other, fcntl.LOCK_UN)
    assert unused(where) == (1, 1)
    os.close(other)
    os.close(where)


def test_damage_is_found(tmp_path: Path) -> None:
    """And what is unpacked anew does not use it."""
    with Store(tmp_path / "store", share="contents") as store:
        image = store.add(Image.empty() + Layer.files({"d/a": b"a" * 5000, "d/b": b"b" * 5000}), "a:1")
        (name, *_) = names_of(hashlib.sha256(b"a" * 5000).digest())
        path = tmp_path / "store/contents" / name
        path.chmod(0o600)
        path.write_bytes(b"A" + b"a" * 4999)
        assert store.check() == []
        faults = store.check(deep=True)
        assert any(name in fault.what and "other bytes" in fault.why for fault in faults)
        assert any(image.diffids[0].partition(":")[2] in fault.what for fault in faults)
        other = store.add(Image.empty() + Layer.files({"d/a": b"a" * 5000}, epoch=3))
        assert inside(other, store, "print(open('d/a').read(1))").strip() == "a"
        path.unlink()
        assert any("missing" in fault.why for fault in store.check())


def test_names_that_are_taken(tmp_path: Path) -> None:
    """Other contents under the same name (a digest that begins alike): the next name, or the file stays whole."""
    names = names_of(hashlib.sha256(b"x" * 5000).digest())
    for turn in range(4):
        top = tmp_path / str(turn)
        for name in ("tree", "contents", "own"):
            (top / name).mkdir(parents=True)
        for name in names[:turn]:
            (top / "contents" / name).write_bytes(b"y" * 5000)
        (top / "tree/x").write_bytes(b"x" * 5000)
        (top / "tree/x").chmod(0o751)
        fds = [os.open(top / name, os.O_RDONLY) for name in ("tree", "contents", "own")]
        outline(fds[0], fds[1], fds[2])
        for fd in fds:
            os.close(fd)
        row = (top / "tree/x").stat()
        assert row.st_mode & 0o7777 == 0o751
        if turn == 3:
            assert (top / "tree/x").read_bytes() == b"x" * 5000
        else:
            assert os.getxattr(top / "tree/x", "user.overlay.redirect") == b"/" + names[turn].encode()
            assert (top / "contents" / names[turn]).read_bytes() == b"x" * 5000
            assert row.st_blocks == 0


def test_a_tree_of_a_store_alone_is_refused(tmp_path: Path) -> None:
    """Who reads a tree without the contents is told so, and gets no holes."""
    with Store(tmp_path / "store", share="contents") as store:
        image = store.add(Image.empty() + Layer.files({"d/a": b"a" * 5000}))
        lease, (tree,) = store.lease(image)
        with lease, pytest.raises(LayerError, match="elsewhere"):
            Layer.of(tree)
        (tmp_path / "zeros/d").mkdir(parents=True)
        (tmp_path / "zeros/d/a").write_bytes(bytes(5000))
        lease, (tree,) = store.lease(image)
        with lease, pytest.raises(LayerError, match="elsewhere"):
            Layer.of(tmp_path / "zeros", below=[tree])


def test_two_at_once(tmp_path: Path) -> None:
    """Layers of the same contents that are made side by side, and a collector beside them."""
    files = contents(3, 40)
    images = [Image.empty() + Layer.files(files, epoch=n) for n in range(4)]
    with Store(tmp_path / "store", share="contents") as store:
        done = threading.Event()

        def collect() -> None:
            with Store(tmp_path / "store") as other:
                while not done.is_set():
                    other.collect(keep=[])

        collector = threading.Thread(target=collect)
        threads = [threading.Thread(target=store.add, args=(one, f"n{n}:1")) for n, one in enumerate(images)]
        for thread in (collector, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        done.set()
        collector.join()
        assert store.check(deep=True) == []
        assert len(os.listdir(tmp_path / "store/contents")) == 40


def test_the_example_of_the_page(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/layers.rst").read_text()
    block = re.search(r"   :name: shared-contents\n\n((?:    .*\n|\n)+)", text)
    assert block is not None
    exec(compile(textwrap.dedent(block[1]), "layers.rst", "exec"), {"place": str(tmp_path)})
    assert len(os.listdir(tmp_path / "sharing/contents")) == 1


def test_what_it_saves_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By ``image tree``."""
    from isolate.tools.cli import main

    with Store(tmp_path / "store", share="contents") as store:
        store.add(Image.empty() + Layer.files({"d/a": b"a" * 40_960}), "a:1")
        assert main(["image", "tree", "--json", "--store", store.path]) == 0
        assert json.loads(capsys.readouterr().out)["bytes_saved_by_files"] == 0
        store.add(Image.empty() + Layer.files({"d/a": b"a" * 40_960}, epoch=9), "b:1")
        assert main(["image", "tree", "--json", "--store", store.path]) == 0
        assert json.loads(capsys.readouterr().out)["bytes_saved_by_files"] >= 40_960
        assert main(["image", "tree", "--store", store.path]) == 0
        assert "on disk saved by files that layers of the store share" in capsys.readouterr().out


PROGRAM = """
import os, random, sys
from isolate.images import *
print("ready", flush=True)
made = random.Random(1)
files = {f"d{n % 9}/f{n}": made.randbytes(9000) for n in range(200)}
with Store(sys.argv[1], share="contents") as store:
    for turn in range(1000):
        store.add(Image.empty() + Layer.files(files, epoch=made.randrange(10**9)), f"made:{turn % 3}")
        store.collect()
"""


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_while_it_unpacks(tmp_path: Path) -> None:
    """Kills at random instants of unpacking and collecting: what has a name is whole, and the rest goes."""
    rng, place = random.Random(5), tmp_path / "store"
    with Store(place, share="contents") as store:
        store.add(Image.empty() + Layer.files(contents(1, 5)), "base:1")
        for turn in range(100):
            program = subprocess.Popen([sys.executable, "-c", PROGRAM, str(place)], stdout=subprocess.PIPE)
            assert program.stdout is not None
            assert program.stdout.readline() == b"ready\n"
            select.select([], [], [], rng.uniform(0, 3))
            program.send_signal(signal.SIGKILL)
            program.wait()
            program.stdout.close()
            if turn % 10 == 9:
                assert store.check(deep=True) == []
        assert len(store.tags()) > 1, "no program came far enough"
        for name in store.tags():
            inside(store.open(name), store, "[open(t + '/' + f).close() for t, _, fs in os.walk('.') for f in fs]")
            store.untag(name)
        for _ in range(200):  # children of the last one are on their way out
            store.collect()
            if not os.listdir(place / "contents") and not os.listdir(place / "layers"):
                break
            select.select([], [], [], 0.05)
        assert os.listdir(place / "contents") == os.listdir(place / "layers") == []


def test_how_it_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='share must be True, False or "contents"'):
        Store(tmp_path / "store", share="content")
    with Store(tmp_path / "store") as store:
        assert (tmp_path / "store/format").read_text() == "isolate-store 1\n"
        store.add(Image.empty() + Layer.files({"d/a": b"a" * 5000}), "a:1")
    with Store(tmp_path / "store", share="contents") as store:
        store.add(Image.empty() + Layer.files({"d/a": b"a" * 5000}, epoch=9), "b:1")
        # Versions that do not know it refuse the store.
        assert (tmp_path / "store/format").read_text() == "isolate-store 2\n"
    with Store(tmp_path / "store", read_only=True) as store:
        for name in ("a:1", "b:1"):
            assert inside(store.open(name), store, "print(open('d/a').read(2))").strip() == "aa"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a ramfs")
def test_a_file_system_without_attributes(tmp_path: Path) -> None:
    """It is refused by name, nothing is left, and the store is one that every version knows."""
    code = """
import os, sys
from isolate.images import *
with Store(sys.argv[1] + "/store", share="contents") as store:
    try:
        store.add(Image.empty() + Layer.files({"d/a": b"a" * 5000}))
    except StoreError as error:
        print(error.cause)
    print(open(sys.argv[1] + "/store/format").read(), os.listdir(sys.argv[1] + "/store/layers"))
"""
    mount = 'mount -t ramfs none "$1" && exec "$2" -c "$3" "$1"'
    words = ["unshare", "-m", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, code]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "the file system has no extended attributes for users",
        "isolate-store 1",
        " []",
    ], done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="a filter without no_new_privs is for root")
def test_a_kernel_that_does_not_know_it(tmp_path: Path) -> None:
    """The mount is refused as older kernels do: the store says so by name, doctor says what helps, and links work."""
    code = """
import sys
from isolate.images import *
from isolate.seccomp import Seccomp, arg32, deny
from isolate.tools.doctor import abilities
Seccomp(deny("fsconfig", when=arg32(1) == 5, errno="EINVAL"), otherwise="allow").enter()  # FSCONFIG_SET_FD
with Store(sys.argv[1] + "/store", share="contents") as store:
    try:
        store.add(Image.empty() + Layer.files({"a": "b" * 5000}))
    except StoreError as error:
        print(error.message, "|", "data-only layer" in error.cause, "|", error.remedy[:23])
with Store(sys.argv[1] + "/store", share=True) as store:
    print(len(store.add(Image.empty() + Layer.files({"a": "b" * 5000})).layers))
print([(row.ok, "data-only" in row.reason, row.remedy[:16]) for row in abilities() if row.name == "image-contents"])
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "the contents of files cannot be shared here | True | Store(path, share=True)",
        "1",
        "[(False, True, 'use Linux 6.16, ')]",
    ], done.stderr


@pytest.fixture
def login() -> Iterator[Login]:
    yield from make_login_user()


def test_a_login_user_with_subordinate_ids(login: Login) -> None:
    """Owners of a subordinate range, also those that the user alone may not read."""
    if f"{login.name}:" not in Path("/etc/subuid").read_text():
        pytest.skip("useradd gives no subordinate ids here")
    out = login.python("""
import os, tempfile
from isolate import *
from isolate.images import *
with tempfile.TemporaryDirectory() as place:
    ids = IdMap.subordinate()
    with Store(place + "/store", share="contents", map=ids) as store:
        for turn in range(2):
            files = Layer.files({"d/mine": b"x" * 5000, "d/more": b"y" * 5000}, uid=33, gid=34, mode=0o400, epoch=turn)
            image = store.add(Image.empty() + files, f"n{turn}:1")
        print(len(os.listdir(place + "/store/contents")), store.check(deep=True))
        root = Root(Bind("/", "/"), Tmpfs("/tmp"), ImageRoot(image, "/tmp/image", store=store))
        who = Credentials(uid=33, gid=34)
        done = Sandbox(UserNamespace(map=ids), root, who).run(["/bin/cat", "/tmp/image/d/mine"])
        print(len(done.stdout), done.stderr)
        stat = ["/bin/stat", "-c", "%u:%g:%a", "/tmp/image/d/mine"]
        done = Sandbox(UserNamespace(map=ids), root).run(stat, text=True)
        print(done.stdout.strip(), done.stderr)
        store.untag("n0:1"), store.untag("n1:1")
        store.collect()
        print(os.listdir(place + "/store/contents"), os.listdir(place + "/store/trash"))
""")
    assert out.splitlines() == ["2 []", "5000 b''", "33:34:400 ", "[] []"]


def test_without_the_packages_that_are_extras() -> None:
    """The child finds what it needs also where nothing that decompresses brings its directory along."""
    as_ordinary_user("""
import tempfile
from isolate.images import *
from isolate.images.confined import python
python._USED = tuple(name for name in python._USED if name == "_cffi_backend")
with tempfile.TemporaryDirectory() as place:
    for share in (False, True, "contents"):
        with Store(f"{place}/{share}", share=share) as store:
            store.add(Image.empty() + Layer.files({"a": b"x" * 5000, "b": b"x" * 5000}))
            assert store.check(deep=True) == []
""")


def test_as_an_ordinary_user() -> None:
    """The same without root: the marks are those that root of a user namespace can make."""
    as_ordinary_user("""
import os, tempfile
from isolate import *
from isolate.images import *
from isolate.images.pack.start import remove
from isolate.mounts import *
with tempfile.TemporaryDirectory() as place:
    with Store(place + "/store", share="contents") as store:
        a = store.add(Image.empty() + Layer.files({"d/closed": b"x" * 5000, "d/b": b"y" * 5000}, mode=0o400), "a:1")
        b = store.add(Image.empty() + Layer.files({"d/closed": b"x" * 5000}, epoch=7), "b:1")
        assert len(os.listdir(place + "/store/contents")) == 2
        assert store.check(deep=True) == []
        for image in (a, b):
            root = Root(Bind("/", "/"), Tmpfs("/tmp"), ImageRoot(image, "/tmp/image", store=store))
            done = Sandbox(UserNamespace(), root).run(["/bin/cat", "/tmp/image/d/closed"])
            assert done.stdout == b"x" * 5000, done.stderr
        with Upper(store) as upper:
            root = Root(Bind("/", "/"), Tmpfs("/tmp"), ImageRoot(a, "/tmp/image", store=store, writable=upper))
            Sandbox(UserNamespace(), root).run(["/bin/chmod", "600", "/tmp/image/d/b"], check=True)
            assert [(c.path, c.kind) for c in upper.changes()] == [(b"d/b", "metadata")]
            upper.commit()
        for name in ("a:1", "b:1"):
            store.untag(name)
        store.collect()
        assert os.listdir(place + "/store/contents") == []
    top = os.open(place, os.O_RDONLY)
    remove(top, "store")
""")
