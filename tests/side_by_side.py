"""Run the everyday tests in two processes at once: a test keeps one processor busy at most of the time.

    python tests/side_by_side.py [option of pytest …]

``BESIDE`` has what the second process runs: folders whose tests measure no times, no shares of a processor and no
rates. The first runs everything else, new folders as well. With a path, a selection (``-m``, ``-k``) or any other
option that is not in ``KNOWN``, one process runs what pytest is told to.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

HERE = Path(__file__).resolve().parent

BESIDE = (
    "attributes",
    "capabilities",
    "debian",
    "diagnosis",
    "images",
    "kills",
    "landlock",
    "leaks",
    "mounts",
    "namespaces",
    "native",
    "seccomp/test_compiler.py",
    "thread",
    "tools",
    "test_benchmarks.py",
    "test_docs.py",
    "test_examples.py",
    "test_howto.py",
    "test_programs.py",
    "test_typing.py",
)

#: Options that mean the same for two processes. The name of a file that one of them writes gets a suffix.
KNOWN = re.compile(
    r"-[qv]+|-r\w+|--tb=\w+|--color=\w+|--durations(-min)?=[\d.]+|--continue-on-collection-errors|--timeout=\d+"
)
WRITES = re.compile(r"(--junit-?xml)=(.+)")

NOTHING_COLLECTED = 5


def suffixed(option: str) -> str:
    """``--junitxml=out/tests.xml`` of the second process: ``--junitxml=out/tests-beside.xml``."""
    found = WRITES.fullmatch(option)
    if found is None:
        return option
    path = Path(found[2])
    return f"{found[1]}={path.with_name(path.stem + '-beside' + path.suffix)}"


def verdict(statuses: list[int]) -> int:
    """pytest's exit status for both: the first that is not 0. A process without any test counts if both have none."""
    ran = [status for status in statuses if status != NOTHING_COLLECTED]
    return next((status for status in ran if status), 0) if ran else NOTHING_COLLECTED


def commands(options: list[str], place: str) -> list[list[str]]:
    """What runs: one command of pytest, or two with the same options and a directory below ``place`` for each.

    In the directory that pytest takes by itself every other pytest of this user, when it starts, takes the permission
    to enter away from other users: tests that become one would fail.
    """
    pytest = [sys.executable, "-m", "pytest"]
    if not all(KNOWN.fullmatch(option) or WRITES.fullmatch(option) for option in options):
        return [[*pytest, *options]]
    beside = [str(HERE / name) for name in BESIDE]
    if not any(WRITES.fullmatch(option) for option in options):
        options = [*options, f"--junitxml={place}/tests.xml"]
    return [
        [*pytest, *options, f"--basetemp={place}/1", *(f"--ignore={path}" for path in beside)],
        [*pytest, *map(suffixed, options), f"--basetemp={place}/2", "-p", "no:cacheprovider", *beside],
    ]


def total(both: list[list[str]]) -> str:
    """How many tests of both processes passed, failed and were skipped, by the reports that they have written."""
    tests = failed = skipped = 0
    for command in both:
        report = next(found[2] for option in command if (found := WRITES.fullmatch(option)))
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            tests += int(suite.attrib["tests"])
            failed += int(suite.attrib["failures"]) + int(suite.attrib["errors"])
            skipped += int(suite.attrib["skipped"])
    return f"{tests - failed - skipped} passed, {failed} failed, {skipped} skipped in both processes"


def remove(place: str) -> None:
    """The tests' files, unless something is mounted there."""
    if place not in Path("/proc/self/mountinfo").read_text():
        shutil.rmtree(place, ignore_errors=True)


def main(options: list[str]) -> int:
    place = tempfile.mkdtemp(prefix="isolate-")
    os.chmod(place, 0o755)
    first, *others = commands(options, place)
    if not others:
        os.rmdir(place)
        return subprocess.run(first, check=False).returncode
    with tempfile.TemporaryFile() as output:  # printed in one piece when both have ended
        with subprocess.Popen(others[0], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT) as second:
            status = subprocess.run(first, check=False).returncode
        print("==== in a second process:", *BESIDE, flush=True)
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    both = verdict([status, second.returncode])
    with contextlib.suppress(OSError, ElementTree.ParseError):  # one that was killed has written none
        print(f"==== {total([first, others[0]])}", flush=True)
    if both == 0:  # else somebody may want to look at them
        remove(place)
    return both


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
