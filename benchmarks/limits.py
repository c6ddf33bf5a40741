"""What Limits adds to a spawn, beside crun and runc with the same limits. `python benchmarks/limits.py [--rounds 200]`

An empty program is run to its end in new pid, mount, ipc and uts namespaces, with and without limits on memory, pids
and cpu, and with groups that a CgroupPool made beforehand; the same from a Pool, which has all of it set up before; in
turns; in a burst, and 20 ms apart (where the processor
has gone to sleep in between). Needs root and a cgroup hierarchy; crun and runc are measured where they are installed.
Times are milliseconds, from call to result. For unified v2, in a virtual machine:
`bash tests/vm/run -- benchmarks/limits.py --rounds 25`

With ``--tree`` starts from a tree that is made once are measured instead, alone: a runtime beside them would change the
table of mounts, and each tree would be made again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import isolate
from isolate.cgroups.hierarchy import discover

if TYPE_CHECKING:
    from collections.abc import Callable

LIMITS = isolate.Limits(memory="256M", pids=64, cpu=1.0)


def program(directory: Path) -> Path:
    """A static program that does nothing."""
    source = directory / "true.c"
    source.write_text("int main(void) { return 0; }\n")
    target = directory / "rootfs" / "bin" / "true"
    target.parent.mkdir(parents=True)
    for name in ("proc", "dev", "sys"):
        (directory / "rootfs" / name).mkdir()
    subprocess.run(["cc", "-static", "-O2", "-o", target, source], check=True)
    return target


def box(*parts: isolate.Part) -> isolate.Sandbox:
    """The sandbox that is measured."""
    return isolate.Sandbox(
        isolate.PidNamespace(), isolate.MountNamespace(), isolate.IpcNamespace(), isolate.UtsNamespace(), *parts
    )


def bundle(directory: Path, runtime: str, *, limited: bool) -> Path:
    """An OCI bundle for the same."""
    place = directory / f"{runtime}-{limited}"
    place.mkdir()
    subprocess.run([runtime, "spec"], cwd=place, check=True)
    path = place / "config.json"
    spec: dict[str, Any] = json.loads(path.read_text())
    spec["process"].update(args=["/bin/true"], terminal=False)
    spec["root"] = {"path": str(directory / "rootfs"), "readonly": True}
    spec["mounts"] = [{"destination": "/proc", "type": "proc", "source": "proc"}]
    spec["linux"]["namespaces"] = [{"type": t} for t in ("pid", "mount", "ipc", "uts")]
    spec["linux"].pop("resources", None)
    spec["linux"]["maskedPaths"] = spec["linux"]["readonlyPaths"] = []
    if limited:
        spec["linux"]["resources"] = {
            "memory": {"limit": 256 << 20, "swap": 256 << 20},
            "pids": {"limit": 64},
            "cpu": {"quota": 100_000, "period": 100_000},
        }
    path.write_text(json.dumps(spec))
    return place


def runs(directory: Path, pool: isolate.CgroupPool, stack: contextlib.ExitStack) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    target = str(program(directory))
    plain, counted, limited, ready = box(), box(isolate.Limits()), box(LIMITS), box(pool)
    rows: dict[str, Callable[[], object]] = {
        "isolate": lambda: plain.run([target], check=True),
        "isolate, accounting": lambda: counted.run([target], check=True),
        "isolate, limits": lambda: limited.run([target], check=True),
        "isolate, limits in a pool": lambda: ready.run([target], check=True),
    }
    for name, kind in (("ready", plain), ("ready, limits", limited)):
        waiting = stack.enter_context(isolate.Pool(kind))
        rows[name] = lambda waiting=waiting: waiting.run([target], check=True)  # type: ignore[misc]
    for runtime in ("crun", "runc"):
        if shutil.which(runtime) is None:
            continue
        for held in (False, True):
            place = bundle(directory, runtime, limited=held)
            command = [runtime, "run", "--bundle", str(place), f"isolate-benchmark-{os.getpid()}"]
            name = f"{runtime}, limits" if held else runtime
            rows[name] = lambda c=command: subprocess.run(c, check=True, capture_output=True)  # type: ignore[misc]
    return rows


def from_tree(directory: Path) -> dict[str, Callable[[], object]]:
    """Starts from a tree: made while the second one runs, and taken by the third."""
    binaries = program(directory).parent
    root = isolate.Root(isolate.Bind(str(binaries), "/bin"), isolate.Proc(), isolate.Dev())
    rows: dict[str, Callable[[], object]] = {}
    for name, parts in (("tree", ()), ("tree, limits", (LIMITS,))):
        box = isolate.Sandbox(isolate.UserNamespace(), root, *parts)
        rows[name] = lambda box=box: box.run(["/bin/true"], check=True)  # type: ignore[misc]
        for _ in range(3):
            rows[name]()
            time.sleep(0.05)
    return rows


def measure(rows: dict[str, Callable[[], object]], rounds: int, pause: float) -> dict[str, list[float]]:
    """Times of each row, in turns, so that whatever else the machine does hits all alike.

    Each round has an order of its own: what one leaves for the kernel to clean up falls on whoever comes next.
    """
    times: dict[str, list[float]] = {name: [] for name in rows}
    order = list(rows.items())
    shuffle = random.Random(1).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name, run in order:
            if pause:
                time.sleep(pause)
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--tree", action="store_true", help="starts from a tree, alone")
    arguments = parser.parse_args()
    host = f"Linux {os.uname().release}, cgroups {discover().mode}, {os.cpu_count()} processors"
    print(f"{host}, {arguments.rounds} rounds")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        # A sandbox remembers the controllers that its first run had to enable: let there be none.
        isolate.Sandbox(LIMITS).run(["true"])
        pool = stack.enter_context(isolate.CgroupPool(LIMITS, size=16))
        rows = from_tree(Path(name)) if arguments.tree else runs(Path(name), pool, stack)
        for usable in list(rows):
            try:
                rows[usable]()
            except (subprocess.CalledProcessError, OSError, isolate.IsolateError) as error:
                text = (getattr(error, "stderr", b"") or b"").decode(errors="replace").strip() or str(error)
                print(f"{usable}: does not run here: {text.splitlines()[-1]}")
                del rows[usable]
        for label, pause in (("in a burst", 0.0), ("20 ms apart", 0.02)):
            times = measure(rows, arguments.rounds, pause)
            print(f"\n{label:26} {'p50':>8} {'p99':>8} {'least':>8} {'p10':>8} {'p90':>8} {'added':>8}")
            for row, values in times.items():
                tenths = statistics.quantiles(values, n=10)
                middle, base = statistics.median(values), statistics.median(times.get(row.partition(",")[0], values))
                last = statistics.quantiles(values, n=100)[98]
                spread = f"{last:8.3f} {min(values):8.3f} {tenths[0]:8.3f} {tenths[8]:8.3f}"
                print(f"{row:26} {middle:8.3f} {spread} {middle / base:7.2f}x")


if __name__ == "__main__":
    main()
