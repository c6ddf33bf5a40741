"""Run code that a model wrote, and give back what it printed, what it left behind and why it ended.

    python examples/agent.py

The code sees a read-only system, a workspace with the files that it was given, and no network. What it writes there is
read back afterwards: regular files only, of bounded size, however it has closed or linked them. The sandbox is the
preset ``untrusted`` with the workspace and a few limits added. Works as root and as an ordinary user.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import isolate

MOST = "1M"  # of all files together that are given back


@dataclass
class Answer:
    """What the model is told."""

    verdict: str
    output: str
    files: dict[str, bytes] = field(default_factory=dict)


def run(code: str, files: dict[str, bytes], *, seconds: float = 5) -> Answer:
    """Run Python code beside these files."""
    with isolate.Workspace(size="64M", files=1000, target="/work", contents=files) as work:
        box = isolate.presets.untrusted(work, extra=[isolate.Rlimits(nofile=128, fsize="16M", as_="1G", core=0)])
        result = box.run(
            ["python3", "-c", code],
            cwd="/work",
            timeout=seconds,
            cpu_time=seconds,
            max_output="64K",
            stderr=isolate.STDOUT,
            text=True,
        )
        try:
            made = {path.lstrip("/"): data for path, data in work.get("*", max_size=MOST, max_files=100).items()}
        except isolate.SetupError as error:
            return Answer(str(result.verdict), f"{result.stdout}\nfiles: {error.cause}", {})
        return Answer(str(result.verdict), result.stdout or "", made)


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
