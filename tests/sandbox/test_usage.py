"""What a program used that was killed is counted until its end, also where the kernel would account for nothing of it.

In a pid namespace whose PID 1 was killed the kernel itself reaps what is left. The program says how much it had used.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolate import PIPE, PidNamespace, Pool, Sandbox, Verdict, presets
from isolate.engine.proc import children
from tests.ordinary import as_ordinary_user
from tests.sandbox.test_template import box_of, parked_box, used
from tests.snapshot import SOON

if TYPE_CHECKING:
    from collections.abc import Callable

    from isolate import Result
    from tests.snapshot import Snapshot

MIB = 1 << 20
#: Spins, and says again and again how much CPU time it has used.
SPIN = """
import os, time
told = 0
while True:
    used = time.process_time()
    if used - told > .02:
        told = used
        os.write(1, b"%d %f\\n" % (os.getpid(), used))
"""
#: Touches 64 MiB first.
BIG = "b = bytearray(64 << 20)\nfor at in range(0, len(b), 4096): b[at] = 1\n" + SPIN
#: Three that spin, each an orphan in a session of its own. The first program waits for a signal.
ORPHANS = f"""
import os, signal
for n in range(3):
    if os.fork() == 0:
        if os.fork(): os._exit(0)
        os.setsid()
        exec({SPIN!r})
signal.pause()
"""
ENOUGH = 0.1
LIMITS = (0.3, 1.5, 7.5, 40.0)  # the next one where the machine was too busy within the one before

PLAIN, UNTRUSTED = Sandbox(PidNamespace()), presets.untrusted()


def python(code: str) -> list[str]:
    return ["python3", "-I", "-S", "-c", code]


def said(result: Result[Any]) -> float:
    """CPU time that the program's processes have last said that they had used."""
    lines = bytes(result.stdout).splitlines(keepends=True)
    last = dict(line.split() for line in lines if line.endswith(b"\n"))  # the last line may be cut off
    return sum(map(float, last.values()))


def counted(start: Callable[[float], Result[Any]], verdict: Verdict = Verdict.TIMEOUT, peak: int = 64 * MIB) -> None:
    """What is told of a run that had time to use something is what the program has said, or more."""
    for limit in LIMITS:
        result = start(limit)
        assert result.verdict is verdict
        if said(result) >= ENOUGH:
            break
    assert said(result) >= ENOUGH
    assert said(result) - 0.02 <= result.cpu_time <= result.wall_time * (os.cpu_count() or 1) + 0.1
    assert peak <= result.peak_memory < peak + 64 * MIB


@pytest.mark.parametrize("box", [PLAIN, UNTRUSTED], ids=["pid namespace", "untrusted"])
def test_at_its_limit(box: Sandbox, clean: Snapshot) -> None:
    counted(lambda limit: box.run(python(BIG), timeout=limit))
    control = box.run(["sleep", "1000"], timeout=0.1)
    assert control.verdict is Verdict.TIMEOUT
    assert control.cpu_time < ENOUGH
    assert control.peak_memory < 64 * MIB


def test_from_a_template(clean: Snapshot) -> None:
    box = parked_box(box_of(parts=(PidNamespace(),)))
    before = used(box)
    counted(lambda limit: box.run(python(BIG), timeout=limit))
    assert used(box) > before


def test_in_a_pool(clean: Snapshot) -> None:
    with Pool(PLAIN) as pool:
        counted(lambda limit: pool.run(python(BIG), timeout=limit))


def test_of_all_that_it_has_started(clean: Snapshot) -> None:
    counted(lambda limit: PLAIN.run(python(ORPHANS), timeout=limit), peak=0)


def test_spawned(clean: Snapshot) -> None:
    def start(limit: float) -> Result[Any]:
        with UNTRUSTED.spawn(python(BIG), stdout=PIPE, timeout=limit) as process:
            process.communicate()
            return process.result()

    counted(start)


def test_from_a_loop(clean: Snapshot) -> None:
    counted(lambda limit: asyncio.run(PLAIN.arun(python(BIG), timeout=limit)))


def test_killed_by_the_caller(clean: Snapshot) -> None:
    """After the program has said so much; and for writing too much."""

    def start(_: float) -> Result[Any]:
        with PLAIN.spawn(python(BIG), stdout=PIPE) as process:
            assert process.stdout is not None
            line = b""
            while float((line.split() or [0, 0])[1]) < ENOUGH:
                line = process.stdout.readline()
            process.kill()
            rest, _ = process.communicate()
            result = process.result()
            assert isinstance(rest, bytes)
            return result

    result = start(0)
    assert result.verdict is Verdict.SIGNALED
    assert result.returncode == -signal.SIGKILL
    assert result.cpu_time >= ENOUGH - 0.02
    assert result.peak_memory >= 64 * MIB
    written = PLAIN.run(python(BIG), max_output=len(b"2 0.000000\n") * 6)
    assert written.verdict is Verdict.OUTPUT
    assert written.cpu_time >= said(written) - 0.02 >= 0.08


def test_init_that_is_stopped(clean: Snapshot) -> None:
    """It cannot kill and reap then: it is killed itself, and everything with it."""
    with PLAIN.spawn(["sleep", "1000"]) as process:
        (init,) = children(process._session.pid)
        os.kill(init, signal.SIGSTOP)
        deadline = time.monotonic() + SOON
        while ") T " not in Path(f"/proc/{init}/stat").read_text():
            assert time.monotonic() < deadline
        process.kill()
        assert process.wait(SOON) == -signal.SIGKILL


def test_as_an_ordinary_user() -> None:
    code = f"""
import json, isolate
from isolate import *
found = []
def look(run):
    for limit in {LIMITS}:
        result = run(["python3", "-I", "-S", "-c", {BIG!r}], timeout=limit)
        lines = result.stdout.splitlines(keepends=True)
        said = float(([line.split()[1] for line in lines if line.endswith(b"\\n")] or [0])[-1])
        if said >= {ENOUGH}:
            break
    found.append((result.verdict, said, result.cpu_time, result.peak_memory))
untrusted = isolate.presets.untrusted()
for n in range(2):
    look(untrusted.run)
with Pool(Sandbox(UserNamespace(), PidNamespace())) as pool:
    look(pool.run)
print(json.dumps(found))
"""
    found = json.loads(as_ordinary_user(code))
    assert len(found) == 3
    for verdict, said, cpu_time, peak in found:
        assert verdict == "TIMEOUT"
        assert ENOUGH <= said <= cpu_time + 0.02
        assert peak >= 64 * MIB
