"""Policies from watching: what a program used is allowed, what it did not is refused."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from isolate import Sandbox, Seccomp, Verdict
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
    learned = Seccomp.learn(args, text=True, env=ENV)
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
    learned = Seccomp.learn(["/bin/sh", "-c", "echo x"], parts=[Seccomp.default()], otherwise="kill")
    assert learned.result.stdout == b"x\n"
    assert "seccomp" not in learned.counts
    assert learned.policy.otherwise == Action.KILL_PROCESS
    assert Sandbox(learned.policy).run(["/bin/sh", "-c", "echo x"]).verdict is Verdict.OK
    assert Sandbox(learned.policy).run(["/bin/sh", "-c", "echo x; kill -1 0"]).verdict is Verdict.SECCOMP


def _names() -> dict[str, object]:
    from isolate import seccomp

    return {name: getattr(seccomp, name) for name in ("allow", "deny", "rule", "arg", "arg32")}
