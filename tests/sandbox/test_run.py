"""``run`` and ``arun``: limits that hold whatever the program does, and one verdict."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

import isolate
from isolate import (
    PIPE,
    IpcNamespace,
    MountNamespace,
    PidNamespace,
    Result,
    Sandbox,
    SetupError,
    UserNamespace,
    Verdict,
)
from isolate.engine.plan import Buffer, Phase, Step, call
from tests.snapshot import SOON

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from isolate.engine.plan import Context
    from tests.snapshot import Snapshot

BOXES = {
    "user": Sandbox(UserNamespace(), PidNamespace(), MountNamespace(), IpcNamespace()),
    "without init": Sandbox(UserNamespace(), PidNamespace(init=False)),
    "no pid namespace": Sandbox(UserNamespace()),
}
BOX = BOXES["user"]
PYTHON = [sys.executable, "-I", "-S", "-c"]

#: Programs that do not want to end, each in its own way.
STUBBORN = {
    "sleeps": "sleep 1000",
    "ignores signals": "trap '' TERM INT HUP QUIT ALRM; while :; do sleep 1000; done",
    "stops itself": "kill -STOP $$; sleep 1000",
    "setsid": "setsid sleep 1000 & setsid -f sleep 1000; sleep 1000",
    "double fork": "(setsid sh -c 'sleep 1000 & sleep 1000' &) ; sleep 1000",
    "stops its child": "sleep 1000 & kill -STOP $!; wait",
    "computes": "while :; do :; done",
    "many": "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & done; wait",
}


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("way", STUBBORN)
def test_deadline(name: str, way: str, clean: Snapshot) -> None:
    start = time.monotonic()
    result = BOXES[name].run(["sh", "-c", "echo begun; " + STUBBORN[way]], timeout=0.1)
    assert time.monotonic() - start < SOON
    assert result.verdict is Verdict.TIMEOUT
    assert result.returncode == -signal.SIGKILL
    assert result.stdout in (b"begun\n", b"")
    assert not result.ok


@dataclass(frozen=True)
class Slow:
    """A part whose set-up takes longer than any deadline."""

    phase: Phase

    def steps(self, context: Context) -> Iterable[Step]:
        seconds = struct.pack("<QQ", 1000, 0)
        return [Step(self.phase, "sleep", (call("nanosleep", Buffer(seconds, "timespec"), 0),))]


@pytest.mark.parametrize("phase", [Phase.SYSTEM, Phase.SESSION])
@pytest.mark.parametrize("name", BOXES)
def test_deadline_before_the_program_is_executed(name: str, phase: Phase, clean: Snapshot) -> None:
    """Whoever is killed by us on its way has not failed to start."""
    result = (BOXES[name] + Slow(phase)).run(["true"], timeout=0.1)
    assert (result.verdict, result.returncode) == (Verdict.TIMEOUT, -signal.SIGKILL)


@pytest.mark.parametrize("phase", [Phase.SYSTEM, Phase.SESSION])
@pytest.mark.parametrize("name", BOXES)
def test_deadline_of_a_spawn_before_the_program_is_executed(name: str, phase: Phase, clean: Snapshot) -> None:
    """It is the verdict, as of a run; and the object is one that every call can be made of."""
    with (BOXES[name] + Slow(phase)).spawn(["true"], timeout=0.1, stdout=PIPE) as process:
        assert process.communicate() == (b"", None)
        assert (process.result().verdict, process.wait()) == (Verdict.TIMEOUT, -signal.SIGKILL)
        assert process.pid > 1  # kill(2) takes 0 for a group, and 1 is somebody's init
        process.terminate(grace=1)
        with pytest.raises(SetupError, match="the program has ended"):
            process.exec(["true"])


def test_deadline_of_a_program_that_was_prepared(clean: Snapshot) -> None:
    with BOX.prepare(["true"], timeout=0.1) as prepared:
        prepared._process.wait(SOON)
        assert prepared.start().result().verdict is Verdict.TIMEOUT


def test_killed_from_outside_before_it_is_executed_is_no_timeout(clean: Snapshot) -> None:
    """The control: nothing but its own limit makes a verdict of it."""
    with BOX.prepare(["true"], timeout=SOON) as prepared:
        os.kill(prepared.pid, signal.SIGKILL)
        with pytest.raises(SetupError):
            prepared.start()


@pytest.mark.parametrize("name", BOXES)
def test_orphan_holds_stdout(name: str, clean: Snapshot) -> None:
    """The program has ended, a grandchild with its stdout has not: it goes, and the call returns."""
    result = BOXES[name].run(["sh", "-c", "setsid sleep 1000 & echo done"], timeout=20)
    assert (result.verdict, result.stdout) == (Verdict.OK, b"done\n")


def test_fork_chain(clean: Snapshot) -> None:
    """A process that is always another: each forks the next and ends. Killed with and without a pid namespace."""
    script = "import os\nif os.fork(): raise SystemExit\nos.setsid()\nwhile True:\n if os.fork(): os._exit(0)"
    for box in BOXES.values():
        assert box.run([*PYTHON, script + "\n"], timeout=20).ok


def test_timeout_that_is_not_reached(clean: Snapshot) -> None:
    result = BOX.run(["sh", "-c", "exit 5"], timeout=30)
    assert (result.verdict, result.returncode) == (Verdict.EXITED, 5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT, signal.SIGSEGV])
@pytest.mark.parametrize("name", ["user", "no pid namespace"])
def test_own_signal_is_no_timeout(name: str, number: int, clean: Snapshot) -> None:
    result = BOXES[name].run(["sh", "-c", f"kill -{int(number)} $$; sleep 1000"], timeout=30)
    assert (result.verdict, result.returncode) == (Verdict.SIGNALED, -number)


def test_exit_127_is_no_missing_program(clean: Snapshot) -> None:
    assert BOX.run(["sh", "-c", "exit 127"]).returncode == 127
    with pytest.raises(SetupError, match="no-such-program"):
        BOX.run(["no-such-program"])


# ---- CPU time ----------------------------------------------------------------------------------------------


BURN = "import os, time\nend = time.process_time() + {0}\nwhile time.process_time() < end: pass\n"


@pytest.mark.parametrize("name", BOXES)
def test_cpu_time_of_one(name: str, clean: Snapshot) -> None:
    result = BOXES[name].run([*PYTHON, "while True: pass"], cpu_time=0.3, timeout=60)
    assert result.verdict is Verdict.CPU_TIME
    assert 0.25 <= result.cpu_time < 5


def test_cpu_time_of_a_tree(clean: Snapshot) -> None:
    """Ten children in turn, each far below the limit, ended and reaped: together they pass it."""
    script = "import os\nfor _ in range(100):\n if os.fork() == 0:\n  import time\n  end = time.process_time() + 0.1\n"
    script += "  while time.process_time() < end: pass\n  os._exit(0)\n os.wait()\n"
    result = BOX.run([*PYTHON, script], cpu_time=0.5, timeout=60)
    assert result.verdict is Verdict.CPU_TIME
    assert 0.4 <= result.cpu_time < 5
    control = BOX.run([*PYTHON, BURN.format(0.1)], cpu_time=5, timeout=60)
    assert control.ok
    assert 0.1 <= control.cpu_time < 5


def test_cpu_time_of_orphans(clean: Snapshot) -> None:
    """Double forks do not hide: init has reaped them."""
    script = "import os, time\nfor _ in range(100):\n if os.fork() == 0:\n  if os.fork(): os._exit(0)\n"
    script += "  end = time.process_time() + 0.1\n  while time.process_time() < end: pass\n  os._exit(0)\n os.wait()\n"
    script += " time.sleep(0.05)\ntime.sleep(1000)"
    assert BOX.run([*PYTHON, script], cpu_time=0.5, timeout=60).verdict is Verdict.CPU_TIME


def test_sleep_costs_no_cpu_time(clean: Snapshot) -> None:
    result = BOX.run(["sleep", "0.5"], cpu_time=0.2)
    assert result.ok
    assert result.cpu_time < 0.2
    assert result.wall_time >= 0.5


# ---- output ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOXES)
def test_flood(name: str, clean: Snapshot) -> None:
    result = BOXES[name].run(["sh", "-c", "exec cat /dev/zero"], max_output=100_000, timeout=30)
    assert result.verdict is Verdict.OUTPUT
    assert result.stdout == bytes(100_000)
    assert result.truncated == {"stdout"}


def test_flood_of_one_stream_keeps_the_other(clean: Snapshot) -> None:
    result = BOX.run(["sh", "-c", "echo fine; exec cat /dev/zero >&2"], max_output="64K", timeout=30)
    assert result.verdict is Verdict.OUTPUT
    assert result.stdout == b"fine\n"
    assert result.stderr is not None
    assert len(result.stderr) == 65536
    assert result.truncated == {"stderr"}


def test_exactly_the_limit_is_no_flood(clean: Snapshot) -> None:
    assert BOX.run(["head", "-c", "1000", "/dev/zero"], max_output=1000).ok
    assert BOX.run(["head", "-c", "1001", "/dev/zero"], max_output=1000).verdict is Verdict.OUTPUT


def test_large_output_and_input(clean: Snapshot) -> None:
    """Both ways at once, far beyond what pipes hold: no deadlock."""
    data = os.urandom(3_000_000)
    result = BOX.run(["cat"], input=data, timeout=60)
    assert result.stdout == data
    with_error = BOX.run(["sh", "-c", "tee /dev/stderr"], input=data, timeout=60)
    assert (with_error.stdout, with_error.stderr) == (data, data)


def test_program_that_does_not_read(clean: Snapshot) -> None:
    """Its input is of no interest: no error, no hang."""
    result = BOX.run(["sh", "-c", "exec 0<&-; echo ok"], input=bytes(1_000_000), timeout=30)
    assert (result.verdict, result.stdout) == (Verdict.OK, b"ok\n")


def test_output_of_the_last_moment(clean: Snapshot) -> None:
    """What was written just before the end is there, every time."""
    for _ in range(100):
        assert BOX.run(["sh", "-c", "echo a; echo b >&2; kill -9 $$"]).stdout == b"a\n"


@pytest.mark.parametrize("name", BOXES)
def test_tree_is_dead_when_run_returns(name: str, clean: Snapshot, tmp_path: Path) -> None:
    """An orphan holds a lock; right after run() it is free."""
    fd = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR, 0o666)
    os.fchmod(fd, 0o666)
    try:
        for _ in range(20):
            reading, writing = os.pipe()
            BOXES[name].run(["sh", "-c", "setsid sleep 1000 & exit 0"], pass_fds=[writing])
            os.close(writing)
            os.set_blocking(reading, False)
            assert os.read(reading, 1) == b"", "somebody still holds it"  # EAGAIN would be BlockingIOError
            os.close(reading)
    finally:
        os.close(fd)


# ---- asyncio -----------------------------------------------------------------------------------------------


def test_arun_does_the_same(clean: Snapshot) -> None:
    async def main() -> list[Result[bytes]]:
        return [
            await BOX.arun(["sh", "-c", "cat; exit 3"], input=b"x" * 300_000),
            await BOX.arun(["sleep", "1000"], timeout=0.1),
            await BOX.arun(["cat", "/dev/zero"], max_output=1000),
            await BOX.arun([*PYTHON, "while True: pass"], cpu_time=0.2),
        ]

    exited, late, flood, burnt = asyncio.run(main())
    assert (exited.verdict, exited.returncode, len(exited.stdout or b"")) == (Verdict.EXITED, 3, 300_000)
    assert [late.verdict, flood.verdict, burnt.verdict] == [Verdict.TIMEOUT, Verdict.OUTPUT, Verdict.CPU_TIME]


def test_loop_goes_on_meanwhile(clean: Snapshot) -> None:
    async def main() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticker = asyncio.ensure_future(tick())
        await asyncio.gather(*(BOX.arun(["sleep", "0.3"]) for _ in range(20)))
        ticker.cancel()
        return ticks

    assert asyncio.run(main()) > 5


def test_arun_from_a_thread_of_its_own(clean: Snapshot) -> None:
    """No child watcher: any thread's loop will do."""
    told: list[Any] = []
    thread = threading.Thread(target=lambda: told.append(asyncio.run(BOX.arun(["echo", "x"])).stdout))
    thread.start()
    thread.join()
    assert told == [b"x\n"]


def test_arun_error(clean: Snapshot) -> None:
    with pytest.raises(SetupError, match="no-such"):
        asyncio.run(BOX.arun(["no-such"]))


# ---- bad arguments -----------------------------------------------------------------------------------------


class Fileno:
    """A file that says something odd."""

    def __init__(self, said: Any) -> None:
        self.said: Any = said

    def fileno(self) -> Any:
        return self.said


@pytest.mark.parametrize(
    ("args", "options", "error"),
    [
        ([], {}, ValueError),
        ([""], {}, ValueError),
        (["a\0b"], {}, ValueError),
        ([b"x", 3], {}, TypeError),
        (3, {}, TypeError),
        (["true"], {"timeout": -1}, ValueError),
        (["true"], {"timeout": float("nan")}, ValueError),
        (["true"], {"timeout": "1"}, TypeError),
        (["true"], {"cpu_time": 0}, ValueError),
        (["true"], {"max_output": -1}, ValueError),
        (["true"], {"max_output": "lots"}, ValueError),
        (["true"], {"env": {"A=B": "c"}}, ValueError),
        (["true"], {"env": {"A": "c\0"}}, ValueError),
        (["true"], {"cwd": "a\0"}, ValueError),
        (["true"], {"cwd": ""}, ValueError),
        (["true"], {"pass_fds": [-1]}, ValueError),
        (["true"], {"pass_fds": [1]}, ValueError),
        (["true"], {"input": "text"}, TypeError),
        (["true"], {"input": b"x", "stdin": PIPE}, ValueError),
        (["true"], {"stdout": -7}, ValueError),
        (["true"], {"stdin": "file"}, TypeError),
        (["true"], {"stdin": Fileno(-1)}, ValueError),  # a closed socket's; not PIPE
        (["true"], {"stdin": Fileno(-3)}, ValueError),
        (["true"], {"stdin": Fileno("1")}, ValueError),
        (["true"], {"stdin": 2**31}, ValueError),
        (["true"], {"pass_fds": {5: 2**31}}, ValueError),
        (["true"], {"env": [("A", "b")]}, TypeError),
    ],
)
def test_refused_before_anything_starts(args: Any, options: Any, error: Any, clean: Snapshot) -> None:
    with pytest.raises(error):
        BOX.run(args, **options)


def test_descriptor_that_is_not_open(clean: Snapshot) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        BOX.run(["true"], pass_fds=[987])
    with pytest.raises(OSError, match="Bad file descriptor"):
        BOX.run(["true"], stdout=987)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_deadline_a_thousand_times(clean: Snapshot) -> None:
    """Within its limit and a second, 1,000 times of 1,000."""
    late = []
    for i in range(1000):
        way = list(STUBBORN.values())[i % len(STUBBORN)]
        start = time.monotonic()
        result = BOX.run(["sh", "-c", way + " & " + way], timeout=0.05)
        if time.monotonic() - start > 1.05 or result.verdict is not Verdict.TIMEOUT:
            late.append((i, time.monotonic() - start, result.verdict))
    assert not late


def test_deadline_holds_against_a_program_that_stops_the_launcher(clean: Snapshot) -> None:
    """Without a pid namespace it sees those around it, and with the caller's uid it may signal them."""
    code = """
import os, signal, time
def parent(pid):
    return int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
init = parent(os.getpid())
launcher = parent(init)
assert "isolate-launche" in open(f"/proc/{launcher}/comm").read()
print("ready", flush=True)
while True:
    for pid in (launcher, init):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(0.01)
"""
    for timeout in (0.5, 5):  # a busy machine may need more until it stops somebody
        start = time.monotonic()
        result = Sandbox(UserNamespace()).run([*PYTHON, code], timeout=timeout)
        assert time.monotonic() - start < timeout + SOON
        assert result.verdict is Verdict.TIMEOUT
        if result.stdout:
            break
    assert result.stdout == b"ready\n", result


@pytest.mark.parametrize("writing", ["library", "itself"])
def test_input_that_nobody_reads_does_not_end_a_caller_with_sigpipe_at_its_default(writing: str) -> None:
    code = """
import os, signal, sys
from isolate import Sandbox, UserNamespace
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
if sys.argv[1] == "itself":  # control: the signal is one that ends this program
    ours, theirs = os.pipe()
    os.close(ours)
    os.write(theirs, b"x")
for _ in range(10):
    assert Sandbox(UserNamespace()).run(["/bin/true"], input=bytes(1 << 20), timeout=30).returncode == 0
assert not signal.sigpending() and not signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""
    done = subprocess.run([sys.executable, "-c", code, writing], check=False, timeout=60)
    assert done.returncode == (0 if writing == "library" else -signal.SIGPIPE)


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        (lambda: isolate.presets.untrusted().run(["cat"], input=5), TypeError, "input must be bytes"),
        (lambda: isolate.presets.untrusted().run(["cat"], input=[1, 2]), TypeError, "input must be bytes"),
        (lambda: isolate.presets.untrusted(network="yes"), TypeError, "network must be True, False or a part"),
        (lambda: isolate.presets.untrusted(limits={"memory": "1G"}), TypeError, "limits must be a Limits such as"),
        (lambda: isolate.Sandbox() + 5, TypeError, "not a part: 5"),
        (lambda: isolate.Sandbx, AttributeError, "did you mean 'Sandbox'?"),
        (lambda: isolate.Workspace(contents=5), TypeError, "contents must be a dict"),
        (lambda: isolate.Workspace(sise="1M"), TypeError, "did you mean 'size'?"),
        (lambda: isolate.build.Dockerfile.parse(5), TypeError, "text of a Dockerfile must be str or bytes"),
        (lambda: isolate.network.Interface("lan"), TypeError, "find.'lan'. gives the one of that name"),
    ],
)
def test_a_mistake_is_named_in_words_of_the_caller(wrong: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        wrong()
