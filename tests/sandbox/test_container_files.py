"""Files into a container and out of it: whatever stands there has a defined answer, and nothing leads outside."""

from __future__ import annotations

import errno
import gc
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import isolate
from isolate import SetupError, presets
from tests import opened
from tests.opened import refused, sh
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from tests.snapshot import Snapshot


c, work = opened.c, opened.work


def test_what_is_written_is_read_inside_and_out(c: isolate.Container, work: str) -> None:
    c.write(f"{work}/a", "text")
    c.write(f"{work}/deep/er/b", b"\0\xff", parents=True, mode=0o755, mtime=1000.0)
    assert sh(c, f"cd {work}; cat a; stat -c ' %u %a %Y' deep/er/b") == b"text 65534 755 1000\n"
    assert c.read(f"{work}/deep/er/b") == b"\0\xff"
    sh(c, f"printf more >> {work}/a")  # the program's own file
    assert c.read(f"{work}/a") == b"textmore"
    with refused(errno.ENOENT):
        c.write(f"{work}/no/b", "x")
    with refused(errno.EISDIR):
        c.write(f"{work}/deep", "x")
    with refused(errno.EFBIG):
        c.read(f"{work}/a", max_size=7)
    with refused(errno.EROFS):
        c.write("/usr/x", "x")


@pytest.mark.parametrize(
    ("make", "kind", "number"),
    [
        ("ln -s /etc/passwd x", "symlink", errno.ELOOP),
        ("mkfifo x", "fifo", errno.EINVAL),
        ("mkdir x", "directory", errno.EINVAL),
        ("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"x\")'", "socket", errno.EINVAL),
        ("touch x; chmod 0 x", "file", errno.EACCES),
    ],
)
def test_what_is_no_readable_file_has_an_answer(
    c: isolate.Container, work: str, tmp_path: Path, make: str, kind: str, number: int
) -> None:
    sh(c, f"cd {work}; {make}; echo regular > y")
    with refused(number):
        c.read(f"{work}/x")
    assert [(info.path, info.kind) for info in c.list(work)] == [(f"{work}/x", kind), (f"{work}/y", "file")]
    if number == errno.EACCES:
        with refused(number):
            c.get(f"{work}/*", tmp_path / "out")
        return
    found = c.get(f"{work}/*", tmp_path / "out")
    assert [info.kind for info in found] == [kind, "file"]
    names = ["x", "y"] if kind == "directory" else ["y"]
    assert sorted(os.listdir(tmp_path / "out")) == names
    if kind != "directory":
        c.write(f"{work}/x", "new")  # in its place
        assert c.read(f"{work}/x") == b"new"
    assert sh(c, "cat /etc/passwd | head -c 4") != b"new"


def test_devices_are_never_opened(c: isolate.Container, tmp_path: Path) -> None:
    with refused(errno.EINVAL):
        c.read("/dev/zero")
    found = c.get("/dev/null", tmp_path)
    assert [(info.kind, info.saved) for info in found] == [("device", None)]
    assert os.listdir(tmp_path) == []


def test_links_on_the_way_lead_nowhere(c: isolate.Container, work: str, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    sh(c, f"cd {work}; ln -s {tmp_path}/host out; ln -s . self; ln -s ../../../../../.. up; ln -s /proc/1/root magic")
    for name in ("out", "self", "up", "magic"):
        with refused(errno.ELOOP):
            c.write(f"{work}/{name}/file", "x")
        with refused(errno.ELOOP):
            c.read(f"{work}/{name}/etc/passwd")
        with refused(errno.ELOOP):
            c.list(f"{work}/{name}")
        with refused(errno.ELOOP):
            c.put({"file": "x"}, f"{work}/{name}")
    assert os.listdir(tmp_path / "host") == []
    assert {i.kind for i in c.get(work, tmp_path / "fetched")} == {"directory", "symlink"}
    for bad in ("../x", "/tmp/../x", "a\0b", "x" * 5000):
        with pytest.raises(ValueError, match="not a path inside"):
            c.read(bad)


def test_a_hard_link_is_replaced_and_its_other_name_keeps_the_content(c: isolate.Container, work: str) -> None:
    sh(c, f"cd {work}; echo old > a; ln a b")
    c.write(f"{work}/a", "new")
    assert c.read(f"{work}/b") == b"old\n"
    assert {i.path: i.links for i in c.list(work)} == {f"{work}/a": 1, f"{work}/b": 1}


def test_sparse_files_stay_sparse_and_count_whole(c: isolate.Container, work: str, tmp_path: Path) -> None:
    sh(c, f"truncate -s 100M {work}/big; printf end >> {work}/big")
    with refused(errno.EFBIG):
        c.get(f"{work}/big", tmp_path / "small", max_size="10M")
    c.get(f"{work}/big", tmp_path / "out")
    found = (tmp_path / "out/big").stat()
    assert found.st_size == (100 << 20) + 3
    assert found.st_blocks * 512 < 1 << 20
    c.put(tmp_path / "out/big", f"{work}/back")
    assert int(sh(c, f"stat -c %b {work}/back")) * 512 < 1 << 20
    assert sh(c, f"tail -c 3 {work}/back") == b"end"


def test_deep_trees_and_many_files_meet_their_caps(c: isolate.Container, work: str, tmp_path: Path) -> None:
    sh(c, f"cd {work}; for i in $(seq 300); do mkdir d && cd d; done; cd {work}; touch $(seq 50)")
    with refused(errno.ENAMETOOLONG):
        c.get(work, tmp_path / "a")
    with refused(errno.ENAMETOOLONG):
        c.list(work, recursive=True)
    with refused(errno.EMFILE):
        c.list(work, max_files=10)
    assert len(c.list(work)) == 51
    assert len(c.list(work, recursive=True, max_depth=1000)) == 350


def test_names_of_any_bytes(c: isolate.Container, work: str, tmp_path: Path) -> None:
    names = [b"new\nline", b"\xff\xfe", b" ", b"-rf", b"*", b"\x1b[31m", b"x" * 255]
    for name in names:
        c.write(os.fsencode(work) + b"/" + name, name)
    assert sorted(os.fsencode(i.path).rpartition(b"/")[2] for i in c.list(work)) == sorted(names)
    c.get(work, tmp_path)
    assert sorted(os.listdir(os.fsencode(tmp_path / "work"))) == sorted(names)
    assert c.get(f"{work}/new*") == {f"{work}/new\nline": b"new\nline"}


def test_a_tree_goes_in_and_comes_back(c: isolate.Container, work: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin/run").write_text("#!/bin/sh\necho ran\n")
    (tree / "bin/run").chmod(0o4755)
    (tree / "link").symlink_to("bin/run")
    os.utime(tree / "bin/run", (1000, 1000))
    c.put(tree, f"{work}/app")
    assert sh(c, f"{work}/app/link; stat -c '%u %a %Y' {work}/app/bin/run") == b"ran\n65534 755 1000\n"
    c.put({"a/b": "one", "c": b"two"}, work)
    assert c.get(f"{work}/a") == {f"{work}/a/b": b"one"}
    found = c.get(f"{work}/*/bin", tmp_path / "back")
    assert [Path(i.saved or "") for i in found] == [tmp_path / "back/app/bin", tmp_path / "back/app/bin/run"]
    assert stat.S_IMODE((tmp_path / "back/app/bin/run").stat().st_mode) == 0o755
    assert (tmp_path / "back/app/bin/run").stat().st_mtime == 1000
    assert (tmp_path / "back/app/bin/run").stat().st_uid == os.geteuid()
    with pytest.raises(FileExistsError):
        c.get(f"{work}/*/bin", tmp_path / "back")
    with refused(errno.ENOENT):
        c.get(f"{work}/nothing")
    assert c.get(f"{work}/nothing*") == {}
    os.mkfifo(tree / "fifo")
    with pytest.raises(ValueError, match="no file, directory or symbolic link"):
        c.put(tree, f"{work}/again")


@pytest.mark.root
def test_the_callers_rights_are_put_aside() -> None:
    with tempfile.TemporaryDirectory(dir="/run") as directory:
        secret = Path(directory) / "secret"
        secret.write_text("root's")
        secret.chmod(0o600)
        Path(directory).chmod(0o755)
        (Path(directory) / "plain").write_text("everybody's")
        with presets.untrusted(isolate.Bind(directory, "/host")).open() as c:
            assert c.read("/host/plain") == b"everybody's"  # the control
            with refused(errno.EACCES):
                c.read("/host/secret")
            assert not c.run(["cat", "/host/secret"]).ok  # as for a program inside
        assert secret.read_text() == "root's"  # and the caller has its rights


def test_the_programs_exchange_what_is_looked_at(c: isolate.Container, work: str, tmp_path: Path) -> None:
    """A program swaps a directory with a link while files go in and out: contained, whatever wins."""
    target = tmp_path / "outside"
    target.mkdir()
    (target / "file").write_text("host's")
    race = (
        f"cd {work}; mkdir a; echo inside > a/file; ln -s {target} b; "
        "while :; do mv a t && mv b a && mv t b; mv a t && mv b a && mv t b; done 2>/dev/null"
    )
    with c.spawn(["sh", "-c", race], stderr=isolate.DEVNULL):
        for _ in range(100):
            try:
                c.write(f"{work}/a/new", "x")
                assert c.read(f"{work}/a/file") == b"inside\n"
                assert b"host's" not in c.get(f"{work}/*").values()
            except SetupError as error:
                if error.errno not in (errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.EINVAL):
                    raise
    assert os.listdir(target) == ["file"]
    assert (target / "file").read_text() == "host's"


def test_nothing_is_left_open(clean: Snapshot, tmp_path: Path) -> None:
    with presets.untrusted().open() as c:
        gc.collect()  # no descriptor of an earlier test's is closed meanwhile
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            c.put({"a/b/c": "x"}, "/tmp")
            c.get("/tmp/a", tmp_path / "out" / str(_))
            c.list("/", recursive=False)
            with refused(errno.ENOENT):
                c.read("/tmp/none")
        assert len(os.listdir("/proc/self/fd")) <= before
    with pytest.raises(ValueError, match="closed"):
        c.read("/tmp/a/b/c")


def test_by_an_ordinary_user() -> None:
    code = (
        "import tempfile\n"
        "from isolate import presets\n"
        "with presets.untrusted().open() as c:\n"
        "    c.put({'in/a': 'one'}, '/tmp')\n"
        "    c.run(['sh', '-c', 'tr a-z A-Z < /tmp/in/a > /tmp/out']).check()\n"
        "    assert c.read('/tmp/out') == b'ONE'\n"
        "    with tempfile.TemporaryDirectory() as here:\n"
        "        assert [i.kind for i in c.get('/tmp/*', here)] == ['directory', 'file', 'file']\n"
        "    print('done')\n"
    )
    assert as_ordinary_user(code) == "done\n"
