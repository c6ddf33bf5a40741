"""SIGKILL at any instant: of the Python program, its thread, the launcher, init. Nothing outlives its owner.

A :class:`Fence` tells without doubt: its listener hangs up only once every task behind it has gone.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import glob
import os
import select
import signal
import subprocess
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolate import (
    PIPE,
    IpcNamespace,
    MountNamespace,
    NetNamespace,
    PidNamespace,
    Sandbox,
    SetupError,
    UserNamespace,
    UtsNamespace,
)
from tests.boxes import boxes, groups
from tests.fence import Call, Fence, calls_of, killed_at_random
from tests.snapshot import SOON, mounted, still_mounted

if TYPE_CHECKING:
    from tests.snapshot import Snapshot

pytestmark = pytest.mark.root

BOXES = {
    "namespaces": Sandbox(PidNamespace(), MountNamespace(), NetNamespace(), IpcNamespace(), UtsNamespace(hostname="x")),
    "user": Sandbox(UserNamespace(), PidNamespace(), MountNamespace()),
    "without init": Sandbox(UserNamespace(), PidNamespace(init=False)),
    "no pid namespace": Sandbox(),
    "root and limits": boxes()["root and limits"],
}
#: A program that nothing but SIGKILL ends, and whose children are far from it.
STUBBORN = ["sh", "-c", "trap '' TERM HUP INT; setsid sh -c 'sleep 1000 & sleep 1000' & sleep 1000 & wait; sleep 1000"]


def take_groups(box: Sandbox) -> list[str]:
    """The cgroups that are left of a sandbox's runs; they are removed."""
    left = [path for pattern in groups(box) for path in glob.glob(pattern)]
    for path in left:
        with contextlib.suppress(OSError):  # busy: it will be told
            os.rmdir(path)
    return left


# ---- the Python program ------------------------------------------------------------------------------------------


def test_the_fence_would_see_a_leftover() -> None:
    """The positive control: an ordinary grandchild does outlive a killed program, and the fence sees it."""
    reading, writing = os.pipe()

    def program(begin: Any, end: Any) -> None:
        if os.fork() == 0:
            os.setsid()
            os.write(writing, b"%d" % os.getpid())
            time.sleep(60)
            os._exit(0)
        time.sleep(60)

    fence = Fence(program, asks=False)
    survivor = int(os.read(reading, 20))
    fence.kill()
    outcome = fence.drive(grace=0.3)
    os.kill(survivor, signal.SIGKILL)
    os.close(reading)
    os.close(writing)
    assert outcome.gone is None


def kill_at_random(box: Sandbox, instants: int, longest: float, seed: int) -> list[str]:
    """What was left behind by programs that start, use and end sandboxes and are killed meanwhile."""
    left = []

    def program(begin: Any, end: Any) -> None:
        while True:
            box.run(["true"])
            with box.spawn(STUBBORN, stdout=PIPE):
                box.run(["sh", "-c", "sleep 1000 & setsid sleep 1000 & exit 0"])

    before = mounted()
    assert box.run(["true"]).ok  # compiled here, so that the names of the groups are known here
    assert take_groups(box) == []
    for when, outcome in killed_at_random(program, instants, longest, seed):
        if outcome.gone is None:
            left.append(f"{when}: {outcome.left}")
        if remains := take_groups(box):
            left.append(f"{when}: {remains}")
    assert not still_mounted(before)
    return left


@pytest.mark.parametrize("name", BOXES)
def test_killed_at_random_instants(name: str, clean: Snapshot) -> None:
    assert not kill_at_random(BOXES[name], 15, 0.02, 1)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", BOXES)
def test_killed_at_many_random_instants(name: str, clean: Snapshot) -> None:
    assert not kill_at_random(BOXES[name], 1000, 0.05, 2)


def undisturbed(box: Sandbox) -> list[Call]:
    box = Sandbox(*box.parts, template=False)  # starts from a tree have a lane of their own: tests/faults
    return calls_of(lambda: box.run(["true"]).verdict)


def kill_at(box: Sandbox, victim: str, when: Call, args: list[str]) -> tuple[str | None, Any]:
    """Kill the process of that role just before a call, of whichever process; what was wrong, and what was told."""
    roles: dict[str, int] = {}
    box = Sandbox(*box.parts, template=False)

    def program(begin: Any, end: Any) -> str:
        begin()
        try:
            told = str(box.run(args, timeout=10).verdict)
        except SetupError as error:
            told = f"SetupError {error.errno} {error.step}"
        end()
        return told

    def decide(one: Call) -> None:
        roles.setdefault(one.role, one.pid)
        if (one.role, one.index) == (when.role, when.index) and victim in roles:
            with contextlib.suppress(ProcessLookupError):
                os.kill(roles[victim], signal.SIGKILL)

    assert take_groups(box) == []
    outcome = Fence(program).drive(decide, limit=40)
    what = f"{victim} killed at {when.role} {when.index} {when.name}: "
    if remains := take_groups(box):
        return what + f"left behind {remains}", None
    if outcome.gone is None:
        return what + f"left behind {outcome.left}", None
    if victim != "caller" and outcome.error is not None:
        return what + outcome.error, None
    return None, outcome.value


@pytest.mark.parametrize("victim", ["init", "payload"])
@pytest.mark.parametrize("name", BOXES)
def test_killed_before_the_program_runs(name: str, victim: str) -> None:
    """A start that was cut short is an error, never a program that a signal ended."""
    calls = undisturbed(BOXES[name])
    if name == "without init":
        victim = "init"  # which becomes the program
    own = [c for c in calls if c.role == victim]
    chosen = [c for c in own if c.name in ("umask", "setresuid", "chdir", "getcwd", "close_range", "mount", "read")]
    # The last: init makes a second process before that, for the network.
    before = [c for c in chosen if c.index < max((x.index for x in own if x.name in ("execve", "clone3")), default=0)]
    assert before
    for call in before[:: max(1, len(before) // 4)]:
        wrong, told = kill_at(BOXES[name], victim, call, ["true"])
        assert wrong is None
        assert told.startswith(f"SetupError {errno.ESRCH} set up the sandbox"), (call.name, told)


def spread(calls: list[Call], number: int) -> list[Call]:
    """Some of them, evenly; the tedious loops (signals, the bounding set) once."""
    seen: set[tuple[Any, ...]] = set()
    chosen = []
    for call in calls:
        key = (call.role, call.name, call.args[0] if call.name == "prctl" else None)
        if call.name not in ("rt_sigaction", "prctl") or key not in seen:
            chosen.append(call)
        seen.add(key)
    return chosen[:: max(1, len(chosen) // number)]


@pytest.mark.parametrize("victim", ["caller", "launcher", "init", "aside"])
def test_killed_at_a_call(victim: str) -> None:
    box = BOXES["root and limits"]
    assert box.run(["true"]).ok  # compiled here, so that the names of the groups are known here
    before = mounted()
    wrong = [kill_at(box, victim, call, ["true"])[0] for call in spread(undisturbed(box), 15)]
    assert not [w for w in wrong if w]
    assert not still_mounted(before)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("victim", ["caller", "launcher", "init", "payload"])
@pytest.mark.parametrize("name", BOXES)
def test_killed_at_each_call(name: str, victim: str) -> None:
    box = BOXES[name]
    assert box.run(["true"]).ok  # compiled here, so that the names of the groups are known here
    calls = [c for c in undisturbed(box) if c.name not in ("rt_sigaction",)]
    wrong = [kill_at(box, victim, call, ["true"])[0] for call in calls]
    print(f"{name}: {victim} killed at {len(wrong)} calls, {sum(map(bool, wrong))} not as it should be")
    assert not [w for w in wrong if w]


# ---- launcher and init, from outside -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["namespaces", "user", "without init", "root and limits"])
def test_launcher_killed(name: str, clean: Snapshot) -> None:
    """The error says so, and everything inside goes; nobody but the caller is left to remove the cgroups."""
    assert take_groups(BOXES[name]) == []

    def program(begin: Any, end: Any) -> str:
        process = BOXES[name].spawn(STUBBORN)
        os.kill(process._session.pid, signal.SIGKILL)
        try:
            process.wait(30)
        except SetupError as error:
            told = str(error)
        process.close()
        return told

    outcome = Fence(program, asks=False).drive()
    assert outcome.error is None, outcome.error
    assert outcome.gone is not None
    assert "launcher was killed" in outcome.value
    assert take_groups(BOXES[name]) == []


def test_group_that_cannot_be_removed_is_told(clean: Snapshot) -> None:
    """Somebody outside has put a process of theirs into it (cgroup v1: it is not ours to kill)."""
    box = BOXES["root and limits"]
    tape = box.compile()
    group: Any = tape.plan.context.group
    if "pids" not in group.paths:
        pytest.skip("on the unified hierarchy cgroup.kill takes whatever is in the group")
    stranger = subprocess.Popen(["sleep", "1000"])
    try:
        process = box.spawn(["cat"], stdin=PIPE)
        directory = group.directories(process._session)["pids"]
        Path(directory, "cgroup.procs").write_text(str(stranger.pid))
        process.kill()
        with pytest.warns(RuntimeWarning, match="remove the group of pids: Device or resource busy"):
            process.result(30)
        process.close()
        Path(directory).parent.joinpath("cgroup.procs").write_text(str(stranger.pid))
    finally:
        stranger.kill()
        stranger.wait()
    assert take_groups(box) == [directory]


@pytest.mark.parametrize("name", ["namespaces", "user", "no pid namespace"])
def test_init_killed(name: str, clean: Snapshot) -> None:
    """Whoever may kill init from outside ends the sandbox, and it is told as a signal, never as a success."""

    def program(begin: Any, end: Any) -> Any:
        process = BOXES[name].spawn(STUBBORN)
        (init,) = Path(f"/proc/{process._session.pid}/task/{process._session.pid}/children").read_text().split()
        os.kill(int(init), signal.SIGKILL)
        result = process.result(30)
        process.close()
        return result.returncode, str(result.verdict)

    outcome = Fence(program, asks=False).drive()
    assert outcome.error is None, outcome.error
    assert outcome.gone is not None
    assert outcome.value == (-9, "SIGNALED")


# ---- threads, garbage, exits -----------------------------------------------------------------------------------------


def test_outlives_the_thread_that_spawned_it(clean: Snapshot) -> None:
    """The sandbox belongs to the program: PR_SET_PDEATHSIG would have fired when the thread ended."""
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(BOXES["namespaces"].spawn(["cat"], stdin=PIPE, stdout=PIPE)))
    thread.start()
    thread.join()
    (process,) = made
    with process:
        process.stdin.write(b"still here\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"still here\n"
        assert process.poll() is None


@pytest.mark.parametrize("name", BOXES)
def test_garbage_is_killed_with_a_warning(name: str, clean: Snapshot) -> None:
    process = BOXES[name].spawn(STUBBORN)
    watch = os.dup(process.pidfd)
    with pytest.warns(ResourceWarning, match="never closed"):  # noqa: PT031
        del process
        gc.collect()
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    assert poll.poll(1000 * SOON)
    os.close(watch)


def test_closed_is_no_garbage(clean: Snapshot) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        process = BOXES["user"].spawn(["sleep", "1000"])
        process.close()
        del process
        gc.collect()


@pytest.mark.parametrize("way", ["return", "sys.exit", "os._exit", "exception", "exec", "abort"])
def test_the_program_ends(way: str) -> None:
    """However it ends, also by becoming another program."""

    def program(begin: Any, end: Any) -> str:
        BOXES["namespaces"].spawn(STUBBORN).poll()
        keep = BOXES["user"].spawn(STUBBORN)
        assert keep.poll() is None
        if way == "os._exit":
            os._exit(0)
        if way == "exec":
            os.execv("/bin/true", ["true"])
        if way == "abort":
            import faulthandler
            import resource

            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.abort()
        if way == "sys.exit":
            raise SystemExit(3)
        if way == "exception":
            raise RuntimeError
        return way

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = Fence(program, asks=False).drive()
    assert outcome.gone is not None
