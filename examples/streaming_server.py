"""A server that sends on what programs write while they run: many at once, one event loop.

    python examples/streaming_server.py            serve twenty clients of its own at once, and end
    python examples/streaming_server.py --port N   serve on 127.0.0.1:N

A client sends Python code, shuts its side down, and gets each line as it is written, then the verdict. A client that
goes away takes its program with it. Works as root and as an ordinary user.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import isolate

BOX = isolate.presets.untrusted(extra=[isolate.Rlimits(nofile=64, core=0)])
CLIENTS = 20
COUNTING = "import time\nfor n in range(5):\n    print({0}, n, flush=True)\n    time.sleep(0.02)\n"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One client."""
    try:
        code = await asyncio.wait_for(reader.read(64 * 1024), 10)
        command = ["python3", "-u", "-c", code.decode()]
        # The limit of time is held by the sandbox's own launcher, whatever this loop does meanwhile.
        async with await BOX.aspawn(command, stdout=isolate.PIPE, stderr=isolate.STDOUT, timeout=30) as process:
            assert process.stdout is not None
            while line := await process.stdout.readline():
                writer.write(line)
                await writer.drain()
            writer.write(f"{(await process.result()).verdict}\n".encode())
        await writer.drain()
    except (ConnectionError, TimeoutError):
        pass  # the client has gone
    finally:
        writer.close()


async def ask(port: int, number: int) -> list[str]:
    """A client: the lines that came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(COUNTING.format(number).encode())
    writer.write_eof()
    lines = (await reader.read()).decode().splitlines()
    writer.close()
    return lines


async def longest_pause(seconds: list[float]) -> None:
    """How long the event loop kept somebody waiting."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(0.001)
        seconds[0] = max(seconds[0], time.monotonic() - before - 0.001)


async def main(port: int | None) -> int:
    """Serve."""
    server = await asyncio.start_server(serve, "127.0.0.1", port or 0)
    async with server:
        if port is not None:
            await server.serve_forever()
        own, pause = server.sockets[0].getsockname()[1], [0.0]
        watching = asyncio.ensure_future(longest_pause(pause))
        answers = await asyncio.gather(*(ask(own, number) for number in range(CLIENTS)))
        watching.cancel()
        whole = [f"{number} {n}" for number in range(CLIENTS) for n in range(5)]
        print("verdicts ", sorted({lines[-1] for lines in answers}))
        print("lines    ", sum(len(lines) - 1 for lines in answers))
        print("in order ", [line for lines in answers for line in lines[:-1]] == whole)
        print(f"the event loop was blocked for {pause[0] * 1000:.0f} ms at most", file=sys.stderr)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    sys.exit(asyncio.run(main(parser.parse_args().port)))
