"""Causes and remedies that are told, where what comes first to mind would mislead."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from isolate import Bind, Landlock, Sandbox, SetupError, presets
from isolate.diagnosis.clone import clone, privileged
from isolate.diagnosis.host import Host
from isolate.namespaces.ranges import free_range
from tests.hosts import remove_groups
from tests.login import Login, make_login_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def user() -> Iterator[Login]:
    yield from make_login_user()


TELL = """
import sys
from isolate import *
for parts in eval(sys.argv[1]):
    try:
        print(Sandbox(*parts).run(["true"]).verdict)
    except OSError as error:
        print(error.cause, "|", error.remedy)
"""


def told(parts: str, *before: str) -> list[str]:
    done = subprocess.run([*before, sys.executable, "-c", TELL, parts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@root
def test_32_root_without_capabilities() -> None:
    """It is never told to run as root; and the control: with them it starts."""
    parts = "[(MountNamespace(),), (UserNamespace(),)]"
    mount, user = told(parts, "setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--reuid", "0")
    assert "keep CAP_SYS_ADMIN for this program" in mount
    assert "run this program as root" not in mount
    assert "this program is root without CAP_SETGID, CAP_SETUID, CAP_SETFCAP" in user
    (only,) = told(
        "[(UserNamespace(),)]", "setpriv", "--bounding-set", "-setfcap", "--inh-caps", "-all", "--reuid", "0"
    )
    assert "root without CAP_SETFCAP:" in only
    assert told(parts) == ["OK", "OK"]


@root
def test_32_without_proc() -> None:
    (line,) = told("[(UserNamespace(),)]", "unshare", "-m", "sh", "-c", 'umount -l /proc; exec "$@"', "sh")
    assert line.startswith("there is no /proc here")


@root
@pytest.mark.skipif(shutil.which("newuidmap") is None, reason="newuidmap is not installed (package: uidmap)")
def test_32_newuidmap_under_no_new_privs(user: Login) -> None:
    code = TELL.replace("sys.argv[1]", "'[(UserNamespace(map=IdMap.subordinate()),)]'")
    plain = user.run(sys.executable, "-c", code)
    assert plain.stdout == "OK\n", plain
    under = user.run("setpriv", "--no-new-privs", sys.executable, "-c", code)
    assert under.stdout.startswith("no_new_privs is set on this program"), under
    assert "by hand" not in under.stdout


def test_32_links_whose_end_is_not_there(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    link, script = tmp_path / "python", tmp_path / "script"
    link.symlink_to("/no/such/python")
    script.write_text(f"#!{link}\n")
    script.chmod(0o755)
    for path in (link, script):
        with pytest.raises(FileNotFoundError) as caught:
            Sandbox().run([path])
        assert isinstance(caught.value, SetupError)
        assert "symbolic link, which leads to /no/such/python, which is not there either" in str(caught.value.cause)
        assert "have the link lead to a program" in str(caught.value.remedy)


def test_32_links_whose_end_alone_is_inside(tmp_path: Path) -> None:
    """As the interpreter of a virtual environment: the end is under /usr, which presets show, and the link is not."""
    tmp_path.chmod(0o755)
    (tmp_path / "bin").mkdir()
    link, script, end = tmp_path / "bin/tool", tmp_path / "bin/script", os.path.realpath("/bin/true")
    link.symlink_to(end)
    script.write_text(f"#!{link}\n")
    script.chmod(0o755)
    for path, inside in ((link, ()), (script, (Bind(script),))):
        for brought in (link, tmp_path):
            with pytest.raises(FileNotFoundError) as caught:
                presets.untrusted(*inside).run([path])
            assert isinstance(caught.value, SetupError)
            environment = "the virtual environment " * (brought == tmp_path)
            assert f"bring in both, {environment}{brought} and {end}" in str(caught.value.remedy)
            (tmp_path / "pyvenv.cfg").touch()
        (tmp_path / "pyvenv.cfg").unlink()
        assert presets.untrusted(Bind(tmp_path)).run([path]).ok


def test_32_landlock_without_execute() -> None:
    with pytest.raises(PermissionError) as caught:
        Sandbox(Landlock(read=["/"])).run(["true"])
    assert isinstance(caught.value, SetupError)
    assert str(caught.value.cause).startswith("the sandbox's Landlock may not let true")
    assert "Landlock(execute=" in str(caught.value.remedy)
    assert Sandbox(Landlock(read=["/"], execute=["/"])).run(["true"]).ok


def test_32_in_a_sandbox_of_isolates_own(tmp_path: Path) -> None:
    """The limit that an own sandbox sets is not one that a sysctl of the host would raise."""
    for name, text in (("proc/sys/user/max_user_namespaces", "0\n"), ("proc/self/uid_map", "0 1000 1\n")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = clone(Host(str(tmp_path), euid=0), 28, 0x10000000, into_cgroup=False)
    assert found is not None
    assert "runs in a sandbox that allows no user namespaces" in found.cause
    assert str(found.remedy).startswith("whoever made that sandbox has to allow them")
    (tmp_path / "proc/self/uid_map").write_text("0 0 4294967295\n")  # the control: of the host itself
    found = clone(Host(str(tmp_path), euid=0), 28, 0x10000000, into_cgroup=False)
    assert found is not None
    assert "runs in a sandbox" not in found.cause
    assert str(found.remedy).startswith("as root")
    assert "as root" not in privileged(Host(str(tmp_path), euid=0))


def test_32_a_range_that_nobody_holds() -> None:
    rows = ["a:100000:65536", "b:165536:65536", "broken", "c:400000:10"]
    assert free_range(rows) == 231072
    assert free_range([]) == 100000
    assert free_range(["a:150000:10"]) == 150010


ONLY_V1 = pytest.mark.skipif(os.path.exists("/sys/fs/cgroup/cgroup.controllers"), reason="on v1 alone")


@root
@ONLY_V1
def test_32_the_command_for_a_group_is_whole(user: Login) -> None:
    line = user.python(TELL.replace("sys.argv[1]", "'[(Limits(pids=9, memory=\"64M\"),)]'"))
    found = re.search(rf"cgcreate -a {user.name} -t {user.name} -g ([a-z,_]+):/{user.name}", line)
    assert found is not None, line
    assert {"memory", "pids"} <= set(found[1].split(","))


ONCE = """
import os
from isolate import *
os.setgroups([]); os.setresgid(4242, 4242, 4242); os.setresuid(4242, 4242, 4242)
box = Sandbox(UserNamespace(), PidNamespace(), Limits(pids=9, memory="64M"))
try:
    print(box.run(["sh", "-c", "sleep 0"]).verdict, flush=True)
except OSError as error:
    print(error.remedy, flush=True)
"""


@root
@ONLY_V1
def test_32_a_user_without_a_name_is_told_commands_that_work() -> None:
    """cgcreate does not take a number; what is printed in its place is done here, as it is printed."""
    # The shell that it is started from is put into the group, and starts it again.
    command = ["sh", "-c", '"$@"; read go; "$@"', "sh", sys.executable, "-c", ONCE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        told = process.stdout.readline()
        if told == "OK\n":
            process.communicate("again\n")
            pytest.skip("this place gives groups to anybody")
        found = re.search(r"as root: (for c in (.*?); do .*; done) \(", told)
        assert found is not None, told
        made = [f"{mount}/isolate-4242" for mount in found[2].split()]
        assert not any(map(os.path.exists, made)), "somebody else's groups"
        try:
            subprocess.run(["sh", "-ec", found[1]], check=True, timeout=30)
            out, _ = process.communicate("again\n", timeout=60)
            assert out == "OK\n"
        finally:
            process.kill()
            process.wait()
            remove_groups("isolate-4242")  # what it started ends a moment later
        assert not any(map(os.path.exists, made))
