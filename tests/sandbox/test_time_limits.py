"""Limits of time hold whatever the caller's interpreter does, and verdicts come from what was seen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from isolate import PIPE, Limits, PidNamespace, Pool, Rlimits, Sandbox, Seccomp, Verdict
from isolate.sandbox.parked import end_all
from isolate.seccomp import rule
from tests.ordinary import as_ordinary_user
from tests.snapshot import SOON

if TYPE_CHECKING:
    from isolate import Result
    from tests.snapshot import Snapshot

BURN = ["sh", "-c", "while :; do :; done"]
BOXES = [Sandbox(), Sandbox(PidNamespace())]
#: Numbers that no other program sleeps for: by them it is found among all processes.
LONG, SHORT = f"90.{os.getpid()}", f".3{os.getpid():07}"


def running(*words: str) -> bool:
    """Whether a process with this command line is there."""
    wanted = b"\0".join(map(os.fsencode, words)) + b"\0"
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
            if file.read() == wanted:
                return True
    return False


async def in_a_blocked_loop(arun: Any, seconds: str, timeout: float) -> Result[bytes]:
    """The result of a ``sleep`` during which nothing else of the loop ran, from when it was seen until it had ended."""
    while True:
        task = asyncio.ensure_future(arun(["sleep", seconds], timeout=timeout))
        while not (seen := running("sleep", seconds)) and not task.done():
            await asyncio.sleep(0.002)
        deadline = time.monotonic() + 2 * SOON
        while running("sleep", seconds) and time.monotonic() < deadline:
            time.sleep(0.005)
        result: Result[bytes] = await task
        if seen:  # else the machine was too busy to look
            return result


@pytest.mark.parametrize("box", BOXES, ids=["plain", "pid namespace"])
def test_a_blocked_event_loop(box: Sandbox, clean: Snapshot) -> None:
    """What the launcher does while the loop stands still: it kills at the limit, and not before it."""

    async def main() -> None:
        late = await in_a_blocked_loop(box.arun, LONG, 0.2)
        assert late.verdict is Verdict.TIMEOUT
        assert late.wall_time < 2 * SOON, "it was killed at the limit, not at its own end"
        assert (await in_a_blocked_loop(box.arun, SHORT, 30)).ok

    asyncio.run(main())


@pytest.mark.parametrize("limit", ["timeout", "cpu_time"])
@pytest.mark.parametrize("box", BOXES, ids=["plain", "pid namespace"])
def test_a_stopped_caller(box: Sandbox, limit: str, clean: Snapshot) -> None:
    """The launcher ends the program while nobody else can; the verdict is told later."""
    command = ("sh", "-c", f"echo $$ >&2; while :; do :; done # of {os.getpid()}")
    for seconds in (0.2, 1.0, 5.0):  # on a busy machine the program may need more to say a word
        code = (
            "from isolate import *\n"
            f"box = Sandbox({'PidNamespace()' if box.parts else ''})\n"
            f"r = box.run({command!r}, stderr=None, {limit}={seconds})\n"
            "print(r.verdict, r.wall_time < 20)\n"
        )
        caller = subprocess.Popen([sys.executable, "-c", code], stdout=PIPE, stderr=PIPE, text=True)
        assert caller.stderr is not None
        if said := caller.stderr.readline():
            break
        caller.communicate(timeout=30)
    assert said.strip().isdigit(), "the program runs"
    os.kill(caller.pid, signal.SIGSTOP)
    end = time.monotonic() + 20
    while time.monotonic() < end and running(*command):
        time.sleep(0.02)
    assert not running(*command), "killed although its caller stands still"
    os.kill(caller.pid, signal.SIGCONT)
    out, _ = caller.communicate(timeout=30)
    assert out.split() == ["TIMEOUT" if limit == "timeout" else "CPU_TIME", "True"]


@pytest.mark.parametrize("box", BOXES, ids=["plain", "pid namespace"])
def test_a_pool_s_launcher_holds_them_too(box: Sandbox, clean: Snapshot) -> None:
    async def main() -> None:
        with Pool(box) as pool:
            late = await in_a_blocked_loop(pool.arun, LONG, 0.2)
            assert late.verdict is Verdict.TIMEOUT
            assert late.wall_time < 2 * SOON
            assert (await pool.arun(["sleep", ".1"], timeout=30)).ok, "the control"

    asyncio.run(main())


@pytest.mark.parametrize("limit", [0.03, (0.01, 0.02)], ids=["alone", "with more time"])
def test_caller_and_launcher_have_one_clock(limit: float | tuple[float, float], clean: Snapshot) -> None:
    """Whichever of the two kills: what was killed at a limit has reached it."""
    wanted = sum(limit) if isinstance(limit, tuple) else limit
    plain, tree = Sandbox(PidNamespace(), template=False), Sandbox(PidNamespace())
    with Pool(plain, size=1) as pool:
        results = [box.run(["sleep", LONG], timeout=limit) for box in (plain, tree, tree, tree, pool)]
        results.append(asyncio.run(plain.arun(["sleep", LONG], timeout=limit)))
    assert [result.verdict for result in results] == [Verdict.TIMEOUT] * len(results)
    assert min(result.wall_time for result in results) >= wanted
    end_all()


def test_children_count(clean: Snapshot) -> None:
    """Those that live, and those that were reaped."""
    script = "while :; do timeout .1 sh -c 'while :; do :; done'; done"
    result = Sandbox(PidNamespace()).run(["sh", "-c", script], cpu_time=0.25, timeout=20)
    assert result.verdict is Verdict.CPU_TIME
    assert Sandbox(PidNamespace()).run(["sh", "-c", "exec sleep .3"], cpu_time=0.25, timeout=20).ok


def test_far_away() -> None:
    """Milliseconds beyond an int of C."""
    assert Sandbox().run(["true"], timeout=25 * 86400).ok
    assert asyncio.run(Sandbox().arun(["true"], timeout=25 * 86400)).ok
    with Sandbox().spawn(["true"]) as process:
        assert process.wait(25 * 86400) == 0


# ---- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGSYS, signal.SIGXCPU, signal.SIGXFSZ, signal.SIGKILL])
def test_a_signal_s_number_is_no_cause(number: signal.Signals) -> None:
    refusing = Seccomp(rule("EPERM", "getppid"), otherwise="allow")  # kills what calls by another ABI
    for box in (Sandbox(), Sandbox(Rlimits(cpu=1)), Sandbox(refusing)):
        result = box.run(["sh", "-c", f"kill -{int(number)} $$"], timeout=20)
        assert (result.verdict, result.returncode) == (Verdict.SIGNALED, -number)


def test_a_filter_that_kills() -> None:
    """The control: here the signal comes from the filter."""
    policy = Seccomp(rule("kill", "getppid"), otherwise="allow")
    code = "import os; os.getppid()"
    result = Sandbox(policy).run([sys.executable, "-S", "-c", code], timeout=20)
    assert (result.verdict, result.returncode) == (Verdict.SECCOMP, -signal.SIGSYS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "script", "number"),
    [
        (1, "while :; do :; done", signal.SIGKILL),
        ((1, 2), "while :; do :; done", signal.SIGXCPU),
        ((1, 2), "trap '' XCPU; while :; do :; done", signal.SIGKILL),
    ],
)
def test_rlimit_cpu(limit: int | tuple[int, int], script: str, number: int) -> None:
    result = Sandbox(Rlimits(cpu=limit)).run(["sh", "-c", script], timeout=30)
    assert (result.verdict, result.returncode) == (Verdict.CPU_TIME, -number)


# ---- what the caller lacks -------------------------------------------------------------------------------------------


def python(code: str, **options: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, **options
    )  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_streams_closed_from_the_start() -> None:
    """Nothing of the library's stands where a stream is expected, and none of it is handed on."""
    code = (
        "import os\n"
        "os.close(0)\n"
        "from isolate import Sandbox, PIPE\n"
        "print(Sandbox().run(['true']).verdict)\n"
        "try: os.fstat(0); print('taken')\n"
        "except OSError: print('free')\n"
        "with Sandbox().spawn(['readlink', '/proc/self/fd/0'], stdout=PIPE) as p: print(p.stdout.read())\n"
        "print(Sandbox().run(['cat'], input=b'x').stdout)\n"
        "print(Sandbox().run(['readlink', '/proc/self/fd/0'], stdin=None).stdout)\n"
        "with Sandbox().spawn(['sleep', '9']) as p:\n"
        "    print(min(int(fd) for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}')) > 0)\n"
    )
    verdict, there, null, *rest = python(code).split()
    assert (verdict, there, null) == ("OK", "free", "b'/dev/null\\n'")
    assert rest == ["b'x'", "b'/dev/null\\n'", "True"]
    for number in (0, 1, 2):
        start = "from isolate import Sandbox; Sandbox().run(['true'], check=True)"
        command = ["sh", "-c", f'exec "$0" -c "$1" {number}>&-', sys.executable, start]
        done = subprocess.run(command, timeout=60, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 0


def test_a_working_directory_that_was_deleted(tmp_path: object) -> None:
    code = (
        f"import os; os.mkdir({str(tmp_path)!r} + '/d'); os.chdir({str(tmp_path)!r} + '/d'); os.rmdir('../d')\n"
        "from isolate import Sandbox, PidNamespace\n"
        "print(Sandbox().run(['true']).verdict, Sandbox(PidNamespace()).run(['true']).verdict)\n"
    )
    assert python(code).split() == ["OK", "OK"]


@pytest.mark.parametrize("limit", ["(4096, resource.RLIM_INFINITY)", "(4096, 4096)", "(0, 0)"])
def test_a_small_limit_of_file_size(limit: str) -> None:
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, {limit})\n"
        "from isolate import Sandbox, PidNamespace\n"
        "print(Sandbox(PidNamespace()).run(['true'], env={'A': 'x' * 20000}).verdict)\n"
    )
    assert python(code) == "OK\n"
    assert as_ordinary_user(code.replace("PidNamespace()", "")) == "OK\n"


def test_without_select_poll() -> None:
    """eventlet's monkey patching takes it away (and gives a select that knows no descriptor above 1023)."""
    code = (
        "import select; del select.poll, select.epoll\n"
        "from isolate import *\n"
        "print(Sandbox().run(['echo', 'x'], timeout=30).verdict, Sandbox().run(['sleep', '9'], timeout=.1).verdict)\n"
        "with Pool(Sandbox()) as pool: print(pool.run(['cat'], input=b'x' * 100000).stdout == b'x' * 100000)\n"
        "with Sandbox().spawn(['true']) as p: print(p.wait(30))\n"
    )
    assert python(code).split() == ["OK", "TIMEOUT", "True", "0"]


@pytest.mark.root
def test_real_time_in_a_group_of_its_own(clean: Snapshot) -> None:
    from isolate import Scheduling

    code = "import os; print(os.sched_getscheduler(0), os.sched_getparam(0).sched_priority)"
    box = Sandbox(Limits(cpu=0.5), Scheduling(policy="fifo", priority=5))
    assert box.run([sys.executable, "-S", "-c", code], check=True).stdout == b"1 5\n"
