"""Where the memory of an idle sandbox goes: so many of them, and what the kernel says of each.

    python benchmarks/idle.py [--count 200] [--caches 12] [--plain] [--json FILE]

The sandboxes are those of benchmarks/spawn.py, from the tree, each with a program that waits. Their processes are read
in /proc (smaps_rollup, status). The sum is what a memory cgroup is charged for them, beside what it is charged for as
many of the programs without a sandbox; the objects of this program are not in it. The caches of slab are the growth in
/proc/slabinfo, which is that of the whole machine: so on a quiet one, and as root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:
    sys.path.insert(0, str(HERE.parent))

import isolate  # noqa: E402  # the checkout's own, where this is run as a file
from benchmarks import spawn  # noqa: E402
from isolate.sandbox import parked  # noqa: E402

PAGE = os.sysconf("SC_PAGE_SIZE") // 1024
STACK = 16  # KiB of a thread's kernel stack on the two architectures


def rollup(pid: int) -> dict[str, int]:
    """Private memory and page tables of a process, in KiB; the top level of the tables is not in VmPTE."""
    found = {}
    for name in ("smaps_rollup", "status"):
        for line in Path(f"/proc/{pid}/{name}").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key in ("Private_Dirty", "Private_Clean", "VmPTE", "Pss"):
                found[key] = int(value.split()[0])
    return {
        "private memory": found["Private_Dirty"] + found["Private_Clean"],
        "page tables": found["VmPTE"] + PAGE,
        "kernel stack": STACK,
    }


def parent(pid: int) -> int:
    """Its parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid: int) -> list[int]:
    """Its children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def caches() -> dict[str, float]:
    """KiB in use of each cache of the kernel's slab allocator."""
    found = {}
    for line in Path("/proc/slabinfo").read_text().splitlines()[2:]:
        name, active, _, size = line.split()[:4]
        found[name] = int(active) * int(size) / 1024
    return found


def resident() -> int:
    """KiB of this program's own."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


class Group:
    """A memory cgroup of our own, in either hierarchy; what it was charged for."""

    def __init__(self) -> None:
        self._home = self._path = None
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, inner = line.split(":", 2)
            home = Path("/sys/fs/cgroup", "memory" if kinds else "", inner.lstrip("/"))
            name = "memory.usage_in_bytes" if kinds else "memory.current"
            if kinds in ("", "memory") and (home / name).exists():
                self._home, self._path, self._file = home, home / f"idle-{os.getpid()}", name
        if self._path is not None:
            try:
                self._path.mkdir()
                self._move(self._path)
            except OSError:
                self._path = None

    @staticmethod
    def _move(group: Path) -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    def charged(self) -> float:
        """KiB; 0 where there is no group."""
        return 0.0 if self._path is None else int((self._path / self._file).read_text()) / 1024

    def close(self) -> None:
        """Leave it, and remove it."""
        if self._path is not None and self._home is not None:
            self._move(self._home)
            self._path.rmdir()


def measure(count: int, *, template: bool = True) -> dict[str, Any]:
    """The figures of one sandbox, in KiB."""
    told: dict[str, Any] = {"count": count}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        programs, _ = spawn.prepare(directory)
        spawn.compile_c(programs / "wait", [*spawn.FREESTANDING, "-DTWIN_WAIT"])
        group = Group()
        stack.callback(group.close)
        stack.callback(parked.end_all)
        box = spawn.box(programs, net=False, template=template)
        for _ in range(20):
            box.run([spawn.PROGRAM], stdout=isolate.DEVNULL, stderr=isolate.DEVNULL, check=True)
        reading, writing = os.pipe()
        before, own = group.charged(), resident()
        alone = [subprocess.Popen([str(programs / "wait")], stdin=reading, env={}) for _ in range(count)]
        told["program alone"] = (group.charged() - before - resident() + own) / count

        def one() -> isolate.Process:
            return box.spawn(["/bin/wait"], stdin=reading, stdout=isolate.DEVNULL, stderr=isolate.DEVNULL)

        waiting = [one()]
        slab, before, own, descriptors = caches(), group.charged(), resident(), len(os.listdir("/proc/self/fd"))
        waiting += [one() for _ in range(count)]
        time.sleep(0.5)  # what is given back is, some milliseconds after a start
        told["objects"] = (resident() - own) / count
        told["charged"] = (group.charged() - before) / count - told["objects"]
        told["slab"] = {name: (value - slab.get(name, 0)) / count for name, value in caches().items()}
        told["descriptors"] = (len(os.listdir("/proc/self/fd")) - descriptors) / count
        supervisor = parent(parent(waiting[count // 2].pid))
        (init,) = children(supervisor)
        pids = {"supervisor": supervisor, "init": init, "program": waiting[count // 2].pid}
        told["processes"] = {name: rollup(pid) for name, pid in pids.items()}
        for process in waiting:
            process.kill()
        for process in waiting:
            process.close()
        os.close(reading)
        os.close(writing)
        for program in alone:
            program.wait()
        time.sleep(0.5)
    return told


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--caches", type=int, default=12)
    parser.add_argument("--plain", action="store_true", help="set up in full, not from the tree")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    told = measure(args.count, template=not args.plain)
    rows = told["processes"]
    print(f"{args.count} idle sandboxes, KiB of one; {told['descriptors']:.2f} descriptors of the caller for one\n")
    print(f"{'':20}", *(f"{name:>12}" for name in rows))
    for kind in ("private memory", "page tables", "kernel stack"):
        print(f"{kind:20}", *(f"{row[kind]:12}" for row in rows.values()))
    slab = {name: value for name, value in told["slab"].items() if value > 0.05}
    print(f"{'objects of Python':20} {told['objects']:12.0f}")
    print(f"{'slab of all':20} {sum(slab.values()):12.0f}")
    for name, value in sorted(slab.items(), key=lambda item: -item[1])[: args.caches]:
        print(f"    {name:26} {value:6.1f}")
    if told["charged"]:
        print(f"\ncharged to a memory cgroup: {told['charged']:.0f}, and for the program without a sandbox")
        print(f"{told['program alone']:.0f}: {told['charged'] - told['program alone']:.0f} beyond the program's own")
    if args.json:
        args.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
