"""``isolate cp``: into an open container and out of it, by the rules of ``docker cp``; hostile files lead nowhere."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest

from isolate import presets
from isolate.tools.cli import main
from tests.kept import own_records

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from isolate import Container


CP = [sys.executable, "-m", "isolate", "cp"]


@pytest.fixture(scope="module")
def web() -> Iterator[Container]:
    """A container that is called so, in a directory of records of these tests' own."""
    with own_records(), presets.untrusted().open(name="web", detached=True) as container:
        yield container


def tree_of(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): p.read_text() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_in_and_out(web: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site/below").mkdir(parents=True)
    (tmp_path / "site/a").write_text("A")
    (tmp_path / "site/below/.b[1]").write_text("B")
    site = tree_of(tmp_path / "site")
    web.run(["mkdir", "/tmp/there"]).check()
    for source, target, inside in (
        ("site", "web:/tmp/new", "/tmp/new"),  # not there: the copy is it
        ("site", "web:/tmp/there", "/tmp/there/site"),
        ("site/.", "web:tmp/there", "/tmp/there"),
        ("site/a", "web:/tmp/there/site/", "/tmp/there/site"),
        ("site/a", "web:/tmp/new/a", "/tmp/new"),
    ):
        assert main(["cp", source, target]) == 0, (source, target)
        for name, text in site.items():
            assert web.read(f"{inside}/{name}").decode() == text
    os.mkdir("out")
    for number, (source, target, here, wanted) in enumerate(
        (
            ("web:/tmp/new", "all", "all", site),
            ("web:/tmp/new/", "out", "out/new", site),
            ("web:/tmp/new/.", "out", "out", {**site, **{f"new/{k}": v for k, v in site.items()}}),
            ("web:/tmp/new/.", "plain", "plain", site),
            ("web:/tmp/new/below/.b[1]", "one", "one", "B"),
            ("web:/tmp/new/a", "one", "one", "A"),  # in its place
            ("web:/tmp/new/below/.b[1]", "all", "all/.b[1]", "B"),
        )
    ):
        assert main(["cp", source, target]) == 0, number
        found = tree_of(tmp_path / here) if isinstance(wanted, dict) else (tmp_path / here).read_text()
        assert found == wanted, number
    assert not list(tmp_path.rglob(".isolate-cp-*"))
    assert main(["cp", "web:/", "root", "--max-files", "3"]) == 125
    assert not list(tmp_path.rglob(".isolate-cp-*"))


def test_hostile_files(web: Container, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = "mkdir -p /tmp/bad/d; cd /tmp/bad; ln -s /etc/passwd link; ln -s / up; mkfifo fifo; echo x > d/f"
    web.run(["sh", "-c", script]).check()
    secret = tmp_path / "here"
    secret.write_text("mine")
    capsys.readouterr()
    assert main(["cp", "--json", "web:/tmp/bad", str(tmp_path / "got")]) == 0
    left = json.loads(capsys.readouterr().out)["left_out"]
    assert {(each["path"], each["kind"]) for each in left} == {
        ("/tmp/bad/link", "symlink"),
        ("/tmp/bad/up", "symlink"),
        ("/tmp/bad/fifo", "fifo"),
    }
    assert tree_of(tmp_path / "got") == {"d/f": "x\n"}
    for words, said in (
        (["web:/tmp/bad/link", str(tmp_path / "no")], "symlink"),
        (["web:/tmp/bad/up/etc/passwd", str(tmp_path / "no")], "symbolic link is on the way"),
        (["web:/tmp/bad/fifo", str(tmp_path / "no")], "fifo"),
        (["web:/tmp/none", str(tmp_path / "no")], "no such file"),
        ([str(secret), "web:/tmp/bad/up/tmp/x"], "symbolic link is on the way"),
        ([str(secret), "web:/tmp/none/x"], "no such file"),
        ([str(secret), "web:/usr/x"], "read-only"),
    ):
        assert main(["cp", *words]) == 125, words
        assert said in capsys.readouterr().err
        assert not (tmp_path / "no").exists()
    # What helps, as the errors say: the link in an archive. The control: without a link on the way.
    assert main(["cp", "web:/tmp/bad/link", str(tmp_path / "no")]) == 125
    assert "isolate cp NAME:PATH -" in capsys.readouterr().err
    archive = subprocess.run([*CP, "web:/tmp/bad/link", "-"], capture_output=True, check=True).stdout
    assert subprocess.run(["tar", "tv"], input=archive, capture_output=True, check=True).stdout.endswith(
        b"link -> /etc/passwd\n"
    )
    assert main(["cp", str(secret), "web:/tmp/bad/d/f"]) == 0
    assert web.read("/tmp/bad/d/f") == b"mine"
    for words in (
        ["a", "b"],
        ["web:/a", "web:/b"],
        ["web:/../etc", "x"],
        ["web:/tmp/bad/d/f", f"{tmp_path}/none/"],
        [str(secret), "web:/tmp/none/"],
        [str(tmp_path), "web:/tmp/bad/d/f"],
    ):
        assert main(["cp", *words]) in (2, 125), words
    assert secret.read_text() == "mine"


@contextlib.contextmanager
def given(data: bytes) -> Iterator[None]:
    """On the descriptor of stdin."""
    before = os.dup(0)
    try:
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            os.dup2(file.fileno(), 0)
            yield
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_archives_in_pipes(web: Container, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """As ``docker cp`` has ``-``."""
    web.run(["sh", "-c", "mkdir -p /tmp/pipe/d; cd /tmp/pipe; echo A > d/a; ln -s a d/l; mkfifo d/p"]).check()
    # From another process, which finds the container by its record.
    out = subprocess.run([*CP, "web:/tmp/pipe/d", "-"], capture_output=True, check=True)
    assert out.stderr == b"isolate: left out, a fifo: /tmp/pipe/d/p\n"
    names = subprocess.run(["tar", "t"], input=out.stdout, capture_output=True, check=True).stdout
    assert names == b"d/\nd/a\nd/l\n"
    subprocess.run([*CP, "-", "web:/tmp"], input=out.stdout, check=True)  # a pipe, with its short reads
    assert web.read("/tmp/d/a") == b"A\n"
    assert web.run(["readlink", "/tmp/d/l"]).stdout == b"a\n"
    for source in ("web:/tmp/pipe/d", "web:/tmp/d/."):
        assert main(["cp", source, "-"]) == 0
        archive, said = capfdbinary.readouterr()
        assert (archive == out.stdout) is (source == "web:/tmp/pipe/d")
        with given(archive):
            assert main(["cp", "--json", "-", "web:/tmp/pipe"]) == 0  # over what is there
        assert json.loads(capfdbinary.readouterr().out) == {"left_out": []}
    for words, data, said in (
        (["-", "web:/tmp/none"], out.stdout, b"no directory /tmp/none"),
        (["-", "web:/tmp/d/a"], out.stdout, b"no directory /tmp/d/a"),
        (["-", "web:/tmp"], b"text", b"no tar archive: it has 4 bytes"),
        (["-", "web:/tmp"], out.stdout[:700], b"cut off"),
        (["web:/tmp/none", "-"], b"", b"no such file"),
        (["web:/tmp/pipe/d/p", "-"], b"", b"a fifo"),
        (["--json", "web:/tmp/d", "-"], b"", b"without --json"),
        (["-", "-"], b"", b"one of the two is in a container"),
    ):
        with given(data):
            assert main(["cp", *words]) in (2, 125), words
        assert said in capfdbinary.readouterr().err, words


def test_from_one_container_to_another(web: Container, capsys: pytest.CaptureFixture[str]) -> None:
    with presets.untrusted().open(name="other", detached=True) as other:
        try:
            web.run(["sh", "-c", "mkdir -p /tmp/from/d; cd /tmp/from; echo A > d/a; ln -s a d/l; mkfifo d/p"]).check()
            other.run(["mkdir", "/tmp/is"]).check()
            capsys.readouterr()
            for source, target, inside in (
                ("web:/tmp/from/d", "other:/tmp/new", "/tmp/new"),
                ("web:/tmp/from/d", "other:/tmp/is", "/tmp/is/d"),
                ("web:/tmp/from/d/.", "other:/tmp/is", "/tmp/is"),
                ("web:/tmp/from/d/a", "other:/tmp/is/", "/tmp/is"),
                ("web:/tmp/from/d", "web:/tmp/within", None),
            ):
                assert main(["cp", source, target]) == 0, (source, target)
                found = web.read("/tmp/within/a") if inside is None else other.read(f"{inside}/a")
                assert found == b"A\n"
            assert other.run(["readlink", "/tmp/new/l"]).stdout == b"a\n"
            assert "left out, a fifo: /tmp/from/d/p" in capsys.readouterr().err
            for source, target, said in (
                ("web:/tmp/none", "other:/tmp/x", "no such file"),
                ("web:/tmp/from/d/p", "other:/tmp/x", "a fifo"),
                ("web:/tmp/from/d/a", "other:/tmp/none/", "no directory"),
                ("web:/tmp/from/d", "other:/tmp/new/a", "is a file inside"),
                ("web:/tmp/from", "web:/tmp/from/d/x", "into itself"),
                ("web:/tmp/from", "nobody:/tmp", "nobody"),
            ):
                assert main(["cp", source, target]) in (2, 125), (source, target)
                assert said in capsys.readouterr().err, (source, target)
        finally:
            other.kill()
            other.wait(30)
