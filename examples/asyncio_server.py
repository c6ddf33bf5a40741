"""A server that runs the code that it is sent: one sandbox a connection, at most four at once.

    python examples/asyncio_server.py            serve three clients of its own, and end
    python examples/asyncio_server.py --port N   serve on 127.0.0.1:N

A client sends Python code, shuts its side down, and gets a line of JSON. ``arun`` is a coroutine: while a program runs,
the event loop serves others; when a client goes away, its task is cancelled and everything inside is dead.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

import isolate

BOX = isolate.presets.untrusted(extra=[isolate.Rlimits(nofile=64, as_="512M", core=0)])
MOST = 64 * 1024


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, places: asyncio.Semaphore) -> None:
    """One client."""
    try:
        code = await asyncio.wait_for(reader.read(MOST), 10)
        async with places:
            result = await BOX.arun(
                ["python3", "-"], input=code, timeout=60, cpu_time=2, max_output="64K", stderr=isolate.STDOUT
            )
        answer = {"verdict": result.verdict, "output": result.stdout.decode(errors="replace")}
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
    finally:
        writer.close()


async def ask(port: int, code: str) -> dict[str, str]:
    """A client."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(code.encode())
    writer.write_eof()
    line = await reader.readline()
    writer.close()
    answer: dict[str, str] = json.loads(line)
    return answer


async def main(port: int | None) -> int:
    """Serve."""
    places = asyncio.Semaphore(4)
    server = await asyncio.start_server(lambda r, w: serve(r, w, places), "127.0.0.1", port or 0)
    async with server:
        if port is not None:
            await server.serve_forever()
        own = server.sockets[0].getsockname()[1]
        code = ("print(6 * 7)", "while True: pass", "open('/etc/shadow')")
        for answer in await asyncio.gather(*(ask(own, text) for text in code)):
            print(f"{answer['verdict']:9} {answer['output'].strip()}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    sys.exit(asyncio.run(main(parser.parse_args().port)))
