"""Run code that a model wrote, and give back what it printed, what it left behind and why it ended.

    python examples/agent.py

The code sees a read-only system, a directory with the files that it was given, and no network. What it writes there is
read back afterwards: regular files only, of bounded size. The sandbox is the preset ``untrusted`` with one directory
and a few limits added. Works as root and as an ordinary user.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import isolate

MOST = 1 << 20  # bytes of each file that is given back


@dataclass
class Answer:
    """What the model is told."""

    verdict: str
    output: str
    files: dict[str, bytes] = field(default_factory=dict)


def run(code: str, files: dict[str, bytes], *, seconds: float = 5) -> Answer:
    """Run Python code beside these files."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for path, data in files.items():
            (work / path).write_bytes(data)
        box = isolate.presets.untrusted(
            isolate.Bind(work, "/work", read_only=False),
            extra=[isolate.Rlimits(nofile=128, fsize="16M", as_="1G", core=0)],
        )
        result = box.run(
            ["python3", "-c", code],
            cwd="/work",
            timeout=seconds,
            cpu_time=seconds,
            max_output="64K",
            stderr=isolate.STDOUT,
            text=True,
        )
        return Answer(str(result.verdict), result.stdout or "", _files(work))


def _files(work: Path) -> dict[str, bytes]:
    """What was left behind: regular files, since the program may have made links or pipes."""
    found = {}
    for entry in os.scandir(work):
        descriptor = (
            os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            if entry.is_file(follow_symlinks=False)
            else -1
        )
        if descriptor < 0:
            continue
        with open(descriptor, "rb") as file:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                found[entry.name] = file.read(MOST)
    return found


WRITTEN = """
total = sum(int(line) for line in open("numbers.txt"))
open("total.txt", "w").write(str(total))
print("the total is", total)
"""
CURIOUS = "print(open('/etc/shadow').read())"
ONLINE = "import urllib.request; urllib.request.urlopen('http://192.0.2.1/', timeout=2)"
ENDLESS = "while True: pass"


def main() -> int:
    """Four pieces of code, as a model might write them."""
    for name, code in (("useful", WRITTEN), ("curious", CURIOUS), ("online", ONLINE), ("endless", ENDLESS)):
        answer = run(code, {"numbers.txt": b"20\n22\n"}, seconds=2)
        last = (answer.output.strip().splitlines() or [""])[-1]
        new = sorted(set(answer.files) - {"numbers.txt"})
        print(f"{name:8} {answer.verdict:8} {last[:60]:60} {' '.join(new)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
