"""Policies from watching: what a program used is allowed, what it did not is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from isolate import Sandbox, Seccomp, Verdict
from isolate.sandbox.learn import BLIND, _Recorder, learn
from isolate.seccomp.actions import Action

if TYPE_CHECKING:
    import pytest

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
CODE = """
import os, socket, subprocess, sys, threading
t = threading.Thread(target=print, args=("thread",)); t.start(); t.join()
a, b = socket.socketpair(); a.sendmsg([b"x"]); b.recv(1)
print(subprocess.run(["/bin/echo", "child"], capture_output=True, text=True).stdout)
if len(sys.argv) > 1: os.mkdir(sys.argv[1])
"""


def test_learned_is_enough_and_no_more(tmp_path_factory: pytest.TempPathFactory) -> None:
    args = [sys.executable, "-c", CODE]
    learned = learn(args, text=True, env=ENV)
    assert learned.result.verdict is Verdict.OK, learned
    assert learned.result.stdout.split() == ["thread", "child"]
    assert {"execve", "openat", "socketpair", "mmap", "sendmsg"} <= set(learned.counts)
    assert "seccomp" not in learned.counts, "that was the library"
    policy = learned.policy
    assert eval(repr(policy), {"Seccomp": Seccomp, **_names()}) == policy
    assert policy.answer("mkdir", arch="x86_64").action == Action.EPERM
    assert policy.simulate("socketpair", 1, 0x80001, 0) == Action.ALLOW
    assert policy.simulate("socketpair", 16, 0x80001, 0) == Action.EPERM
    again = Sandbox(policy).run(args, text=True, env=ENV, timeout=60)
    assert again.verdict is Verdict.OK, again
    assert again.stdout == learned.result.stdout
    other = str(tmp_path_factory.mktemp("learn") / "made")
    more = Sandbox(policy).run([*args, other], text=True, env=ENV, timeout=60)
    assert more.returncode == 1
    assert "PermissionError" in more.stderr
    assert not os.path.exists(other)
    free = Sandbox().run([*args, other], text=True, env=ENV, timeout=60)
    assert free.verdict is Verdict.OK, free
    assert os.path.exists(other)


def test_learn_beside_other_parts() -> None:
    learned = learn(["/bin/sh", "-c", "echo x"], parts=[Seccomp.default()], otherwise="kill")
    assert learned.result.stdout == b"x\n"
    assert "seccomp" not in learned.counts
    assert learned.policy.otherwise == Action.KILL_PROCESS
    assert Sandbox(learned.policy).run(["/bin/sh", "-c", "echo x"]).verdict is Verdict.OK
    assert Sandbox(learned.policy).run(["/bin/sh", "-c", "echo x; kill -1 0"]).verdict is Verdict.SECCOMP


def _names() -> dict[str, object]:
    from isolate import seccomp

    return {name: getattr(seccomp, name) for name in ("allow", "deny", "rule", "arg", "arg32")}


THREAD = "import threading; t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()"
USER = """
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
# A child in a new user namespace, by clone3 (435 everywhere) and by unshare in a child: what each says.
args = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17)
pid = libc.syscall(435, args, 88)
if pid == 0: os._exit(0)
print("clone3", os.strerror(ctypes.get_errno()) if pid < 0 else "made")
if pid > 0: os.waitpid(pid, 0)
"""


def test_40_learning_a_thread_allows_no_user_namespace() -> None:
    """glibc starts threads by clone3, whose flags no filter sees: learned is the clone that it falls back to."""
    args = [sys.executable, "-c", THREAD]
    learned = learn(args, text=True, env=ENV)
    assert learned.result.stdout == "thread\n", learned.result
    assert learned.policy.simulate("clone3", 0, 0) == Action.ENOSYS
    assert "clone3" not in learned.counts
    assert learned.refused.get("clone3", 0) >= (1 if "clone" in learned.counts else 0)
    assert Sandbox(learned.policy).run(args, text=True, env=ENV, timeout=60).stdout == "thread\n"
    # The attack, and the control: without the policy the kernel makes a user namespace.
    wider = learn([sys.executable, "-c", THREAD + "; import ctypes, struct, os"], env=ENV).policy
    code = [sys.executable, "-c", USER]
    assert "made" not in Sandbox(wider).run(code, text=True, env=ENV, timeout=60).stdout
    assert "clone3 made" in subprocess.run(code, capture_output=True, text=True, check=False).stdout


def test_40_every_call_with_arguments_out_of_sight() -> None:
    assert {"clone3", "io_uring_setup", "io_uring_enter", "socketcall"} <= BLIND
    learned = learn(
        [sys.executable, "-c", "import ctypes; print(ctypes.CDLL(None).syscall(425, 8, 0))"], text=True, env=ENV
    )
    assert learned.result.stdout == "-1\n"
    assert not learned.policy.simulate("io_uring_setup").makes_call


def test_40_many_flags_of_clone_allow_no_others() -> None:
    recorder = _Recorder()
    recorder.counts["clone"] = 40
    recorder.values["clone"] = {(0x3D0F00 | signal,) for signal in range(40)}
    policy = recorder.policy("EPERM")
    assert policy.simulate("clone", 0x3D0F00 | 17).makes_call
    assert not policy.simulate("clone", 0x10000000 | 17).makes_call
