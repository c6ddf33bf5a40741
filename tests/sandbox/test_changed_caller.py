"""Whatever the caller changes of itself: a start from the tree is what a plain start is, also in its error.

Each change is made in a process of its own that has a tree ready. Then starts with and without a tree are compared:
before a new tree is made for the changed caller, and from it.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import isolate
from isolate.kernel import namespaces
from isolate.sandbox import parked
from tests.sandbox.test_template import box_of, used
from tests.sandbox.test_template_state import filtered, inherit, system

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.slow, pytest.mark.root]

PROBE = r'''
import ctypes, json, os
libc = ctypes.CDLL(None, use_errno=True)
def text(path):
    try:
        with open("/proc/self/" + path) as file: return file.read()
    except OSError as error: return repr(error)
def link(path):
    try: return os.readlink(path).split(":")[0][:14]
    except OSError: return "gone"
number = ctypes.c_int(-1)
told = {line.split(":")[0]: line for line in text("status").splitlines()}
kept = """Umask Uid Gid Groups NSpid NSpgid NSsid SigBlk SigIgn SigCgt ShdPnd CapInh CapPrm CapEff CapBnd CapAmb
NoNewPrivs Seccomp Seccomp_filters Cpus_allowed Mems_allowed CoreDumping THP_enabled"""
told = {key: told.get(key) for key in kept.split()}
files = """limits oom_score_adj coredump_filter personality cgroup setgroups timerslack_ns attr/current sessionid
loginuid timens_offsets"""
told.update((path, text(path)) for path in files.split())
told["mounts"] = len(text("mountinfo").splitlines())
told["scheduling"] = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority, os.getpriority(0, 0)
told["processors"] = sorted(os.sched_getaffinity(0))
told["prctl"] = [libc.prctl(option, 0, 0, 0, 0) for option in (3, 7, 27, 30, 34, 39, 42, 66, 68)]
told["death"] = libc.prctl(2, ctypes.byref(number), 0, 0, 0), number.value
told["subreaper"] = libc.prctl(37, ctypes.byref(number), 0, 0, 0), number.value
told["files"] = [(fd, link("/proc/self/fd/" + fd)) for fd in sorted(os.listdir("/proc/self/fd"), key=int)]
told["directory"], told["environment"], told["names"] = os.getcwd(), dict(os.environ), os.uname()[1]
told["ids"] = os.getresuid(), os.getresgid(), os.getgroups()
told["network"] = sorted(line.split(":")[0].strip() for line in text("net/dev").splitlines())
print(json.dumps(told, sort_keys=True))
'''


def outcome(box: isolate.Sandbox) -> list[Any]:
    try:
        result = box.run(["python3", "-S", "-c", PROBE], text=True)
    except isolate.SetupError as error:
        return [error.step, error.errno, error.cause, error.remedy]
    except (OSError, MemoryError) as error:
        return [repr(error)]
    return [str(result.verdict), result.stderr, json.loads(result.stdout) if result.stdout else None]


def compare(name: str) -> None:
    """Print what differs after a change."""
    plain, tree = box_of(template=False), box_of()
    for _ in range(2):
        tree.run(["true"]).check()
    _await_tree(tree)
    outcome(plain)  # what is loaded for it is loaded before the change
    try:
        CHANGES[name]()
    except OSError as error:
        print("not here:", error)
        return
    wanted = outcome(plain)
    for turn in range(5):
        before = used(tree)
        got = outcome(tree)
        if got != wanted:
            how = "from the tree" if used(tree) > before else "plain"
            print(how, turn, [pair for pair in zip(got, wanted, strict=False) if pair[0] != pair[1]])
        if turn == 1:
            _await_tree(tree)
    print("started" if len(wanted) == 3 else f"refused {wanted[:2]}")


def _await_tree(tree: isolate.Sandbox) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and not any(s.is_ready() for s in _starts(tree)):
        if all(starts.launcher is None for starts in _starts(tree)):
            return  # there will be none
        time.sleep(0.005)


def _starts(tree: isolate.Sandbox) -> list[parked.Starts]:
    return [starts for starts in tree._starts.values() if isinstance(starts, parked.Starts)]


def join(file: str) -> Callable[[], Any]:
    """Join a namespace of another process."""

    def change() -> None:
        ready, tells = os.pipe()
        flag = int(namespaces.by_file(file).flag)
        child = os.fork()
        if child == 0:
            libc = ctypes.CDLL(None)
            libc.unshare(flag)
            libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, which a child does not inherit
            if file == "pid" and os.fork() != 0:
                os.wait()
            libc.prctl(1, 9, 0, 0, 0)
            os.write(tells, b"x")
            for fd in (1, 2):
                os.close(fd)
            signal.pause()
        os.read(ready, 1)
        os.close(ready)
        os.close(tells)
        fd = os.open(f"/proc/{child}/ns/{namespaces.by_file(file).for_children}", os.O_RDONLY)
        if file == "mnt":
            system("unshare", 0x200)
        system("setns", fd, flag)
        os.close(fd)

    return change


def unshare(flags: int) -> Callable[[], Any]:
    return lambda: system("unshare", flags)


def prctl(*args: int) -> Callable[[], Any]:
    return lambda: system("prctl", *args, *[0] * (5 - len(args)))


def limit(which: int, soft: int) -> Callable[[], Any]:
    return lambda: resource.setrlimit(which, (soft, resource.getrlimit(which)[1]))


def write(file: str, text: str) -> Callable[[], Any]:
    return lambda: Path("/proc/self", file).write_text(text)


def refuse(call: str) -> Callable[[], Any]:
    return lambda: filtered(isolate.syscalls.number(call))


def schedule(policy: int, priority: int = 0) -> Callable[[], Any]:
    return lambda: os.sched_setscheduler(0, policy, os.sched_param(priority))


def other_host() -> None:
    system("unshare", 0x4000000)
    socket.sethostname("another")


def ignore_all() -> None:
    for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)


def no_directory() -> None:
    path = tempfile.mkdtemp()
    os.chdir(path)
    os.rmdir(path)


def another_user() -> None:
    os.setgroups([])
    os.setresgid(12345, 12345, 12345)
    os.setresuid(12345, 12345, 12345)


def close_streams() -> None:
    """Printing goes on by another number."""
    sys.stdout = os.fdopen(os.dup(1), "w")
    for fd in range(3):
        os.close(fd)


JOINED = ("net", "uts", "ipc", "cgroup", "mnt", "time", "pid")
#: Calls of a start, and of what is compared before one. Without some there is no start, and the errors are compared.
CALLS = [
    "clone3",
    "unshare",
    "setns",
    "mount",
    "pidfd_open",
    "sendmsg",
    "recvmsg",
    "prlimit64",
    "getgroups",
    "statx",
    "get_robust_list",
    "openat2",
    "uname",
    "sched_getattr",
    "waitid",
    "wait4",
    "rt_sigtimedwait",
    "prctl",
    "ioprio_get",
    "get_mempolicy",
    "keyctl",
]

CHANGES: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    **{f"join {kind}": join(kind) for kind in JOINED},
    **{f"unshare {kind}": unshare(int(namespaces.by_file(kind).flag)) for kind in JOINED if kind != "pid"},
    "unshare files": unshare(0x400),
    "unshare directories": unshare(0x200),
    "unshare semaphores": unshare(0x40000),
    "root directory": lambda: os.chroot("/"),
    "directory is gone": no_directory,
    "umask": lambda: os.umask(0o777),
    "session": os.setsid,
    "streams closed": close_streams,
    "signal of the parent's end": prctl(1, 9),
    "not dumpable": prctl(4, 0),
    "keep capabilities": prctl(8, 1),
    "bounding set": prctl(24, 21),
    "ambient set": inherit,
    "securebits": prctl(28, 0x2F),
    "timer slack": prctl(29, 123456),
    "subreaper": prctl(36, 1),
    "no_new_privs": prctl(38, 1),
    "huge pages": prctl(41, 1),
    "children ignored": lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
    "signals ignored": ignore_all,
    "signals blocked": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()),
    "effective id": lambda: system("setresuid", -1, 12345, -1),
    "another user": another_user,
    "groups": lambda: os.setgroups([1, 2, 3]),
    "nice": lambda: os.nice(5),
    "processors": lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    "real-time": schedule(os.SCHED_FIFO, 1),
    "real-time, not inherited": schedule(os.SCHED_FIFO | 0x40000000, 1),
    "batch": schedule(os.SCHED_BATCH),
    "idle": schedule(os.SCHED_IDLE),
    "personality": lambda: system("personality", 0x0040000),
    "out of memory": write("oom_score_adj", "300"),
    "core files": write("coredump_filter", "1"),
    "login": write("loginuid", "1000"),
    "autogroup": write("autogroup", "5"),
    "host name": other_host,
    "keyring": lambda: system("syscall", isolate.syscalls.number("keyctl"), 1, b"mine"),
    "memory policy": lambda: system("syscall", isolate.syscalls.number("set_mempolicy"), 1, b"\1" + bytes(15), 64),
    "I/O priority": lambda: system("syscall", isolate.syscalls.number("ioprio_set"), 1, 0, 3 << 13),
    **{
        f"limit {name}": limit(getattr(resource, f"RLIMIT_{name}"), soft)
        for name, soft in {
            "NPROC": 1, "NOFILE": 40, "FSIZE": 100, "AS": 400 << 20, "CPU": 1000, "CORE": 0, "STACK": 1 << 18,
            "MEMLOCK": 0, "SIGPENDING": 0, "MSGQUEUE": 0,
        }.items()
    },
    **{f"refused {call}": refuse(call) for call in CALLS},
}  # fmt: skip  # a table


@pytest.mark.parametrize("what", CHANGES)
def test_a_start_from_a_tree_is_what_a_plain_one_is(what: str) -> None:
    code = f"from tests.sandbox.test_changed_caller import compare; compare({what!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    if lines[0].startswith("not here"):
        pytest.skip(lines[0])
    assert len(lines) == 1, lines
