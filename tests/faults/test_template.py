"""Each system call of a start from a tree that is made once fails once: in the caller, in the launcher that is parked,
in the supervisor that it forks, in init and in the program up to its execve. The caller is killed at each of them."""

from __future__ import annotations

import errno
import glob
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolate import Bind, Dev, Limits, NetNamespace, Proc, Root, Sandbox, SetupError, Tmpfs, UserNamespace
from isolate.sandbox import parked
from tests.boxes import SYSTEM
from tests.fence import Call, Fence
from tests.sandbox.test_template import launchers, parked_box, used, waits, waits_for

from .test_faults import ERRORS, Case, distinct, host_namespaces

if TYPE_CHECKING:
    from isolate.engine.plan import Part


def box_with(audit: str, *parts: Part) -> Sandbox:
    """A whole root, with the program that tells what holds."""
    entries = (
        *SYSTEM,
        Bind(str(Path(audit).parent), "/audit"),
        Proc(),
        Dev(),
        Tmpfs("/tmp", size="1M"),
    )
    return Sandbox(UserNamespace(), NetNamespace(), Root(*entries), *parts)


class TreeCase(Case):
    """Starts from the tree, made in each forked child before its calls are counted."""

    def __init__(self, audit: str, *parts: Part, ahead: bool = True) -> None:
        self.ahead = ahead  # the first start from a tree is made when it is asked for, later ones before
        self.box, self.directory = box_with(audit, *parts), str(Path(audit).parent)
        self.command = [f"/audit/{Path(audit).name}", *host_namespaces()]
        self.ordinary = False
        assert self.box.run(self.command).ok
        self.begin()

    def begin(self) -> None:
        for _ in range(20):
            super().begin()
            if {"parked", "payload"} <= {call.role for call in self.undisturbed.calls}:
                return  # else another program has mounted something meanwhile, and it was a plain start

    def once(self, begin: Any, end: Any) -> tuple[tuple[Any, ...], list[int]]:
        for _ in range(10):
            parked_box(self.box)
            if self.ahead:
                assert self.box.run(self.command).ok
                self.await_next()
            if found := launchers(self.box):
                break  # else another program has mounted something, and the tree was given up
        before = set(os.listdir("/proc/self/fd"))
        for launcher in found:
            waits_for(launcher)  # and the supervisor of the start before has gone
        begin(*found)
        told = self.tell()
        end()
        if told[0] == "result":
            self.from_tree = used(self.box)
            if self.ahead:  # the next one, which is made ahead by a fork that is now seen from its beginning
                self.await_next()
                told = self.tell()
        left = set(os.listdir("/proc/self/fd")) - before
        parked.end_all()
        still = set(os.listdir("/proc/self/fd"))
        return told, sorted(int(fd) for fd in left & still)

    def await_next(self) -> None:
        """Until the next start has been made ahead, or could not be."""
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline and not any(map(waits, launchers(self.box))):
            time.sleep(0.005)

    def tell(self) -> tuple[Any, ...]:
        try:
            result = self.box.run(self.command)
        except SetupError as error:
            return "setup", error.errno, error.step, str(error)
        except OSError as error:
            return "os", error.errno, "", repr(error)
        except MemoryError as error:
            return "os", errno.ENOMEM, "", repr(error)
        assert result.stdout is not None
        # The same mounts stand in another order.
        stdout = b"\n".join(sorted(result.stdout.splitlines()))
        stdout = re.sub(rb"isolate-[-0-9a-f]+", b"isolate-*", stdout)
        return "result", str(result.verdict), stdout, dict(result.applied)


@pytest.mark.root
@pytest.mark.parametrize("ahead", [False, True])
def test_one_call_fails(audit: str, ahead: bool) -> None:
    case = TreeCase(audit, ahead=ahead)
    roles = {call.role for call in case.undisturbed.calls}
    assert {"caller", "parked", "launcher", "init", "payload"} <= roles, roles
    chosen = list(enumerate(distinct(case.undisturbed.calls)))
    # Half of the launcher that is parked, and a sample of the others: those have a lane of their own without a tree.
    chosen = [(i, call) for i, call in chosen if i % (2 if call.role == "parked" else 8) == 0]
    wrong = [case.wrong(call, ERRORS[i % len(ERRORS)]) for i, call in chosen]
    assert not [w for w in wrong if w]


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_every_call_fails(error: int, audit: str, ahead: bool) -> None:
    case = TreeCase(audit, ahead=ahead)
    wrong = [case.wrong(call, error) for call in case.undisturbed.calls]
    assert not [w for w in wrong if w]


def killed_at(case: TreeCase, call: Call) -> str | None:
    """What is left after the caller was killed at a call."""
    fence = Fence(case.once)

    def decide(one: Call) -> int | None:
        if (one.role, one.index) == (call.role, call.index):
            fence.kill()
        return None

    outcome = fence.drive(decide, limit=40)
    return f"{call.role} {call.index} {call.name}: {outcome.left}" if outcome.gone is None else None


@pytest.mark.root
def test_the_caller_is_killed(audit: str) -> None:
    case = TreeCase(audit)
    calls = case.undisturbed.calls
    assert not [left for call in calls[:: max(1, len(calls) // 10)] if (left := killed_at(case, call))]


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("ahead", [False, True])
def test_each_kind_of_call_fails(audit: str, ahead: bool) -> None:
    case = TreeCase(audit, ahead=ahead)
    wrong = [case.wrong(call, ERRORS[i % len(ERRORS)]) for i, call in enumerate(distinct(case.undisturbed.calls))]
    assert not [w for w in wrong if w]


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("ahead", [False, True])
def test_the_caller_is_killed_at_each_call(audit: str, ahead: bool) -> None:
    case = TreeCase(audit, ahead=ahead)
    assert not [left for call in case.undisturbed.calls if (left := killed_at(case, call))]


LIMITS = Limits(memory="1G", pids=100)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("error", [errno.ENOMEM, errno.EPERM, errno.EMFILE], ids=errno.errorcode.get)
def test_every_call_fails_with_limits(error: int, audit: str) -> None:
    """Also those of the fork that makes the groups of the next start."""
    case = TreeCase(audit, LIMITS)
    assert any((call.role, call.name) == ("next", "mkdirat") for call in case.undisturbed.calls)
    wrong = [case.wrong(call, error) for call in case.undisturbed.calls]
    assert not [w for w in wrong if w]


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_caller_is_killed_at_each_call_with_limits(audit: str) -> None:
    case = TreeCase(audit, LIMITS)
    assert not [left for call in case.undisturbed.calls if (left := killed_at(case, call))]
    assert not [path for pattern in case.groups for path in glob.glob(pattern)]
