"""Many at once: threads, event loops, and threads that hold the allocator's locks while others start."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from isolate import PIPE, PidNamespace, Sandbox, UserNamespace, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.snapshot import Snapshot

BOX = Sandbox(UserNamespace(), PidNamespace())


class Churn:
    """Threads that allocate and free without pause, so that somebody always holds a lock of malloc's."""

    def __init__(self, threads: int) -> None:
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self.stop.is_set():
            kept = [bytearray(size) for size in (10, 1000, 100_000, 2_000_000)]
            kept.clear()
            self.stop.wait(0)

    def __enter__(self) -> None:
        for thread in self.threads:
            thread.start()

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


def in_threads(number: int, each: int, box: Sandbox = BOX) -> list[str]:
    """Runs from so many threads; whatever was not as it should be."""

    def work(index: int) -> Iterator[str]:
        for i in range(each):
            text = f"{index} {i}".encode()
            result = box.run(["echo", text], timeout=60)
            if (result.verdict, result.stdout) != (Verdict.OK, text + b"\n"):
                yield f"{result}"

    with concurrent.futures.ThreadPoolExecutor(number) as pool:
        return [wrong for found in pool.map(lambda i: list(work(i)), range(number)) for wrong in found]


def test_eight_threads(clean: Snapshot) -> None:
    assert in_threads(8, 25) == []


def test_32_threads_while_others_allocate(clean: Snapshot) -> None:
    with Churn(4):
        assert in_threads(32, 6) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_10_000_starts_from_32_threads_while_others_allocate(clean: Snapshot) -> None:
    with Churn(4):
        assert in_threads(32, 313) == []


@pytest.mark.parametrize("number", [200, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_many_at_once(number: int, clean: Snapshot) -> None:
    """All alive at the same time, each with a program that waits to be let go."""
    reading, writing = os.pipe()
    processes: list[Any] = []
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            spawn = [
                pool.submit(BOX.spawn, ["sh", "-c", f"read x <&9; exit {i % 100}"], pass_fds={9: reading})
                for i in range(number)
            ]
            processes = [future.result() for future in spawn]
        assert len({p.pid for p in processes}) == number
        assert [p.poll() for p in processes] == [None] * number
        os.close(writing)
        writing = -1
        # `read` fails at the end of file, and each goes its own way.
        assert [p.wait(60) for p in processes] == [i % 100 for i in range(number)]
    finally:
        for process in processes:
            process.close()
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def test_200_at_once_in_asyncio(clean: Snapshot) -> None:
    async def main() -> list[Any]:
        return await asyncio.gather(*(BOX.arun(["sh", "-c", f"sleep 0.2; echo {i}"]) for i in range(200)))

    results = asyncio.run(main())
    assert [r.stdout for r in results] == [b"%d\n" % i for i in range(200)]


def test_one_sandbox_compiled_by_many_threads(clean: Snapshot) -> None:
    """The first use of a sandbox, by all at once."""
    for _ in range(5):
        box = Sandbox(UserNamespace(), PidNamespace())
        assert in_threads(8, 1, box) == []


def test_fork_while_others_start(clean: Snapshot) -> None:
    """Children forked at any moment hold copies of half-made starts: no run waits for them."""
    stop = threading.Event()

    def forks() -> None:
        while not stop.is_set():
            pid = os.fork()
            if pid == 0:
                # Holds whatever it was born with until the end of the test.
                os.read(hold, 1)
                os._exit(0)
            children.append(pid)
            stop.wait(0.02)

    hold, release = os.pipe()
    children: list[int] = []
    thread = threading.Thread(target=forks)
    thread.start()
    try:
        wrong = in_threads(4, 20)
        with BOX.spawn(["cat"], stdin=PIPE, stdout=PIPE) as process:
            process.kill()
            assert process.wait(10) == -9
    finally:
        stop.set()
        thread.join()
        os.close(release)
        os.close(hold)
        for pid in children:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
    assert wrong == []
    assert children
