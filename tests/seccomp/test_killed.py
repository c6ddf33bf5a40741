"""A filter's kill is told from a signal of that number that somebody sent."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolate import PidNamespace, Pool, Root, Sandbox, Seccomp, UserNamespace, Verdict
from isolate.seccomp import audit, rule
from tests.boxes import SYSTEM
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from isolate import Result

PYTHON = "/usr/bin/python3"
SENT = [PYTHON, "-S", "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSYS)"]
DENIED = [PYTHON, "-S", "-c", "import os; os.getppid()"]
BY_A_THREAD = [PYTHON, "-S", "-c", "import os, threading as t; a = t.Thread(target=os.getppid); a.start(); a.join()"]
KILLS = Seccomp(rule("kill", "getppid"), otherwise="allow")
FOREIGN = Seccomp(rule("EPERM", "mount"), otherwise="allow")  # kills what calls by another ABI, and nothing else

pytestmark = pytest.mark.skipif(not Path(PYTHON).exists(), reason=f"there is no {PYTHON}")

WAYS = [
    (),
    (PidNamespace(),),
    (UserNamespace(), PidNamespace()),
    (UserNamespace(), PidNamespace(), Root(*SYSTEM)),  # nothing inside tells of processes
]


@pytest.fixture(autouse=True)
def without_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows is told by the kernel's mark alone, as for a caller who may not read the kernel's messages."""
    monkeypatch.setattr(audit, "call_that_killed", lambda *_: None)


def told(result: Result[Any]) -> Verdict:
    assert result.returncode == -signal.SIGSYS, result
    return result.verdict


@pytest.mark.parametrize("parts", WAYS)
def test_13_who_sends_the_signal_is_told_from_the_filter(parts: tuple[Any, ...]) -> None:
    for policy in (KILLS, FOREIGN):
        assert told(Sandbox(policy, *parts).run(SENT)) is Verdict.SIGNALED
    box = Sandbox(KILLS, *parts)
    assert told(box.run(DENIED)) is Verdict.SECCOMP
    # Further starts are from a template, where there is a root.
    assert [told(box.run(args)) for args in (SENT, DENIED)] == [Verdict.SIGNALED, Verdict.SECCOMP]


def test_13_without_init() -> None:
    box = Sandbox(KILLS, PidNamespace(init=False))
    assert told(box.run(DENIED)) is Verdict.SECCOMP
    # PID 1 gets no signal that it has no handler for, not even its own: nothing to be told.
    assert box.run(SENT).verdict is Verdict.OK


def test_13_a_sandbox_that_waited_and_a_further_program() -> None:
    box = Sandbox(KILLS, UserNamespace(), PidNamespace())
    with Pool(box) as pool:
        assert [told(pool.run(args)) for args in (SENT, DENIED)] == [Verdict.SIGNALED, Verdict.SECCOMP]
    with box.spawn(["sleep", "60"]) as process:
        further = []
        for args in (SENT, DENIED):
            with process.exec(args) as second:
                further.append(told(second.result(20)))
        assert further == [Verdict.SIGNALED, Verdict.SECCOMP]


def test_13_an_ordinary_user() -> None:
    code = (
        "from tests.seccomp.test_killed import *\n"
        "box = Sandbox(KILLS, *WAYS[3])\n"
        "print(*[told(box.run(args)).value for args in (SENT, DENIED) * 3])"
    )
    root = Path(__file__).parents[2]
    told_there = as_ordinary_user(f"import sys; sys.path.insert(0, {str(root)!r})\n{code}")
    assert told_there.split() == ["SIGNALED", "SECCOMP"] * 3


def test_13_what_only_the_log_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel marks the thread that it ends, and of a process only the first thread can still be looked at."""
    box = Sandbox(KILLS, PidNamespace())
    trapped = Sandbox(Seccomp(rule("trap", "getppid"), otherwise="allow"), PidNamespace())
    assert told(box.run(BY_A_THREAD)) is Verdict.SIGNALED
    assert told(trapped.run(DENIED)) is Verdict.SIGNALED
    monkeypatch.setattr(audit, "call_that_killed", lambda *_: "getppid")
    if audit.readable():  # else the sandbox does not tell the pid under which it would stand there
        for result in (box.run(BY_A_THREAD), trapped.run(DENIED)):
            assert (told(result), result.syscall) == (Verdict.SECCOMP, "getppid")
