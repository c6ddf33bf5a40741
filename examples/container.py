"""Keep a container open: five commands in it, files in, files out, and limits for one of them.

    python examples/container.py

Works as root and as an ordinary user.
"""

from __future__ import annotations

import sys

import isolate

PROJECT = {
    "project/words.py": "def count(text):\n    return len(text.split())\n",
    "project/test_words.py": "from words import count\nassert count('one two three') == 3\nprint('1 passed')\n",
}


def main() -> int:
    """Put a project in, work on it, take what came of it."""
    with isolate.presets.untrusted().open() as c:
        c.put(PROJECT, "/tmp")
        print("files    ", [info.path for info in c.list("/tmp/project")])
        print("tests    ", c.run(["python3", "test_words.py"], cwd="/tmp/project", text=True).check().stdout.strip())
        c.run(["sh", "-c", "mkdir out && python3 -m zipfile -c out/words.zip words.py"], cwd="/tmp/project").check()
        print("endless  ", c.run(["sleep", "60"], timeout=0.2).verdict)
        strict = c.with_parts(isolate.Rlimits(fsize="64K", core=0))
        print("too much ", strict.run(["dd", "if=/dev/zero", "of=/tmp/big", "bs=1M", "count=1"]).verdict)
        with c.spawn(["cat"], stdin=isolate.PIPE, stdout=isolate.PIPE, text=True) as process:
            print("piped    ", process.communicate("still there\n")[0].strip())
        (archive,) = c.get("/tmp/project/out/*.zip").values()
        print("archive  ", archive[:2], len(archive) > 100)
    return 0


if __name__ == "__main__":
    sys.exit(main())
