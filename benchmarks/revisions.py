"""Whether a start has become slower: two builds of isolate take turns, each in a Python of its own.

    python benchmarks/revisions.py --rounds 1200 before=/path/to/one/checkout after=/path/to/another

A checkout is built in place (``python setup.py build_ext --inplace``). Every start is a plain one, without a template,
of a static program under six namespaces and a root of four binds; ``--first`` makes a new Sandbox for each, plan and
tape included. Printed is the time from the call to the result, in microseconds: under load the minimum says most.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORKER = """
import sys, time
checkout, programs, first, clock = sys.argv[1:]
sys.path.insert(0, checkout)
import isolate as i
assert i.__file__.startswith(checkout), i.__file__
try:
    i.Sandbox(template=False)
    plain = {"template": False}
except TypeError:  # there were no templates
    plain = {}
def box():
    binds = i.Bind(programs, "/bin"), i.Bind("/usr"), i.Bind("/etc"), i.Bind("/var")
    root = i.Root(*binds, i.Proc(), i.Dev(), i.Tmpfs("/tmp", size="16M"))
    spaces = i.MountNamespace(), i.PidNamespace(), i.IpcNamespace(), i.UtsNamespace(), i.CgroupNamespace()
    return i.Sandbox(i.UserNamespace(), *spaces, root, **plain)
made, now = box(), getattr(time, clock)
for line in sys.stdin:
    if first == "True":
        made = box()
    start = now()
    ended = made.run(["/bin/true"])
    print(now() - start, flush=True)
    assert ended.returncode == 0, ended
"""
PROGRAM = '#include "sys.h"\nvoid _start(void) { for (;;) SYS1(exit_group, 0); }\n'


def once(worker: subprocess.Popen[str]) -> float:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    return int(worker.stdout.readline()) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("checkouts", nargs="+", metavar="NAME=DIRECTORY")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--first", action="store_true", help="a new Sandbox for each start")
    parser.add_argument("--cpu", action="store_true", help="CPU time of the calling thread in place of the clock's")
    options = parser.parse_args()
    clock = "thread_time_ns" if options.cpu else "perf_counter_ns"
    with tempfile.TemporaryDirectory() as programs:
        flags = ["-O2", "-ffreestanding", "-fno-stack-protector", "-DISO_FREESTANDING", "-nostdlib", "-static"]
        include = f"-I{HERE.parent / '_native'}"
        command = ["cc", *flags, include, "-x", "c", "-", "-o", f"{programs}/true"]
        subprocess.run(command, input=PROGRAM, text=True, check=True)
        workers = {}
        for each in options.checkouts:
            name, _, checkout = each.partition("=")
            arguments = [str(Path(checkout).resolve()), programs, str(options.first), clock]
            workers[name] = subprocess.Popen(
                [sys.executable, "-c", WORKER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        took: dict[str, list[float]] = {name: [] for name in workers}
        for turn in range(10 + options.rounds):
            for name in random.sample(list(workers), len(workers)):
                one = once(workers[name])
                if turn >= 10:
                    took[name].append(one)
        for worker in workers.values():
            assert worker.stdin is not None
            worker.stdin.close()
            worker.wait()
    for name, times in took.items():
        times.sort()
        places = {"min": 0, "p10": len(times) // 10, "p50": len(times) // 2, "p90": len(times) * 9 // 10}
        print(f"{name:12}", *(f"{word} {times[place]:8.0f}" for word, place in places.items()))


if __name__ == "__main__":
    main()
