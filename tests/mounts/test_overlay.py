"""Overlay: layers, where changes go, paths with any characters; by descriptor and, as on older kernels, by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolate import Bind, ConflictError, Dir, Mask, Overlay, Proc, Root, Sandbox, SetupError, UserNamespace
from isolate.kernel.constants import FSCONFIG_SET_FLAG
from isolate.mounts import stacking as module
from tests.mounts.conftest import SYSTEM, Shell, mounts

if TYPE_CHECKING:
    from collections.abc import Iterator

ODD = ["a,b:c\\d e", "line\nbreak=1", "ü\"'$(x)", "-o,ro", "\\:,"]


@pytest.fixture(params=["by descriptor", "by name"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The second is what a kernel before 6.13 gets: it answers EINVAL to a layer by descriptor."""
    if request.param == "by name":
        monkeypatch.setattr(module, "FSCONFIG_SET_FD", FSCONFIG_SET_FLAG)  # with a value it is EINVAL
    return request.param


def layers(place: Path, names: list[str]) -> list[Path]:
    """Directories that hold a file each, and one that all have."""
    made = []
    for index, name in enumerate(names):
        path = place / name
        path.mkdir()
        (path / f"only-{index}").write_text(str(index))
        (path / "common").write_text(str(index))
        made.append(path)
    return made


def test_layers(shell: Shell, place: Path, way: str) -> None:
    lower = layers(place, ["a", "b", "c"])
    script = "cat /o/only-*; cat /o/common; echo changed > /o/common; rm /o/only-2; cat /o/common; ls /o"
    result = shell(script, Overlay("/o", lower=lower))
    assert result.stdout == "0120changed\ncommon\nonly-0\nonly-1\n", result.stderr
    assert [(path / "common").read_text() for path in lower] == ["0", "1", "2"]
    assert (lower[2] / "only-2").exists()
    again = shell("cat /o/common", Overlay("/o", lower=lower))
    assert again.stdout == "0"  # nothing is kept


def test_which_way(shell: Shell, place: Path, way: str) -> None:
    """What the kernel says that it mounted tells the ways apart: both are really taken."""
    result = shell("cat /proc/mounts", Proc(), Overlay("/o", lower=layers(place, ["a"])))
    (line,) = [line for line in str(result.stdout).splitlines() if line.split()[2] == "overlay"]
    assert ("/proc/self/fd/" in line) == (way == "by name")


def test_any_characters(shell: Shell, place: Path, way: str) -> None:
    lower = layers(place, ODD)
    upper, work = place / "up,per:\\", place / "work=,\n"
    upper.mkdir()
    work.mkdir()
    result = shell("cat /o/only-*; echo new > /o/new", Overlay("/o", lower=lower, upper=upper, work=work))
    assert result.stdout == "01234", result.stderr
    assert (upper / "new").read_text() == "new\n"


def test_any_target(shell: Shell, place: Path, way: str) -> None:
    result = shell("cat /x/*/only-0", Overlay("/x/a,b:c\\ d\n", lower=layers(place, ["a"])))
    assert result.stdout == "0"


def test_many_layers(shell: Shell, place: Path, way: str) -> None:
    lower = layers(place, [f"layer {n}" for n in range(100)])
    assert shell("ls /o | wc -l", Overlay("/o", lower=lower)).stdout == "101\n"


def test_upper(shell: Shell, place: Path, way: str) -> None:
    """Changes are kept, and found again."""
    lower = layers(place, ["lower"])
    for name in ("upper", "work"):
        place.joinpath(name).mkdir()
    entry = Overlay("/o", lower=lower, upper=place / "upper", work=place / "work")
    assert shell("echo x > /o/new; rm /o/only-0; cat /o/common", entry).stdout == "0"
    assert (place / "upper" / "new").read_text() == "x\n"
    assert shell("ls /o", entry).stdout == "common\nnew\n"
    assert sorted(os.listdir(lower[0])) == ["common", "only-0"]


def test_read_only(shell: Shell, place: Path, way: str) -> None:
    for lower in (layers(place, ["one"]), layers(place, ["two", "three"])):
        result = shell("cat /o/common; echo x > /o/common; echo x > /o/new", Overlay("/o", lower=lower, read_only=True))
        assert result.stdout == "0"
        assert str(result.stderr).count("Read-only file system") == 2


def test_size(shell: Shell, place: Path) -> None:
    script = "head -c 256K /usr/bin/bash > /o/file; stat -c %s /o/file"
    lower = layers(place, ["a"])
    assert shell(script, Overlay("/o", lower=lower)).stdout == f"{256 << 10}\n"
    small = shell(script, Overlay("/o", lower=lower, size="64K"))
    assert int(str(small.stdout)) <= 64 << 10
    assert "No space left" in str(small.stderr)
    few = shell("for i in 1 2 3 4 5 6 7 8 9; do echo > /o/$i; done", Overlay("/o", lower=lower, inodes=8))
    assert "No space left" in str(few.stderr)


def test_mode_and_attributes(shell: Shell, place: Path) -> None:
    (lower,) = layers(place, ["a"])
    lower.chmod(0o751)
    program = lower / "program"
    program.write_text("#!/bin/sh\necho ran\n")
    program.chmod(0o755)
    assert shell("stat -c %a /o; /o/program", Overlay("/o", lower=[lower])).stdout == "751\nran\n"
    refused = shell("/o/program", Overlay("/o", lower=[lower], exec=False))
    assert "Permission denied" in str(refused.stderr)
    assert {"nosuid", "nodev"} <= set(mounts(shell, Overlay("/o", lower=[lower]))["/o"])


def test_layer_by_descriptor(shell: Shell, place: Path, way: str) -> None:
    lower = layers(place, ["a", "b"])
    fds = [os.open(path, os.O_PATH) for path in lower]
    try:
        assert shell("cat /o/only-*", Overlay("/o", lower=fds)).stdout == "01"
        lower[0].rename(place / "moved")
        assert shell("cat /o/only-*", Overlay("/o", lower=fds)).stdout == "01"
    finally:
        for fd in fds:
            os.close(fd)


def test_as_the_root(parts: tuple[Any, ...], place: Path) -> None:
    """A tree of somebody's, changed at will and left as it was."""
    tree = place / "tree"
    tree.mkdir()
    for name in ("usr", "proc", "bin", "lib", "lib64"):
        tree.joinpath(name).mkdir()
    binds = [Bind(f"/{name}") for name in ("usr", "bin", "lib", "lib64") if os.path.exists(f"/{name}")]
    box = Sandbox(Root(Overlay("/", lower=[tree]), *binds, Dir("/made")), *parts)
    result = box.run(["/bin/sh", "-c", "ls /; echo x > /new; rmdir /proc; ls -d /new"], text=True)
    assert str(result.stdout).split() == ["bin", "lib", "lib64", "made", "proc", "usr", "/new"]
    assert sorted(os.listdir(tree)) == ["bin", "lib", "lib64", "proc", "usr"]


def test_missing_layer(shell: Shell, place: Path) -> None:
    with pytest.raises(SetupError) as caught:
        shell("true", Overlay("/o", lower=[place, place / "missing"]))
    assert caught.value.path == str(place / "missing")
    assert "does not exist" in str(caught.value)


def test_layer_that_is_a_file(shell: Shell, place: Path, way: str) -> None:
    (place / "file").touch()
    with pytest.raises(SetupError) as caught:
        shell("true", Overlay("/o", lower=[place / "file"]))
    assert caught.value.cause


def test_layer_with_mounts_below_in_a_user_namespace(shell: Shell, in_user_namespace: bool) -> None:
    entry = Overlay("/o", lower=["/dev"], read_only=True)
    if in_user_namespace:
        with pytest.raises(SetupError, match="may not uncover"):
            shell("true", entry)
    else:
        assert shell("ls /o/pts", entry).stdout == ""  # without them


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"lower": []}, ValueError),
        ({"lower": "/a"}, TypeError),
        ({"lower": 5}, TypeError),
        ({"lower": ["a"]}, ValueError),
        ({"lower": ["/a\0"]}, ValueError),
        ({"lower": [None]}, TypeError),
        ({"lower": ["/a"] * 501}, ValueError),
        ({"lower": ["/a"], "upper": "/u"}, ConflictError),
        ({"lower": ["/a"], "work": "/w"}, ConflictError),
        ({"lower": ["/a"], "upper": "/u", "work": "/w", "read_only": True}, ConflictError),
        ({"lower": ["/a"], "upper": "u", "work": "/w"}, ValueError),
        ({"lower": ["/a"], "size": 0}, ValueError),
        ({"lower": ["/a"], "inodes": 1}, ValueError),
        ({}, TypeError),
    ],
)
def test_refused(keywords: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Overlay("/o", **keywords)


def test_is_a_value() -> None:
    assert Overlay("/o", lower=["/a"]) == Overlay("/o", lower=(Path("/a"),)) != Overlay("/o", lower=["/b"])
    assert hash(Overlay("/o", lower=["/a"])) == hash(Overlay("/o", lower=[b"/a"]))


# ---- what layers say of themselves -----------------------------------------------------------------------------------


@pytest.fixture
def door(place: Path) -> list[Path]:
    """Layers of which the upper one says: my directory "door" is the directory "hidden" of the layer below."""
    if os.geteuid() != 0:
        pytest.skip("trusted extended attributes are root's")
    for name in ("upper/door", "lower/hidden"):
        (place / name).mkdir(parents=True)
    (place / "lower" / "hidden" / "secret").write_text("what is covered\n")
    for space in ("trusted", "user"):
        os.setxattr(place / "upper" / "door", f"{space}.overlay.redirect", b"/hidden")
    return [place / "upper", place / "lower"]


def test_redirects_in_a_layer_of_somebody_elses_are_not_followed(shell: Shell, door: list[Path], way: str) -> None:
    see = "ls /o/hidden; cat /o/door/secret"
    for read_only in (False, True):
        done = shell(see, Overlay("/o", lower=door, read_only=read_only), Mask("/o/hidden"))
        assert done.stdout == ""
        assert not done.ok
    assert shell("cat /o/hidden/secret", Overlay("/o", lower=door)).stdout == "what is covered\n"


def test_redirects_are_followed_where_the_layers_are_ones_own(door: list[Path], way: str) -> None:
    """The control of the test above, and what redirects=True is for."""
    box = Sandbox(Root(*SYSTEM, Overlay("/o", lower=door, redirects=True), Mask("/o/hidden")))
    assert box.run(["/bin/cat", "/o/door/secret"], text=True).stdout == "what is covered\n"
    with pytest.raises(ConflictError, match="user namespace"):
        Sandbox(Root(Overlay("/o", lower=door, redirects=True)), UserNamespace()).explain()


@pytest.mark.parametrize(
    "arguments",
    [
        {"lower": ["/a", "/a"]},
        {"lower": ["/a"], "upper": "/a", "work": "/w"},
        {"lower": ["/a"], "upper": "/u", "work": "/u"},
        {"lower": [3, 3]},
    ],
)
def test_one_directory_is_one_layer(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConflictError, match="named twice"):
        Overlay("/o", **arguments)
