"""What a host can do is found by trying; a sandbox is checked without a program inside."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import (
    Bind,
    MountNamespace,
    PidNamespace,
    Root,
    Sandbox,
    Seccomp,
    SetupError,
    Tmpfs,
    UserNamespace,
    UtsNamespace,
)
from isolate.engine.plan import Phase, Step, call
from isolate.images import StoreError
from isolate.images.trial import can_share_contents
from isolate.tools.doctor import Ability, abilities
from tests.ordinary import as_ordinary_user
from tests.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

USER = [] if os.geteuid() == 0 else [UserNamespace()]


def row(name: str) -> Ability:
    return next(ability for ability in abilities() if ability.name == name)


# ---- check ---------------------------------------------------------------------------------------------------------


def test_an_empty_root_can_be_checked() -> None:
    box = Sandbox(*USER, PidNamespace(), Root())
    box.check()
    with pytest.raises(SetupError):
        box.run(["true"])  # there is nothing to run in it


@pytest.mark.parametrize(
    "box",
    [
        Sandbox(),
        Sandbox(UserNamespace()),
        Sandbox(UserNamespace(), PidNamespace(init=False)),
        Sandbox(*USER, Root(Tmpfs("/"), Bind("/usr"))),
        Sandbox(Seccomp.default()),
        Sandbox(Seccomp.strict()),
    ],
    ids=repr,
)
def test_check_passes_where_a_program_would_start(box: Sandbox) -> None:
    box.check()
    box.check()


def test_check_raises_what_run_would(tmp_path: Path) -> None:
    box = Sandbox(*USER, Root(Bind("/", "/"), Bind(str(tmp_path / "no"), "/mnt")))
    with pytest.raises(SetupError) as checked:
        box.check()
    with pytest.raises(SetupError) as ran:
        box.run(["true"])
    assert str(checked.value) == str(ran.value)
    assert checked.value.errno == errno.ENOENT


def test_check_asks_whether_a_program_may_be_executed() -> None:
    from isolate.seccomp import Action, rule

    policy = Seccomp.default()
    Sandbox(policy).check()
    with pytest.raises(SetupError) as refused:
        Sandbox(policy - "execve").check()
    assert (refused.value.errno, refused.value.syscall) == (errno.EPERM, "execve")
    with pytest.raises(SetupError, match="the sandbox's own filter kills execve"):
        Sandbox(policy + rule(Action.KILL_PROCESS, "execve")).check()


@dataclass(frozen=True)
class Marks:
    """A part of a user's own, which leaves a mark where the program would begin."""

    path: bytes

    def steps(self, context: object) -> Iterator[Step]:
        yield Step(Phase.VERIFY, "leave a mark", (call("mkdirat", -100, self.path, 0o700),))


def test_every_part_is_in_force_and_nothing_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    box = Sandbox(Marks(os.fsencode(mark)))
    box.check()
    assert mark.is_dir()
    with pytest.raises(SetupError) as caught:
        box.check()
    assert (caught.value.part, caught.value.errno, caught.value.syscall) == ("Marks", errno.EEXIST, "mkdirat")


def test_check_leaves_nothing() -> None:
    box = Sandbox(UserNamespace(), PidNamespace(), MountNamespace(), UtsNamespace())
    box.check()
    before = Snapshot.take()
    for _ in range(10):
        box.check()
    before.compare()


# ---- abilities -----------------------------------------------------------------------------------------------------


def test_every_row_is_what_trying_says() -> None:
    rows = {ability.name: ability for ability in abilities()}
    assert len(rows) == len(abilities())
    assert rows["start"].ok
    for name, box in (
        ("user", Sandbox(UserNamespace())),
        ("pid", Sandbox(*USER, PidNamespace())),
        ("tmpfs", Sandbox(*USER, PidNamespace(), Root(Tmpfs("/tmp")))),
    ):
        try:
            box.check()
        except SetupError:
            assert not rows[name].ok, name
        else:
            assert rows[name].ok, (name, rows[name].reason)
    try:
        can_share_contents()
    except StoreError:
        assert not rows["image-contents"].ok
    else:
        assert rows["image-contents"].ok, rows["image-contents"].reason
    for ability in rows.values():
        assert ability.what
        assert "this build of isolate lacks it" not in ability.reason
        assert ability.ok or ability.reason, ability


PRINT = """
import json
from dataclasses import asdict
from isolate.tools.doctor import abilities
print(json.dumps([asdict(a) for a in abilities()]))
"""


def probed(text: str) -> dict[str, dict[str, object]]:
    return {ability["name"]: ability for ability in json.loads(text)}


def test_an_ordinary_user_gets_an_answer_of_his_own() -> None:
    rows = probed(as_ordinary_user(PRINT))
    assert set(rows) == {ability.name for ability in abilities()}
    assert rows["start"]["ok"]


def can_nest() -> bool:
    return subprocess.run(["unshare", "-U", "-r", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_nest(), reason="needs user namespaces to make one that forbids them")
def test_a_host_that_forbids_something() -> None:
    """The same probe in a user namespace with other limits says other things, and why."""
    script = 'echo 0 > /proc/sys/user/max_user_namespaces; echo 0 > /proc/sys/user/max_net_namespaces; exec "$@"'
    done = subprocess.run(
        ["unshare", "-U", "-r", "sh", "-c", script, "sh", sys.executable, "-c", PRINT],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    rows = probed(done.stdout)
    for name, kind in (("user", "user"), ("net", "net")):
        assert not rows[name]["ok"]
        assert f"user.max_{kind}_namespaces = 0" in str(rows[name]["reason"])
        assert "sysctl -w" in str(rows[name]["remedy"])
    assert rows["uts"]["ok"], rows["uts"]


def test_probing_leaves_nothing() -> None:
    abilities()
    before, group = Snapshot.take(), Path("/proc/self/cgroup").read_text()
    abilities()
    before.compare()
    assert Path("/proc/self/cgroup").read_text() == group
