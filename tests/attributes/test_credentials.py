"""Ids, groups, umask: refused when wrong, in force when right, read back."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import Credentials, IdMap, Sandbox, SetupError, UserNamespace
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
WHOLE = UserNamespace(map=IdMap([(0, 0, 70000)], [(0, 0, 70000)]))


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user may use."""
    with tempfile.TemporaryDirectory(prefix="isolate-test-") as name:
        os.chmod(name, 0o777)
        yield Path(name)


def status(*parts: object) -> dict[str, str]:
    """What /proc/self/status says inside."""
    result = Sandbox(*parts).run(["cat", "/proc/self/status"], text=True)  # type: ignore[arg-type]
    assert result.returncode == 0, result.stderr
    return {k: " ".join(v.split()) for k, _, v in (line.partition(":") for line in result.stdout.splitlines())}


@pytest.mark.parametrize("field", ["uid", "gid"])
@pytest.mark.parametrize("wrong", ["root", "0", b"0", True, 1.0])
def test_ids_are_ints(field: str, wrong: object) -> None:
    with pytest.raises(TypeError, match=f"{field} must be an int"):
        Credentials(**{field: wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [-1, 2**32 - 1, 2**32, 2**64])
def test_ids_in_range(wrong: int) -> None:
    with pytest.raises(ValueError, match="must be in 0"):
        Credentials(uid=wrong)
    with pytest.raises(ValueError, match="a group must be in 0"):
        Credentials(groups=(wrong,))


@pytest.mark.parametrize("wrong", ["wheel", b"1", 5, ("5",), (True,)])
def test_groups_are_ints(wrong: object) -> None:
    with pytest.raises(TypeError):
        Credentials(groups=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["022", True, None])
def test_umask_is_an_int(wrong: object) -> None:
    with pytest.raises(TypeError, match="umask"):
        Credentials(umask=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [0o1000, -1])
def test_umask_in_range(wrong: int) -> None:
    with pytest.raises(ValueError, match="umask"):
        Credentials(umask=wrong)


def test_too_many_groups() -> None:
    with pytest.raises(ValueError, match="at most 65536"):
        Credentials(groups=range(65537))  # type: ignore[arg-type]


@as_root
@pytest.mark.parametrize("namespace", [(), (WHOLE,)], ids=["host", "user namespace"])
def test_ids_hold(namespace: tuple[UserNamespace, ...]) -> None:
    found = status(*namespace, Credentials(uid=1234, gid=2345, groups=[9, 3, 3, 60000]))  # type: ignore[arg-type]
    assert found["Uid"] == "1234 1234 1234 1234"
    assert found["Gid"] == "2345 2345 2345 2345"
    assert found["Groups"] == "3 9 60000"


@as_root
def test_ids_of_files_and_no_way_back(public: Path) -> None:
    become_root = f"{sys.executable} -c 'import os; os.setresuid(0, 0, 0); print(\"back\")'"
    script = f"touch {public}/file; cat {public}/secret; {become_root}; exit 0"
    (public / "secret").write_text("secret")
    (public / "secret").chmod(0o600)
    result = Sandbox(Credentials(uid=1234, gid=2345)).run(["sh", "-c", script], text=True)
    made = (public / "file").stat()
    assert (made.st_uid, made.st_gid) == (1234, 2345)
    assert result.stdout == ""
    assert "Permission denied" in result.stderr
    assert "PermissionError" in result.stderr
    (public / "file").unlink()
    control = Sandbox().run(["sh", "-c", script], text=True)
    assert control.stdout == "secretback\n"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0, 0o666), (0o777, 0)])
def test_umask(public: Path, umask: int, mode: int) -> None:
    result = Sandbox(Credentials(umask=umask)).run(["touch", str(public / "file")])
    assert result.returncode == 0
    assert (public / "file").stat().st_mode & 0o777 == mode
    (public / "file").unlink()


def test_the_callers_umask_does_not_matter() -> None:
    before = os.umask(0o137)
    try:
        assert Sandbox().run(["sh", "-c", "umask"]).stdout == b"0022\n"
    finally:
        os.umask(before)


def test_whom_the_user_namespace_names() -> None:
    found = status(UserNamespace(uid=1000, gid=1001))
    assert (found["Uid"], found["Gid"]) == ("1000 " * 3 + "1000", "1001 " * 3 + "1001")


@as_root
def test_user_namespace_with_root_and_another() -> None:
    """init is root, for the setting up; the program is whom it was asked for."""
    ids = IdMap([(0, 0, 2000)], [(0, 0, 2000)])
    assert status(UserNamespace(uid=1000, gid=1000, map=ids))["Uid"].startswith("1000 ")
    assert status(UserNamespace(map=ids), Credentials(uid=7))["Uid"].startswith("7 ")


@pytest.mark.parametrize("field", ["uid", "gid"])
def test_an_id_that_is_not_mapped(field: str) -> None:
    with pytest.raises(SetupError, match=f"{field} 77 is not mapped") as caught:
        Sandbox(UserNamespace(), Credentials(**{field: 77})).run(["true"])  # type: ignore[arg-type]
    assert (caught.value.errno, caught.value.syscall) == (errno.EINVAL, f"setres{field}")


@as_root
def test_a_group_that_is_not_mapped() -> None:
    with pytest.raises(SetupError, match="a group is not mapped") as caught:
        Sandbox(UserNamespace(), Credentials(groups=(77,))).run(["true"])
    assert caught.value.errno == errno.EINVAL


@as_root
def test_the_callers_groups_are_dropped() -> None:
    """The control keeps them."""
    before = os.getgroups()
    os.setgroups([1, 60, 65534])
    try:
        assert status()["Groups"] == ""
        assert status(UserNamespace())["Groups"] == ""
        assert status(Credentials(groups=None))["Groups"] == "1 60 65534"
    finally:
        os.setgroups(before)


GO = """
from isolate import Credentials, Sandbox, SetupError, UserNamespace
def go(*parts):
    try:
        r = Sandbox(*parts).run(["grep", "^Groups", "/proc/self/status"], text=True)
        print("ran", *r.stdout.split()[1:])
    except SetupError as error:
        print("error", error.errno, error.step, "|", error.cause)
"""


@as_root
def test_an_ordinary_user_with_groups() -> None:
    """Where a user namespace denies setgroups they stay, as nobody's. Elsewhere that is an error, until accepted."""
    code = GO + "go(UserNamespace())\ngo()\ngo(Credentials(groups=None))\n"
    code += "go(UserNamespace(), Credentials(groups=(0,)))\n"
    lines = as_ordinary_user(code, groups=(100, 200)).splitlines()
    assert lines[0] == "ran 65534 65534"
    assert lines[1].startswith(f"error {errno.EPERM} drop the supplementary groups | the caller has")
    assert lines[2] == "ran 100 200"
    assert lines[3].startswith(f"error {errno.EPERM} supplementary groups 0 | groups cannot be set here")


@as_root
def test_an_ordinary_user_without_groups() -> None:
    code = GO + "go()\ngo(UserNamespace())\ngo(Credentials(uid=5))\ngo(Credentials(gid=5))\n"
    lines = as_ordinary_user(code).splitlines()
    assert lines[:2] == ["ran", "ran"]
    assert lines[2].startswith(f"error {errno.EPERM} become uid 5 | changing the uid needs CAP_SETUID")
    assert lines[3].startswith(f"error {errno.EPERM} become gid 5 | changing the gid needs CAP_SETGID")
