"""Builds: what comes out, what is found again, what is refused, and what a step cannot reach."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolate.build import BuildError, Context, Dockerfile, DockerfileError, Recipe, forget
from isolate.build.copying import Plan, copy_into
from isolate.images import Config, Image, Layer, Store
from isolate.images.disk import try_lock
from isolate.images.pack.stack import Stack
from isolate.tools.cli import main
from tests.images.make import of_archive
from tests.ordinary import as_ordinary_user
from tests.snapshot import Snapshot

from .corpora import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

BUSYBOX = shutil.which("busybox") or "/bin/busybox"
USERS = {
    "etc/passwd": "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n",
    "etc/group": "root:x:0:\nme:x:1000:\n",
}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the base image, of which each test has a copy."""
    if not os.path.exists(BUSYBOX):
        pytest.skip("busybox-static is not installed")
    place = tmp_path_factory.mktemp("ready") / "store"
    with Store(place) as made:
        add_base(made)
    return place


@pytest.fixture
def store(tmp_path: Path, ready: Path) -> Iterator[Store]:
    shutil.copytree(ready, tmp_path / "store", symlinks=True)
    with Store(tmp_path / "store") as made:
        yield made
        assert made.check() == []
        assert os.listdir(tmp_path / "store/uppers") == []


@pytest.fixture
def checked(store: Store) -> Iterator[Store]:
    """A store of which every byte is looked at afterwards."""
    yield store
    assert store.check(deep=True) == []


def add_base(store: Store) -> None:
    program = Path(BUSYBOX).read_bytes()
    image = Image.empty() + Layer.files({"bin/busybox": program, "bin/sh": program}, mode=0o755)
    image = image + Layer.files({**USERS, "tmp/": b"", "usr/bin/tool": "x"})
    store.add(image.with_(Config(env={"PATH": "/bin"})), "base:1")


@pytest.fixture
def context(tmp_path: Path) -> Path:
    where = tmp_path / "context"
    (where / "sub/deep").mkdir(parents=True)
    (where / "a.txt").write_text("hello\n")
    (where / "b.log").write_text("no\n")
    (where / "sub/c.txt").write_text("c\n")
    (where / "sub/deep/d.txt").write_text("d\n")
    (where / ".dockerignore").write_text("*.log\n")
    return where


def tree(store: Store, image: Image) -> dict[str, str | None]:
    """The files that an image shows: contents, None for directories, "-> x" for links."""
    lease, trees = store.lease(image)
    with lease:
        stack = Stack(tuple(reversed(trees)))
        found: dict[str, str | None] = {}
        left = [b""]
        while left:
            directory = left.pop()
            for name in sorted(stack.names(directory)):
                path = directory + b"/" + name if directory else name
                row = stack.lookup(path)
                assert row is not None
                kind = row[1].st_mode & 0o170000
                if kind == 0o040000:
                    found[path.decode() + "/"] = None
                    left.append(path)
                elif kind == 0o120000:
                    found[path.decode()] = "-> " + os.readlink(name, dir_fd=row[0].directory(directory)).decode()
                else:
                    with open(row[0].open(path), "rb") as file:
                        found[path.decode()] = file.read(1 << 20).decode("latin-1")
        stack.close()
        return found


WHOLE = """
ARG V=1
FROM base:$V AS one
ARG V
ENV GREETING="hi $V"
WORKDIR /srv/app
COPY . .
RUN busybox cat a.txt > out && echo "$GREETING" >> out && busybox id -u >> out
COPY --chown=me:me <<EOF /etc/greeting
$GREETING there
EOF
RUN <<EOT
echo done > /tmp/done
busybox ln -s out again
EOT
FROM scratch
COPY --from=one /srv/app/out /srv/app/again /
COPY --from=one --chmod=600 /etc/greeting /
USER 1000
LABEL a=b
CMD ["/bin/sh"]
"""

SMALL = """
FROM base:1 AS one
WORKDIR /srv/app
COPY . .
RUN busybox cat a.txt > out; busybox ln -s out again; busybox chmod 4711 out
FROM scratch
COPY --from=one /srv/app /
"""


def test_stages_files_and_configuration(checked: Store, context: Path) -> None:
    steps: list[Any] = []
    built = Dockerfile.parse(WHOLE).built(checked, context, name="app:1", progress=steps.append)
    assert tree(checked, built.image) == {
        "out": "hello\nhi 1\n0\n",
        "again": "hello\nhi 1\n0\n",
        "greeting": "hi 1 there\n",
    }
    config = built.image.config
    assert (config.user, config.cmd, dict(config.labels or ())) == ("1000", ("/bin/sh",), {"a": "b"})
    assert checked.open("app:1").digest == built.image.digest
    first = tree(checked, Dockerfile.parse(WHOLE).build(checked, context, target="one"))
    assert "srv/app/sub/deep/d.txt" in first
    assert "srv/app/b.log" not in first
    assert first["tmp/done"] == "done\n"
    assert [step.text for step in steps if step.state == "begun"][-1].startswith("CMD")


def test_the_same_bytes_whatever_the_time_and_the_order(store: Store, context: Path, tmp_path: Path) -> None:
    one = Dockerfile.parse(WHOLE).build(store, context)
    os.utime(context / "a.txt", (1, 1))
    other = tmp_path / "other"
    shutil.copytree(context, other)
    assert Dockerfile.parse(WHOLE).build(store, other, cache=False, jobs=1).digest == one.digest


def test_what_is_found_in_the_cache(store: Store, context: Path) -> None:
    text = "FROM base:1\nARG A\nCOPY a.txt /\nRUN --mount=type=secret,id=s busybox cat /a.txt > /b; echo $A >> /b\n"
    recipe = Dockerfile.parse(text)

    def cached(**said: Any) -> int:
        return recipe.built(store, context, **said).cached

    assert cached() == 0
    assert cached() == 1
    assert cached(secrets={"s": b"another"}) == 1, "a secret is in no key"
    assert cached(args={"A": "1"}) == 0, "an argument is"
    (context / "sub/c.txt").write_text("changed")
    assert cached() == 1, "a file that is not copied is not"
    (context / "a.txt").write_text("changed")
    assert cached() == 0
    os.utime(context / "a.txt", (5, 5))
    assert cached() == 1, "a time is not"
    (context / "a.txt").chmod(0o755)
    assert cached() == 0, "a mode is"
    assert cached(cache=False) == 0
    assert forget(store) > 0
    assert cached() == 0


def test_a_secret_is_in_no_layer(store: Store) -> None:
    text = (
        "FROM base:1\nRUN --mount=type=secret,id=t,target=/root/.token busybox cat /root/.token | busybox wc -c > /n\n"
        "RUN --mount=type=secret,id=t,env=TOKEN echo ${#TOKEN} >> /n\n"
    )
    built = Dockerfile.parse(text).built(store, secrets={"t": b"a-secret-of-19-chars"})
    shown = tree(store, built.image)
    assert shown["n"] == "20\n20\n"
    assert "root/.token" not in shown
    for layer in built.image.layers[2:]:
        with layer.open() as file:
            assert b"a-secret" not in file.read()
    assert b"a-secret" not in built.image.document
    with pytest.raises(BuildError, match="'t' is required"):
        Dockerfile.parse("FROM base:1\nRUN --mount=type=secret,id=t,required echo\n").build(store)


def test_mounts(checked: Store, context: Path) -> None:
    text = """
FROM base:1
RUN --mount=type=cache,target=/cache echo x >> /cache/log; busybox cp /cache/log /log
RUN --mount=type=bind,source=sub,target=/in busybox cat /in/c.txt /in/deep/d.txt > /seen; echo no > /in/new || true
RUN --mount=type=tmpfs,target=/scratch echo y > /scratch/y; busybox ls /scratch > /listed
"""
    built = Dockerfile.parse(text).built(checked, context)
    shown = tree(checked, built.image)
    assert (shown["log"], shown["seen"], shown["listed"]) == ("x\n", "c\nd\n", "y\n")
    assert not any(path.startswith(("cache/l", "in/", "scratch/y")) for path in shown)
    again = Dockerfile.parse(text).built(checked, context, cache=False)
    assert tree(checked, again.image)["log"] == "x\nx\n", "a cache outlives the build"


def test_a_private_cache_is_nobody_else_s_while_it_is_used(store: Store) -> None:
    line = "RUN --mount=type=cache,sharing=private,target=/c echo x >> /c/log; busybox cat /c/log > /log\n"
    recipe = Dockerfile.parse(f"FROM base:1\n{line}")
    assert [tree(store, recipe.build(store, cache=False))["log"] for _ in range(2)] == ["x\n", "x\nx\n"]
    (cache,) = (path for path in Path(store.path, "caches").iterdir() if path.is_dir())
    fd = os.open(cache, os.O_RDONLY)
    try:
        assert try_lock(fd, exclusive=True)
        assert tree(store, recipe.build(store, cache=False))["log"] == "x\n", "another one"
    finally:
        os.close(fd)
    assert tree(store, recipe.build(store, cache=False))["log"] == "x\nx\nx\n", "control: it is free again"


BASED = """
FROM base:1 AS made
RUN busybox mkdir -p -m 700 /m; busybox mkdir /m/d; echo one > /m/d/f; cd /m/d; busybox chmod 750 f
RUN busybox chown 1000 /m/d/f || true
FROM base:1
ARG WHICH=/m N
RUN --mount=type=cache,id=i,from=made,source=$WHICH,target=/c{more} busybox stat -c %n:%a:%u /c /c/d/f > /seen; \
    echo x >> /c/d/f; busybox cat /c/d/f > /f
"""


def test_a_cache_begins_as_a_copy_of_a_stage(store: Store) -> None:
    numbers = itertools.count()

    def built(text: str = BASED, **args: str) -> dict[str, str | None]:
        recipe = Dockerfile.parse(text.replace("{more}", ""))
        return tree(store, recipe.build(store, args={"N": str(next(numbers)), **args}))

    root = os.geteuid() == 0
    first = built()
    assert first["seen"] == ("/c:700:0\n/c/d/f:750:1000\n" if root else "/c:700:0\n/c/d/f:750:0\n")
    assert [first["f"], built()["f"], built()["f"]] == ["one\nx\n", "one\nx\nx\n", "one\nx\nx\nx\n"], (
        "it outlives a build"
    )
    assert built(BASED.replace("echo one", "echo two"))["f"] == "two\nx\n", "of another content it is another"
    assert built(BASED.replace("{more}", ",sharing=private,mode=0711"))["seen"] == first["seen"].replace(
        "/c:700", "/c:711"
    )
    for which, why in {"/none": "there is no", "/m/d/f": "none"}.items():
        with pytest.raises(BuildError, match=why):
            built(WHICH=which)
    # What a build that was killed has left of one goes, however deep it is.
    left = Path(store.path, "caches/begun-1")
    left.mkdir()
    fd = os.open(left, os.O_RDONLY)
    try:
        for _ in range(1500):
            os.mkdir("d", dir_fd=fd)
            fd, above = os.open("d", os.O_RDONLY, dir_fd=fd), fd
            os.close(above)
    finally:
        os.close(fd)
    built(BASED.replace("echo one", "echo three"))
    assert [name for name in os.listdir(left.parent) if name.startswith("begun-")] == []


def test_a_bind_of_a_file_is_that_file(store: Store, context: Path) -> None:
    text = """
FROM base:1 AS made
RUN echo made > /f; busybox chown 1000:1000 /f || true; busybox chmod 640 /f; busybox mkdir /d; echo d > /d/d
RUN busybox chown -R 1000:1000 /d || true
FROM base:1
WORKDIR /w
RUN --mount=type=bind,source=a.txt,target=a.txt --mount=from=made,src=/f,dst=/in/g,rw --mount=from=made,src=d,dst=d \
    busybox cat a.txt /in/g d/d > /seen; busybox stat -c %a:%u /w/a.txt /in/g d/d >> /seen; \
    echo no > a.txt; echo yes > /in/g; busybox cat /in/g >> /seen
RUN --mount=target=/in/g,from=made,source=f busybox cat /in/g > /again
"""
    (context / "a.txt").chmod(0o644)
    shown = tree(store, Dockerfile.parse(text).build(store, context))
    owner = 1000 if os.geteuid() == 0 else 0
    assert shown["seen"] == f"hello\nmade\nd\n644:0\n640:{owner}\n644:{owner}\nyes\n"
    assert shown["again"] == "made\n", "what was written is gone"
    assert not any(path.startswith(("w/", "in")) for path in shown if path != "w/")
    with pytest.raises(BuildError, match="is the root"):
        Dockerfile.parse("FROM base:1\nRUN --mount=target=/,source=sub true\n").build(store, context)


def owners(image: Image) -> dict[str, tuple[int, int, int]]:
    """Owner, group and mode of all that an image's layers have an entry for, the last one of each."""
    found = {}
    for layer in image.layers:
        with layer.open() as file, tarfile.open(fileobj=io.BytesIO(file.read())) as archive:
            found.update({entry.name: (entry.uid, entry.gid, entry.mode) for entry in archive})
    return found


def test_owners_of_what_is_copied(store: Store, context: Path, tmp_path: Path) -> None:
    """Those of a stage and of an archive stay; those of the context are root's, and a directory there is as it was."""
    with tarfile.open(context / "root.tar", "w") as archive:
        for name, kind, mode, uid, gid in (
            ("etc", tarfile.DIRTYPE, 0o755, 0, 0),
            ("etc/shadow", tarfile.REGTYPE, 0o640, 0, 42),
            ("home/me", tarfile.DIRTYPE, 0o750, 1000, 1001),
            ("tmp", tarfile.DIRTYPE, 0o1777, 0, 0),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.uid, entry.gid = kind, mode, uid, gid
            archive.addfile(entry)
    text = """
FROM scratch AS one
ADD root.tar /
COPY a.txt /home/me/
COPY a.txt /tmp/
COPY --chown=5 a.txt /home/me/mine
FROM scratch
COPY --from=one / /
COPY --from=one --chown=7:8 /home /given
ADD --chown=3:4 root.tar /added/
COPY a.txt /home/me/b.txt
"""
    image = Dockerfile.parse(text).build(store, context)
    expected = {
        "etc/shadow": (0, 42, 0o640),
        "home": (0, 0, 0o755),
        "home/me": (1000, 1001, 0o750),
        "home/me/a.txt": (0, 0, 0o644),
        "home/me/mine": (5, 5, 0o644),  # a number alone is that of the group, too
        "tmp": (0, 0, 0o1777),
        "given/me": (7, 8, 0o750),
        "given/me/mine": (7, 8, 0o644),
        "added/etc/shadow": (3, 4, 0o640),
        "home/me/b.txt": (0, 0, 0o644),
    }
    shown = owners(image)
    assert {name: shown.get(name) for name in expected} == expected
    top = image.layers[-1]
    assert set(owners(Image.empty() + top)) == {"home", "home/me", "home/me/b.txt"}  # a layer tells where it belongs


def test_variables_in_the_options_of_a_mount(store: Store) -> None:
    text = """
FROM base:1
ARG M=700 T=tmpfs NAME=s SHARING=locked
RUN --mount=type=$T,target=/m,mode=$M,ro=${RO:-false} busybox stat -c %a /m > /q; echo x > /m/x
RUN --mount=type=secret,id=$NAME,env=E_$NAME echo $E_s > /s
RUN --mount=type=cache,target=/c,sharing=$SHARING true
"""
    recipe = Dockerfile.parse(text)
    shown = tree(store, recipe.build(store, secrets={"s": b"\xff"}))
    assert (shown["q"], shown["s"]) == ("700\n", "\xff\n")
    for name, value, why in (("M", "9", "is no number"), ("SHARING", "mine", "sharing"), ("T", "tmp", "'tmpfs'")):
        with pytest.raises(BuildError, match=why):
            recipe.build(store, args={name: value})
    with pytest.raises(BuildError, match="has a NUL"):
        recipe.build(store, secrets={"s": b"a\0b"})


def test_what_a_mount_is_like_is_in_the_key(store: Store) -> None:
    """Another mode, size or variable shows in what the command does, so it is another step."""

    def made(mount: str, command: str, **said: Any) -> str | None:
        return tree(store, Dockerfile.parse(f"FROM base:1\nRUN --mount={mount} {command} > /q\n").build(store, **said))[
            "q"
        ]

    for mode in ("700", "755"):
        assert made(f"type=tmpfs,target=/m,mode={mode}", "busybox stat -c %a /m") == f"{mode}\n"
    sizes = {made(f"type=tmpfs,target=/m,size={size}", "busybox df /m") for size in ("1M", "4M")}
    assert len(sizes) == 2
    for name, shown in {"ONE": "v:\n", "TWO": ":v\n"}.items():
        assert made(f"type=secret,id=s,env={name}", "echo $ONE:$TWO", secrets={"s": b"v"}) == shown


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has one id inside")
def test_a_cache_and_a_secret_have_the_owner_and_mode_they_are_given(store: Store) -> None:
    text = """
FROM base:1
RUN --mount=type=cache,id=a,target=/c busybox stat -c %a:%u:%g /c >> /tmp/q
RUN busybox chmod 1777 /tmp; busybox chmod 666 /tmp/q
USER me
RUN --mount=type=cache,id=b,target=/c,uid=1000,gid=1000 echo x > /c/x; busybox stat -c %a:%u:%g /c >> /tmp/q
RUN --mount=type=cache,id=c,target=/c,mode=0777 echo x > /c/x; busybox stat -c %a:%u:%u /c /c/x >> /tmp/q
RUN --mount=type=secret,id=s,uid=1000,mode=0400 busybox stat -c %a:%u /run/secrets/s >> /tmp/q; cat /run/secrets/s
RUN --mount=type=secret,id=s,mode=0400 busybox cat /run/secrets/s || echo no >> /tmp/q
""".replace("; cat ", "; busybox cat ")
    shown = tree(store, Dockerfile.parse(text).build(store, secrets={"s": b"v"}))["tmp/q"]
    assert shown == "755:0:0\n755:1000:1000\n777:0:0\n644:1000:1000\n400:1000\nno\n"


def test_a_locked_cache_is_waited_for_and_not_without_an_end(store: Store) -> None:
    line = "RUN --mount=type=cache,id=one,sharing=locked,target=/cache echo x > /cache/log; echo y > /made\n"
    recipe = Dockerfile.parse(f"FROM base:1\n{line}")
    recipe.build(store, timeout=60)
    (cache,) = (path for path in Path(store.path, "caches").iterdir() if path.is_dir())
    fd = os.open(cache, os.O_RDONLY)
    assert try_lock(fd, exclusive=True)
    with pytest.raises(BuildError, match=r"(?s)the cache one is in use by another process.*0\.1 s"):
        recipe.build(store, cache=False, timeout=0.1)
    begun = threading.Event()
    found: list[str] = []

    def build() -> None:
        found.append(recipe.build(store, cache=False, timeout=60, progress=lambda _: begun.set()).digest)

    thread = threading.Thread(target=build)
    thread.start()
    assert begun.wait(60)
    os.close(fd)
    thread.join(60)
    assert found == [recipe.build(store).digest]


def devices_here() -> str:
    """How many network devices this program sees, as grep would say it."""
    return f"{sum(':' in line for line in Path('/proc/net/dev').read_text().splitlines())}\n"


def test_a_step_has_no_network(store: Store) -> None:
    run = "RUN busybox cat /proc/net/dev | busybox grep -c : > /devices\n"
    assert tree(store, Dockerfile.parse(f"FROM base:1\n{run}").build(store))["devices"] == "1\n"
    if os.geteuid() == 0:
        text = f"FROM base:1\n{run.replace('RUN', 'RUN --network=host')}"
        wanted = Recipe("base:1").run("busybox cat /proc/net/dev | busybox grep -c : > /devices", network=True)
        for why, build in (
            ("control", lambda: Dockerfile.parse(text).build(store, network=True, cache=False)),
            ("a program's own recipe says it itself", lambda: wanted.build(store, cache=False)),
        ):
            # The kernel takes the devices of a network that has ended away a little later, and others come and go.
            seen = {devices_here()}
            for _ in range(10):
                found = tree(store, build())["devices"]
                seen.add(devices_here())
                if found in seen:
                    break
            assert found in seen, why


def test_a_dockerfile_gives_itself_no_network(store: Store) -> None:
    recipe = Dockerfile.parse("FROM base:1\nRUN --network=host true\n")
    with pytest.raises(BuildError, match="network=True"):
        recipe.build(store)
    default = "FROM base:1\nRUN --network=default busybox cat /proc/net/dev | busybox grep -c : > /devices\n"
    assert tree(store, Dockerfile.parse(default).build(store))["devices"] == "1\n"


def test_a_link_to_what_is_left_out_leads_nowhere(store: Store, context: Path) -> None:
    (context / "key").write_text("SECRET")
    (context / "pub").symlink_to("key")
    (context / "way").symlink_to(".")
    (context / ".dockerignore").write_text("key\n")
    attempts = (
        "COPY pub /x",
        "COPY way/key /x",
        "COPY p?b /x",
        "RUN --mount=type=bind,source=pub,target=/in cat /in/*",
    )
    for line in attempts:
        with pytest.raises(BuildError, match="leaves it out"):
            Dockerfile.parse(f"FROM base:1\n{line}\n").build(store, context)
    (context / ".dockerignore").unlink()
    assert tree(store, Dockerfile.parse("FROM scratch\nCOPY pub /x\n").build(store, context)) == {"x": "SECRET"}, (
        "control"
    )


def test_an_archive_cannot_bring_a_cached_step(tmp_path: Path) -> None:
    """The names of cached steps are another's in every store: one that came with an archive is not found."""
    if not os.path.exists(BUSYBOX):
        pytest.skip("busybox-static is not installed")
    recipe = Dockerfile.parse("FROM base:1\nRUN echo good > /made\n")
    keys = []
    for name in ("theirs", "ours"):
        with Store(tmp_path / name) as each:
            add_base(each)
            assert recipe.built(each).done == 1
            assert recipe.built(each).cached == 1, "control"
            keys.append({str(ref) for ref in each.tags() if "isolate-build-cache" in str(ref)})
    assert keys[0]
    assert not keys[0] & keys[1]


def test_a_file_cannot_pass_for_another_entry_in_a_key(store: Store, tmp_path: Path) -> None:
    """What one file holds is not taken for the next entry: two contexts of other files have other keys."""
    text = "FROM base:1\nRUN --mount=type=bind,target=/in busybox ls /in > /names\n"
    two, one = tmp_path / "two", tmp_path / "one"
    two.mkdir()
    one.mkdir()
    for name in ("a", "b"):
        (two / name).write_bytes(b"X" if name == "a" else b"Y")
        (two / name).chmod(0o644)
    assert tree(store, Dockerfile.parse(text).build(store, two))["names"] == "a\nb\n"
    for row in (b"(b'b', '0', 420, 0, 0, b'')", b"(b'b', b'0', 420, 0, 0, b'')", b"(b'b', 'file', 420, 0, 0, b'')"):
        (one / "a").write_bytes(b"X" + row + b"Y")
        (one / "a").chmod(0o644)
        assert tree(store, Dockerfile.parse(text).build(store, one))["names"] == "a\n"


def test_copies(store: Store, context: Path) -> None:
    def copied(line: str, *, base: str = "scratch", before: str = "") -> dict[str, str | None]:
        return tree(store, Dockerfile.parse(f"FROM {base}\n{before}{line}\n").build(store, context))

    assert copied("COPY a.txt /x") == {"x": "hello\n"}
    assert copied("COPY a.txt /x/") == {"x/": None, "x/a.txt": "hello\n"}
    assert copied("COPY sub /x") == {"x/": None, "x/c.txt": "c\n", "x/deep/": None, "x/deep/d.txt": "d\n"}
    assert copied("COPY a.txt sub /x/")["x/c.txt"] == "c\n"
    assert copied("COPY su?/*.txt /x/") == {"x/": None, "x/c.txt": "c\n"}
    assert copied("COPY --parents sub/deep/d.txt /x/")["x/sub/deep/d.txt"] == "d\n"
    assert "c.txt" not in copied("COPY --exclude=*.txt sub /")
    assert copied("COPY a.txt b", before="WORKDIR /w\n")["w/b"] == "hello\n"
    # A link of the base is followed, beneath its root.
    link = "RUN busybox rm -r /usr/bin; busybox ln -s /opt/tools /usr/bin; busybox mkdir -p /opt/tools\n"
    shown = copied("COPY a.txt /usr/bin/", base="base:1", before=link)
    assert shown["opt/tools/a.txt"] == "hello\n"
    assert shown["usr/bin"] == "-> /opt/tools"
    for line, words in {
        "COPY a.txt sub /x": "several sources go into a directory",
        "COPY none /": "there is no /none",
        "COPY *.none /": "nothing matches",
        "COPY b.log /": ".dockerignore leaves it out",
        "COPY sub/c.txt /etc": "",
        "COPY --chown=nobody a.txt /": "nobody",
    }.items():
        if words:
            with pytest.raises(BuildError, match=words):
                copied(line, base="base:1")
    with pytest.raises(BuildError, match="there is no context"):
        Dockerfile.parse("FROM scratch\nCOPY a /\n").build(store)


def test_a_directory_of_which_a_part_is_taken_back_in(store: Store, context: Path) -> None:
    """``*`` and then ``!what/is/wanted``: the directories on the way are there."""

    def copied(source: str, *ignore: str) -> set[str]:
        where = Context(context, ignore=ignore)
        return set(tree(store, Dockerfile.parse(f"FROM scratch\nCOPY {source} /x/\n").build(store, where)))

    some = {"x/", "x/deep/", "x/deep/d.txt"}
    for source in ("sub", "sub/", "*", "s*"):
        assert copied(source, "*", "!sub/deep/**") == some, source
    assert copied("sub/deep", "*", "!sub/deep/**") == {"x/", "x/d.txt"}
    assert copied("*", "*", "!sub/deep/**", "!a.txt") == {*some, "x/a.txt"}
    for source, words in {"sub": "leaves it out", "*": "nothing matches", "a.txt": "leaves it out"}.items():
        with pytest.raises(BuildError, match=words):
            copied(source, "*", "!sub/none/**")


def test_wildcards(store: Store, context: Path) -> None:
    (context / "!odd.txt").write_text("!")

    def copied(line: str) -> set[str]:
        return set(tree(store, Dockerfile.parse(f"FROM scratch\nCOPY {line} /x/\n").build(store, context)))

    assert copied("a.txt yarn.lock* none?.json") == {"x/", "x/a.txt"}, "one of several may match nothing"
    assert copied("!*.txt") == {"x/", "x/!odd.txt"}, "no exception, but a name"
    with pytest.raises(BuildError, match="none"):
        copied("a.txt none")


def test_ports(store: Store) -> None:
    def ports(line: str) -> tuple[str, ...] | None:
        return Dockerfile.parse(f"FROM base:1\nARG P=81\nEXPOSE {line}\n").build(store).config.ports

    assert ports("8000-8002 $P 53/UDP") == ("53/udp", "8000/tcp", "8001/tcp", "8002/tcp", "81/tcp")
    for wrong in ("http", "99999", "80-70", "80/what", "8080:80", "-1"):
        with pytest.raises(BuildError, match="is no port"):
            ports(wrong)


def test_no_link_leads_out_of_the_context(store: Store, context: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("SECRET")
    (context / "out").symlink_to(tmp_path / "outside")
    (context / "up").symlink_to("../outside")
    (context / "inside").symlink_to("a.txt")
    (context / "dir").symlink_to("..")
    os.mkfifo(context / "pipe")
    for source in ("out", "up", "dir/outside", "../outside", "/../outside"):
        with pytest.raises(BuildError, match="there is no"):
            Dockerfile.parse(f"FROM scratch\nCOPY {source} /x\n").build(store, context)
    pipe = Dockerfile.parse("FROM scratch\nCOPY pipe /x\n").build(store, context)  # nobody waits for its other end
    assert pipe.layers
    (context / "pipe").unlink()
    shown = tree(store, Dockerfile.parse("FROM scratch\nCOPY inside /x\nCOPY . /all\n").build(store, context))
    assert shown["x"] == "hello\n", "control"
    assert shown["all/up"] == "-> ../outside"


def test_links_to_directories_of_the_context(store: Store, context: Path, tmp_path: Path) -> None:
    """They are followed before a wildcard and not behind one, and none leads out (as BuildKit's fsutil has it)."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "c.txt").write_text("SECRET")
    (context / "link").symlink_to("sub")
    (context / "again").symlink_to("/link")
    (context / "sub/up").symlink_to("../..")
    (context / "out").symlink_to(outside)
    (context / "far").symlink_to("../outside")

    def copied(line: str) -> dict[str, str | None]:
        return tree(store, Dockerfile.parse(f"FROM scratch\nCOPY {line} /x/\n").build(store, context))

    for line in ("link/*.txt", "again/c.*", "sub/up/sub/*.txt", "./link/../link/*.txt"):
        assert copied(line) == {"x/": None, "x/c.txt": "c\n"}, line
    assert copied("link/d*p/*.txt") == {"x/": None, "x/d.txt": "d\n"}
    with pytest.raises(BuildError, match="nothing matches"):
        copied("l*k/*.txt")
    for line in ("out/*.txt", "far/*.txt", "sub/up/outside/*.txt"):
        with pytest.raises(BuildError, match=r"there is no|nothing matches"):
            copied(line)
    # A link that is left out leads nowhere, and neither does one to a directory that is.
    for left_out, line in (("link", "link/*.txt"), ("link", "link/c.txt"), ("sub", "link/*.txt")):
        (context / ".dockerignore").write_text(left_out)
        with pytest.raises(BuildError, match=r"leaves it out|nothing matches"):
            copied(line)


def test_the_directories_that_a_source_lies_in(store: Store, context: Path) -> None:
    """``--parents``: those behind ``/./``, with their modes; ``**`` is any number of them."""
    (context / "sub/deep").chmod(0o700)
    (context / "link").symlink_to("sub")

    def copied(line: str) -> set[str]:
        shown = tree(store, Dockerfile.parse(f"FROM scratch\nCOPY --parents {line} /x/\n").build(store, context))
        return {path for path, text in shown.items() if text is not None}

    assert copied("a.txt sub/c.txt") == {"x/a.txt", "x/sub/c.txt"}
    assert copied("./sub/./deep/*.txt") == {"x/deep/d.txt"}
    assert copied("link/./deep") == {"x/deep/d.txt"}
    assert copied("s*/./c.txt") == {"x/c.txt"}
    assert copied("**/*.txt") == {"x/a.txt", "x/sub/c.txt", "x/sub/deep/d.txt"}
    assert copied("--exclude=**/deep sub") == {"x/sub/c.txt"}
    assert copied("link/c.txt") == {"x/link/c.txt"}
    for line, words in {"none/a": "there is no", "no*ne": "nothing matches", "sub/./none": "there is no"}.items():
        with pytest.raises(BuildError, match=words):
            copied(line)
    image = Dockerfile.parse("FROM scratch\nCOPY --parents sub/deep/d.txt /\n").build(store, context)
    with image.layers[-1].open() as file, tarfile.open(fileobj=io.BytesIO(file.read())) as archive:
        assert archive.getmember("sub/deep").mode == 0o700


def test_the_name_of_a_here_document_is_a_file_s(store: Store) -> None:
    """A directory in it is refused as the file is read; one that leads to the top is none (as BuildKit has it)."""

    def text(name: str, target: str = "/d/") -> str:
        return f"FROM scratch\nCOPY <<{name} {target}\nhi\n{name}\n"

    for name in ("x", "../x", "/x", "./x", "a/../x"):
        assert tree(store, Dockerfile.parse(text(name)).build(store))["d/x"] == "hi\n", name
    assert tree(store, Dockerfile.parse(text("$x") + "ENV x=y\n").build(store))["d/$x"] == "hi\n"
    for name in ("a/x", "..", ".", "/", "a\0b"):
        with pytest.raises(DockerfileError, match=r"line 2: COPY: .*COPY <<NAME /directory/"):
            Dockerfile.parse(text(name, "/file"))


def test_archives_are_unpacked_by_add(checked: Store, context: Path) -> None:
    def archive(name: str, members: dict[str, bytes]) -> None:
        with tarfile.open(context / name, "w:gz") as file:
            for path, data in members.items():
                info = tarfile.TarInfo(path)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))

    archive("good.tar.gz", {"x/y": b"y", "z": b"z"})
    archive("evil.tar.gz", {"../escape": b"x"})
    shown = tree(checked, Dockerfile.parse("FROM scratch\nADD good.tar.gz /in/\n").build(checked, context))
    assert {path: text for path, text in shown.items() if text} == {"in/x/y": "y", "in/z": "z"}
    assert list(tree(checked, Dockerfile.parse("FROM scratch\nCOPY good.tar.gz /\n").build(checked, context))) == [
        "good.tar.gz"
    ]
    with pytest.raises(BuildError, match=r"'\.\.' in the name"):
        Dockerfile.parse("FROM scratch\nADD evil.tar.gz /\n").build(checked, context)


def test_onbuild_shell_and_the_rest(store: Store, context: Path) -> None:
    Dockerfile.parse(
        'FROM base:1\nSHELL ["/bin/sh", "-ec"]\nONBUILD COPY a.txt /onbuild\nEXPOSE 80 53/udp\nVOLUME /data\n'
        "ENTRYPOINT echo a\nHEALTHCHECK --interval=5s CMD true\nSTOPSIGNAL SIGINT\n"
    ).build(store, context, name="parent:1")
    words = [step.created_by for step in store.open("parent:1").history]
    assert {"EXPOSE 80 53/udp", 'VOLUME ["/data"]', "STOPSIGNAL SIGINT"} <= set(words)
    image = Dockerfile.parse("FROM parent:1\nENV X=$PATH:/more\nCMD b\n").build(store, context)
    config = image.config
    assert tree(store, image)["onbuild"] == "hello\n"
    assert config.on_build in (None, ())
    assert (config.ports, config.volumes, config.stop_signal) == (("53/udp", "80/tcp"), ("/data",), "SIGINT")
    assert config.entrypoint == ("/bin/sh", "-ec", "echo a")
    assert config.cmd == ("/bin/sh", "-ec", "b")
    assert config.environment["X"] == "/bin:/more"
    assert config.health is not None
    assert config.health.interval == 5.0


def test_a_recipe_in_python(store: Store, context: Path) -> None:
    base = Recipe("base:1").env(PATH="/bin").workdir("/app").copy(Context(context), "sub", target="in/", mode=0o600)
    recipe = base.run(["busybox", "sh", "-c", "echo $PATH > path"]).cmd("sh").label(a="b")
    assert recipe == base.run(["busybox", "sh", "-c", "echo $PATH > path"]).cmd("sh").label(a="b")
    image = recipe.build(store)
    assert tree(store, image)["app/path"] == "/bin\n"
    assert tree(store, image)["app/in/c.txt"] == "c\n"
    final = Recipe(recipe).user("me").build(store)
    assert final.config.user == "me"
    assert final.diffids == image.diffids
    # In a program a dollar is a dollar.
    assert Recipe("base:1").env(A="$PATH").build(store).config.environment["A"] == "$PATH"
    text = recipe.explain(store)
    assert "no network" in text
    assert "stage 0: on base:1 (sha256:" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM base:1\nRUN echo to-be-seen; exit 3\n", r"line 2: RUN echo.*EXITED \(3\)\nto-be-seen"),
        ("FROM none:1\n", "the store has no image none:1"),
        ("FROM $X\n", "a variable in it has no value"),
        ("FROM base:1\nCOPY --from=none /a /\n", "no image none"),
        ("FROM base:1\nRUN cat <<EOF\n", "is not ended"),
        ('FROM base:1\nENV A="${B:?must be set}"\n', "must be set"),
        ("ENV A=1\nFROM base:1\n", "only ARG may stand"),
        ("FROM base:1 AS a\nFROM base:1 AS a\n", "two stages named a"),
        ("FROM base:1\nCOPY --from=3 a /\n", "only stages before"),
        ("ARG A=1\n", "there is no FROM"),
    ],
)
def test_refused(text: str, message: str, store: Store, context: Path) -> None:
    with pytest.raises((BuildError, DockerfileError), match=message):
        Dockerfile.parse(text).build(store, context)


def test_arguments_that_nothing_asks_for(store: Store) -> None:
    recipe = Dockerfile.parse("FROM base:1\nARG A\n")
    with pytest.raises(BuildError, match="no ARG asks for B"):
        recipe.build(store, args={"B": "1"})
    recipe.build(store, args={"A": "1", "http_proxy": "http://x"})
    with pytest.raises(BuildError, match="there is no stage 'x'"):
        recipe.build(store, target="x")


def test_two_builds_at_once(checked: Store, context: Path) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(Dockerfile.parse(WHOLE).build(checked, context).digest))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 2
    assert len(set(found)) == 1


def test_nothing_stays_open(store: Store, context: Path) -> None:
    Dockerfile.parse(SMALL).build(store, context)
    before = Snapshot.take()
    for _ in range(2):
        Dockerfile.parse(SMALL).build(store, context, cache=False)
        with pytest.raises(BuildError):
            Dockerfile.parse("FROM base:1\nRUN exit 1\n").build(store)
    before.compare()


def test_published_dockerfiles_are_recipes() -> None:
    if not ROOT.exists():
        pytest.skip("shared/corpora is not beside the checkout")
    files = [p for name in ("dockerfiles-official", "dockerfiles-scratch") for p in (ROOT / name).rglob("*Dockerfile*")]
    assert len(files) > 30
    for path in files:
        assert Dockerfile.parse(path.read_bytes()).explain(), path


def digest_of_a_build(place: str) -> str:
    """For an ordinary user: the digest of the whole example."""
    context = Path(place, "context")
    (context / "sub").mkdir(parents=True)
    (context / "a.txt").write_text("hello\n")
    (context / "a.txt").chmod(0o644)
    (context / "sub").chmod(0o755)
    with Store(Path(place, "store")) as store:
        add_base(store)
        return Dockerfile.parse(SMALL).build(store, context).digest


@pytest.mark.root
def test_the_same_digest_as_an_ordinary_user(tmp_path: Path) -> None:
    if not os.path.exists(BUSYBOX):
        pytest.skip("busybox-static is not installed")
    root = Path(__file__).parents[2]
    printed = as_ordinary_user(
        f"import sys, tempfile; sys.path.insert(0, {str(root)!r})\n"
        "from tests.build.test_build import digest_of_a_build\n"
        "with tempfile.TemporaryDirectory() as place: print(digest_of_a_build(place))"
    )
    assert printed.strip() == digest_of_a_build(str(tmp_path))


CAPABILITY = b"\1\0\0\2" + bytes([0, 0x20]) + bytes(14)  # cap_net_raw=ep
TREE = {"SCHILY.xattr.security.capability": CAPABILITY.decode("latin-1"), "SCHILY.xattr.user.note": "kept"}
FOREIGN = {"SCHILY.xattr.security.selinux": "system_u:object_r:bin_t:s0"}


def with_attributes() -> bytes:
    """The archive of a layer: attributes that a tree holds and one that it does not, and two names of one file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, records in {"d/ping": TREE, "d/plain": {}, "d/labelled": FOREIGN}.items():
            info = tarfile.TarInfo(name)
            info.mode, info.size, info.pax_headers = 0o755, 4, records
            archive.addfile(info, io.BytesIO(b"else" if name == "d/plain" else b"data"))
        info = tarfile.TarInfo("d/again")
        info.type, info.linkname = tarfile.LNKTYPE, "d/ping"
        archive.addfile(info)
    return out.getvalue()


def copies_of_attributes(place: str) -> tuple[list[str], list[bytes]]:
    """Digests and archives of layers that COPY and ADD make of these files; also run by an ordinary user."""
    context = Path(place, "context")
    context.mkdir()
    (context / "a.tar").write_bytes(with_attributes())
    digests, archives = [], []
    for share in (False, True):
        with Store(Path(place, f"store-{share}"), share=share) as store:
            # What is shared is a link to what another layer has: d/labelled, of which the tree does not hold the label.
            base = Image.empty() + of_archive(with_attributes())
            base = base + Layer.files({"d/plain": b"data"}, mode=0o755)
            store.add(base, "attributes:1")
            for text in ("COPY --from=attributes:1 /d /to", "COPY --from=attributes:1 /d/ping /p", "ADD a.tar /"):
                built = Dockerfile.parse(f"FROM scratch\n{text}\n").build(store, context)
                digests.append(built.digest)
                with built.layers[-1].open() as file:
                    archives.append(file.read())
    return digests, archives


@pytest.mark.root
def test_attributes_and_hard_links_are_copied_alike_by_root_and_an_ordinary_user(tmp_path: Path) -> None:
    digests, archives = copies_of_attributes(str(tmp_path))
    assert digests[3:] == digests[:3], "a shared store, in which equal files of two layers are one, makes no difference"
    root = Path(__file__).parents[2]
    printed = as_ordinary_user(
        f"import sys, tempfile; sys.path.insert(0, {str(root)!r})\n"
        "from tests.build.test_build import copies_of_attributes\n"
        "with tempfile.TemporaryDirectory() as place: print(copies_of_attributes(place)[0])"
    )
    assert printed.strip() == repr(digests)
    for data, top in ((archives[0], "to/"), (archives[3], "to/"), (archives[2], "d/")):
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            rows = {row.name: row for row in archive}
        assert rows[top + "again"].pax_headers == TREE, "the first name has the attributes"
        assert (rows[top + "ping"].type, rows[top + "ping"].linkname) == (tarfile.LNKTYPE, top + "again")
        assert rows[top + "labelled"].pax_headers == FOREIGN
        assert rows[top + "plain"].pax_headers == {}, "control"
        assert rows[top + "plain"].isreg(), "control: equal contents alone make no link"
    with tarfile.open(fileobj=io.BytesIO(archives[1])) as archive:
        (row,) = archive
        assert row.isreg(), "of a file with another name elsewhere"
        assert row.pax_headers == TREE


def test_hard_links_of_a_context_are_kept_and_attributes_are_in_the_key(store: Store, context: Path) -> None:
    os.link(context / "a.txt", context / "sub/a.txt")
    built = Dockerfile.parse("FROM scratch\nCOPY . /\n").build(store, context)
    with built.layers[-1].open() as file, tarfile.open(fileobj=file) as archive:
        rows = {row.name: row for row in archive}
    assert (rows["sub/a.txt"].type, rows["sub/a.txt"].linkname) == (tarfile.LNKTYPE, "a.txt")
    assert rows["sub/c.txt"].isreg(), "control"
    assert tree(store, built)["sub/a.txt"] == "hello\n"
    alone = Dockerfile.parse("FROM scratch\nCOPY sub /\n").build(store, context)
    assert tree(store, alone)["a.txt"] == "hello\n"

    def key() -> str:
        plan = Plan(None)
        with Context(context).open() as files:
            copy_into(plan, files, [b""], b"", directory=True)
            return plan.digest()

    before = key()
    assert key() == before
    try:
        os.setxattr(context / "sub/c.txt", "user.note", b"x")
    except OSError:
        pytest.skip("the file system has no user.* attributes")
    assert key() != before


def test_explain_knows_stages_and_what_the_store_lacks(store: Store) -> None:
    text = """
    FROM base:1 AS first
    FROM first
    FROM nobody/has:1
    FROM 0
    """
    said = Dockerfile.parse(text).explain(store).splitlines()
    stages = [line for line in said if line.startswith("stage")]
    assert stages[0].startswith("stage 0 first: on base:1 (sha256:")
    assert stages[1:] == [
        "stage 1: on first (stage 0)",
        "stage 2: on nobody/has:1 (not in the store)",
        "stage 3: on 0 (stage 0)",
    ]


def test_what_is_refused_before_the_first_step(store: Store) -> None:
    begun: list[object] = []
    with pytest.raises(ValueError, match="UPPER"):
        Recipe("base:1").run(["/bin/sh", "-c", ":"]).build(store, name="x/UPPER", progress=begun.append)
    assert begun == []
    with pytest.raises(BuildError, match="no file yet, so there is nothing to run"):
        Recipe().run(["true"]).build(store)
    with (
        Store(store.path, read_only=True) as closed,
        pytest.raises(BuildError, match=f"the store {store.path} is read"),
    ):
        Recipe("base:1").build(closed)


def test_the_command_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err == f"isolate: there is no directory {tmp_path}/nowhere\n"
    assert main(["build", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"isolate: there is no {tmp_path}/Dockerfile; --file FILE names the Dockerfile\n"
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    words = ["build", "--store", str(tmp_path / "store"), "--secret", "id=a,env=ISOLATE_NO_SUCH", str(tmp_path)]
    assert main(words) == 1
    assert capsys.readouterr().err == "isolate: --secret id=a: there is no variable 'ISOLATE_NO_SUCH'\n"


def test_what_a_step_wrote_is_shown_once(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "Dockerfile").write_text("FROM base:1\nRUN echo once; exit 3\n")
    for more in ([], ["--quiet"]):
        assert main(["build", "--store", store.path, *more, str(tmp_path)]) == 1
        err = capsys.readouterr().err
        assert err.splitlines().count("once") == 1
        assert "ended with EXITED (3)" in err


def test_a_reader_of_the_steps_that_has_gone_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nENV A=b\n")
    read, write = os.pipe()
    os.close(read)
    try:
        words = ["-m", "isolate", "build", "--store", str(tmp_path / "store"), "--explain", str(tmp_path)]
        done = subprocess.run([sys.executable, "-u", *words], stdout=write, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (130, b"")
