"""Few descriptors: at every limit from those in use to those that a start needs, an error that says so, or a run."""

from __future__ import annotations

import errno
import gc
import os
import resource
import subprocess
import sys
from typing import Any

import pytest

from isolate import PIPE, PidNamespace, Sandbox, SetupError, UserNamespace
from tests.boxes import boxes
from tests.fence import Fence

BOXES = {
    "user": Sandbox(UserNamespace(), PidNamespace(), template=False),
    "root and limits": Sandbox(*boxes()["root and limits"].parts, template=False),
}
#: More than any start takes beside those in use.
ENOUGH = 40


def use_run(box: Sandbox) -> str:
    return str(box.run(["echo", "x"], input=b"x").verdict)


def use_spawn(box: Sandbox) -> str:
    with box.spawn(["true"], stdin=PIPE, stdout=PIPE) as process:
        return "OK" if process.wait() == 0 else "?"


@pytest.mark.root
@pytest.mark.parametrize("use", [use_run, use_spawn])
@pytest.mark.parametrize("name", BOXES)
def test_every_limit_of_descriptors(name: str, use: Any) -> None:
    box = BOXES[name]
    assert use(box) == "OK"

    def program(begin: Any, end: Any) -> list[tuple[int, str, bool]]:
        told = []
        gc.collect()  # no descriptor of an earlier test's is closed meanwhile
        held = set(os.listdir("/proc/self/fd"))
        highest = max(map(int, held)) + 1
        # Every number below is in use: the limit alone decides.
        while (fd := os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)) < highest:
            pass
        os.close(fd)
        before = os.listdir("/proc/self/fd")
        for extra in range(ENOUGH + 1):
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (fd + extra, hard))
            try:
                answer = use(box)
            except SetupError as error:
                answer = f"{errno.errorcode[error.errno or 0]} {error.step} {error.cause}"
            except OSError as error:
                answer = f"{errno.errorcode[error.errno or 0]} not a SetupError: {error}"
            resource.setrlimit(resource.RLIMIT_NOFILE, (fd + ENOUGH + 100, hard))
            told.append((extra, answer, os.listdir("/proc/self/fd") == before))
        return told

    outcome = Fence(program, asks=False).drive(limit=60)
    assert outcome.error is None, outcome.error
    assert outcome.gone is not None
    told = outcome.value
    print(f"{name} {use.__name__}: runs with {sum(a != 'OK' for _, a, _ in told)} descriptors beside those in use")
    assert all(closed for _, _, closed in told), told
    assert told[-1][1] == "OK"
    answers = [answer for _, answer, _ in told]
    # Too few, then enough, and never enough and then too few.
    first = answers.index("OK")
    assert first > 0
    assert set(answers[first:]) == {"OK"}
    for answer in answers[:first]:
        assert answer.startswith("EMFILE "), answer
        assert "not a SetupError" not in answer
        assert "descriptor" in answer


FULL = """
import errno, os, resource, sys
import isolate
box = isolate.Sandbox(template=False)
print(box.run(["echo", "control"]).stdout.decode(), end="")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
try:
    box.run(["true"])
except isolate.SetupError as error:
    told = error
for fd in held:
    os.close(fd)
assert "isolate.diagnosis.setup" not in sys.modules
print(errno.errorcode[told.errno], told.step, "descriptor" in told.cause, box.run(["true"]).returncode)
"""


def test_no_descriptor_to_load_the_words_of_the_error() -> None:
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("control\nEMFILE start the launcher True 0\n", "")
