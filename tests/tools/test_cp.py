"""``isolate cp``: into an open container and out of it, by the rules of ``docker cp``; hostile files lead nowhere."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from isolate import presets
from isolate.tools.cli import main
from tests.kept import own_records

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from isolate import Container


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
    # The control: without a link on the way.
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
