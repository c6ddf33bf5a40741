"""Bind: each attribute tried inside, beside the same attempt without it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from isolate import Bind, Credentials, IdMap, NoNewPrivs, Proc, Root, Sandbox, SetupError, Tmpfs, UserNamespace
from tests.mounts.conftest import SYSTEM, Shell, mounts

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_read_only(shell: Shell, place: Path) -> None:
    place.joinpath("file").write_text("before")
    script = "echo x > /m/file; echo x > /m/new; rm /m/file; chmod 0 /m/file; cat /m/file"
    refused = shell(script, Bind(place, "/m"))
    assert refused.stdout == "before"
    assert refused.stderr is not None
    assert refused.stderr.count("Read-only file system") == 4
    assert os.listdir(place) == ["file"]
    allowed = shell("echo x > /m/file; echo x > /m/new; cat /m/file", Bind(place, "/m", read_only=False))
    assert (allowed.stdout, allowed.stderr) == ("x\n", "")
    assert sorted(os.listdir(place)) == ["file", "new"]


def test_read_only_holds_for_the_mounts_below(shell: Shell) -> None:
    name = f"/dev/shm/isolate-test-{os.getpid()}"
    if not os.path.ismount("/dev/shm"):
        pytest.skip("nothing is mounted on /dev/shm")
    script = f"echo x > /d{name[4:]}"
    assert "Read-only file system" in str(shell(script, Bind("/dev", "/d")).stderr)
    assert not os.path.exists(name)
    try:
        assert shell(script, Bind("/dev", "/d", read_only=False)).ok
        assert os.path.exists(name)
    finally:
        os.unlink(name)


def test_exec(shell: Shell, place: Path) -> None:
    program = place / "program"
    program.write_text("#!/bin/sh\necho ran\n")
    program.chmod(0o755)
    assert shell("/m/program", Bind(place, "/m")).stdout == "ran\n"
    refused = shell("/m/program", Bind(place, "/m", exec=False))
    assert "Permission denied" in str(refused.stderr)
    assert refused.stdout == ""


@as_root
def test_suid(place: Path) -> None:
    program = place / "whoami"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    os.chown(program, 12345, 12345)
    program.chmod(0o4755)

    def euid(**how: Any) -> str:
        # nested=True: else a filter keeps user namespaces out, and a filter needs no_new_privs.
        whole = UserNamespace(map=IdMap([(0, 0, 70000)], [(0, 0, 70000)]), nested=True)
        user = (Credentials(uid=65534, gid=65534), NoNewPrivs(enabled=False))
        box = Sandbox(whole, Root(*SYSTEM, Bind(place, "/m", **how)), *user)
        return str(box.run(["/m/whoami", "-u"], text=True).stdout).strip()

    assert euid(suid=True) == "12345"
    assert euid() == "65534"


@as_root
def test_dev(place: Path) -> None:
    os.mknod(place / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))

    def read(**how: Any) -> tuple[bytes | None, bytes | None]:
        result = Sandbox(Root(*SYSTEM, Bind(place, "/m", **how))).run(["/usr/bin/head", "-c", "3", "/m/zero"])
        return result.stdout, result.stderr

    assert read(dev=True) == (b"\0\0\0", b"")
    output, error = read()
    assert output == b""
    assert b"Permission denied" in (error or b"")


def test_symlinks(shell: Shell, place: Path) -> None:
    place.joinpath("file").write_text("text")
    place.joinpath("link").symlink_to("file")
    assert shell("cat /m/link", Bind(place, "/m")).stdout == "text"
    refused = shell("cat /m/file; cat /m/link", Bind(place, "/m", symlinks=False))
    assert refused.stdout == "text"
    assert "Too many levels of symbolic links" in str(refused.stderr)


def test_atime(shell: Shell, place: Path, in_user_namespace: bool) -> None:
    file = place / "file"
    file.write_text("text")

    def read(atime: str | None) -> float:
        os.utime(file, (1000, 2000))
        assert shell("cat /m/file", Bind(place, "/m", atime=atime, read_only=False)).ok
        return file.stat().st_atime

    if in_user_namespace:
        # The kernel locks the host's choice (CVE-2014-5206).
        with pytest.raises(SetupError, match="leave atime=None"):
            read("strictatime")
        return
    assert read("noatime") == 1000
    assert read("strictatime") > 2000
    assert read("relatime") > 2000


def test_recursive(shell: Shell, in_user_namespace: bool) -> None:
    """Without the mounts below: a user namespace may not, as it would uncover what they hide."""
    with_them = mounts(shell, Bind("/dev", "/d"))
    assert "/d/pts" in with_them
    if in_user_namespace:
        with pytest.raises(SetupError, match="recursive=True"):
            mounts(shell, Bind("/dev", "/d", recursive=False))
        return
    without = mounts(shell, Bind("/dev", "/d", recursive=False))
    assert "/d" in without
    assert not [name for name in without if name.startswith("/d/")]


def test_attributes_are_those_asked_for(shell: Shell, place: Path) -> None:
    table = mounts(
        shell,
        Bind(place, "/a"),
        Bind(place, "/b", read_only=False, suid=True, dev=True),
        Bind(place, "/c", exec=False, symlinks=False),
    )
    assert {"ro", "nosuid", "nodev"} <= set(table["/a"])
    assert not {"ro", "nosuid", "nodev", "noexec"} & set(table["/b"])
    assert {"ro", "noexec", "nosymfollow"} <= set(table["/c"])


def test_a_file(shell: Shell, place: Path) -> None:
    file = place / "file"
    file.write_text("one")
    result = shell("cat /deep/down/file; echo two > /deep/down/file", Bind(file, "/deep/down/file", read_only=False))
    assert result.stdout == "one"
    assert file.read_text() == "two\n"


def test_target_is_the_source_unless_given(shell: Shell, place: Path) -> None:
    place.joinpath("file").write_text("text")
    assert shell(f"cat {place}/file", Bind(place)).stdout == "text"
    assert shell(f"cat {place}/file", Bind(str(place) + "/./")).stdout == "text"


def test_optional(shell: Shell, place: Path) -> None:
    missing = place / "missing"
    with pytest.raises(SetupError, match="does not exist") as caught:
        shell("true", Bind(missing, "/m"))
    assert (caught.value.part, caught.value.syscall, caught.value.path) == ("Root", "open_tree", str(missing))
    result = shell("ls -d /m /n", Bind(missing, "/m", optional=True), Tmpfs("/n"))
    assert result.stdout == "/n\n"
    assert result.applied["Root"] is False
    missing.mkdir()
    assert shell("true", Bind(missing, "/m", optional=True)).applied["Root"] is True


def test_any_characters(shell: Shell, place: Path) -> None:
    name = "a,b:c\\d \"e'\n\tü="
    place.joinpath(name).mkdir()
    place.joinpath(name, "file").write_text("text")
    result = shell('cat "$0"/file 2>/dev/null; cat /x*/*/file', Bind(place / name, f"/x/{name}"))
    assert result.stdout == "text"
    raw = os.fsencode(place) + b"/\xff\xfe"
    os.mkdir(raw)
    assert shell("ls /m", Bind(raw, "/m")).ok


# ---- by descriptor -------------------------------------------------------------------------------------------------


def test_descriptor(shell: Shell, place: Path) -> None:
    place.joinpath("file").write_text("text")
    fd = os.open(place, os.O_PATH)
    try:
        assert shell("cat /m/file", Bind(fd, "/m")).stdout == "text"
    finally:
        os.close(fd)
    with open(place / "file", "rb") as file:
        assert shell("cat /f", Bind(file, "/f")).stdout == "text"


def test_descriptor_of_what_has_been_replaced(shell: Shell, place: Path, in_user_namespace: bool) -> None:
    """It stands for the directory that was opened, or is refused: never for another of that name."""
    source = place / "source"
    source.mkdir()
    source.joinpath("file").write_text("right")
    fd = os.open(source, os.O_PATH)
    try:
        source.rename(place / "moved")
        assert shell("cat /m/file", Bind(fd, "/m")).stdout == "right"  # the kernel knows the new name
        hidden = place / "moved"
        os.rename(hidden, place / "gone")
        subprocess.run(["rm", "-r", place / "gone"], check=True)
        hidden.mkdir()
        hidden.joinpath("file").write_text("wrong")
        try:
            result = shell("cat /m/file", Bind(fd, "/m"))
        except SetupError:
            pass
        else:
            assert result.stdout == ""
    finally:
        os.close(fd)
    assert in_user_namespace in (True, False)


# ---- with an id map --------------------------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize("extra", [(), (UserNamespace(map=IdMap([(0, 0, 1)], [(0, 0, 1)])),)])
def test_idmap(place: Path, extra: tuple[Any, ...]) -> None:
    place.joinpath("file").touch()
    os.chown(place / "file", 1000, 1000)
    holder = Sandbox(UserNamespace(map=IdMap([(1000, 0, 1)], [(1000, 0, 1)]), uid=1000, gid=1000))
    with holder.spawn(["sleep", "60"]) as process:
        fd = os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY)
    try:

        def owner(**how: Any) -> str:
            box = Sandbox(Root(*SYSTEM, Bind(place, "/m", **how)), *extra)
            return str(box.run(["/usr/bin/stat", "-c", "%u %g", "/m/file"], text=True).stdout).strip()

        # On disk the owner is 1000, which that namespace's map says is 0 on the host.
        assert owner(idmap=fd) == "0 0"
        assert owner() == ("65534 65534" if extra else "1000 1000")
    finally:
        os.close(fd)


def test_idmap_is_not_for_ordinary_users(place: Path) -> None:
    fd = os.open("/proc/self/ns/user", os.O_RDONLY)
    box = Sandbox(Root(*SYSTEM, Bind(place, "/m", idmap=fd)), UserNamespace())
    try:
        with pytest.raises(SetupError) as caught:
            box.run(["/bin/true"])
    finally:
        os.close(fd)
    assert caught.value.syscall == "mount_setattr"
    assert caught.value.cause


# ---- refused before anything starts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "keywords", "error"),
    [
        (("relative",), {}, ValueError),
        (("",), {}, ValueError),
        (("/a\0b",), {}, ValueError),
        (("/a", "b"), {}, ValueError),
        (("/a", "/b/../c"), {}, ValueError),
        (("/a/../b",), {}, ValueError),  # no target to be had from it
        (("/" + "x" * 5000,), {}, ValueError),
        (("/a", "/" + "x" * 256), {}, ValueError),
        ((3,), {}, TypeError),
        ((-1, "/m"), {}, ValueError),
        ((True, "/m"), {}, TypeError),
        ((None, "/m"), {}, TypeError),
        (("/a",), {"atime": "never"}, ValueError),
        (("/a",), {"idmap": -1}, ValueError),
        (("/a",), {"idmap": "x"}, TypeError),
        (("/a",), {"readonly": True}, TypeError),
    ],
)
def test_refused(arguments: tuple[Any, ...], keywords: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Bind(*arguments, **keywords)


def test_source_may_go_up(shell: Shell, place: Path) -> None:
    place.joinpath("file").write_text("text")
    assert shell("cat /m/file", Bind(f"{place}/../{place.name}", "/m")).stdout == "text"


def test_is_a_value() -> None:
    assert Bind("/usr") == Bind(b"/usr", "/usr/") != Bind("/usr", read_only=False)
    assert hash(Bind("/usr")) == hash(Bind(Path("/usr")))
    assert len({Bind("/usr"), Bind("/usr", "/usr")}) == 1


def test_unprivileged_without_a_user_namespace() -> None:
    code = "from isolate import *; Sandbox(Root(Bind('/usr'))).run(['/usr/bin/true'])"
    keywords: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/", **keywords
    )
    assert "SetupError" in done.stderr
    assert "UserNamespace()" in done.stderr


def test_proc_is_needed_for_nothing_else() -> None:
    assert [type(part).__name__ for part in Root(Bind("/usr")).brings()] == ["MountNamespace"]
    assert [type(part).__name__ for part in Root(Proc()).brings()] == ["MountNamespace", "PidNamespace"]
