"""``isolate image`` and ``isolate run --image``: what people type, and what programs read."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from isolate.build import BuildError, Dockerfile
from isolate.images import AmbiguousError, Config, Image, Layer, Reference, Store
from isolate.tools.cli import main
from isolate.tools.cli.showing import amount, progress, short, table
from tests.images.make import image

BUSYBOX = Path("/bin/busybox")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("ISOLATE_STORE", str(tmp_path / "store"))

    def call(*words: str) -> tuple[int, str, str]:
        status = main(words)
        seen = capsys.readouterr()
        return status, seen.out, seen.err

    return call


@pytest.fixture
def filled(tmp_path: Path) -> Image:
    with Store(tmp_path / "store") as store:
        base = store.add(image({"etc/a": b"1", "etc/b": b"2"}, cmd=("x",)), "me/base:1")
        more = Layer.files({"etc/a": b"other", "new\n": b"3"})
        return store.add((base + more).with_(Config(labels={"evil": "\x1b[2J"})), "me/app:1")


def test_from_a_registry_and_back(run: Any, registry: str, tmp_path: Path, filled: Image) -> None:
    status, out, err = run("image", "push", "me/app:1", f"{registry}/cli/app:1")
    assert status == 0
    assert "3 uploaded, 0 mounted, 0 there already" in out
    assert "upload" in err
    status, out, err = run("image", "push", "--json", f"{registry}/cli/app:1")
    assert json.loads(out)["skipped"] == 3
    assert err == ""
    other = str(tmp_path / "other")
    status, out, err = run("image", "pull", "--store", other, f"{registry}/cli/app:1")
    assert status == 0
    assert out.startswith(f"{registry}/cli/app:1 sha256:")
    assert [line.split()[0] for line in err.splitlines()].count("download") == 2
    status, out, _ = run("image", "pull", "--store", other, "--json", f"{registry}/cli/app:1")
    assert json.loads(out)[0]["id"] == filled.id
    status, out, err = run("image", "pull", "--quiet", f"{registry}/no/such:1")
    assert (status, out) == (1, "")
    assert "MANIFEST_UNKNOWN" in err or "NAME_UNKNOWN" in err
    status, out, _ = run("image", "pull", "--json", f"{registry}/no/such:1")
    assert json.loads(out)["error"] == "RegistryError"


def test_files_and_names(run: Any, tmp_path: Path, filled: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    target = str(tmp_path / "out.tar")
    assert run("image", "save", "--quiet", "-o", target, "me/app:1", "me/base:1")[0] == 0
    other = ("--store", str(tmp_path / "other"))
    status, out, _ = run("image", "load", *other, target)
    assert status == 0
    assert out.splitlines()[0].startswith("me/app:1 sha256:")
    with open(target) as file:
        monkeypatch.setattr("sys.stdin", file)
        assert run("image", "load", *other, "--json", "-")[0] == 0
    status, out, _ = run("image", "ls", *other)
    assert [line.split()[0] for line in out.splitlines()] == ["NAME", "me/app:1", "me/base:1"]
    assert len(json.loads(run("image", "ls", *other, "--json")[1])) == 2
    assert run("image", "tag", *other, "me/app:1", "x/y:2")[1] == "x/y:2\n"
    status, out, err = run("image", "rm", *other, "me/app:1", "no/such:1")
    assert status == 1
    assert "no image is named no/such:1" in err
    assert run("image", "rm", *other, "x/y:2", "me/base:1")[0] == 0
    assert "0 layers, 0 blobs" in run("image", "collect", *other)[1]
    assert run("image", "check", *other, "--deep")[:2] == (0, "nothing is wrong\n")


def test_wrong_names_and_files(run: Any, tmp_path: Path, filled: Image) -> None:
    with Store(tmp_path / "store") as store:
        store.untag("me/app:1")
    status, out, err = run("image", "rm", "me/bas:1")
    assert (status, out) == (1, "")
    assert "no image is named me/bas:1; did you mean 'me/base:1'?" in err
    with Store(tmp_path / "store") as store:
        assert store.open(filled.digest).id == filled.id  # nothing was removed, so nothing was collected
    status, _, err = run("image", "load", str(tmp_path / "nothing.tar"))
    assert status == 1
    assert f"the archive cannot be opened [{tmp_path}/nothing.tar]: No such file or directory" in err
    assert "store" not in err.replace(str(tmp_path), "")
    status, _, err = run("image", "save", "me/base:1", "-o", str(tmp_path / "nowhere/out.tar"))
    assert status == 1
    assert "the archive cannot be made [" in err
    assert f"{tmp_path}/nowhere/out.tar]: No such file or directory" in err
    status, _, err = run("image", "save", "--quiet", "me/base:1", "-o", "/dev/full")
    assert (status, err.splitlines()[0]) == (
        1,
        "isolate: saving failed [/dev/full]: No space left on device (errno 28)",
    )
    (tmp_path / "text").write_text("FROM scratch\n")
    status, _, err = run("image", "load", str(tmp_path / "text"))
    assert (status, err) == (1, f"isolate: {tmp_path}/text: no tar archive: it has 13 bytes, less than one header\n")


def test_images_by_the_digits_that_ls_shows(run: Any, tmp_path: Path, filled: Image) -> None:
    digits = run("image", "ls")[1].splitlines()[-1].split()[1]
    full = json.loads(run("image", "inspect", "--json", digits)[1])["digest"]
    assert full.startswith(f"sha256:{digits}")
    assert json.loads(run("image", "inspect", "--json", full[:20])[1])["digest"] == full
    assert run("image", "inspect", digits[:11])[0] == 1  # too few to mean one
    target = str(tmp_path / "digits.tar")
    for form in ("oci-archive", "docker-archive"):
        assert run("image", "save", "--quiet", "--format", form, "-o", target, digits)[0] == 0
        (row,) = json.loads(run("image", "load", "--json", "--store", str(tmp_path / form), target)[1])
        assert row["names"] == []  # the digits are none
    assert f"= {digits}\n" in run("image", "tree", digits)[1]
    for name in (digits, full, full[:20]):
        status, _, err = run("image", "push", name)
        assert status == 2
        assert f"name the target too, such as {name} registry.example/me/app:1" in err
    assert run("image", "tag", digits, "me/other:1")[0] == 0
    status, _, err = run("image", "rm", digits)
    assert status != 0
    assert f"{digits} has 2 names; say which of them goes: " in err
    assert run("image", "rm", "me/other:1")[0] == 0
    assert run("image", "rm", digits)[0] == 0
    status, _, err = run("image", "inspect", digits)
    assert (status, err.splitlines()[0].partition(" [")[0]) == (1, f"isolate: no image is named {digits}")


def test_digits_that_several_digests_begin_with(run: Any, tmp_path: Path, filled: Image) -> None:
    """Nobody can make two such images: the names are given digests that begin alike."""
    both = [f"sha256:{'ab' * 6}{n}{'0' * 51}" for n in (1, 2)]
    with Store(tmp_path / "store") as store:
        for name, digest in zip(("one", "two"), both, strict=True):
            store.opened.refs.set(Reference.parse(f"me/{name}:1"), digest)
        with pytest.raises(AmbiguousError) as caught:
            store.open("ab" * 6)
        assert caught.value.candidates == tuple(both)
        assert pickle.loads(pickle.dumps(caught.value)).candidates == tuple(both)
        with pytest.raises(ValueError, match="does not say where the image goes"):
            store.push("ab" * 6 + "1")
        with pytest.raises(BuildError, match="2 images have a digest"):
            Dockerfile.parse(f"FROM {'ab' * 6}\n").build(store, pull=True)
    for words in (
        ("image", "inspect"),
        ("image", "save", "-o", str(tmp_path / "out"), "--quiet"),
        ("image", "rm"),
        ("image", "tree"),
        ("image", "history"),
        ("run", "--pull", "--store", str(tmp_path / "store"), "--image"),
    ):
        status, _, err = run(*words, "ab" * 6)
        assert status != 0
        shown = f"2 images have a digest that begins with {'ab' * 6}: {'ab' * 6}1{'0' * 11} (me/one:1), {'ab' * 6}2"
        assert shown in err, words
        assert "give more digits" in err
    assert run("image", "rm", "--keep-data", "ab" * 6 + "1")[0] == 0
    assert "me/one:1" not in run("image", "ls")[1]


def test_what_is_shown(run: Any, filled: Image) -> None:
    status, out, _ = run("image", "inspect", "me/app:1")
    assert status == 0
    assert json.loads(out)["config"]["config"]["Labels"] == {"evil": "\x1b[2J"}
    assert "\x1b" not in out
    status, out, _ = run("image", "history", "me/app:1")
    assert len(out.splitlines()) == 3
    status, out, _ = run("image", "tree")
    assert "shared by 2" in out
    assert "= me/base:1" in out
    document = json.loads(run("image", "tree", "--json")[1])
    assert document["bytes"] < document["bytes_without_sharing"]
    status, out, _ = run("image", "diff", "me/base:1", "me/app:1")
    assert out.splitlines() == ["C /etc/a", "A /new\\n"]
    assert run("image", "diff", "me/app:1")[1] == out
    rows = json.loads(run("image", "diff", "--json", "me/app:1", "me/base:1")[1])
    assert {(row["kind"], row["path"]) for row in rows} == {("modified", "etc/a"), ("removed", "new\n")}
    assert run("image", "diff", "me/app:1", "me/app:1")[1] == ""


def test_a_store_that_is_damaged_says_so(run: Any, tmp_path: Path, filled: Image) -> None:
    os.unlink(tmp_path / "store/blobs/sha256" / filled.layers[0].digest[7:])
    status, out, _ = run("image", "check")
    assert status == 1
    assert "missing" in out
    status, _, err = run("image", "save", "--quiet", "-o", str(tmp_path / "out"), "me/app:1")
    assert status == 1
    assert "remedy" in err


@pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox (Debian's busybox-static) is not installed")
def test_run_an_image(tmp_path: Path) -> None:
    config = Config(
        env={"A": "from the image"}, entrypoint=("/bin/busybox", "sh", "-c"), cmd=("echo $A",), volumes=("/bin",)
    )
    with Store(tmp_path / "store") as store:
        store.add((Image.empty() + Layer.files({"bin/busybox": BUSYBOX.read_bytes()}, mode=0o755)).with_(config), "b:1")
    start = [sys.executable, "-m", "isolate", "run", "--store", str(tmp_path / "store"), "--image", "b:1"]

    def out(*words: str) -> bytes:
        return subprocess.run([*start, *words], capture_output=True, check=True, timeout=60).stdout

    assert out() == b"from the image\n"
    assert out("--", "echo $A $B") == b"from the image\n"
    assert out("--env", "B=mine", "--", "echo $A $B") == b"from the image mine\n"
    line = "/bin/busybox df -k /bin | /bin/busybox awk 'NR == 2 { print $2 }'"
    assert (out("--", line), out("--volume-size", "1M", "--", line)) == (b"262144\n", b"1024\n")
    wrong = subprocess.run([*start[:-1], "c:1"], capture_output=True, check=False, timeout=60)
    assert wrong.returncode == 125
    assert b"did you mean" in wrong.stderr or b"no image is named" in wrong.stderr


def test_bars_on_a_terminal() -> None:
    pytest.importorskip("rich")
    code = (
        "from isolate.tools.cli.showing import progress\nfrom isolate.images import Progress\n"
        "with progress(False) as show:\n"
        "    for done in (0, 1000): show(Progress('download', 'sha256:' + 'a' * 64, done, 1000))\n"
    )
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    seen = b""
    try:
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:
                break
            if not piece:
                break
            seen += piece
    finally:
        os.close(ours)
    assert process.wait(30) == 0
    assert b"download" in seen
    assert b"aaaaaaaaaaaa" in seen


def test_words() -> None:
    amounts = [amount(n) for n in (None, 5, 1500, 2_000_000, 3_000_000_000_000)]
    assert amounts == ["?", "5 B", "1.5 kB", "2.0 MB", "3000.0 GB"]
    assert short("sha256:" + "ab" * 32) == "ab" * 6
    assert table([["A", "B"], ["long", "x"]]) == "A     B\nlong  x"
    with progress(True) as show:
        assert show is None
