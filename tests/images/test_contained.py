"""Tar archives into a container and out of it: GNU tar reads and writes the same; what is hostile stays inside."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

import isolate
from isolate import SetupError
from isolate.images import LayerError, get_archive, put_archive
from tests import opened
from tests.images.archives import header
from tests.opened import refused, sh
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from pathlib import Path

END = bytes(1024)
c, work = opened.c, opened.work


def fetched(c: isolate.Container, path: str) -> tuple[bytes, dict[str, str | None]]:
    out = io.BytesIO()
    found = get_archive(c, path, out.write)
    return out.getvalue(), {each.path: each.saved for each in found}


def put(c: isolate.Container, data: bytes, target: str, **more: int) -> dict[str, str | None]:
    return {each.path: each.saved for each in put_archive(c, io.BytesIO(data).read, target, **more)}  # type: ignore[arg-type]


def test_out_as_gnu_tar_reads_it(c: isolate.Container, work: str, tmp_path: Path) -> None:
    long = "n" * 200
    sh(
        c,
        f"cd {work}; mkdir -p d/e; echo A > d/a; chmod 4751 d/a; ln -s /etc/passwd d/l; mkfifo d/p; echo L > d/{long}",
    )
    sh(c, f"cd {work}; touch -d @1000000000 d/a d; chmod 500 d/e; printf '%600s' x > d/600")
    data, saved = fetched(c, f"{work}/d")
    assert saved[f"{work}/d/p"] is None
    assert saved[f"{work}/d/a"] == "d/a"
    listing = subprocess.run(
        ["tar", "tv", "--full-time", "--numeric-owner"], input=data, capture_output=True, check=True
    )
    lines = {line.split()[-1]: line.split() for line in listing.stdout.decode().splitlines() if "->" not in line}
    assert lines["d/a"][:3] == ["-rwxr-x--x", "0/0", "2"]  # no owner, no set-id bit
    assert lines["d/e/"][0] == "dr-x------"
    subprocess.run(["tar", "x", "-C", tmp_path], input=data, check=True)
    assert (tmp_path / "d/a").read_text() == "A\n"
    assert (tmp_path / "d" / long).read_text() == "L\n"
    assert os.readlink(tmp_path / "d/l") == "/etc/passwd"
    assert os.stat(tmp_path / "d/a").st_mtime == 1e9
    inside, _ = fetched(c, f"{work}/d/.")
    with tarfile.open(fileobj=io.BytesIO(inside)) as archive:
        assert sorted(archive.getnames()) == sorted(["600", "a", "e", "l", long])
    one, _ = fetched(c, f"{work}/d/a")
    with tarfile.open(fileobj=io.BytesIO(one)) as archive:
        assert archive.getnames() == ["a"]
    # And it comes back, as it was.
    assert set(put(c, data, f"{work}/back").values()) >= {f"{work}/back/d/a", f"{work}/back/d/l"}
    assert sh(c, f"cd {work}; diff -r --no-dereference -x p d back/d; stat -c '%a %Y' back/d/a") == b"751 1000000000\n"


def test_in_as_gnu_tar_writes_it(c: isolate.Container, work: str, tmp_path: Path) -> None:
    tree = tmp_path / "t"
    (tree / "shut").mkdir(parents=True)
    (tree / "shut/f").write_text("F")
    os.link(tree / "shut/f", tree / "again")
    os.symlink("shut/f", tree / "link")
    os.mkfifo(tree / "fifo")
    (tree / "shut").chmod(0o500)
    for form in ("gnu", "pax", "ustar"):
        data = subprocess.run(["tar", "c", f"--format={form}", "-C", tree, "."], capture_output=True, check=True).stdout
        saved = put(c, data, f"{work}/{form}")
        assert saved["fifo"] is None
        assert saved["again"] == f"{work}/{form}/again"
        said = sh(c, f"cd {work}/{form}; cat link again; stat -c ' %a %u' shut; stat -c %h again; ls")
        assert said == b"FF 500 65534\n2\nagain\nlink\nshut\n", form
        sh(c, f"chmod 700 {work}/{form}/shut")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (header(b"../x"), "'..' in the name"),
        (header(b"a/../../x"), "'..' in the name"),
        (header(b"x", b"1", link=b"../../etc/passwd"), "'..' in the target"),
        (header(b"up", b"2", link=b"/") + header(b"up/tmp/x"), "symbolic link is on the way"),
        (header(b"up", b"2", link=b"..") + header(b"up/x"), "symbolic link is on the way"),
        (header(b"up", b"2", link=b"/") + header(b"x", b"1", link=b"up/etc/passwd"), "symbolic link is on the way"),
        (header(b"x", b"1", link=b"none"), "no such file"),
        (header(b"x", size=1 << 33), "more bytes than max_size"),
        (header(b"x", size=512), "one block of zeros"),
        (header(b"x", size=4096), "cut off within a file"),
        (b"\x1f\x8b" + bytes(600), "gunzip"),
        (b"#!/bin/sh\n" + bytes(600), "no tar archive"),
    ],
)
def test_hostile_archives(c: isolate.Container, work: str, entries: bytes, said: str) -> None:
    before = sh(c, "ls /tmp /")
    with pytest.raises((LayerError, SetupError), match=said):
        put(c, entries + END, work)
    sh(c, f"rm -rf {work}/*")
    assert sh(c, "ls /tmp /") == before


def test_names_and_modes_of_hostile_archives(c: isolate.Container, work: str) -> None:
    data = (
        header(b"/etc/x", size=0)  # below the target, as for GNU tar
        + header(b"suid", mode=0o6755)
        + header(b"dev", b"3", major=1, minor=3)
        + header(b".wh.suid")  # a plain name here
        + header(b"link", b"2", link=b"/etc/passwd")
        + header(b"link", size=1)
        + b"x".ljust(512, b"\0")
        + header(b"same")
        + header(b"same", b"1", link=b"same")
    )
    saved = put(c, data + END, work)
    assert saved["dev"] is None
    assert sh(c, f"cd {work}; ls -A; stat -c %a suid; cat link; test -L link || echo plain; ls etc") == (
        b".wh.suid\netc\nlink\nsame\nsuid\n755\nxplain\nx\n"
    )
    with refused(errno.EMFILE):
        put(c, b"".join(header(b"%d" % n) for n in range(9)) + END, work, max_files=5)
    with refused(errno.ENAMETOOLONG):
        put(c, header(b"a/" * 9 + b"b") + END, work, max_depth=5)
    with pytest.raises(LayerError, match="leave room"):
        put_archive(c, lambda size: bytes(size), work, max_size=1 << 20, max_files=1)  # zeros without an end


def test_a_program_exchanges_directories_for_links(c: isolate.Container, work: str, tmp_path: Path) -> None:
    """While archives go in and out: nothing comes to the host, whatever wins."""
    target = tmp_path / "outside"
    target.mkdir()
    (target / "file").write_text("host's")
    race = (
        f"cd {work}; mkdir a; echo inside > a/file; ln -s {target} b; "
        "while :; do mv a t && mv b a && mv t b; mv a t && mv b a && mv t b; done 2>/dev/null"
    )
    data = header(b"a/", b"5", mode=0o755) + header(b"a/new", size=1) + b"x".ljust(512, b"\0") + END
    with c.spawn(["sh", "-c", race], stderr=isolate.DEVNULL):
        for _ in range(60):
            try:
                put(c, data, work)
                assert b"host's" not in fetched(c, f"{work}/.")[0]
            except SetupError as error:
                if error.errno not in (errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.EISDIR):
                    raise
    assert os.listdir(target) == ["file"]
    assert (target / "file").read_text() == "host's"


def test_by_an_ordinary_user() -> None:
    code = (
        "import io\n"
        "from isolate import presets\n"
        "from isolate.images import get_archive, put_archive\n"
        "with presets.untrusted().open() as c:\n"
        "    c.put({'in/a': 'one'}, '/tmp')\n"
        "    out = io.BytesIO()\n"
        "    get_archive(c, '/tmp/in', out.write)\n"
        "    out.seek(0)\n"
        "    print([i.saved for i in put_archive(c, out.read, '/tmp/b')], c.read('/tmp/b/in/a'))\n"
    )
    assert as_ordinary_user(code) == "['/tmp/b/in', '/tmp/b/in/a'] b'one'\n"
