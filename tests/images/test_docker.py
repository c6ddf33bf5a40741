"""Docker as a peer: it runs what this library pushes and saves, this library runs what it pushes and saves, and both
unpack one archive into the same tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolate import Capabilities, presets
from isolate.images import Config, Image, Layer, Store
from tests.hosts import Missing, docker_daemon
from tests.images.archives import tree_of
from tests.images.make import of_archive
from tests.images.test_differential import ours, together, without_empty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BUSYBOX = shutil.which("busybox")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="Docker's daemon is root's"),
    pytest.mark.skipif(BUSYBOX is None, reason="the images of these tests are made of a static busybox"),
]


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    """A short path: the daemon puts sockets there."""
    with tempfile.TemporaryDirectory(prefix="isolate-docker-") as place:
        yield Path(place)


@pytest.fixture(scope="module")
def docker(top: Path) -> Iterator[Callable[..., bytes]]:
    """The client of a daemon of our own."""
    for name in ("dockerd", "docker"):
        if shutil.which(name) is None:
            reason = f"{name} (Debian's docker.io) is not installed"
            if os.environ.get("ISOLATE_REQUIRE_KERNEL") == "1":
                pytest.fail(reason)
            pytest.skip(reason)

    try:
        with docker_daemon(top) as command:

            def run(*words: str) -> bytes:
                done = subprocess.run([*command, *words], capture_output=True, check=False, timeout=120)
                assert done.returncode == 0, (words, done.stderr)
                return done.stdout

            yield run
    except Missing as error:
        pytest.skip(str(error))


def box() -> Image:
    """An image with a program, files of another owner, a user, variables and an entry point."""
    assert BUSYBOX is not None
    program = Layer.files({"bin/busybox": Path(BUSYBOX).read_bytes(), "srv/": b""}, mode=0o755)
    users = Layer.files({"etc/passwd": "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n"})
    mine = Layer.files({"home/me/": b"", "home/me/note": b"note\n"}, uid=1000, gid=1000, mode=0o700)
    config = Config(
        entrypoint=("/bin/busybox", "sh", "-c"), env={"PATH": "/bin", "WORD": "said"}, user="me", workdir="/home/me"
    )
    return (Image.empty() + program + users + mine).with_(config)


LINE = 'echo $WORD; busybox id -u; busybox pwd; busybox cat note; busybox stat -c "%u:%g:%a" note'
SEEN = b"said\n1000\n/home/me\nnote\n1000:1000:700\n"
RUN = ("run", "--rm", "--network", "none")


def test_docker_runs_what_is_pushed_and_saved(
    docker: Callable[..., bytes], store: Store, registry: str, tmp_path: Path
) -> None:
    made = store.add(box(), "localhost/saved:1")
    assert presets.container(made, store=store).run([LINE]).stdout == SEEN, "by this library"
    store.save("localhost/saved:1", tmp_path / "saved", format="docker-archive")
    docker("load", "-q", "-i", str(tmp_path / "saved"))
    assert docker(*RUN, "localhost/saved:1", LINE) == SEEN
    assert docker("image", "inspect", "-f", "{{.Id}}", "localhost/saved:1").decode().strip() == made.id
    docker("image", "rm", "-f", "localhost/saved:1")
    for compression in ("gzip", "none"):
        name = f"{registry}/docker/pushed:{compression}"
        store.push(made, name, compression=compression)
        docker("pull", "-q", name)
        assert docker(*RUN, name, LINE) == SEEN, compression
        assert docker("image", "inspect", "-f", "{{.Id}}", name).decode().strip() == made.id
        docker("image", "rm", "-f", name)


def test_what_docker_pushes_and_saves_is_run(
    docker: Callable[..., bytes], store: Store, other: Store, registry: str, tmp_path: Path
) -> None:
    store.add(box(), "localhost/base:1")
    store.save("localhost/base:1", tmp_path / "base", format="docker-archive")
    docker("load", "-q", "-i", str(tmp_path / "base"))
    # A layer of Docker's own: a new file, a changed one, one that is gone, a link and a directory that was replaced.
    change = (
        "busybox mkdir sub; echo new > sub/new; busybox ln sub/new sub/same; busybox ln -s sub/new link;"
        " busybox rm note; echo changed > /srv/changed; busybox chmod 4755 sub/new"
    )
    name = f"{registry}/docker/own:1"
    docker("run", "--name", "changed", "--network", "none", "--user", "0", "localhost/base:1", change)
    docker("commit", "changed", name)
    docker("rm", "changed")
    docker("push", "-q", name)
    docker("save", "-o", str(tmp_path / "saved"), name)
    pulled = other.pull(name)
    (loaded,) = store.load(tmp_path / "saved")
    assert pulled.diffids == loaded.diffids
    assert pulled.id == loaded.id == docker("image", "inspect", "-f", "{{.Id}}", name).decode().strip()
    assert pulled.config.user in ("0", "root", "me")
    look = 'busybox ls; busybox cat link /srv/changed; busybox stat -c "%h %a" sub/same; echo $WORD'
    seen = docker(*RUN, name, look)
    assert seen == b"link\nsub\nnew\nchanged\n2 4755\nsaid\n"
    for each, image in ((other, pulled), (store, loaded)):
        own = presets.container(image, Capabilities.docker(), store=each)
        assert own.run([look]).stdout == seen
        assert each.check(deep=True) == []


def as_docker(row: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """Without attributes that have no value, as in all that is written in Go; without capabilities of linked files.

    Docker gives the owner once more for each further name of a file, and the kernel takes capabilities away then.
    """
    row = without_empty(row)
    if row is None or row[7] is None:
        return row
    return (*row[:6], {key: value for key, value in row[6].items() if key != "security.capability"}, *row[7:])


def test_docker_makes_the_same_tree(docker: Callable[..., bytes], store: Store, top: Path, tmp_path: Path) -> None:
    """A thousand cases in one layer: Docker's own archive code is the reference."""
    data = together(1000)
    store.add(Image.empty() + of_archive(data), "localhost/cases:1", unpack=False)
    store.save("localhost/cases:1", tmp_path / "cases", format="docker-archive")
    docker("load", "-q", "-i", str(tmp_path / "cases"))
    (tmp_path / "ours").mkdir()
    ours(data, tmp_path / "ours")
    (layer,) = json.loads(docker("image", "inspect", "localhost/cases:1"))[0]["RootFS"]["Layers"]
    cached = top / "data/image/vfs/layerdb/sha256" / layer.partition(":")[2] / "cache-id"
    mine, theirs = tree_of(tmp_path / "ours"), tree_of(top / "data/vfs/dir" / cached.read_text())
    rows = {path: (mine.get(path), theirs.get(path)) for path in {*mine, *theirs} if path}
    different = {path: row for path, row in rows.items() if as_docker(row[0]) != row[1]}
    assert different == {}
    assert len(mine) > 3000
