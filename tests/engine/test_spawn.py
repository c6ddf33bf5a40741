"""Starting the launcher: it disturbs nothing of the program's and inherits nothing of it."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import isolate
from isolate import DEVNULL, PIPE, MountNamespace, PidNamespace, Pool, Sandbox, SetupError, UserNamespace
from isolate.engine import native
from isolate.engine.native import ffi, lib
from tests.fence import Fence
from tests.snapshot import SOON, children, descriptors, mounted, still_mounted

if TYPE_CHECKING:
    from tests.snapshot import Snapshot

BOX = Sandbox(UserNamespace(), PidNamespace())


# ---- the user's own children -----------------------------------------------------------------------------------


def test_no_child_and_no_sigchld(clean: Snapshot) -> None:
    """Nothing of ours is there to be waited for, and no SIGCHLD comes."""
    seen: list[int] = []
    old = signal.signal(signal.SIGCHLD, lambda number, frame: seen.append(number))
    before = children()
    try:
        with BOX.spawn(["sleep", "1000"]):
            assert children() == before
            for options in (os.WNOHANG, os.WNOHANG | 0x40000000, os.WNOHANG | -0x80000000):  # __WALL, __WCLONE
                with pytest.raises(ChildProcessError):
                    os.waitpid(-1, options)
            BOX.run(["true"])
        assert seen == []
        subprocess.run(["true"], check=True)  # the control
        assert seen == [signal.SIGCHLD]
    finally:
        signal.signal(signal.SIGCHLD, old)


def test_waits_of_another_thread_are_undisturbed(clean: Snapshot) -> None:
    """A thread that reaps whatever comes gets its own children, all of them, and never one of ours."""
    others = children()  # of earlier tests, on their way out
    own = {os.spawnvp(os.P_NOWAIT, "sleep", ["sleep", f"0.{i:02}"]) for i in range(5, 45, 2)}
    reaped: set[int] = set()

    def reap() -> None:
        with contextlib.suppress(ChildProcessError):
            while not own <= reaped:
                reaped.add(os.wait()[0])

    thread = threading.Thread(target=reap)
    thread.start()
    results = [BOX.run(["sh", "-c", "exit 3"]).returncode for _ in range(40)]
    thread.join()
    assert results == [3] * 40
    assert reaped - others == own


@pytest.mark.parametrize("action", [signal.SIG_IGN, signal.SIG_DFL])
def test_sigchld_ignored(action: Any, clean: Snapshot) -> None:
    old = signal.signal(signal.SIGCHLD, action)
    try:
        assert BOX.run(["sh", "-c", "sh -c 'exit 4'; exit $?"]).returncode == 4
    finally:
        signal.signal(signal.SIGCHLD, old)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGPIPE, signal.SIGRTMIN + 1])
def test_signals_are_reset_inside(number: int, clean: Snapshot) -> None:
    """Blocked or ignored here, a signal does its work inside."""
    old = signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        result = BOX.run(["sh", "-c", f"kill -{int(number)} $$; echo survived"])
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {number}
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        signal.signal(number, old)
    assert result.returncode == -number
    assert result.stdout == b""


def test_handlers_do_not_run_in_the_launcher(clean: Snapshot) -> None:
    """Signals keep coming while sandboxes start: each is handled here, once."""
    count = 0

    def handler(number: int, frame: Any) -> None:
        nonlocal count
        count += 1

    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for _ in range(100):
            assert BOX.run(["true"]).ok
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert count > 10


# ---- fork -------------------------------------------------------------------------------------------------------


def test_forked_child_does_not_kill(clean: Snapshot) -> None:
    """A forked child has copies of everything; what it drops or closes leaves the parent's sandbox alone."""
    with BOX.spawn(["cat"], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin
        assert process.stdout
        for way in ("del", "close", "kill", "exit"):
            pid = os.fork()
            if pid == 0:
                try:
                    if way == "del":
                        process.__del__()
                    elif way == "close":
                        process.close()
                    elif way == "kill":
                        process.kill()
                    elif way == "exit":
                        sys.exit(0)
                finally:
                    os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            process.stdin.write(way.encode() + b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == way.encode() + b"\n"
            assert process.poll() is None


def test_ends_although_a_forked_child_holds_copies(clean: Snapshot) -> None:
    process = BOX.spawn(["sleep", "1000"])
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    start = time.monotonic()
    process.close()
    assert time.monotonic() - start < SOON
    os.close(writing)
    os.waitpid(pid, 0)


def test_a_forked_child_has_its_own(clean: Snapshot) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if BOX.run(["true"]).ok and BOX.run(["false"]).returncode == 1 else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


# ---- descriptors ------------------------------------------------------------------------------------------------


def inside(box: Sandbox, **options: Any) -> list[int]:
    """Descriptors that a program finds open, by trying each."""
    probe = "import os\nfor n in range(3000):\n try: os.fstat(n)\n except OSError: continue\n print(n)"
    result = box.run([sys.executable, "-I", "-S", "-c", probe], **options)
    assert result.ok, result.stderr
    return [int(n) for n in result.stdout.split()]


NO_INIT = Sandbox(PidNamespace(init=False), UserNamespace())


@pytest.mark.parametrize("box", [BOX, Sandbox(), NO_INIT], ids=["init", "plain", "without init"])
def test_only_what_is_passed(box: Sandbox, clean: Snapshot) -> None:
    """Inheritable or not, low or high: closed, but for 0, 1, 2 and those named."""
    fds = [os.open("/", os.O_RDONLY) for _ in range(20)]
    high = os.dup2(fds[0], 2000)
    try:
        for fd in fds:
            os.set_inheritable(fd, True)
        os.set_inheritable(high, True)
        control = subprocess.run(["ls", "/proc/self/fd"], close_fds=False, stdout=subprocess.PIPE, check=True).stdout
        assert b"2000" in control.split()
        assert inside(box) == [0, 1, 2]
        assert inside(box, pass_fds=[fds[3], high]) == sorted([0, 1, 2, fds[3], high])
        assert inside(box, pass_fds={7: fds[0], 9: fds[0], 2500: high}) == [0, 1, 2, 7, 9, 2500]
    finally:
        for fd in (*fds, high):
            os.close(fd)


def test_arguments_are_told_apart_from_what_equals_them() -> None:
    """Run blocks of plain arguments are kept."""

    class Other(str):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = str.__hash__

    assert BOX.run(["echo", "x"]).stdout == b"x\n"
    assert BOX.run(["echo", Other("y")]).stdout == b"y\n"
    for args in (["echo", "z"], [b"echo", b"z"], ["echo", b"z"], [b"echo", "z"], ("echo", "z")):
        assert BOX.run(args).stdout == b"z\n"  # type: ignore[arg-type]
    code = """
from isolate import Sandbox
box = Sandbox()
print(box.run(["true"]).verdict.value, box.run([b"true"]).verdict.value)
"""
    told = subprocess.run([sys.executable, "-bb", "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert told.strip() == "OK OK"


def test_a_descriptor_that_is_not_open_never_becomes_one_of_ours(clean: Snapshot) -> None:
    """Its number is free, so the next that the library opens for itself would get it."""
    free = os.dup(0)
    os.close(free)
    list_all = ["sh", "-c", "ls -l /proc/self/fd", "x" * 20_000]
    with Pool(BOX, size=2) as pool:
        for verbs in (BOX, pool):
            for number in (free, 999):
                with pytest.raises(SetupError, match="not open") as caught:
                    verbs.run(list_all, pass_fds={20: number})
                assert caught.value.errno == errno.EBADF
        assert len(pool) == 2
    with open(os.devnull) as file:
        assert b" 20 -> /dev/null" in (BOX.run(list_all, pass_fds={20: file.fileno()}).stdout or b""), "the control"


@pytest.mark.parametrize("box", [BOX, NO_INIT], ids=["init", "without init"])
def test_any_number_can_be_wanted(box: Sandbox, clean: Snapshot, tmp_path: Path) -> None:
    """Also those that the launcher's own descriptors stand at, crosswise, and a failed exec is still told as one."""
    files = []
    for i in range(20):
        (tmp_path / str(i)).write_text(f"{i}\n")
        files.append(os.open(tmp_path / str(i), os.O_RDONLY))
    try:
        crosswise = {3 + i: files[(i * 7) % 20] for i in range(20)}
        script = "; ".join(f"read -r x <&{fd} && echo $x" for fd in range(3, 10))
        result = box.run(["sh", "-c", script], pass_fds=crosswise)
        assert result.stdout.split() == [str((i * 7) % 20).encode() for i in range(7)], result.stderr
        broken = tmp_path / "broken"
        broken.write_bytes(b"\x7fELF not a program")
        broken.chmod(0o755)
        with pytest.raises(SetupError) as caught:
            box.spawn([broken], pass_fds=crosswise)
        assert caught.value.errno == errno.ENOEXEC
    finally:
        for fd in files:
            os.close(fd)


def test_closed_standard_streams(clean: Snapshot) -> None:
    """A program without 0, 1, 2: a daemon's child. Pipes and /dev/null land on those numbers, and all goes well."""

    def program(begin: Any, end: Any) -> Any:
        for fd in (0, 1, 2):
            os.close(fd)
        result = BOX.run(["sh", "-c", "cat; echo out; echo err >&2"], input=b"in\n")
        with BOX.spawn(["cat"], stdin=PIPE, stdout=PIPE, stderr=DEVNULL) as process:
            process.stdin.write(b"x")
            process.stdin.close()
            echoed = process.stdout.read()
        return result.stdout, result.stderr, echoed

    outcome = Fence(program, asks=False).drive()
    assert outcome.error is None, outcome.error
    assert outcome.value == (b"in\nout\n", b"err\n", b"x")


def test_launcher_descriptor_closed_behind_our_back(clean: Snapshot) -> None:
    def program(begin: Any, end: Any) -> bool:
        assert BOX.run(["true"]).ok
        os.closerange(3, 700)
        other = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]  # the number is another file's now
        assert BOX.run(["true"]).ok
        return bool(other)

    outcome = Fence(program, asks=False).drive()
    assert outcome.error is None, outcome.error


@pytest.mark.parametrize("way", ["run", "spawn", "pty"])
def test_low_limit_of_descriptors(way: str, clean: Snapshot) -> None:
    """At each value from what is in use to what a start needs: a clear error or success, and nothing left open."""

    def program(begin: Any, end: Any) -> list[str]:
        base = max(map(int, os.listdir("/proc/self/fd"))) if way == "" else 0
        told = []
        os.closerange(3, 700)
        BOX.run(["true"])
        import isolate.diagnosis.setup  # noqa: F401

        base = max(fd for fd in map(int, os.listdir("/proc/self/fd")) if fd != 777)
        for limit in range(base, base + 40):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            try:
                if way == "run":
                    told.append(str(BOX.run(["true"], input=b"x").verdict))
                else:
                    with BOX.spawn(["true"], pty=True) if way == "pty" else BOX.spawn(["true"], stdout=PIPE) as process:
                        assert process.pidfd >= 0
                        told.append(str(process.wait()))
            except OSError as error:
                told.append(f"{type(error).__name__} {errno.errorcode[error.errno or 0]}")
            resource.setrlimit(resource.RLIMIT_NOFILE, (1000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            open_now = [fd for fd in descriptors().items() if fd[0] > base and fd[0] != 777]
            if open_now:
                told.append(f"left open at {limit}: {open_now}")
        return told

    outcome = Fence(program, asks=False).drive()
    assert outcome.error is None, outcome.error
    assert outcome.gone is not None
    good = "OK" if way == "run" else "0"
    assert outcome.value[-1] == good
    assert "SetupError EMFILE" in outcome.value
    assert set(outcome.value) <= {good, "SetupError EMFILE", "SetupError EINVAL", "OSError EMFILE"}, outcome.value


# ---- the launcher's own file ------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("scope", [0, 1, 2])
def test_memfds_without_execution(scope: int) -> None:
    """vm.memfd_noexec belongs to a pid namespace: set in one of our own to 2, the installed file is executed.

    By a mount of its own that is read-only: what leads to the program leads to no file that can be written.
    """
    if not Path("/proc/sys/vm/memfd_noexec").exists():
        pytest.skip("no vm.memfd_noexec: Linux 6.3")
    script = (
        f"open('/proc/sys/vm/memfd_noexec', 'w').write('{scope}')\n"
        "import isolate\nfrom isolate.engine import native\n"
        "r = isolate.Sandbox(isolate.PidNamespace()).run(['echo', 'fine'])\n"
        "import os\nname = '/proc/self/fd/%d' % native.launcher_fd()\n"
        "print(r.stdout.decode().strip(), 'memfd:' in os.readlink(name))\n"
        "if 'memfd:' not in os.readlink(name):\n"
        "    os.close(os.open(native.LAUNCHER_PATH, os.O_WRONLY))  # control\n"
        "    for change in (lambda: os.open(name, os.O_WRONLY), lambda: os.chmod(name, 0o755)):\n"
        "        try:\n            change()\n        except OSError as error:\n            print(error.errno)\n"
    )
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == ("fine True\n" if scope < 2 else f"fine False\n{errno.EROFS}\n{errno.EROFS}\n"), done.stderr


def test_launcher_is_sealed() -> None:
    fd = native.launcher_fd()
    assert fd >= 0
    with pytest.raises(PermissionError):
        os.write(fd, b"x")
    with pytest.raises(OSError):
        os.truncate(fd, 0)
    assert not os.get_inheritable(fd)


def test_launcher_that_somebody_made_no_program_is_made_again() -> None:
    """A program "#!/proc/self/exe" is the launcher: whoever is inside with our uid can reach its mode."""
    fd = native.launcher_fd()
    try:
        os.fchmod(fd, 0o600)
    except PermissionError:  # F_SEAL_EXEC, Linux 6.3
        assert os.fstat(fd).st_mode & 0o111
    else:
        assert native.launcher_fd() != fd
    assert Sandbox(UserNamespace()).run(["/bin/true"]).verdict.name == "OK"


def test_launcher_inherits_nothing(clean: Snapshot) -> None:
    """No environment, no argument, no memory, no descriptor but its own; no session, no terminal of the program's."""
    os.environ["ISOLATE_TEST_SECRET"] = "x" * 100
    try:
        with BOX.spawn(["sleep", "1000"]) as process:
            launcher = process._session.pid
            (init,) = map(int, Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split())
            for pid in (launcher, init):
                assert Path(f"/proc/{pid}/environ").read_bytes().strip(b"\0") == b""
                assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"isolate-launcher\0"
                assert os.getsid(pid) != os.getsid(0)
                status = Path(f"/proc/{pid}/status").read_text()
                assert "\nVmRSS:" not in status or int(status.split("VmRSS:")[1].split()[0]) < 2000
            # The program runs already while init lets go of them.
            deadline = time.monotonic() + 10
            while descriptors(init) and time.monotonic() < deadline:
                os.sched_yield()
            assert descriptors(init) == {}
            targets = sorted(descriptors(launcher).values())
            assert [t for t in targets if not t.startswith(("socket:", "anon_inode:", "pipe:"))] == []
    finally:
        del os.environ["ISOLATE_TEST_SECRET"]


CLONE3_ENOSYS = """
import ctypes, errno, struct, sys
import isolate
from isolate.kernel import syscalls
from isolate.engine.native import call
rows = [(0x20, 0, 0, 0), (0x15, 0, 1, syscalls.number("clone3")), (6, 0, 0, 0x50000 | errno.ENOSYS)]
rows.append((6, 0, 0, 0x7FFF0000))
program = b"".join(struct.pack("<HBBI", *row) for row in rows)
buffer = ctypes.create_string_buffer(program, len(program))
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
assert call(syscalls.number("seccomp"), 1, 0, struct.pack("<H6xQ", len(rows), ctypes.addressof(buffer))) == 0
assert call(syscalls.number("clone3"), b"", 0) == -errno.ENOSYS
"""


@pytest.mark.parametrize(
    "parts", ["", "isolate.UserNamespace(), isolate.PidNamespace()", "isolate.PidNamespace(init=False)"]
)
def test_clone3_answers_enosys(parts: str) -> None:
    """As under Docker's filter of some years ago."""
    if "init" in parts and os.geteuid():
        parts += ", isolate.UserNamespace()"
    script = CLONE3_ENOSYS + (
        f"box = isolate.Sandbox({parts})\n"
        "print(box.run(['sh', '-c', 'exit 7']).returncode)\n"
        "with box.spawn(['sleep', '1000']) as p: p.kill(); print(p.wait())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "7\n-9\n", done.stderr


ORPHANAGE = """
import os, sys, time
import isolate
box = isolate.Sandbox(isolate.UserNamespace(), isolate.PidNamespace())
def zombies():
    n = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try: n += b") Z" in open(f"/proc/{name}/stat", "rb").read()
            except OSError: pass
    return n
pid = os.fork()
if pid == 0:
    end = time.monotonic() + 6
    while time.monotonic() < end:
        assert box.run(["true"]).ok
        time.sleep(0.01)
    first = zombies()
    for _ in range(50):
        assert box.run(["true"]).ok
        box.spawn(["sleep", "1000"]).close()
    second = zombies()
    print(first, second, flush=True)
    os._exit(0)
# PID 1 of the namespace reaps nobody: it looks on until the program has ended, and takes the namespace along.
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
"""


OWN_PID_NAMESPACE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]


@pytest.mark.slow
def test_pid_1_that_reaps_nobody() -> None:
    """A container whose PID 1 is ``sleep``: zombies are noticed, and no more are made."""
    command = [*OWN_PID_NAMESPACE, sys.executable, "-c", ORPHANAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout, done.stderr
    first, second = map(int, done.stdout.split())
    assert first > 0, "the control: this PID 1 does not reap"
    assert second <= first


def test_python_is_pid_1() -> None:
    """In a container's entry point: the launchers are its own orphans, and it reaps them."""
    script = ORPHANAGE.split("pid = os.fork")[0] + (
        "for _ in range(100): assert box.run(['true']).ok\n"
        "for _ in range(20): box.spawn(['sleep', '1000']).close()\n"
        # The launcher of the last may end a moment later, and is reaped with the next start.
        "end = time.monotonic() + 20\n"
        "while box.run(['true']).ok and zombies() > 1 and time.monotonic() < end: pass\n"
        "print(os.getpid(), zombies())"
    )
    command = [*OWN_PID_NAMESPACE, sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    pid, zombies = map(int, done.stdout.split())
    assert pid == 1
    assert zombies <= 1


def test_import_starts_nothing() -> None:
    script = (
        "import os, signal, threading\n"
        "a = [signal.getsignal(s) for s in signal.valid_signals()]; fds = os.listdir('/proc/self/fd')\n"
        "import isolate; from isolate import Sandbox, PidNamespace, Process\n"
        "assert a == [signal.getsignal(s) for s in signal.valid_signals()]; assert threading.active_count() == 1\n"
        "assert fds == os.listdir('/proc/self/fd')"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.root
def test_mount_namespace_of_the_program_stays(clean: Snapshot) -> None:
    namespace, before = os.stat("/proc/self/ns/mnt").st_ino, mounted()
    assert Sandbox(PidNamespace(), MountNamespace()).run(["mount", "-t", "tmpfs", "x", "/mnt"]).returncode != 0
    assert os.stat("/proc/self/ns/mnt").st_ino == namespace
    assert not still_mounted(before)


def test_the_package_says_its_version() -> None:
    assert isolate.__version__ == native.VERSION


def test_descriptors_that_nobody_asked_for_are_closed() -> None:
    """One that comes with a record is kept; a second, for which the padding leaves room, is not."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        start = ffi.new("struct iso_start *")
        lib.iso_begin(start)
        start.control = ours.fileno()
        received = ffi.new("uint8_t[]", 64)
        gc.collect()  # no descriptor of an earlier test's is closed meanwhile
        before = set(os.listdir("/proc/self/fd"))
        socket.send_fds(theirs, [b"record"], [0, 0])
        assert lib.iso_receive(start, received, 64) == 6
        try:
            assert len(set(os.listdir("/proc/self/fd")) - before) == 1
        finally:
            os.close(start.payload)
