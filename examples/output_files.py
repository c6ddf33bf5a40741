"""Judge submissions by the files that they write.

    python examples/output_files.py

Each submission finds its input in a workspace and writes ``answer.txt`` there. What it leaves is read back without
following it anywhere: a symbolic link, a FIFO and a file that is too large are no answers, and that is all.
Works as root and as an ordinary user.
"""

from __future__ import annotations

import sys

import isolate

INPUT = "3\n4\n5\n"
EXPECTED = b"12\n"
SUBMISSIONS = {
    "right": "print(sum(map(int, open('input.txt'))), file=open('answer.txt', 'w'))",
    "wrong": "print(11, file=open('answer.txt', 'w'))",
    "silent": "print(12)",
    "link": "import os; os.symlink('/etc/passwd', 'answer.txt')",
    "fifo": "import os; os.mkfifo('answer.txt')",
    "endless": "f = open('answer.txt', 'w')\nwhile True: f.write('1' * 65536)",
}


def judge(code: str) -> str:
    """One word for a submission."""
    with isolate.Workspace(size="8M", files=100, contents={"main.py": code, "input.txt": INPUT}) as work:
        box = isolate.presets.untrusted(work, extra=[isolate.Rlimits(fsize="4M", nofile=64, core=0)])
        result = box.run(["python3", "main.py"], cwd="/workspace", timeout=(2.0, 0.5), max_output="64K")
        if not result.ok:
            return f"failed ({result.verdict})"
        try:
            answer = work.read("answer.txt", max_size="1K")
        except isolate.SetupError as error:
            return f"no answer ({error.cause})"
        return "accepted" if answer == EXPECTED else "wrong answer"


def main() -> int:
    """All of them."""
    for name, code in SUBMISSIONS.items():
        print(f"{name:8} {judge(code)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
