"""Two hundred containers, two thousand commands, two hundred kills: nothing fails, nothing is left (the long lane)."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import isolate
from isolate import PidNamespace, Sandbox, SetupError, UserNamespace, presets
from isolate.sandbox.containers import records
from tests.kept import own_records, settled

if TYPE_CHECKING:
    from tests.snapshot import Snapshot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BOX = presets.untrusted()
SMALL = Sandbox(UserNamespace(), PidNamespace())


def test_two_hundred_containers_and_two_thousand_commands(clean: Snapshot) -> None:
    failures: list[object] = []
    containers = [BOX.open() for _ in range(200)]
    try:
        assert all(c.running for c in containers)

        def commands(thread: int) -> None:
            for n in range(125):
                c = containers[(thread * 125 + n) % 200]
                try:
                    result = c.run(["echo", f"{thread} {n}"], text=True, timeout=120)
                    if result.stdout != f"{thread} {n}\n":
                        failures.append(result)
                except BaseException as error:
                    failures.append(error)

        threads = [threading.Thread(target=commands, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        async def one(gate: asyncio.Semaphore, n: int) -> None:
            async with gate:
                try:
                    result = await containers[n % 200].arun(["echo", str(n)], text=True, timeout=120)
                    if result.stdout != f"{n}\n":
                        failures.append(result)
                except Exception as error:
                    failures.append(error)

        async def all_of_them() -> None:
            gate = asyncio.Semaphore(16)
            await asyncio.gather(*(one(gate, n) for n in range(1000)))

        asyncio.run(all_of_them())
        assert failures == []
        assert all(c.running for c in containers)
    finally:
        for c in containers:
            c.close()


_ATTACHED = """
import isolate, os, sys, threading
c = isolate.Sandbox(isolate.UserNamespace(), isolate.PidNamespace()).open()
p = c.spawn(["sleep", "1000"])
print(c.pid, p.pid, flush=True)
while True:
    c.run(["true"])
"""
_DETACHED = """
import isolate
c = isolate.reopen("steady")
print("there", flush=True)
while True:
    c.run(["true"])
"""


def killed(code: str, moment: float) -> list[str]:
    """Start a program, read its first line, kill it a moment later; the words of the line."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        words = caller.stdout.readline().split()
        select.select([], [], [], moment)
        caller.send_signal(signal.SIGKILL)
    return words


def test_a_hundred_kills_of_an_attached_caller(clean: Snapshot) -> None:
    late: list[Any] = []
    for n in range(100):
        words = killed(_ATTACHED, (n % 20) / 1000)
        start = time.monotonic()
        for pid in map(int, words):
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            if not select.select([fd], [], [], 10)[0] or time.monotonic() - start > 5:
                late.append((n, pid, time.monotonic() - start))
            os.close(fd)
    assert late == []


@pytest.mark.root
def test_a_hundred_kills_of_who_uses_a_detached_one(clean: Snapshot) -> None:
    with own_records():
        with BOX.open(name="steady", detached=True) as c:
            pid = c.pid
            c.write("/tmp/mark", "kept")
        for n in range(100):
            assert killed(_DETACHED, (n % 20) / 1000) == ["there"]
        with isolate.reopen("steady") as c:
            assert c.pid == pid
            assert c.read("/tmp/mark") == b"kept"
            assert c.run(["true"]).ok
            # What the callers that were killed had started is gone with them.
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                names = c.run(["sh", "-c", "cat /proc/[0-9]*/comm"], text=True).stdout or ""
                if "sleep" not in names and names.count("isolate-launche") <= 2:
                    break
            assert names.count("isolate-launche") <= 2, names
            c.kill()
            c.wait(30)
        assert records.read_records()[0].state == "ended"


@pytest.mark.root
def test_kills_while_a_detached_one_is_opened() -> None:
    """Killed at any instant of the opening: then it is there and whole, or it is not."""
    code = (
        "import isolate, sys\nfrom isolate import presets\nprint('go', flush=True)\n"
        "presets.untrusted().open(name=sys.argv[1] if len(sys.argv) > 1 else 'one', detached=True)\n"
    )
    with own_records() as directory:
        for n in range(40):
            killed(code, n * 0.02)
            time.sleep(0.5)  # a keeper that was on its way is there by then, or never
            for record in records.read_records():
                assert (directory / record.name).is_dir()
                try:
                    with isolate.reopen(record.name) as c:
                        assert c.run(["true"]).ok
                        c.kill()
                        c.wait(30)
                except SetupError as error:
                    assert record.state != "running", error  # noqa: PT017
                settled(record.name)
                records.remove(record.name)
        assert records.read_records() == []
