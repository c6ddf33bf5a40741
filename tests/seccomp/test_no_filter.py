"""A filter without no_new_privs, and no filter at all."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from isolate import Bind, Landlock, NoNewPrivs, PidNamespace, Sandbox, Seccomp, SetupError, UserNamespace, presets
from isolate.seccomp import deny
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from pathlib import Path

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root has CAP_SYS_ADMIN without a user namespace")
SHOW = ["grep", "-E", "^(NoNewPrivs|Seccomp|CapPrm|CapEff|CapInh|CapAmb):", "/proc/self/status"]


def state(*parts: Any) -> dict[str, int]:
    """What the kernel says of a program under these parts."""
    rows = Sandbox(*parts).run(SHOW).stdout.decode().splitlines()
    return {name: int(value, 16) for name, _, value in (row.partition(":") for row in rows)}


NONE = {"CapPrm": 0, "CapEff": 0, "CapInh": 0, "CapAmb": 0}


@root_only
@pytest.mark.parametrize(
    "parts",
    [
        (),
        (UserNamespace(),),
        (UserNamespace(), PidNamespace(), Seccomp.default()),
        (Seccomp.default(), Seccomp(deny("ptrace"), otherwise="allow")),
        (Seccomp.strict() + Seccomp.default().rules[0],),
    ],
    ids=["root", "user namespace", "default", "two", "strict"],
)
def test_18_a_filter_without_no_new_privs(parts: tuple[Any, ...]) -> None:
    """It is installed while CAP_SYS_ADMIN is there, and the program has neither that nor no_new_privs."""
    assert state(NoNewPrivs(False), *parts) == {**NONE, "NoNewPrivs": 0, "Seccomp": 2}
    assert state(*parts) == {**NONE, "NoNewPrivs": 1, "Seccomp": 2}  # control


@root_only
def test_18_the_filter_holds() -> None:
    box = Sandbox(NoNewPrivs(False), Seccomp(deny("mkdir", "mkdirat"), otherwise="allow"))
    assert b"not permitted" in box.run(["mkdir", "/tmp/never"]).stderr
    assert not os.path.exists("/tmp/never")


@root_only
def test_18_set_user_id_works_without_no_new_privs(tmp_path: Path) -> None:
    """What it is for: an exec that changes ids. With no_new_privs the same file changes nothing."""
    import shutil

    program = tmp_path / "id"
    shutil.copy("/usr/bin/id", program)
    os.chown(program, 1234, 1234)
    program.chmod(0o4755)
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        directory.chmod(0o755)
    assert Sandbox(NoNewPrivs(False)).run([program, "-u"]).stdout == b"1234\n"
    assert Sandbox().run([program, "-u"]).stdout == b"0\n"


@root_only
def test_18_landlock_and_a_filter() -> None:
    assert state(NoNewPrivs(False), Landlock(handled="make_dir"))["NoNewPrivs"] == 0


def test_18_an_ordinary_user() -> None:
    """In a user namespace of its own; without one an error names what would work."""
    out = as_ordinary_user(
        "from isolate import *\n"
        f"print(Sandbox(NoNewPrivs(False), UserNamespace()).run({SHOW!r}, text=True).stdout.split()[-3:])\n"
        "try:\n    Sandbox(NoNewPrivs(False), Credentials(groups=None)).run(['true'])\n"
        "except SetupError as error:\n    print(error.part, 'UserNamespace()' in str(error))\n"
    )
    assert out.splitlines() == ["['0', 'Seccomp:', '2']", "Capabilities True"]


def test_18_no_filter() -> None:
    found = state(UserNamespace(), Seccomp.none())
    assert (found["Seccomp"], found["NoNewPrivs"]) == (0, 1)
    assert state(UserNamespace(), NoNewPrivs(False), Seccomp.none())["Seccomp"] == 0
    assert state(UserNamespace())["Seccomp"] == 2  # control
    assert repr(Seccomp.none()) == "Seccomp.none()"
    assert Seccomp.none() == Seccomp.none() != Seccomp()
    assert Seccomp.none().simulate("ptrace").makes_call
    with pytest.raises(ValueError, match="no filter"):
        Sandbox(Seccomp.none(), Seccomp.default())
    with pytest.raises(TypeError):
        Seccomp.none() + deny("ptrace")


def test_18_no_filter_in_a_preset(tmp_path: Path) -> None:
    box = presets.untrusted(Bind(tmp_path, "/out", read_only=False), extra=[Seccomp.none()])
    assert b"Seccomp:\t0" in box.run(SHOW).stdout


def test_18_without_the_right_the_error_says_so() -> None:
    """No CAP_SYS_ADMIN and no user namespace: nothing starts, and nothing ran."""
    if os.geteuid() != 0:
        pytest.skip("root gives the right away")
    code = (
        "from isolate import *\n"
        "try:\n    print(Sandbox(NoNewPrivs(False)).run(['true']).verdict)\n"
        "except SetupError as error:\n    print(error.part, error.syscall, 'CAP_SYS_ADMIN' in str(error))\n"
    )
    order = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-c", code]
    done = subprocess.run(order, capture_output=True, text=True, check=False)
    assert done.stdout == "Seccomp seccomp True\n", done.stderr
    assert issubclass(SetupError, OSError)
