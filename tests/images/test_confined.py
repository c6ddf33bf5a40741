"""The child that works on hostile bytes: what it can reach, what it leaves behind, that it goes with its owner."""

from __future__ import annotations

import io
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import UserNamespace
from isolate.images import LayerError, StoreError, extract
from isolate.images.confined import python
from isolate.images.confined.maps import map_for
from isolate.images.confined.start import box_for, confined
from tests.images.archives import Maker
from tests.login import make_login_user
from tests.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.login import Login

ATTEMPTS = """
import os, socket, sys
place, secret, port, pid = sys.argv[1:]
def attempt(name, do):
    try:
        do()
        print(name)
    except OSError:
        pass
attempt("read", lambda: open(secret).read())
attempt("list", lambda: os.listdir(os.path.dirname(secret)))
attempt("write", lambda: open(os.path.dirname(secret) + "/made", "w"))
attempt("chmod", lambda: os.chmod(secret, 0o666))
attempt("connect", lambda: socket.create_connection(("127.0.0.1", int(port)), 2))
attempt("signal", lambda: os.kill(int(pid), 0))
attempt("target", lambda: open(place + "/made", "w"))
"""


def test_what_it_can_reach(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "secret").write_text("secret")
    box = box_for(map_for(None), (os.fsencode(target),), (), False)
    fd = os.open(target, os.O_RDONLY)
    with socket.create_server(("127.0.0.1", 0)) as server:
        arguments = [str(tmp_path / "secret"), str(server.getsockname()[1]), str(os.getpid())]
        program = [python.command()[0], "-I", "-S", "-c", ATTEMPTS]
        inside = box.run([*program, "/proc/self/fd/3", *arguments], pass_fds={3: fd}, text=True)
        outside = subprocess.run([*program, str(target), *arguments], capture_output=True, text=True, check=True)
    os.close(fd)
    assert inside.stdout == "target\n", inside.stderr
    assert outside.stdout.split() == ["read", "list", "write", "chmod", "connect", "signal", "target"]


def test_an_answer_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from isolate.images.confined import start

    for code in ("print('no json')", "print('[1]')", "print('{}')", "print('{\"layer\": 5}')", "raise SystemExit(3)"):
        command = [python.command()[0], "-I", "-S", "-c", code]
        monkeypatch.setattr(start.python, "command", lambda *_, command=command: command)
        with pytest.raises(StoreError):
            confined("extract", {}, ids=map_for(None), fds={})


def test_a_deadline(tmp_path: Path) -> None:
    """An archive that never comes to its end."""
    read, write = os.pipe()
    fd = os.open(tmp_path, os.O_RDONLY)
    os.write(write, Maker().file("a", b"x").data)
    with pytest.raises(StoreError, match="TIMEOUT"):
        extract(read, fd, timeout=0.5)
    for each in (read, write, fd):
        os.close(each)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    good, bad = Maker().file("a", b"x").file("b/c").done(), Maker().file("../a").done()

    def once(number: int) -> None:
        for name, data in (("good", good), ("bad", bad)):
            place = tmp_path / f"{name}{number}"
            place.mkdir()
            fd = os.open(place, os.O_RDONLY)
            try:
                extract(io.BytesIO(data), fd)
            except LayerError:
                assert name == "bad"
            finally:
                os.close(fd)

    once(0)
    before = Snapshot.take()
    for number in range(1, 6):
        once(number)
    before.compare()


def test_it_goes_with_a_program_that_is_killed(tmp_path: Path) -> None:
    read, write = os.pipe()
    code = "import os, sys; from isolate.images import extract; extract(0, os.open(sys.argv[1], os.O_RDONLY))"
    program = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=read)
    os.close(read)
    os.write(write, Maker().file("first", b"x").data)
    # The child reads on while it waits for more; it has made the file when it is at work.
    for _ in range(1500):
        if (tmp_path / "first").exists():
            break
        select.select([], [], [], 0.02)
    assert (tmp_path / "first").exists()
    program.send_signal(signal.SIGKILL)
    program.wait()
    poll = select.poll()
    poll.register(write, 0)
    assert poll.poll(10_000), "nobody should hold the other end any more"
    os.close(write)


@pytest.fixture
def login() -> Iterator[Login]:
    yield from make_login_user()


def test_a_login_user_with_subordinate_ids(login: Login) -> None:
    """Owners of an image are those ids, and a change keeps them."""
    if not Path("/usr/bin/newuidmap").exists():
        pytest.skip("newuidmap is not installed")
    first = 700_000_000 + (os.getpid() % 1000) * 100_000
    login.change("--add-subuids", f"{first}-{first + 65535}")
    login.change("--add-subgids", f"{first}-{first + 65535}")
    out = login.python("""
import os, shutil, tempfile
from pathlib import Path
from isolate import *
from isolate.images import *
from isolate.images.pack.start import remove
ids = IdMap.subordinate()
with tempfile.TemporaryDirectory() as place:
    with Store(place + "/store", map=ids) as store:
        files = {"bin/busybox": Path(shutil.which("busybox")).read_bytes()}
        layers = Layer.files(files, mode=0o755), Layer.files({"home/u/x": "x"}, uid=1000, gid=1001, mode=0o600)
        image = store.add(Image.empty() + layers[0] + layers[1])
        with Upper(store) as upper:
            root = Root(ImageRoot(image, store=store, writable=upper), Proc(), Dev())
            caps = Capabilities.docker()
            box = Sandbox(UserNamespace(map=ids), PidNamespace(), root, caps)
            script = "busybox chmod 640 /home/u/x; echo y > /y; busybox chown 33:34 /y; busybox stat -c %u:%g /home/u/x"
            result = box.run(["/bin/busybox", "sh", "-ec", script], env={"PATH": "/bin"})
            assert result.stdout == b"1000:1001\\n", result
            layer = upper.commit()
        image = store.add(image + layer)
        box = Sandbox(UserNamespace(map=ids), PidNamespace(), Root(ImageRoot(image, store=store), Proc(), Dev()))
        result = box.run(["/bin/busybox", "stat", "-c", "%u:%g %a", "/home/u/x", "/y"])
        print(result.stdout.decode())
        lease, trees = store.lease(image)
        assert os.stat("home", dir_fd=trees[1]).st_uid == os.getuid()
        lease.close()
    top = os.open(place, os.O_RDONLY)
    remove(top, "store", map=ids)
    assert os.listdir(place) == []
""")
    assert out.split() == ["1000:1001", "640", "33:34", "644"]


def test_a_map_without_root_is_refused(tmp_path: Path) -> None:
    from isolate import IdMap

    with pytest.raises(ValueError, match="needs the ids 0"):
        extract(io.BytesIO(b""), os.open(tmp_path, os.O_RDONLY), map=IdMap([(5, 5, 1)], [(5, 5, 1)]))
    assert UserNamespace
