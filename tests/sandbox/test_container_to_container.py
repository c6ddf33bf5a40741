"""``c.copy_to``: from one container to another, read as one's user and written as the other's."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolate
from isolate import presets
from tests.opened import refused
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: users with other ids")


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[isolate.Container, isolate.Container]]:
    with presets.untrusted().open() as a, presets.untrusted().open() as b:
        a.run(
            ["sh", "-c", "mkdir -p /tmp/x/d; cd /tmp/x; echo A > a; chmod 4751 a; ln -s /etc/passwd l; mkfifo p"]
        ).check()
        a.run(["sh", "-c", "cd /tmp/x/d; echo B > b; truncate -s 1M hole; chmod 500 ."]).check()
        yield a, b


def test_a_tree_and_a_file(pair: tuple[isolate.Container, isolate.Container]) -> None:
    a, b = pair
    found = a.copy_to(b, "/tmp/x", "/tmp/new/y")
    assert {each.path: each.saved for each in found} == {
        "/tmp/x/a": "/tmp/new/y/a",
        "/tmp/x/d": "/tmp/new/y/d",
        "/tmp/x/d/b": "/tmp/new/y/d/b",
        "/tmp/x/d/hole": "/tmp/new/y/d/hole",
        "/tmp/x/l": "/tmp/new/y/l",
        "/tmp/x/p": None,
    }
    said = (
        b.run(["sh", "-c", "cd /tmp/new/y; stat -c '%n %a %u' a d; readlink l; stat -c %b d/hole; ls"]).check().stdout
    )
    assert said == b"a 751 65534\nd 500 65534\n/etc/passwd\n0\na\nd\nl\n"
    a.copy_to(b, "/tmp/x/a", "/tmp/one")
    assert b.read("/tmp/one") == b"A\n"
    a.copy_to(a, "/tmp/x/a", "/tmp/two")  # within one
    assert a.read("/tmp/two") == b"A\n"


def test_what_leads_out_is_refused(pair: tuple[isolate.Container, isolate.Container]) -> None:
    a, b = pair
    b.run(["sh", "-c", "ln -sfn / /tmp/up; ln -sfn /tmp/real /tmp/name; echo real > /tmp/real"]).check()
    with refused(errno.ELOOP):
        a.copy_to(b, "/tmp/x/a", "/tmp/up/tmp/a")
    with refused(errno.ENOENT):
        a.copy_to(b, "/tmp/none", "/tmp/a")
    with refused(errno.EROFS):
        a.copy_to(b, "/tmp/x/a", "/usr/a")
    with refused(errno.EFBIG):
        a.copy_to(b, "/tmp/x", "/tmp/big", max_size="1K")
    with refused(errno.EMFILE):
        a.copy_to(b, "/tmp/x", "/tmp/many", max_files=2)
    a.copy_to(b, "/tmp/x/a", "/tmp/name")  # a link at the end is replaced
    assert (b.read("/tmp/name"), b.read("/tmp/real")) == (b"A\n", b"real\n")
    for source, target in (("/tmp/x", "/tmp/x/d/e"), ("/tmp/x/a", "/"), ("/../a", "/b")):
        with pytest.raises(ValueError, match=r"itself|needs a name|not a path"):
            a.copy_to(a, source, target)


@root
def test_each_side_is_its_own_user() -> None:
    """What one's user may not read is not read, though the other's could; nothing is written as another."""
    with tempfile.TemporaryDirectory(dir="/run") as directory:
        Path(directory).chmod(0o755)
        for name, owner in (("hers", 3001), ("his", 3002)):
            (Path(directory) / name).write_text(name)
            (Path(directory) / name).chmod(0o600)
            os.chown(Path(directory) / name, owner, owner)
        os.mkdir(Path(directory) / "to")
        os.chown(Path(directory) / "to", 3002, 3002)

        def opened(uid: int) -> isolate.Container:
            parts = (isolate.Bind(directory, "/host", read_only=False), isolate.Proc("/proc"))
            binds = [isolate.Bind(path, path) for path in ("/usr", "/bin", "/lib", "/lib64") if os.path.exists(path)]
            box = isolate.Sandbox(
                isolate.PidNamespace(), isolate.Root(*binds, *parts), isolate.Credentials(uid=uid, gid=uid)
            )
            return box.open()

        with opened(3001) as she, opened(3002) as he:
            she.copy_to(he, "/host/hers", "/host/to/hers")  # the control
            made = os.stat(f"{directory}/to/hers")
            assert (made.st_uid, made.st_gid) == (3002, 3002)
            with refused(errno.EACCES):
                she.copy_to(he, "/host/his", "/host/to/his")
            with refused(errno.EACCES):
                he.copy_to(she, "/host/his", "/host/to/his")
        assert os.listdir(f"{directory}/to") == ["hers"]


def test_by_an_ordinary_user() -> None:
    code = (
        "from isolate import presets\n"
        "with presets.untrusted().open() as a, presets.untrusted().open() as b:\n"
        "    a.put({'in/a': 'one'}, '/tmp')\n"
        "    print([i.saved for i in a.copy_to(b, '/tmp/in', '/tmp/out')], b.read('/tmp/out/a'))\n"
    )
    assert as_ordinary_user(code) == "['/tmp/out/a'] b'one'\n"
