"""KeyboardInterrupt at any point of the library: at every bytecode of it by a tracer, and by real signals.

Whatever is interrupted, nothing is left soon after: no process, no descriptor, no thread.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest

import isolate
from isolate import DEVNULL, PIPE, PidNamespace, Pool, Sandbox, UserNamespace
from tests.apart import apart
from tests.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

LIBRARY = os.path.dirname(isolate.__file__)
BOX = Sandbox(UserNamespace(), PidNamespace())


def use_run() -> None:
    BOX.run(["sh", "-c", "echo x; cat; sleep 0.01"], input=b"hello", timeout=5, cpu_time=3)


def use_spawn() -> None:
    with BOX.spawn(["cat"], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"x")
        process.stdin.close()
        process.stdout.read()
        process.wait()


def use_pty() -> None:
    with BOX.spawn(["true"], pty=(24, 80)) as process:
        process.wait()


def use_arun() -> None:
    asyncio.run(BOX.arun(["true"], timeout=5))


def use_pool() -> None:
    with Pool(BOX, size=2) as pool:
        pool.run(["sh", "-c", "echo x; cat"], input=b"hello", timeout=5)
        # One that is gone, and a run block that is too long for a message.
        pool._waiting[0].kill()
        pool._waiting[0].wait_gone(5)
        with pool.spawn(["cat", *["x" * 1000] * 20], stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL) as process:
            process.wait()


USES = {"run": use_run, "spawn": use_spawn, "pty": use_pty, "arun": use_arun, "pool": use_pool}


class Injector:
    """Raises at one bytecode of the library, counted from the start."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0
        self.where: tuple[str, int, str] | None = None

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(LIBRARY):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.count += 1
            if self.count == self.at:
                self.where = (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
                raise KeyboardInterrupt
        return self.trace


def interrupted(use: Callable[[], None], at: int) -> Injector:
    injector = Injector(at)
    before = sys.gettrace()
    sys.settrace(injector.trace)
    try:
        use()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return injector


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt within a destructor cannot be raised: Python tells of it, and pytest would make it an error."""
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)


def sweep(name: str, points: Callable[[int], list[int]]) -> None:
    use = USES[name]
    use()
    total = interrupted(use, -1).count
    assert total > 500, "the tracer sees the library"
    before = Snapshot.take()
    left = []
    reached = 0
    for at in points(total):
        injector = interrupted(use, at)
        reached += injector.where is not None
        try:
            before.compare()
        except AssertionError as error:
            left.append(f"{injector.where}: {error}")
            before = Snapshot.take()
    assert not left, left
    assert reached
    use()  # and it still works


def sweep_apart(name: str, how_many: str) -> None:
    """In a process of its own: see :mod:`tests.apart`."""
    warnings.simplefilter("ignore", ResourceWarning)
    if how_many == "all":
        sweep(name, lambda total: list(range(1, total + 1)))
    else:
        sweep(name, lambda total: sorted(random.Random(7).sample(range(1, total + 1), int(how_many))))


@pytest.mark.parametrize("name", USES)
def test_interrupted_at_some_bytecodes(name: str) -> None:
    apart(__name__, "sweep_apart", name, "6")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", USES)
def test_interrupted_at_every_bytecode(name: str) -> None:
    apart(__name__, "sweep_apart", name, "all", timeout=1190)


@pytest.mark.parametrize("name", ["run", "spawn", "pty"])
def test_interrupted_by_a_signal(name: str, quiet: None) -> None:
    """As Ctrl-C does it: between any two bytecodes, and within system calls."""

    def handler(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    rng = random.Random(11)
    before = Snapshot.take()
    old = signal.signal(signal.SIGALRM, handler)
    interrupts = 0
    try:
        for _ in range(40):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0001, 0.006))
                for _ in range(20):
                    USES[name]()
            except KeyboardInterrupt:
                interrupts += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert interrupts
    before.compare()


@pytest.mark.parametrize("at", range(0, 30, 6))
def test_cancelled_task(at: int, clean: Snapshot) -> None:
    """Cancelled after so many turns of the loop, before and after the program runs."""

    async def main() -> None:
        task = asyncio.ensure_future(BOX.arun(["sh", "-c", "echo x; sleep 1000"], timeout=100))
        for _ in range(at):
            await asyncio.sleep(0.0005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The loop has nothing of ours any more: no reader, no timer.
        assert not [h for h in asyncio.get_running_loop()._scheduled if not h.cancelled()]  # type: ignore[attr-defined]

    asyncio.run(main())


def test_timed_out_by_asyncio(clean: Snapshot) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(BOX.arun(["sleep", "1000"]), 0.1)

    asyncio.run(main())


def test_loop_closed_over_a_running_sandbox(clean: Snapshot) -> None:
    """The loop is torn down while a task waits: its generator is closed, and the sandbox goes with it."""

    async def main() -> None:
        task = asyncio.ensure_future(BOX.arun(["sleep", "1000"]))
        await asyncio.sleep(0.05)
        assert not task.done()

    asyncio.run(main())


def test_exception_in_the_block(clean: Snapshot) -> None:
    with pytest.raises(ZeroDivisionError), BOX.spawn(["sleep", "1000"]) as process:  # noqa: PT012
        pid = process.pid
        raise ZeroDivisionError
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
