"""Starts by a thread whose children get another pid namespace, by unshare(2) or setns(2) and not by this library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_BEGIN = f"""
import ctypes, errno, os, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import subprocess
import isolate
from tests.sandbox.test_template import box_of, from_tree, parked_box, used

libc = ctypes.CDLL(None, use_errno=True)
own = os.open("/proc/thread-self/ns/pid", os.O_RDONLY)
NEWPID = 0x20000000

def unshare():
    assert libc.unshare(NEWPID) == 0, ctypes.get_errno()

def refused(call):
    try:
        call()
    except isolate.SetupError as error:
        assert "PID 1" in error.cause and "setns" in error.remedy, error
        return error.step, errno.errorcode[error.errno]
    raise AssertionError("it was started")

def result(box, *args, **keywords):
    return box.run(args or ["true"], **keywords).returncode
"""


def told(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + code], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


FIRST = """
unshare()
print(result(isolate.Sandbox(isolate.UserNamespace())))  # PID 1 of the new namespace is its launcher
print(*refused(lambda: isolate.Sandbox().run(["true"])))
try:
    subprocess.run(["true"])
except OSError as error:
    print("subprocess", errno.errorcode[error.errno])
assert libc.setns(own, NEWPID) == 0
print(result(isolate.Sandbox()), subprocess.run(["true"]).returncode)
"""


@pytest.mark.root
def test_the_first_program_runs_and_the_second_is_told_why_not() -> None:
    assert told(FIRST) == ["0", "start the launcher ENOMEM", "subprocess ENOMEM", "0 0"]


WHILE = """
boxes = [
    isolate.Sandbox(),
    isolate.Sandbox(isolate.UserNamespace()),
    isolate.Sandbox(isolate.PidNamespace(), isolate.Limits(pids=20)),
    isolate.Sandbox(isolate.UserNamespace(), isolate.Scheduling(oom_score_adj=200)),
    box_of(template=False),
    box_of(),
]
look = ["cat", "/proc/self/uid_map", "/proc/self/oom_score_adj"]
before = [box.run(look).stdout for box in boxes]
mine = open("/proc/self/oom_score_adj").read()
unshare()
with isolate.Sandbox().spawn(["cat"], stdin=isolate.PIPE) as first:
    for _ in range(3):
        assert [box.run(look).stdout for box in boxes] == before
    assert used(boxes[-1]) == 0
    assert open("/proc/self/oom_score_adj").read() == mine
    assert subprocess.run(["sh", "-c", "echo $$ $PPID"], capture_output=True).stdout.split()[1] == b"0"
    second = isolate.Sandbox().spawn(["sleep", "1000"])
    first.stdin.close()
    assert first.wait(30) == 0
print(*refused(second.wait))
second.close()
print(*refused(lambda: boxes[0].run(["true"])))
assert libc.setns(own, NEWPID) == 0
print(result(boxes[0]), from_tree(parked_box(boxes[-1]), "echo tree"))
"""


@pytest.mark.slow
@pytest.mark.root
def test_while_the_first_one_runs_all_others_are_as_anywhere() -> None:
    assert told(WHILE) == ["wait for the launcher EPIPE", "start the launcher ENOMEM", "0 b'tree\\n'"]
