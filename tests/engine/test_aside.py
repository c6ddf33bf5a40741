"""What a second process of init's does while init builds the root: a new network namespace."""

from __future__ import annotations

import errno
import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from isolate import (
    Bind,
    NetNamespace,
    PidNamespace,
    Pool,
    Proc,
    Root,
    Sandbox,
    SetupError,
    Sys,
    UserNamespace,
    Verdict,
)
from isolate.engine.plan import Context, Part, Phase, RunHost, Step, call
from isolate.kernel.constants import CLONE_NEWNET
from tests.fence import Call, Fence, nr

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.snapshot import Snapshot

IP = ["python3", "-c", "import socket; print(socket.if_nameindex()); socket.create_server(('127.0.0.1', 0))"]


def phases(*parts: Part) -> set[Phase]:
    return {step.phase for step in Sandbox(NetNamespace(), *parts)._plan().steps}


def test_it_is_made_aside_unless_somebody_wants_it_earlier() -> None:
    aside = {Phase.BEGIN_ASIDE, Phase.MEET_ASIDE, Phase.ASIDE, Phase.NETWORK}
    assert aside <= phases()
    assert aside <= phases(Root(Proc()))
    parts: tuple[Part, ...] = (Root(Sys()), PidNamespace(init=False), Looks())
    for part in parts:
        assert not aside & phases(part)
        assert Sandbox(NetNamespace(), part)._plan().clone_flags & CLONE_NEWNET
    assert not Sandbox(NetNamespace())._plan().clone_flags & CLONE_NEWNET
    assert not aside & {step.phase for step in Sandbox(UserNamespace())._plan().steps}


@dataclass(frozen=True)
class Looks:
    """A part that is to find the new network before the root is built."""

    needs_network: ClassVar[bool] = True

    def steps(self, context: Context) -> Iterator[Step]:
        yield Step(Phase.ROOT, "nothing", (call("getpid"),))


@pytest.mark.parametrize("parts", [(), (Looks(),)])
def test_the_network_is_a_new_one_with_loopback_up(parts: tuple[Looks, ...]) -> None:
    box = Sandbox(UserNamespace(), NetNamespace(), *parts)
    result = box.run(["sh", "-c", 'readlink /proc/self/ns/net; exec "$@"', "sh", *IP], env=dict(os.environ), text=True)
    entered, interfaces = str(result.check().stdout).splitlines()
    assert entered != os.readlink("/proc/self/ns/net")
    assert interfaces == "[(1, 'lo')]"
    assert namespace(Sandbox(UserNamespace())) == os.readlink("/proc/self/ns/net"), "the control"


def namespace(box: Sandbox) -> str:
    """The network that a program in it is in."""
    return str(box.run(["readlink", "/proc/self/ns/net"], text=True).check().stdout).strip()


def run_with(answer: dict[str, int], *parts: Part) -> tuple[object, list[Call]]:
    """What a run in a network of its own comes to when the first of these calls inside fail."""
    box = Sandbox(UserNamespace(), NetNamespace(), *parts)
    left = dict(answer)

    def program(begin: object, end: object) -> object:
        begin()  # type: ignore[operator]
        try:
            told: object = namespace(box)
        except SetupError as error:
            told = (error.errno, error.part, error.syscall)
        end()  # type: ignore[operator]
        return told

    def decide(one: Call) -> int | None:
        return left.pop(one.name, None) if one.role in ("init", "aside") else None

    box.run(["true"]).check()
    outcome = Fence(program).drive(decide)
    assert outcome.error is None, outcome.error
    assert outcome.gone is not None, outcome.left
    return outcome.value, outcome.calls


def test_without_a_second_process_init_does_it_itself() -> None:
    told, calls = run_with({"clone3": errno.EAGAIN})
    assert {c.role for c in calls if c.nr == nr("unshare")} == {"init"}
    assert str(told).startswith("net:[")
    assert told != os.readlink("/proc/self/ns/net")
    told, calls = run_with({})
    assert {c.role for c in calls if c.nr == nr("unshare")} == {"aside"}
    assert str(told).startswith("net:[")


def test_the_program_is_the_second_process_of_its_pid_namespace() -> None:
    """Only clone3 gives the one before it a number that is free again then; a filter may say that it is not there."""
    told, calls = run_with({"clone3": errno.ENOSYS}, PidNamespace())
    assert {c.role for c in calls if c.nr == nr("unshare")} == {"init"}
    assert str(told).startswith("net:[")
    told, calls = run_with({"clone3": errno.ENOSYS})
    assert {c.role for c in calls if c.nr == nr("unshare")} == {"aside"}, "where no number is wanted, clone does"
    assert Sandbox(UserNamespace(), PidNamespace(), NetNamespace()).run(["sh", "-c", "echo $$"]).stdout == b"2\n"


@pytest.mark.parametrize("call_that_fails", ["unshare", "socket", "ioctl"])
def test_what_fails_there_is_told_by_its_own_step(call_that_fails: str) -> None:
    told, _ = run_with({call_that_fails: errno.ENOMEM})
    assert told == (errno.ENOMEM, "NetNamespace", call_that_fails)


def test_it_has_ended_before_the_program_is_there() -> None:
    """It shares init's memory and has what init has; nobody inside ever meets it."""
    box = Sandbox(
        UserNamespace(), PidNamespace(), NetNamespace(), Root(Bind("/usr"), Bind("/lib"), Bind("/lib64"), Proc())
    )

    def program(begin: object, end: object) -> object:
        begin()  # type: ignore[operator]
        return str(box.run(["/usr/bin/sh", "-c", "echo /proc/[0-9]*; echo $$"], text=True).check().stdout)

    outcome = Fence(program).drive()
    before = [(one.role, one.name) for one in outcome.calls]
    before = before[: [role for role, _ in before].index("payload")]
    assert "aside" in {role for role, _ in before}
    assert "aside" not in {one.role for one in outcome.calls[len(before) :]}
    assert ("init", "wait4") in before
    assert outcome.value == "/proc/1 /proc/2\n2\n", outcome.error


@dataclass(frozen=True)
class Helpers:
    """A part for which init runs programs of the host's while the root is built."""

    def steps(self, context: Context) -> Iterator[Step]:
        for _ in range(30):
            yield Step(Phase.ROOT, "run a program of the host's", (RunHost(b"/bin/true", (b"true",)),))


def test_init_may_run_programs_of_the_hosts_meanwhile() -> None:
    """Each has a stack of its own."""
    box = Sandbox(UserNamespace(), PidNamespace(), NetNamespace(), Helpers())
    assert [box.run(["true"]).verdict for _ in range(8)] == [Verdict.OK] * 8


@dataclass(frozen=True)
class Waits:
    """A part whose step there never ends."""

    def steps(self, context: Context) -> Iterator[Step]:
        yield Step(Phase.ASIDE, "wait for ever", (call("ppoll", 0, 0, 0, 0),))


def children_of(pid: int) -> list[int]:
    """Waits until there is one."""
    while not (found := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        pass
    return list(map(int, found))


@pytest.mark.parametrize("victim", ["launcher", "init"])
@pytest.mark.parametrize("parts", [(), (PidNamespace(),)], ids=["no pid namespace", "pid namespace"])
def test_it_ends_with_those_who_made_it(parts: tuple[Part, ...], victim: str, clean: Snapshot) -> None:
    with Pool(Sandbox(UserNamespace(), Waits(), *parts)) as pool:
        launcher = pool._waiting[0].pid
        init = children_of(launcher)[0]
        aside = children_of(init)[0]
        pidfd = os.pidfd_open(aside)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        try:
            while not Path(f"/proc/{aside}/syscall").read_text().startswith(f"{nr('ppoll')} "):
                pass
            os.kill(launcher if victim == "launcher" else init, signal.SIGKILL)
            assert poll.poll(10_000)
        finally:
            if not poll.poll(0):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
