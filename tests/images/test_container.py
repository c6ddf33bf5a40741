"""Containers of images: the configuration holds, as root and as an ordinary user."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import (
    Bind,
    ConflictError,
    IdMap,
    IsolateError,
    Proc,
    Root,
    Sandbox,
    Surroundings,
    Tmpfs,
    UserNamespace,
    presets,
)
from isolate.images import Config, Image, ImageError, ImageRoot, Layer, Store, Upper
from isolate.images.accounts import account
from isolate.sandbox.defaults import DEFAULT_PATH
from tests.images.make import of_archive
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator

BUSYBOX = Path("/bin/busybox")
PASSWD = "root:x:0:0::/root:/bin/sh\nweb:x:33:34:Web:/srv/web:/bin/sh\n1234:x:40:41::/:/\nbroken:x:no:1::/:/\nshort:x\n"
GROUP = "root:x:0:\nstaff:x:50:web,other\nweb:x:34:\n"
CONFIG = Config(
    user="web",
    env={"A": "from the image", "PATH": "/bin"},
    workdir="/srv",
    entrypoint=("/bin/sh", "-c"),
    cmd=("echo $A; pwd",),
    volumes=["/srv/data"],
)

if not BUSYBOX.exists():
    pytest.skip("busybox (Debian's busybox-static) is not installed", allow_module_level=True)


def make() -> Image:
    program = Layer.files({"bin/busybox": BUSYBOX.read_bytes()}, mode=0o755)
    files = Layer.files({"etc/passwd": PASSWD, "etc/group": GROUP, "srv/data/old": b"1", "srv/a": b"file\n"})
    places = Layer.files({f"{name}/": b"" for name in ("proc", "dev", "tmp", "run")})
    return (Image.empty() + program + files + places).with_(CONFIG)


@pytest.fixture(scope="module")
def place() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="isolate-images-") as directory:
        yield directory


@pytest.fixture(scope="module")
def shared(place: str) -> Iterator[Store]:
    with Store(f"{place}/store") as store:
        store.add(make(), "me/box:1")
        yield store


def sh(line: str) -> list[str]:
    return ["/bin/busybox", "sh", "-c", line]


def test_the_configuration_holds(shared: Store) -> None:
    image = shared.open("me/box:1").with_(Config(entrypoint=("/bin/busybox", "sh", "-c")))
    box = presets.container(image, store=shared)
    line = "echo $A; pwd; busybox id -u; busybox id -g; echo $HOME"
    result = box.run([line], text=True)
    assert (result.stdout or "").split("\n")[:2] == ["from the image", "/srv"], result
    assert (result.stdout or "").split("\n")[2:5] == ["33", "34", "/srv/web"]
    assert (box.run([], text=True).stdout or "").split() == ["from", "the", "image", "/srv"]  # the image's own cmd
    # What a start says itself comes first.
    result = box.run(["echo $A; pwd"], env={"A": "mine", "PATH": "/bin"}, cwd="/", text=True)
    assert result.stdout == "mine\n/\n"
    assert box.run(["busybox touch /new && busybox ls /new"], text=True).returncode != 0  # web may not write to /
    assert (box.run(["busybox cat a"], text=True).stdout or "") == "file\n"


def test_writes(shared: Store) -> None:
    image = shared.open("me/box:1").with_(Config(user="", entrypoint=(), cmd=()))
    box = presets.container(image, store=shared)
    assert box.run(sh("echo 1 > /new && busybox cat /new"), text=True).stdout == "1\n"
    assert box.run(sh("busybox cat /new")).returncode != 0
    box = presets.container(image, store=shared, writes="deny")
    assert box.run(sh("echo 1 > /new")).returncode != 0
    assert box.run(sh("echo 1 > /srv/data/new && busybox ls /srv/data"), text=True).stdout == "new\nold\n"
    with Upper(shared) as upper:
        box = presets.container(image, store=shared, writes=upper)
        assert box.run(sh("echo 1 > /new; echo 2 > /srv/data/not")).returncode == 0
        assert [change.path for change in upper.changes()] == [b"new"]
    for wrong in ("keep", "x"):
        with pytest.raises(ValueError, match="discard"):
            presets.container(image, store=shared, writes=wrong)
    with pytest.raises(TypeError, match="needs the store"):
        presets.container(image)
    with pytest.raises(TypeError, match="go with an Image"):
        presets.container("/", store=shared)
    with pytest.raises(TypeError, match="root must be"):
        presets.container(5, store=shared)  # type: ignore[arg-type]


def test_places_that_the_image_names_and_does_not_have(shared: Store) -> None:
    image = shared.open("me/box:1")
    apart = Config(entrypoint=(), cmd=(), workdir="/none/x", volumes=("/data", "/srv/data"))
    for user in ("", "web"):
        box = presets.container(image.with_(apart).with_(Config(user=user)), store=shared)
        # A volume has what the image has there; one of which that has nothing is empty.
        line = "pwd; echo 1 > /data/new && busybox ls /data /srv/data"
        found = box.run(sh(line), text=True)
        assert found.stdout == "/none/x\n/data:\nnew\n\n/srv/data:\nold\n", found
    hidden = Config(workdir="/srv/data/below", user="", entrypoint=(), volumes=("/srv/data",))
    for writes in ("deny", "discard"):
        box = presets.container(image.with_(hidden), store=shared, writes=writes)
        assert box.run(sh("pwd"), text=True).stdout == "/srv/data/below\n"
    with Upper(shared) as upper:
        box = presets.container(image.with_(apart).with_(Config(user="")), store=shared, writes=upper)
        assert box.run(sh("echo 1 > /data/new")).returncode == 0
        assert {change.path for change in upper.changes()} >= {b"none", b"none/x"}
        assert not any(change.path.startswith(b"data/") for change in upper.changes())


VOLUMES = Config(
    user="",
    entrypoint=(),
    cmd=(),
    workdir="",
    volumes=("/v", "/own", "/through/deep", "/new", "/dangling", "/v/below/f", "/"),
)


def layered() -> Image:
    """Directories of several layers, one of which hides what is below it, and links."""
    lower = Layer.files({"v/low": b"1", "v/gone": b"1", "v/below/f/x": b"x", "real/deep/old": b"old"})
    middle = Layer.files({"v/mid": b"2", "real/deep/hidden": b""})
    hiding = {"v/.wh.gone": b"", "real/deep/.wh..wh..opq": b"", "real/deep/only": b"o"}
    upper = of_members(
        hiding, {"v": (0o2777, 33, 34), "own": (0o700, 33, 34)}, {"through": "real", "dangling": "/none/here"}
    )
    return make().with_(VOLUMES) + lower + middle + upper


def of_members(files: dict[str, bytes], directories: dict[str, tuple[int, int, int]], links: dict[str, str]) -> Layer:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, (mode, uid, gid) in directories.items():
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, mode, uid, gid
            archive.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return of_archive(out.getvalue())


def test_volumes_have_what_the_image_has_there(shared: Store) -> None:
    image = shared.add(layered())
    line = (
        "busybox stat -c %a:%u:%g /v; cd /; busybox ls v real/deep new none/here v/below/f; echo 1 > /v/own;"
        " echo 2 > /v/low; echo 3 > /new/x; echo 4 > /through/deep/y; echo 5 > /dangling/z; echo 6 > /v/below/f/x;"
        " busybox cat /v/low /v/below/f/x"
    )
    listed = "new:\n\nnone/here:\n\nreal/deep:\nonly\n\nv:\nbelow\nlow\nmid\n\nv/below/f:\nx\n2\n6\n"
    owner = "33:34" if os.geteuid() == 0 else "0:0"
    with Upper(shared) as upper:
        for writes in ("discard", upper):
            box = presets.container(image, store=shared, writes=writes)
            for _ in range(3):  # from a template, too, each start has its own
                found = box.run(sh(line), text=True, env={"PATH": "/bin"})
                assert found.stdout == f"2777:{owner}\n{listed}", found
        changed = {os.fsdecode(change.path) for change in upper.changes()}
    assert not any(path.startswith(("v/", "real/", "new/", "none/here/")) for path in changed), changed


def test_volumes_have_a_size_and_an_owner(shared: Store) -> None:
    image = shared.add(layered())
    fill = sh("busybox dd if=/dev/zero of=/v/big bs=64k count=40 2>/dev/null; busybox stat -c %s /v/big")
    result = presets.container(image, store=shared, volume_size="1M").run(fill, text=True)
    small = result.stdout
    assert small, result
    assert 0 < int(small) <= 1 << 20
    whole = presets.container(image, store=shared).run(fill, text=True).stdout
    assert whole == f"{40 << 16}\n", "control"
    # A directory of one user's alone, as a data base has it.
    box = presets.container(image.with_(Config(user="web")), store=shared)
    assert box.run(sh("echo 1 > /own/x && busybox stat -c %a:%u:%g /own"), text=True).stdout == "700:33:34\n"
    with pytest.raises(ValueError, match="size"):
        presets.container(image, store=shared, volume_size="some")


def test_one_directory_of_an_image(shared: Store) -> None:
    image = shared.add(layered())
    root = [Bind("/", "/", read_only=True), Proc(), Tmpfs("/mnt")]
    user = UserNamespace(map=IdMap.unprivileged()) if os.geteuid() == 0 else UserNamespace()
    shown = ImageRoot(image, "/mnt/x", store=shared, directory="/own", read_only=True)
    box = Sandbox(user, Root(*root, ImageRoot(image, "/mnt/x", store=shared, directory="/v", read_only=True)))
    assert Sandbox(user, Root(*root, shown)).run(["stat", "-c", "%a", "/mnt/x"]).stdout == b"700\n"
    assert box.run(["ls", "/mnt/x"]).stdout == b"below\nlow\nmid\n"
    assert box.run(["touch", "/mnt/x/y"]).returncode == 1
    for path in ("/none", "/through/deep", "/srv/a"):
        with pytest.raises(ConflictError, match="has no directory"):
            Sandbox(UserNamespace(), Root(*root, ImageRoot(image, "/mnt/x", store=shared, directory=path))).check()
    with Upper(shared) as upper, pytest.raises(ConflictError, match="as a whole"):
        ImageRoot(image, "/mnt/x", store=shared, directory="/v", writable=upper)


@pytest.mark.parametrize(
    ("user", "ids"),
    [
        ("", (0, 0, ())),
        ("web", (33, 34, (50,))),
        ("web:staff", (33, 50, ())),
        ("33", (33, 34, (50,))),
        ("7", (7, 0, ())),
        ("7:8", (7, 8, ())),
        ("1234", (40, 41, ())),
        (":staff", (0, 50, ())),
    ],
)
def test_who_a_user_is(shared: Store, user: str, ids: tuple[int, int, tuple[int, ...]]) -> None:
    found = account(shared.open("me/box:1"), shared, user)
    assert (found.uid, found.gid, found.groups) == ids


@pytest.mark.parametrize("user", ["nobody", "web:nobody", "broken", "-1", "99999999999", "4294967295", "web:x\n"])
def test_who_is_nobody(shared: Store, user: str) -> None:
    with pytest.raises(ImageError, match=r"no (user|group)"):
        account(shared.open("me/box:1"), shared, user)


def test_links_in_a_hostile_image_lead_nowhere(shared: Store) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("etc/passwd")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    evil = shared.add(Image.empty() + of_archive(out.getvalue()))
    assert account(evil, shared, "0").home is None
    with pytest.raises(ImageError):
        account(evil, shared, "root")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, target in (("here", "/srv"), ("out", "../../../../tmp/of-the-host")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    links = shared.add(shared.open("me/box:1") + of_archive(out.getvalue()))
    own = Config(user="", entrypoint=(), workdir="/here", volumes=("/out",))
    box = presets.container(links.with_(own), store=shared)
    assert box.run(sh("/bin/busybox pwd -P; cat a"), text=True).stdout == "/srv\nfile\n"
    with contextlib.suppress(IsolateError):
        presets.container(links.with_(own).with_(Config(workdir="/out/x")), store=shared).run(sh("pwd"))
    assert not Path("/tmp/of-the-host").exists()


def test_an_ordinary_users_container() -> None:
    with tempfile.TemporaryDirectory(prefix="isolate-images-") as directory:
        os.chmod(directory, 0o777)
        code = (
            "from isolate import presets\nfrom isolate.images import Store, Image, Layer, Config\n"
            f"passwd, group = {PASSWD!r}, {GROUP!r}\nstore = Store({directory + '/store'!r})\n"
            f"program = Layer.files({{'bin/busybox': open({str(BUSYBOX)!r}, 'rb').read()}}, mode=0o755)\n"
            "files = Layer.files({'etc/passwd': passwd, 'etc/group': group, 'srv/a': b''})\n"
            "config = Config(user='web', workdir='/srv', env={'A': '1'}, entrypoint=('/bin/busybox', 'sh', '-c'))\n"
            "image = store.add((Image.empty() + program + files).with_(config), 'a/b:1')\n"
            "box = presets.container(image, store=store)\n"
            "result = box.run(['busybox id -u; busybox id -g; pwd; echo $A; echo 2 > /srv/new; busybox ls /srv'],"
            " env={'PATH': '/bin', 'A': '1'}, text=True)\n"
            "print(result.stdout.split(), result.stderr)\nstore.untag('a/b:1')\nprint(store.collect().layers)\n"
        )
        out = as_ordinary_user(code)
    assert out.splitlines() == ["['33', '34', '/srv', '1', 'a', 'new'] ", "2"]


def test_surroundings_alone() -> None:
    box = Sandbox(UserNamespace(), Surroundings(env={"A": "1"}, cwd="/usr", entrypoint=["sh", "-c"], cmd=["echo $A"]))
    assert box.run([]).stdout == b"1\n"
    assert box.run(["pwd; echo $PATH"], text=True).stdout == f"/usr\n{DEFAULT_PATH}\n"
    assert box.run("pwd", env={}, cwd="/").stdout == b"/\n"
    with box.spawn(["exit 3"]) as process:
        assert process.wait() == 3
    with pytest.raises(ValueError, match="at least the name"):
        Sandbox(Surroundings()).run([])
    assert eval(repr(box.parts[1])) == box.parts[1]
    assert hash(box.parts[1])
    for wrong, error in (
        ({"env": ["A=1"]}, TypeError),
        ({"env": {"A": 1}}, TypeError),
        ({"env": {"": "1"}}, ValueError),
        ({"cwd": "usr"}, ValueError),
        ({"cmd": "ls"}, TypeError),
        ({"entrypoint": [1]}, TypeError),
    ):
        with pytest.raises(error):
            Surroundings(**wrong)  # type: ignore[arg-type]
