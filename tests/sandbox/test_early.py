"""A run's end is told before its clean-up: nothing is lost by that, whatever becomes of the clean-up."""

from __future__ import annotations

import glob
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from isolate import Limits, PidNamespace, Sandbox
from tests.boxes import groups
from tests.fence import Call, Fence

pytestmark = pytest.mark.root

BOX = Sandbox(PidNamespace(), Limits(pids=20), template=False)


def left() -> list[str]:
    return [path for pattern in groups(BOX) for path in glob.glob(pattern)]


@pytest.mark.parametrize("killed", [False, True], ids=["control", "killed"])
def test_the_launcher_is_killed_on_its_way_out(killed: bool) -> None:
    """The end has been told, and is the result. The groups that it had still to remove are removed by the caller."""
    names: list[str] = []

    def program(begin: Any, end: Any) -> tuple[str, bytes, list[str]]:
        begin()
        result = BOX.run(["echo", "said"])
        end()
        return str(result.verdict), result.stdout, left()

    def decide(call: Call) -> None:
        if call.role != "launcher":
            return
        if killed and call.name == "unlinkat" and "unlinkat" not in names:
            os.kill(call.pid, signal.SIGKILL)
        names.append(call.name)

    groups(BOX)  # compiled here, so that the names of the groups are known here
    outcome = Fence(program).drive(decide)
    assert outcome.error is None, outcome.error
    assert outcome.value == ("OK", b"said\n", [])
    assert outcome.gone is not None
    assert left() == []
    assert names.index("sendmsg") < names.index("unlinkat"), "the end is told first"
    assert ("sendmsg" in names[names.index("unlinkat") :]) is not killed


@pytest.mark.slow
def test_a_clean_up_that_fails_is_told() -> None:
    """Somebody outside has put a process of theirs into the group (cgroup v1: it is not ours to kill)."""
    if not any("pids" in os.path.dirname(pattern).split("/") for pattern in groups(BOX)):
        pytest.skip("on the unified hierarchy cgroup.kill takes whatever is in the group")
    stranger = subprocess.Popen(["sleep", "1000"])
    found: list[str] = []

    def moved(_: object) -> None:
        if not found:
            found.extend(path for path in left() if "/pids/" in path)
            Path(found[0], "cgroup.procs").write_text(str(stranger.pid))

    try:
        with pytest.warns(RuntimeWarning, match="remove the group of pids: Device or resource busy"):
            result = BOX.run(["sh", "-c", "echo; sleep 0.3"], on_stdout=moved)
        assert result.ok
        Path(found[0]).parent.joinpath("cgroup.procs").write_text(str(stranger.pid))
    finally:
        stranger.kill()
        stranger.wait()
    assert left() == found[:1]
    os.rmdir(found[0])
