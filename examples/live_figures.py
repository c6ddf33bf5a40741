"""Watch what a program uses while it runs, and change its limits meanwhile.

    python examples/live_figures.py

Needs a cgroup that this program may use: ``python -m isolate doctor`` says whether there is one, and what to do.
"""

from __future__ import annotations

import select
import sys

import isolate

BUSY = """
import time
held = []
for n in range(6):
    held.append(bytearray(8 << 20))
    until = time.monotonic() + 0.1
    while time.monotonic() < until: pass
    print(n, flush=True)
time.sleep(60)
"""


def main() -> int:
    """Six lines of figures, a pause, a new limit, the end."""
    try:
        box = isolate.presets.untrusted(limits=isolate.Limits(memory="256M", pids=32))
        process = box.spawn(["python3", "-c", BUSY], stdout=isolate.PIPE, text=True, bufsize=1)
    except isolate.SetupError as error:
        print(f"no cgroup to use here: {error.cause or error.strerror}\nremedy: {error.remedy}")
        return 0
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            stats = process.stats()
            megabytes = (stats.memory or 0) >> 20
            print(f"step {line.strip()}: {megabytes} MiB, {stats.pids} processes, {stats.cpu_time:.2f} s of CPU")
            if line.startswith("5"):
                break
        process.freeze()
        print("frozen:", not select.select([process.pidfd], [], [], 0.1)[0])
        process.thaw()
        process.kill()
        result = process.result()
    print(f"in the end: {result.verdict}, {result.peak_memory >> 20} MiB at its peak")
    return 0


if __name__ == "__main__":
    sys.exit(main())
