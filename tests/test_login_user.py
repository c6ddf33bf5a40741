"""What a login user can do: ``initgroups`` puts the own gid among the supplementary groups of everybody who logs in."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.login import Login, make_login_user

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def user() -> Iterator[Login]:
    yield from make_login_user()


@pytest.fixture
def user_with_groups() -> Iterator[Login]:
    yield from make_login_user("games")


_START = """
import os, sys
from isolate import Sandbox, Landlock, Seccomp, UserNamespace, Credentials, Rlimits
assert os.getgroups() == [os.getgid()], os.getgroups()
for box in (Sandbox(), Sandbox(Landlock(read=["/"], execute=["/usr", "/lib", "/lib64", "/bin"])),
            Sandbox(Seccomp.default()), Sandbox(Rlimits(nofile=64)), Sandbox(UserNamespace())):
    found = box.run(["id", "-G"], text=True)
    print(found.verdict, found.stdout.strip())
"""


def test_25_a_login_user_starts_everything(user: Login) -> None:
    lines = user.python(_START).splitlines()
    assert lines[:4] == [f"OK {user.gid}"] * 4
    assert lines[4].startswith("OK")


def test_25_the_probe_and_the_command_line_say_so(user: Login) -> None:
    out = user.run(sys.executable, "-m", "isolate", "probe", "start", "landlock", "seccomp").stdout
    assert " no " not in out
    done = user.run(sys.executable, "-m", "isolate", "run", "--preset", "bare", "--", "echo", "hello")
    assert done.stdout == "hello\n"


def test_25_the_own_gid_on_this_thread(user: Login) -> None:
    code = "import os\nfrom isolate import Credentials\nwith Credentials(): print(os.getgroups() == [os.getgid()])\n"
    assert user.python(code) == "True\n"


def test_25_groups_that_are_asked_for_and_there(user: Login) -> None:
    code = """
import os
from isolate import Sandbox, Credentials
print(Sandbox(Credentials(groups=os.getgroups())).run(["true"]).verdict)
try:
    Sandbox(Credentials(groups=[0])).run(["true"])
except OSError as error:
    print(error.errno, error.cause.partition(":")[0])
"""
    assert user.python(code).splitlines() == ["OK", "1 groups cannot be set here"]


def test_25_a_group_that_gives_access_is_still_refused(user_with_groups: Login) -> None:
    """The control: a group beside the own one is one to drop, and nobody without privileges can."""
    code = """
from isolate import Sandbox, Credentials, UserNamespace
try:
    Sandbox().run(["true"])
except OSError as error:
    print(error.errno, error.cause)
print(Sandbox(Credentials(groups=None)).run(["true"]).verdict, Sandbox(UserNamespace()).run(["true"]).verdict)
"""
    lines = user_with_groups.python(code).splitlines()
    assert lines[0].startswith("1 the caller has supplementary groups and no right to drop them")
    assert lines[1] == "OK OK"


def test_25_an_effective_gid_among_the_groups_that_is_given_up_counts() -> None:
    """A list with the effective gid alone, and a program that gets another gid: the group would stay, so it counts."""
    code = """
import os
os.setgroups([60]); os.setresgid(61, 60, 61); os.setresuid(65534, 65534, 65534)
from isolate import Sandbox, Credentials
for part in (Credentials(), Credentials(gid=61)):
    try:
        print(Sandbox(part).run(["true"]).verdict)
    except OSError as error:
        print(error.errno, error.step)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    if "setgroups" in done.stderr and "PermissionError" in done.stderr:
        pytest.skip("only root can give a process groups")
    assert done.stdout.splitlines() == ["OK", "1 drop the supplementary groups"], done.stderr
