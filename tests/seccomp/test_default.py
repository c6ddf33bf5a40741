"""The ready policies in the kernel: each refusal beside the same call unfiltered, and programs that must work."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from isolate import PidNamespace, Sandbox, Seccomp, UserNamespace, Verdict
from isolate.kernel import syscalls
from isolate.seccomp import allow, deny, rule

if TYPE_CHECKING:
    from pathlib import Path

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
EPERM, EAFNOSUPPORT, ENOSYS = -1, -97, -38
BAD = -1

# Calls that default() refuses, with arguments that make the kernel's own answer another and harm nothing: bad
# descriptors, null pointers, flags that do not exist.
REFUSED: list[tuple[str, tuple[int, ...]]] = [
    ("mount", (0, 0, 0, 0, 0)),
    ("umount2", (0, 0)),
    ("pivot_root", (0, 0)),
    ("chroot", (0,)),
    ("open_tree", (BAD, 0, 0)),
    ("move_mount", (BAD, 0, BAD, 0, BAD)),
    ("fsopen", (0, 0)),
    ("fsconfig", (BAD, 0, 0, 0, 0)),
    ("fsmount", (BAD, 0, 0)),
    ("fspick", (BAD, 0, 0)),
    ("mount_setattr", (BAD, 0, 0, 0, 0)),
    ("setns", (BAD, 0)),
    ("unshare", (0,)),
    ("add_key", (0, 0, 0, 0, 0)),
    ("request_key", (0, 0, 0, 0)),
    ("keyctl", (9999,)),
    ("bpf", (9999, 0, 0)),
    ("perf_event_open", (0, 0, 0, 0, 0)),
    ("userfaultfd", (0xFFFF,)),
    ("io_uring_setup", (0, 0)),
    ("io_uring_enter", (BAD, 0, 0, 0, 0, 0)),
    ("io_uring_register", (BAD, 0, 0, 0)),
    ("init_module", (0, 0, 0)),
    ("finit_module", (BAD, 0, 0)),
    ("delete_module", (0, 0)),
    ("reboot", (0, 0, 0, 0)),
    ("swapon", (0, 0)),
    ("swapoff", (0,)),
    ("acct", (1,)),
    ("settimeofday", (0, 0)),
    ("clock_settime", (99, 0)),
    ("adjtimex", (0,)),
    ("clock_adjtime", (99, 0)),
    ("quotactl", (0, 0, 0, 0)),
    ("quotactl_fd", (BAD, 0, 0, 0)),
    ("syslog", (99, 0, 0)),
    ("sethostname", (0, BAD)),
    ("setdomainname", (0, BAD)),
    ("open_by_handle_at", (BAD, 0, 0)),
    ("kcmp", (0, 0, 0, 0, 0)),
    ("pidfd_getfd", (BAD, 0, 0)),
    ("process_madvise", (BAD, 0, 0, 0, 0)),
    ("ptrace", (9999, 0, 0, 0)),
    ("process_vm_readv", (BAD, 0, 0, 0, 0, 1)),
    ("process_vm_writev", (BAD, 0, 0, 0, 0, 1)),
    ("name_to_handle_at", (BAD, 0, 0, 0, 0)),
    ("file_getattr", (BAD, 0, 0, 0, 0)),
    ("file_setattr", (BAD, 0, 0, 0, 0)),
    ("get_mempolicy", (0, 0, 0, 0, 0)),
    ("set_mempolicy", (0, 0, 0)),
    ("mbind", (1, 0, 0, 0, 0, 0)),
    ("move_pages", (0, 0, 0, 0, 0, 0)),
    ("fanotify_init", (0xFFFFFFFF, 0)),
    ("vmsplice", (BAD, 0, 0, 0)),
    ("personality", (0x40000,)),
    ("personality", (0x100000008,)),
    ("iopl", (9,)),
    ("ioperm", (0, 0, 0)),
    ("modify_ldt", (9, 0, 0)),
    ("ustat", (0, 0)),
    ("sysfs", (9,)),
]

RUN = """
import json, os, struct, sys
from isolate.engine import native
from isolate.kernel import syscalls
programs, calls = json.load(sys.stdin)
results = []
for program in map(bytes.fromhex, programs):
    code = native.ffi.from_buffer(program)
    header = struct.pack("=HxxxxxxQ", len(program) // 8, int(native.ffi.cast("uintptr_t", code)))
    assert native.call(syscalls.number("prctl"), 38, 1, 0, 0, 0) == 0
    assert native.call(syscalls.number("seccomp"), 1, 0, header) == 0
for name, args in calls:
    pid = os.fork() if name in ("clone", "unshare") else -1
    if pid == 0:
        result = native.call(syscalls.number(name), *args)
        if result == 0 and name == "clone": os._exit(0)
        os._exit(min(-result, 250) if result < 0 else 0)
    if pid > 0:
        results.append(-(os.waitpid(pid, 0)[1] >> 8))
    else:
        results.append(native.call(syscalls.number(name), *args))
print(json.dumps(results))
"""


def results(calls: list[tuple[str, tuple[int, ...]]], *policies: Seccomp) -> list[int]:
    """What the kernel answers to each call under these filters, with the caller's own privileges otherwise."""
    asked = json.dumps([[policy.program().hex() for policy in policies], calls])
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=asked, text=True, capture_output=True, timeout=60, check=False, env=ENV
    )
    assert done.returncode == 0, done
    return list(json.loads(done.stdout))


@pytest.mark.skipif(os.geteuid() != 0, reason="without root the kernel itself answers EPERM")
def test_every_refused_call_beside_the_same_without_the_filter() -> None:
    calls = [(name, args) for name, args in REFUSED if name in syscalls.table()]
    control, filtered = results(calls), results(calls, Seccomp.default())
    for (name, _), here in zip(calls, filtered, strict=True):
        assert here == (ENOSYS if name.startswith(("io_uring", "file_")) else EPERM), name
    unproven = {name for (name, _), free in zip(calls, control, strict=True) if free == EPERM}
    assert unproven <= set(MAY_BE_REFUSED_ANYWAY), unproven


#: Where even root gets EPERM on some hosts: lockdown, sysctls, a missing capability.
MAY_BE_REFUSED_ANYWAY = ("perf_event_open", "io_uring_setup", "iopl", "ioperm", "quotactl", "setns")


def test_flags_that_stay_with_files_cannot_be_set_by_ioctl_either() -> None:
    calls = [("ioctl", (BAD, request, 0)) for request in (0x401C5820, 0x801C581F)]  # FS_IOC_FSSETXATTR, …GETXATTR
    assert results(calls) == [-9, -9]
    assert results(calls, Seccomp.default()) == [EPERM, -9]


def test_debuggers_have_it_back_by_one_rule() -> None:
    calls = [("ptrace", (9999, 0, 0, 0)), ("process_vm_readv", (BAD, 0, 0, 0, 0, 1)), ("kcmp", (0, 0, 0, 0, 0))]
    given_back = results(calls, Seccomp.default() + allow("@debug"))
    assert given_back == results(calls)
    assert EPERM not in given_back


def test_families_of_sockets() -> None:
    calls = [("socket", (family, kind, 0)) for family in range(50) for kind in (1, 2, 3, 5)]
    calls += [("socket", (16, 3, protocol)) for protocol in range(1, 22)]
    calls += [("socket", (2, 10, 768)), ("socket", (2 | 1 << 32, 1, 0)), ("socket", (40 | 1 << 32, 1, 0))]
    calls += [("socketpair", (family, 1, 0, 0)) for family in range(50)]
    control, filtered = results(calls), results(calls, Seccomp.default())
    opened = set()
    for (name, args), free, here in zip(calls, control, filtered, strict=True):
        family = args[0] & 0xFFFFFFFF
        allowed = family == 1 or (
            name == "socket" and (family in (2, 10) or (family, args[2]) == (16, 0)) and (family, args[1]) != (2, 10)
        )
        if allowed:
            assert (here < 0) == (free < 0), (name, args, free, here)
            assert here >= 0 or here == free, (name, args, free, here)
        else:
            assert here == EAFNOSUPPORT, (name, args, free, here)
            if free != EAFNOSUPPORT:
                opened.add(family)
    assert {16, 40} & opened, "the control: without the filter the kernel has other families"


def test_namespaces_by_clone() -> None:
    calls = [("clone", (flag | 17, 0, 0, 0, 0)) for flag in (0x10000000, 0x10020000, 0x7E020000, 0)]
    calls += [("clone3", (0, 0)), ("unshare", (0x10000000,))]
    control, filtered = results(calls), results(calls, Seccomp.default())
    assert filtered == [EPERM, EPERM, EPERM, 0, ENOSYS, EPERM]
    assert control[3] == 0
    assert control[4] == -22
    if control[0] == EPERM:
        pytest.skip("this host lets nobody make user namespaces: no control")
    assert control[0] == 0


LEASE = """
import fcntl, os, resource, sys
def told(function, *args):
    try: function(*args)
    except OSError as error: return error.errno
    return 0
fd = os.open(sys.argv[1], os.O_RDONLY)
write, none = 1, 2
print(told(fcntl.fcntl, fd, 1024, write), told(fcntl.fcntl, fd, 1024, none), told(fcntl.fcntl, fd, 1025), end=" ")
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
files = resource.RLIMIT_NOFILE
print(told(resource.prlimit, 1, files, limits), told(resource.prlimit, 1, files), end=" ")
print(*(told(resource.prlimit, pid, files, limits) for pid in (0, os.getpid())))
"""


def test_no_lease_and_no_limit_of_init(tmp_path: Path) -> None:
    """By a lease the host waits when it opens the file; a limit of CPU time ends init, and a container with it."""
    file = tmp_path / "file"
    file.write_text("x")
    box = Sandbox(UserNamespace(), PidNamespace())
    command = [sys.executable, "-c", LEASE, str(file)]
    control = box.run(command, text=True, env=ENV)
    if str(control.stdout).startswith("22 "):
        pytest.skip("files have no leases here")
    assert control.stdout == "0 0 0 0 0 0 0\n", control
    filtered = (box + Seccomp.default()).run(command, text=True, env=ENV)
    assert filtered.stdout == "13 13 0 1 0 0 0\n", filtered


TERMINAL = """
import fcntl, os, pty, sys
from isolate.engine import native
from isolate.kernel import syscalls
master, slave = pty.openpty()
byte = b"x"
for request in (0x5412, 0x5412 | 1 << 32, 0x541C, 0x5423, 0x5423 | 7 << 32, 0x5413):
    print(native.call(syscalls.number("ioctl"), slave, request, bytes(16)))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="TIOCSTI is root's alone since Linux 6.2")
def test_nothing_is_typed_into_a_terminal() -> None:
    control = subprocess.run(
        [sys.executable, "-c", TERMINAL], capture_output=True, text=True, check=True, timeout=60, env=ENV
    )
    sti, high_sti, linux, discipline, high_discipline, size = map(int, control.stdout.split())
    assert (sti, high_sti, discipline, high_discipline, size) == (0, 0, 0, 0, 0), "the kernel takes the lower 32 bits"
    assert linux != EPERM
    done = Sandbox(Seccomp.default()).run([sys.executable, "-c", TERMINAL], text=True, env=ENV, timeout=60)
    assert done.stdout.split() == ["-1", "-1", "-1", "-1", "-1", "0"], done


# ---- programs that must keep working ----


def works(args: list[str], policy: Seccomp, cwd: Path, expected: str) -> None:
    result = Sandbox(policy).run(args, text=True, cwd=str(cwd), env={**os.environ, "HOME": str(cwd)}, timeout=100)
    assert result.verdict is Verdict.OK, result
    assert expected in result.stdout, result


def test_c_compiler(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text('#include <stdio.h>\nint main(void) { puts("made"); return 0; }\n')
    works(["/bin/sh", "-c", "cc -pipe -o a a.c && ./a"], Seccomp.default(), tmp_path, "made")


@pytest.mark.skipif(not shutil.which("git"), reason="no git here")
def test_git(tmp_path: Path) -> None:
    script = (
        "git init -q r && cd r && git config user.email a@b && git config user.name c && echo x > f && git add f && "
        "git commit -qm m && git clone -q . ../s && git -C ../s log --format=%s && git gc -q"
    )
    works(["/bin/sh", "-ec", script], Seccomp.default(), tmp_path, "m")


@pytest.mark.skipif(not shutil.which("node"), reason="no node here")
def test_node(tmp_path: Path) -> None:
    script = (
        "const {Worker}=require('worker_threads');const cp=require('child_process');const net=require('net');"
        "new Worker('1',{eval:true}).on('exit',()=>{const s=net.createServer(()=>{}).listen(0,'127.0.0.1',()=>{"
        "console.log(cp.execSync('echo worked').toString());s.close()})})"
    )
    works([str(shutil.which("node")), "-e", script], Seccomp.default(), tmp_path, "worked")


@pytest.mark.parametrize("module", ["test_subprocess", "test_thread", "test_threading", "test_asyncio"])
@pytest.mark.slow
def test_cpythons_own_tests(module: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(f"test.{module}") is None:
        pytest.skip("this Python comes without its tests (Debian: libpython3.N-testsuite)")
    done = Sandbox(Seccomp.default()).run(
        [sys.executable, "-m", "test", "-q", module], text=True, cwd=str(tmp_path), env={**os.environ}, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:]


STRICT = """
import array, hashlib, json, math, random, re, threading, time
found = []
threads = [threading.Thread(target=lambda: found.append(sum(i * i for i in range(1000)))) for _ in range(3)]
[t.start() for t in threads]; [t.join() for t in threads]
print(found == [332833500] * 3, hashlib.sha256(b"x").hexdigest()[:4], random.random() < 1, end=" ")
print(bool(open("/etc/passwd").read()))
"""
STRICT_REFUSED = """
import os, socket, sys
def refused(do):
    try: do()
    except OSError as error: return type(error).__name__
    return "done"
print(refused(lambda: open("new", "w")), refused(os.fork), refused(socket.socket), refused(lambda: os.kill(1, 0)),
      refused(lambda: os.mkdir("d")), refused(os.pipe), refused(lambda: os.chmod(".", 0o700)))
"""


@pytest.mark.parametrize("otherwise", ["EPERM", "kill"])
def test_strict_computes(otherwise: str, tmp_path: Path) -> None:
    works([sys.executable, "-c", STRICT], Seccomp.strict(otherwise), tmp_path, "True 2d71 True True")


def test_strict_refuses_and_kills(tmp_path: Path) -> None:
    args = [sys.executable, "-c", STRICT_REFUSED]
    free = Sandbox().run(args, text=True, cwd=str(tmp_path), timeout=60)
    assert free.stdout.split().count("done") >= 6, free
    (tmp_path / "new").unlink()
    (tmp_path / "d").rmdir()
    held = Sandbox(Seccomp.strict()).run(args, text=True, cwd=str(tmp_path), timeout=60)
    assert held.stdout.split() == [
        *["PermissionError"] * 2,
        "OSError",
        *["PermissionError"] * 4,
    ], held
    killed = Sandbox(Seccomp.strict("kill")).run(args, text=True, cwd=str(tmp_path), timeout=60)
    assert killed.verdict is Verdict.SECCOMP, killed


def test_filters_stack_and_the_strictest_answer_wins() -> None:
    policy = Seccomp(deny("getppid", errno="EXDEV"), otherwise="allow")
    other = Seccomp(deny("getppid", errno="ELOOP"), deny("getpgid", errno="EDOM"), otherwise="allow")
    calls: list[tuple[str, tuple[int, ...]]] = [("getppid", ()), ("getpgid", (0,)), ("getuid", ())]
    assert results(calls, policy)[0] == -18
    both = results(calls, policy, other)
    assert both[:2] == [-40, -33], "of two errnos the later filter's"
    assert both[2] == os.getuid(), "the call that neither names"
    assert results(calls, policy, Seccomp(rule("log", "getppid"), otherwise="allow"))[0] == -18
