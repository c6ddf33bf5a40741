"""``arun`` and ``aspawn`` on asyncio and on trio: nothing blocks the loop, nothing is left when a task is cancelled."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

import isolate
from isolate import DEVNULL, PIPE, PidNamespace, Sandbox, TimeoutExpired, UserNamespace, Verdict
from isolate.engine import session as sessions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.snapshot import Snapshot

trio = pytest.importorskip("trio")

BOX = Sandbox(UserNamespace(), PidNamespace())
RUNNERS: dict[str, Callable[[Callable[[], Awaitable[Any]]], Any]] = {
    "asyncio": lambda main: asyncio.run(main()),  # type: ignore[arg-type]
    "trio": lambda main: trio.run(main),
}


@pytest.fixture(params=RUNNERS)
def drive(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[Any]]], Any]:
    return RUNNERS[request.param]


@pytest.fixture(scope="module", autouse=True)
def cached_threads() -> None:
    """trio keeps a worker thread for some seconds: it is there before anything is counted."""
    trio.run(trio.to_thread.run_sync, os.getpid)


def test_run(drive: Any, clean: Snapshot) -> None:
    async def main() -> None:
        result = await BOX.arun(["sh", "-c", "cat; echo err >&2; exit 3"], input=b"in", text=False)
        assert (result.returncode, result.stdout, result.stderr) == (3, b"in", b"err\n")
        late = await BOX.arun(["sleep", "60"], timeout=0.05)
        assert late.verdict is Verdict.TIMEOUT
        lines: list[str] = []
        await BOX.arun(["seq", "3"], on_stdout=lines.append, text=True)
        assert lines == ["1\n", "2\n", "3\n"]
        with pytest.raises(isolate.SetupError):
            await BOX.arun(["/no/such/program"])
        with pytest.raises(TypeError, match="there is no keyword"):
            await BOX.arun(["true"], nonsense=1)  # type: ignore[call-overload]

    drive(main)


def test_streams(drive: Any, clean: Snapshot) -> None:
    script = "while read l; do echo got $l; done; printf 'no end'; echo err >&2; exit 4"

    async def main() -> None:
        async with await BOX.aspawn(["sh", "-c", script], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
            assert process.stdin
            assert process.stdout
            assert process.stderr
            assert process.returncode is None
            process.stdin.write(b"one\n")
            process.stdin.write(b"two\n")
            await process.stdin.drain()
            assert await process.stdout.readline() == b"got one\n"
            assert await process.stdout.readexactly(4) == b"got "
            assert await process.stdout.read(2) == b"tw"
            await process.stdin.send(b"three\n")
            process.stdin.close()
            assert [line async for line in process.stdout] == [b"o\n", b"got three\n", b"no end"]
            assert process.stdout.at_eof()
            assert await process.stderr.read() == b"err\n"
            assert await process.wait(20) == 4
            assert (await process.result()).verdict is Verdict.EXITED
            with pytest.raises(EOFError):
                await process.stdout.readexactly(1)

    drive(main)


def test_more_than_any_pipe_holds(drive: Any, clean: Snapshot) -> None:
    data = bytes(range(256)) * 4096

    async def main() -> None:
        async with await BOX.aspawn(["cat"], stdin=PIPE, stdout=PIPE) as process:
            assert process.stdin
            assert process.stdout
            came = bytearray()
            for at in range(0, len(data), 32768):  # a pipe holds 64 KiB: what is written is read before the next
                await process.stdin.send(data[at : at + 32768])
                came += await process.stdout.readexactly(32768)
            process.stdin.close()
            assert await process.stdout.read() == b""
            assert bytes(came) == data
        async with await BOX.aspawn(["true"], stdin=PIPE) as process:
            assert process.stdin
            with pytest.raises(BrokenPipeError):
                await process.stdin.send(bytes(1 << 20))

    drive(main)


def test_the_end(drive: Any, clean: Snapshot) -> None:
    async def main() -> None:
        async with await BOX.aspawn(["sleep", "60"]) as process:
            with pytest.raises(TimeoutExpired):
                await process.wait(0.02)
            assert await process.terminate(grace=20) == -signal.SIGTERM
        async with await BOX.aspawn(["sh", "-c", "trap '' TERM; echo; sleep 60"], stdout=PIPE) as process:
            assert process.stdout
            await process.stdout.readline()
            assert await process.terminate(grace=0.05) == -signal.SIGKILL
        async with await BOX.aspawn(["yes"], stdout=PIPE, max_output=5000) as process:
            assert process.stdout
            assert len(await process.stdout.read()) == 5000
            assert (await process.result()).verdict is Verdict.OUTPUT
        with pytest.raises(TypeError, match="text"):
            await BOX.aspawn(["true"], text=True)  # type: ignore[call-arg]

    drive(main)


@pytest.mark.parametrize("verb", ["arun", "aspawn"])
def test_cancelled(verb: str, drive: Any, clean: Snapshot) -> None:
    """At any instant, while it starts too: everything inside is dead, and nothing is left."""

    async def one() -> None:
        if verb == "arun":
            await BOX.arun(["sleep", "60"])
        else:
            async with await BOX.aspawn(["sleep", "60"]) as process:
                await process.wait()

    async def on_asyncio(after: float) -> None:
        task = asyncio.ensure_future(one())
        await asyncio.sleep(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def on_trio(after: float) -> None:
        with trio.move_on_after(after) as scope:
            await one()
        assert scope.cancelled_caught

    async def main() -> None:
        for after in (0.0, 0.0005, 0.002, 0.05):
            await (on_asyncio(after) if drive is RUNNERS["asyncio"] else on_trio(after))

    drive(main)


def test_a_start_does_not_block_the_loop(drive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on while a start stands still: another task lets it go."""
    started, go = threading.Event(), threading.Event()
    real = sessions.Session.__init__

    def slow(self: Any, *args: Any, **options: Any) -> None:
        started.set()
        assert go.wait(20)
        real(self, *args, **options)

    monkeypatch.setattr(sessions.Session, "__init__", slow)
    steps: list[str] = []

    async def other() -> None:
        pause = asyncio.sleep if drive is RUNNERS["asyncio"] else trio.sleep
        while not started.is_set():
            await pause(0.001)
        steps.append("the loop runs")
        go.set()

    async def main() -> None:
        if drive is RUNNERS["asyncio"]:
            await asyncio.gather(BOX.arun(["true"]), other())
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(BOX.arun, ["true"])
                nursery.start_soon(other)

    drive(main)
    assert steps == ["the loop runs"]


def test_parts_in_force_on_this_thread_hold(drive: Any) -> None:
    """A program that is started in a block is under its parts, so it is started here; outside of one, in a thread."""
    seen: list[int] = []

    class Watched(Sandbox):
        def launch(self, *args: Any, **options: Any) -> Any:
            seen.append(threading.get_ident())
            return super().launch(*args, **options)

    box = Watched(UserNamespace())
    own = threading.get_ident()
    network = os.readlink("/proc/self/ns/net")

    async def main() -> str:
        result = await box.arun(["readlink", "/proc/self/ns/net"], text=True)
        assert result.stdout is not None
        return result.stdout.strip()

    assert drive(main) == network
    if os.geteuid() == 0:
        with isolate.NetNamespace():
            assert drive(main) != network
    assert drive(main) == network
    assert [each == own for each in seen] == ([False, True, False] if os.geteuid() == 0 else [False, False])


def test_twenty_at_once(drive: Any) -> None:
    async def one(number: int, found: list[bytes]) -> None:
        async with await BOX.aspawn(["sh", "-c", f"read l; echo {number} $l"], stdin=PIPE, stdout=PIPE) as process:
            assert process.stdin
            assert process.stdout
            await process.stdin.send(b"line\n")
            found.append(await process.stdout.read())
            assert await process.wait() == 0

    async def main() -> None:
        found: list[bytes] = []
        if drive is RUNNERS["asyncio"]:
            await asyncio.gather(*(one(n, found) for n in range(20)))
        else:
            async with trio.open_nursery() as nursery:
                for n in range(20):
                    nursery.start_soon(one, n, found)
        assert sorted(found) == sorted(b"%d line\n" % n for n in range(20))

    drive(main)


def test_pools_and_containers(drive: Any, clean: Snapshot) -> None:
    async def main() -> None:
        with isolate.Pool(BOX) as pool:
            assert (await pool.arun(["echo", "pool"])).stdout == b"pool\n"
            async with await pool.aspawn(["echo", "pool"], stdout=PIPE, stderr=DEVNULL) as process:
                assert process.stdout
                assert await process.stdout.read() == b"pool\n"
        with BOX.open() as container:
            assert (await container.arun(["echo", "inside"])).stdout == b"inside\n"
            async with await container.aspawn(["echo", "inside"], stdout=PIPE) as process:
                assert process.stdout
                assert await process.stdout.read() == b"inside\n"

    drive(main)
