"""What a scope of systemd's asks of a launcher, without systemd; with it: tests/vm/scope.py."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import Sandbox, SetupError, UnsupportedError
from isolate.cgroups import placement, scope
from isolate.cgroups.guardian import watch
from isolate.cgroups.hierarchy import Hierarchy
from isolate.cgroups.part import guided_step
from isolate.cgroups.systemd import Manager, obstacle
from isolate.engine.plan import Phase, Step, call
from isolate.kernel.constants import AT_FDCWD
from isolate.sandbox.result import Verdict
from tests.snapshot import descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolate.engine.plan import Context

USER = "/c/user.slice/user-7.slice/user@7.service"


@dataclass(frozen=True)
class Guided:
    """A part whose launchers are told when they may go on."""

    move: Callable[[int], None]

    def steps(self, context: Context) -> Iterator[Step]:
        yield guided_step(self, context)


def test_a_launcher_waits_until_it_has_been_moved() -> None:
    seen: list[tuple[int, bytes, bool]] = []

    def move(pid: int) -> None:
        # It has been executed, and has no child: nothing of the sandbox is there before it was moved.
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        seen.append((pid, Path(f"/proc/{pid}/comm").read_bytes(), bool(children)))

    box = Sandbox(Guided(move))
    assert [box.run(["true"]).verdict for _ in range(3)] == [Verdict.OK] * 3
    assert len({pid for pid, _, _ in seen}) == 3
    assert not any(children for _, _, children in seen)


def test_a_launcher_that_is_not_moved_starts_nothing(tmp_path: Path) -> None:
    pids: list[int] = []
    there = tmp_path / "there"

    def move(pid: int) -> None:
        pids.append(pid)
        raise UnsupportedError(1, "move it", part="Guided")

    before = descriptors()
    with pytest.raises(UnsupportedError, match="move it"):
        Sandbox(Guided(move)).run(["touch", os.fspath(there)])
    assert descriptors().keys() <= before.keys()
    assert not there.exists()
    # The control.
    Sandbox(Guided(pids.append)).run(["touch", os.fspath(there)])
    assert there.exists()


def test_a_launcher_that_fails_before_it_waits_says_why() -> None:
    @dataclass(frozen=True)
    class Failing:
        def steps(self, context: Context) -> Iterator[Step]:
            yield Step(Phase.JOIN, "fail", (call("openat", AT_FDCWD, b"/nowhere", 0, 0),))

    with pytest.raises(SetupError, match="fail") as caught:
        Sandbox(Guided(wait_for_its_end), Failing()).run(["true"])
    assert caught.value.errno == errno.ENOENT


def wait_for_its_end(pid: int) -> None:
    """As systemd answers for a process that has gone."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        select.select([fd], [], [], 10)
        os.close(fd)
    raise UnsupportedError(errno.ESRCH, "move it", part="Guided")


def test_a_launcher_that_waits_can_be_killed() -> None:
    box = Sandbox(Guided(lambda pid: os.kill(pid, 9)))
    with pytest.raises(SetupError):
        box.run(["true"])


def test_the_process_that_keeps_a_scope_goes_when_it_is_let_go() -> None:
    before = descriptors()
    holder = watch([])
    assert not holder.wait_gone(0)
    with pytest.raises(ChildProcessError):  # it is no child of this process
        os.waitid(os.P_PIDFD, holder.pidfd, os.WEXITED | os.WNOHANG)
    holder.kill()
    assert holder.wait_gone(10)
    holder.close()
    assert descriptors().keys() <= before.keys()


def test_the_process_that_keeps_a_scope_ends_with_its_owner() -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        holder = watch([])
        os.write(write, b"%d" % holder.pid)
        signal.pause()
    holder_fd = os.pidfd_open(int(os.read(read, 20)))
    assert select.select([holder_fd], [], [], 0)[0] == []
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert select.select([holder_fd], [], [], 10)[0] == [holder_fd]
    for fd in (read, write, holder_fd):
        os.close(fd)


def test_a_scope_belongs_to_one_process() -> None:
    mine = scope.mine()
    others: list[object] = []
    thread = threading.Thread(target=lambda: others.append(scope.mine()))
    thread.start()
    thread.join()
    assert others == [mine]
    assert mine.directory() == ""
    assert not scope.Standing("").ready()
    assert not scope.Standing("/sys/fs/cgroup/gone.scope").ready()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if scope.mine() is not mine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.skipif(os.path.isdir("/run/systemd/system"), reason="systemd runs here")
def test_without_systemd_nothing_is_asked() -> None:
    found = obstacle()
    assert found is not None
    assert "systemd is not the init" in found[0]


def test_no_bus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("jeepney")
    for name in ("DBUS_SYSTEM_BUS_ADDRESS", "DBUS_SESSION_BUS_ADDRESS"):
        monkeypatch.setenv(name, f"unix:path={tmp_path}/bus")
    before = descriptors()
    with pytest.raises(UnsupportedError, match="no D-Bus at") as caught:
        Manager()
    assert "enable-linger" in str(caught.value.remedy)
    assert descriptors().keys() <= before.keys()


@pytest.mark.parametrize(
    ("own", "handed_over"),
    [
        (f"{USER}/app.slice/a.service", False),
        (f"{USER}/app.slice/a.scope/leaf", True),  # nobody but systemd's client makes groups below a unit's own
        (f"{USER}/app.slice", False),
        ("/c/user.slice/user-7.slice/session-1.scope", False),
        ("/c", False),
        ("", False),
    ],
)
def test_whether_a_unit_was_handed_over(own: str, handed_over: bool) -> None:
    assert placement._handed_over(Hierarchy(2, frozenset(), "/c", own, False)) is handed_over
