"""The name of the call for which a filter killed the program, as the kernel's audit log tells it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from isolate import PidNamespace, Sandbox, Seccomp, Verdict
from isolate.engine import plan
from isolate.engine.native import lib
from isolate.kernel import syscalls
from isolate.seccomp import allow, arg, audit, deny, install, nested, rule, simulator
from tests.ordinary import as_ordinary_user
from tests.seccomp.tools import RECORD

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from isolate import Result

needs_log = pytest.mark.skipif(
    not audit.readable(), reason="the kernel's messages can be read by root alone here, or from the first pid namespace"
)

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
CALL = "import sys; from isolate.engine import native; native.call(int(sys.argv[1]))"


def told(run: Callable[[], Result[Any]], *, by_the_log_alone: bool = False, seconds: float = 90) -> Result[Any]:
    """The run's result. The kernel prints ten messages in five seconds at most: where others have used them up there
    is no event to wait for but the next five seconds."""
    until = time.monotonic() + seconds
    while True:
        result = run()
        known = result.syscall is not None or not by_the_log_alone
        assert result.verdict is (Verdict.SECCOMP if known else Verdict.SIGNALED), result
        if result.syscall is not None or time.monotonic() > until:
            return result
        time.sleep(5.5)


def calling(number: int) -> list[str]:
    return [sys.executable, "-c", CALL, str(number)]


GETPPID = plan.number("getppid")


@needs_log
def test_of_many_at_once_each_has_its_own() -> None:
    """The pid tells them apart: the programs, their names and their times are the same."""
    names = ["getppid", "getpgrp", "getuid"]
    boxes = {name: Sandbox(Seccomp(rule("kill", name), otherwise="allow"), PidNamespace()) for name in names}
    script = "import sys; from isolate.engine import native; sys.stdin.read(); native.call(int(sys.argv[1]))"
    found: dict[str, str] = {}
    until = time.monotonic() + 90
    while len(found) < len(names) and time.monotonic() < until:
        processes = {
            name: box.spawn([sys.executable, "-c", script, str(plan.number(name))], stdin=-1, env=ENV)
            for name, box in boxes.items()
            if name not in found
        }
        for process in processes.values():
            assert process.stdin is not None
            process.stdin.close()
        for name, process in processes.items():  # a name that the limit has swallowed is tried again
            with process:
                result = process.result(60)
                if result.syscall is not None:
                    found[name] = result.syscall
    assert found == {name: name for name in names}


@needs_log
@pytest.mark.parametrize(
    ("action", "parts"), [("kill", ()), ("kill_thread", (PidNamespace(),)), ("trap", (PidNamespace(),))]
)
def test_the_call_is_named(action: str, parts: tuple[Any, ...]) -> None:
    policy = Seccomp(rule(action, "getppid"), otherwise="allow", log=action == "trap")
    result = told(
        lambda: Sandbox(policy, *parts).run(calling(GETPPID), env=ENV, timeout=60), by_the_log_alone=action == "trap"
    )
    assert result.syscall == "getppid"
    assert json.loads(result.json())["syscall"] == "getppid"
    assert "syscall='getppid'" in repr(result)
    refused = Sandbox(policy + deny("getppid"), *parts).run(calling(GETPPID), env=ENV, timeout=60)
    assert (refused.verdict, refused.syscall) == (Verdict.OK, None)


@needs_log
def test_other_ways_to_start() -> None:
    box = Sandbox(Seccomp(rule("kill", "getppid"), otherwise="allow"), PidNamespace())

    def further() -> Result[bytes]:
        with box.spawn(["/bin/sleep", "60"], env=ENV) as process, process.exec(calling(GETPPID), env=ENV) as second:
            return second.result(60)

    assert told(further, seconds=40).syscall == "getppid"
    assert told(lambda: asyncio.run(box.arun(calling(GETPPID), env=ENV)), seconds=40).syscall == "getppid"


@needs_log
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the probe enters the ABI i386")
def test_a_call_through_another_abi(probe_helper: Path, tmp_path: Path) -> None:
    (tmp_path / "filter").write_bytes(Seccomp(otherwise="allow", foreign="allow", compat=("i386", "x32")).program())
    for i386, number, name in ((1, 64, "i386:getppid"), (0, 0x40000000 | 9999, "x32:9999")):
        (tmp_path / "records").write_bytes(RECORD.pack(i386, number, *(0,) * 6, 0))
        args = [str(probe_helper), str(tmp_path / "filter"), str(tmp_path / "records")]
        assert told(lambda: Sandbox(Seccomp.default()).run(args, timeout=60), seconds=40).syscall == name  # noqa: B023


@needs_log
def test_only_the_program_itself() -> None:
    """A child that was killed is no verdict of the program's, which went on."""
    policy = Seccomp(rule("kill", "getppid"), otherwise="allow")
    code = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode == -31)"
    result = Sandbox(policy).run([sys.executable, "-c", code, *calling(GETPPID)], env=ENV, timeout=60)
    assert (result.verdict, result.returncode, result.syscall) == (Verdict.EXITED, 1, None)


FORGED = (
    'audit: type=1326 audit({now:.3f}:1): auid=0 uid=0 gid=0 ses=0 pid={pid} comm="x" exe="/x" sig=31 arch=c000003e '
    "syscall=83 compat=0 ip=0x1 code=0x80000000"
)


@needs_log
@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes into the kernel's messages")
def test_a_program_cannot_forge_it() -> None:
    """What a program writes into the buffer is marked by the kernel; and SIGSYS sent by hand is no denied call."""
    code = (
        "import os, time\n"
        f"line = {FORGED!r}.format(now=time.time(), pid=os.getpid()).encode()\n"
        "for head in (b'', b'<5>', b'<0>'):\n"
        "    if os.path.exists('/dev/kmsg'):\n"
        "        fd = os.open('/dev/kmsg', os.O_WRONLY); os.write(fd, head + line); os.close(fd)\n"
        f"os.kill(os.getpid(), {signal.SIGSYS:d})\n"
    )
    box = Sandbox(Seccomp(rule("kill", "getppid"), otherwise="allow"))
    result = box.run([sys.executable, "-c", code], timeout=60)
    assert (result.returncode, result.syscall) == (-31, None), result
    # The control: the same words from the kernel are taken.
    line = FORGED.format(now=1000.0, pid=7)
    assert audit._call(line, 7, 999.0) == "mkdir"
    assert audit._call(line, 8, 999.0) is None
    assert audit._call(line, 7, 1001.0) is None, "of an earlier process with this pid"
    assert audit._call(line.replace("exe=", "pid=7 exe="), 7, 999.0) is None
    assert audit._call(line.replace("0x80000000", "0x50001").replace("sig=31", "sig=0"), 7, 999.0) is None


def test_an_ordinary_user_is_told_what_there_is() -> None:
    """Without the right to read the log there is the verdict alone, and no step for it."""
    code = (
        "from isolate import Sandbox, Seccomp\n"
        "from isolate.seccomp import audit\n"
        "box = Sandbox(Seccomp.strict('kill'))\n"
        "result = box.run(['/bin/sh', '-c', 'kill -0 1'])\n"
        "print(result.verdict, result.syscall, 'audit log' in box.explain(), audit.readable())\n"
    )
    done = as_ordinary_user(code)
    verdict, name, step, readable = done.split()
    assert verdict == "SECCOMP"
    assert step == readable
    assert name in (["None"] if readable == "False" else ["None", "kill"])


def test_nothing_is_added_where_nothing_can_be_killed() -> None:
    for policy in (Seccomp(allow("read"), foreign="EPERM"), Seccomp(otherwise="log", foreign="allow")):
        assert not simulator.can_kill(policy.program())
        assert not list(install.tell_pid([policy]))
    assert "audit log" not in Sandbox().explain()
    for policy in (Seccomp.default(), Seccomp(otherwise="trap", foreign="EPERM")):
        assert simulator.can_kill(policy.program())
        assert len(list(install.tell_pid([policy]))) == audit.readable()


def test_numbers_are_the_engines() -> None:
    assert install.RECORD_PROGRAM == lib.ISO_RECORD_PROGRAM
    assert plan.CONTROL.number == lib.ISO_SLOT_CONTROL
    assert plan.FREE_SLOT == lib.ISO_SLOT_FREE


@pytest.mark.parametrize("native", ["x86_64", "aarch64", "riscv64", "i386", "arm"])
def test_the_default_filter_answers_as_the_policy_that_says_the_same(
    native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written as instructions, for the sake of the first start: every number of every ABI."""
    monkeypatch.setattr(syscalls, "_native", native)
    nested.deny_user_namespaces.cache_clear()
    program = nested.deny_user_namespaces()
    nested.deny_user_namespaces.cache_clear()
    policy = Seccomp(
        deny("clone", "unshare", when=(arg(0) & 0x10000000) != 0),
        otherwise="allow",
        foreign="allow",
        compat=("i386", "x32", "arm"),
    ).program(native)
    refused = 0
    for abi in syscalls.ARCHITECTURES:
        bit = syscalls.X32_BIT if abi == "x32" else 0
        for number in (*range(500), 0x3FFFFFFF, 0xFFFFFFFF):
            for flags in (0x10000011, 0x7E020000 ^ 0x10000000, 0x100000000):
                found = simulator.simulate(program, abi, number | bit, (flags,))
                assert found == simulator.simulate(policy, abi, number | bit, (flags,)), (abi, number, hex(flags))
                refused += not found.makes_call
    assert refused >= 5, "clone and unshare with the flag, clone3 with each argument"
