"""Limits of time hold whatever the caller's interpreter does, and verdicts come from what was seen."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from isolate import PIPE, Limits, PidNamespace, Pool, Rlimits, Sandbox, Seccomp, Verdict
from isolate.seccomp import rule
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from tests.snapshot import Snapshot

BURN = ["sh", "-c", "while :; do :; done"]
BOXES = [Sandbox(), Sandbox(PidNamespace())]


@pytest.mark.parametrize("box", BOXES, ids=["plain", "pid namespace"])
def test_a_blocked_event_loop(box: Sandbox, clean: Snapshot) -> None:
    async def main() -> tuple[Verdict, Verdict, float]:
        async def block() -> None:
            await asyncio.sleep(0.02)
            time.sleep(1.0)

        late, _ = await asyncio.gather(box.arun(["sleep", ".6"], timeout=0.2), block())
        early, _ = await asyncio.gather(box.arun(["sleep", ".1"], timeout=10), block())
        return late.verdict, early.verdict, late.wall_time

    late, early, wall = asyncio.run(main())
    assert (late, early) == (Verdict.TIMEOUT, Verdict.OK)
    assert wall < 0.6, "it was killed at the limit, not at its own end"


@pytest.mark.parametrize("limit", [{"timeout": 0.2}, {"cpu_time": 0.2}], ids=["timeout", "cpu_time"])
@pytest.mark.parametrize("box", BOXES, ids=["plain", "pid namespace"])
def test_a_stopped_caller(box: Sandbox, limit: dict[str, float], clean: Snapshot) -> None:
    """The launcher ends the program while nobody else can; the verdict is told later."""
    code = (
        "import sys\n"
        "from isolate import *\n"
        f"box = Sandbox({'PidNamespace()' if box.parts else ''})\n"
        f"r = box.run(['sh', '-c', 'echo $$ >&2; while :; do :; done'], stderr=None, **{limit!r})\n"
        "print(r.verdict, r.wall_time < 5)\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=PIPE, stderr=PIPE, text=True)
    assert caller.stderr is not None
    assert caller.stderr.readline().strip().isdigit(), "the program runs"
    os.kill(caller.pid, signal.SIGSTOP)
    # The other end of the stream is the program's alone, but for the stopped caller's own.
    end = time.monotonic() + 20
    while time.monotonic() < end and b"sh\0-c" in _everything_below(caller.pid):
        time.sleep(0.02)
    assert b"sh\0-c" not in _everything_below(caller.pid), "killed although its caller stands still"
    os.kill(caller.pid, signal.SIGCONT)
    out, _ = caller.communicate(timeout=30)
    assert out.split() == ["TIMEOUT" if "timeout" in limit else "CPU_TIME", "True"]


def _everything_below(caller: int) -> bytes:
    """Command lines of the processes that a launcher with this owner has made: those that hold its marker."""
    found = b""
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                line = file.read()
            if line.startswith(b"sh\0-c\0echo $$ >&2"):
                found += line
        except OSError:
            continue
    return found


@pytest.mark.parametrize("box", BOXES, ids=["plain", "pid namespace"])
def test_a_pool_s_launcher_holds_them_too(box: Sandbox, clean: Snapshot) -> None:
    async def main() -> tuple[Verdict, float]:
        async def block() -> None:
            await asyncio.sleep(0.02)
            time.sleep(1.0)

        with Pool(box) as pool:
            result, _ = await asyncio.gather(pool.arun(["sleep", ".6"], timeout=0.2), block())
            assert (await pool.arun(["sleep", ".1"], timeout=10)).ok, "the control"
            return result.verdict, result.wall_time

    verdict, wall = asyncio.run(main())
    assert verdict is Verdict.TIMEOUT
    assert wall < 0.6


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
    refusing = Seccomp(rule("EPERM", "getppid"), otherwise="allow", foreign="allow")
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
        "print(Sandbox().run(['echo', 'x'], timeout=5).verdict, Sandbox().run(['sleep', '9'], timeout=.1).verdict)\n"
        "with Pool(Sandbox()) as pool: print(pool.run(['cat'], input=b'x' * 100000).stdout == b'x' * 100000)\n"
        "with Sandbox().spawn(['true']) as p: print(p.wait(5))\n"
    )
    assert python(code).split() == ["OK", "TIMEOUT", "True", "0"]


@pytest.mark.root
def test_real_time_in_a_group_of_its_own(clean: Snapshot) -> None:
    from isolate import Scheduling

    code = "import os; print(os.sched_getscheduler(0), os.sched_getparam(0).sched_priority)"
    box = Sandbox(Limits(cpu=0.5), Scheduling(policy="fifo", priority=5))
    assert box.run([sys.executable, "-S", "-c", code], check=True).stdout == b"1 5\n"
