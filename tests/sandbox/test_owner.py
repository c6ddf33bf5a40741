"""What a process has started is its own: a forked child has copies of everything, and no say in any of it."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from isolate import Pool, Sandbox, Verdict
from isolate.engine import native
from isolate.errors import ForkedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.snapshot import Snapshot


def in_a_fork(body: Callable[[], object]) -> str:
    """What a forked child says: the result's representation, or the name of the error."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = repr(body())
        except BaseException as error:
            said = type(error).__name__
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text


def test_the_token_is_the_process_s_own() -> None:
    mine = native.owner()
    assert native.owns(mine)
    assert native.owner() == mine
    assert in_a_fork(lambda: native.owns(mine)) == "False"
    assert in_a_fork(lambda: native.owns(native.owner())) == "True", "the control: it has one of its own"
    assert not native.owns(0)


@pytest.mark.parametrize("what", ["poll", "wait", "kill", "terminate", "result"])
def test_a_forked_child_is_refused(what: str, clean: Snapshot) -> None:
    """It would take the record that the parent waits for, or do nothing in silence."""
    with Sandbox().spawn(["sh", "-c", "read x; exit 7"], stdin=-1) as process:
        assert process.stdin is not None
        assert in_a_fork(getattr(process, what)) == ForkedError.__name__
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.wait(10) == 7, "the control: to the parent it is told"
    with Sandbox().spawn(["sh", "-c", "exit 7"]) as process:
        while not process._session.readable(1.0):
            pass
        assert in_a_fork(process.poll) == ForkedError.__name__, "the record is there to be taken"
        assert process.result(10).verdict is Verdict.EXITED


def test_what_a_forked_child_closes_or_drops_goes_on(clean: Snapshot) -> None:
    process = Sandbox().spawn(["sleep", "100"])

    def drop() -> None:
        process.close()
        process.__exit__(None, None, None)
        process.__del__()

    assert in_a_fork(drop) == "None"
    assert process.poll() is None
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    process.close()


@pytest.mark.root
def test_a_child_with_its_parent_s_number(clean: Snapshot) -> None:
    """PID 1 forks the PID 1 of another namespace: the process id tells nothing."""
    code = """if True:
        import ctypes, os, sys
        from isolate import Sandbox
        assert os.getpid() == 1, os.getpid()
        process = Sandbox().spawn(["sleep", "100"])
        assert ctypes.CDLL(None).unshare(0x20000000) == 0  # CLONE_NEWPID
        child = os.fork()
        if child == 0:
            assert os.getpid() == 1
            process.close()
            del process
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert process.poll() is None, "the child's end of it was the parent's"
        process.kill()
        assert process.wait(10) == -9
        process.close()
        print("held")
    """
    done = subprocess.run(
        ["unshare", "-pf", "--mount-proc", sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "held\n", done.stderr


def test_copies(clean: Snapshot) -> None:
    """A copy that is dropped would take the program along."""
    with Sandbox().spawn(["sleep", "100"]) as process:
        for make in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot be"):
                make(process)
        with pytest.raises(TypeError):
            copy.copy(process._session)
        gc.collect()
        assert process.poll() is None
        process.kill()
        assert process.wait(10) == -signal.SIGKILL, "the control: it could be ended"


def test_a_pool_in_a_forked_child(clean: Snapshot) -> None:
    with Pool(Sandbox(), size=2) as pool:
        assert pool.run(["true"]).ok
        assert in_a_fork(lambda: (len(pool), pool.run(["true"]).ok, pool.close())) == "(0, True, None)"
        assert len(pool) == 2
        assert pool.run(["true"]).ok


# ---- the process id --------------------------------------------------------------------------------------------------


def test_pid_is_known_and_kept(clean: Snapshot) -> None:
    """Also of programs that ended long before anybody asked."""
    box = Sandbox()
    processes = [box.spawn(["true"]) for _ in range(20)]
    for process in processes:
        process.wait(20)
    assert all(process.pid > 1 for process in processes)
    assert len({process.pid for process in processes}) == len(processes)
    for process in processes:
        process.close()
    assert all(process.pid > 1 for process in processes)
    with Sandbox().spawn(["sh", "-c", "echo $$; read x"], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid, "the control: the same pid namespace"
        assert os.readlink(f"/proc/{process.pid}/exe").rpartition("/")[2] in ("sh", "dash", "bash")


@pytest.mark.root
def test_pid_where_proc_is_another_s(clean: Snapshot) -> None:
    """/proc of the namespace above knows another number, and none at all where it is not mounted."""
    code = (
        "from isolate import Sandbox\n"
        "with Sandbox().spawn(['sh', '-c', 'echo $$; read x'], stdin=-1, stdout=-1) as p:\n"
        "    print(p.pid == int(p.stdout.readline()), p.pid < 100)\n"
    )
    done = subprocess.run(
        ["unshare", "-pf", sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "True True\n", done.stderr
