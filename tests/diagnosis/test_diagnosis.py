"""Each cause is provoked on the real kernel where this machine can, with the control that works; else the classifier is
asked about recorded facts."""

from __future__ import annotations

import errno
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from isolate import (
    Bind,
    Dir,
    FileSystem,
    Limits,
    NetNamespace,
    Overlay,
    PidNamespace,
    Root,
    Sandbox,
    SetupError,
    Tmpfs,
    UnsupportedError,
    UserNamespace,
    Verdict,
)
from isolate.diagnosis import clone, program, steps
from isolate.diagnosis.host import Failure, Host
from isolate.diagnosis.setup import setup_error, start_error
from isolate.engine.finding import Finding
from isolate.engine.native import lib
from isolate.engine.plan import Phase, Register, RunHost, Step, Target, call
from isolate.engine.record import Record
from isolate.kernel.constants import FSOPEN_CLOEXEC
from isolate.namespaces import refused
from tests.ordinary import as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from isolate.engine.plan import Context

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make the situation")
FIELDS = ("part", "step", "syscall", "path", "errno", "cause", "remedy")

# Prints a line of JSON for each attempt: null if it worked, else the error.
TELL = f"""
import json, os, sys
from isolate import *
from isolate.errors import SetupError
def tell(attempt):
    try:
        attempt()
    except SetupError as error:
        told = {{name: getattr(error, name) for name in {FIELDS!r}}}
        print(json.dumps({{"kind": type(error).__name__, **told}}), flush=True)
    else:
        print("null", flush=True)
"""


def told(code: str, *wrapper: str, **options: Any) -> list[dict[str, Any] | None]:
    """What attempts in another Python say, run by ``wrapper`` (unshare and the like)."""
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", TELL + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def failure(attempt: Callable[[], object]) -> SetupError:
    with pytest.raises(SetupError) as caught:
        attempt()
    return caught.value


def can_nest() -> bool:
    return subprocess.run(["unshare", "-U", "-r", "true"], capture_output=True, check=False).returncode == 0


nested = pytest.mark.skipif(not can_nest(), reason="needs user namespaces to make one that forbids them")


@pytest.fixture
def script(tmp_path: Path) -> Callable[[bytes, int], str]:
    def make(content: bytes, mode: int = 0o755) -> str:
        file = tmp_path / f"program{len(list(tmp_path.iterdir()))}"
        file.write_bytes(content)
        file.chmod(mode)
        return str(file)

    return make


# ---- user namespaces and clone -----------------------------------------------------------------------------------


@nested
def test_user_namespaces_off_by_sysctl() -> None:
    box = "tell(lambda: Sandbox(UserNamespace()).run(['true']))"
    off = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    assert told(box, "unshare", "-U", "-r") == [None]
    (error,) = told(box, "unshare", "-U", "-r", "sh", "-c", off, "sh")
    assert error is not None
    assert (error["kind"], error["errno"], error["part"]) == ("UnsupportedError", errno.ENOSPC, "UserNamespace")
    assert error["syscall"] == "clone3"
    assert "user.max_user_namespaces = 0" in error["cause"]
    assert "sysctl -w user.max_user_namespaces=" in error["remedy"]


@nested
def test_another_kind_off_by_sysctl() -> None:
    code = "tell(lambda: Sandbox(UserNamespace(), NetNamespace()).run(['true']))"
    off = 'echo 0 > /proc/sys/user/max_net_namespaces; exec "$@"'
    (error,) = told(code, "unshare", "-U", "-r", "sh", "-c", off, "sh")
    assert error is not None
    assert error["kind"] == "UnsupportedError"
    assert "user.max_net_namespaces = 0" in error["cause"]


@nested
def test_a_limit_of_namespaces_that_is_reached_is_told_from_one_of_nought() -> None:
    code = """
box = Sandbox(PidNamespace())
with box.spawn(["sleep", "60"]) as process:
    print("null" if process.poll() is None else "it does not run")
    tell(lambda: box.run(["true"]))
"""
    limit = 'echo 1 > /proc/sys/user/max_pid_namespaces; exec "$@"'
    first, second = told(code, "unshare", "-U", "-r", "sh", "-c", limit, "sh")
    assert first is None
    assert second is not None
    assert (second["kind"], second["errno"]) == ("SetupError", errno.ENOSPC)
    assert "a limit of namespaces is reached (here pid 1" in second["cause"]


def test_user_namespaces_refused_by_a_seccomp_filter() -> None:
    """The filter answers as Docker's does: clone and unshare EPERM, clone3 ENOSYS."""
    code = """
import struct
from isolate.engine import native
from isolate.kernel import syscalls
from isolate.seccomp.nested import deny_user_namespaces
tell(lambda: Sandbox(UserNamespace()).run(["true"]))
bpf = deny_user_namespaces()
buffer = native.ffi.from_buffer(bpf)
program = struct.pack("HxxxxxxQ", len(bpf) // 8, int(native.ffi.cast("uintptr_t", buffer)))
assert native.call(syscalls.number("prctl"), 38, 1, 0, 0, 0) == 0
assert native.call(syscalls.number("seccomp"), 1, 0, program) == 0
tell(lambda: Sandbox(UserNamespace()).run(["true"]))
tell(lambda: Sandbox(Seccomp.strict()).run(["true"]))
"""
    before, after, without = told(code)
    assert before is None
    assert after is not None
    assert (after["kind"], after["errno"], after["part"]) == ("UnsupportedError", errno.EPERM, "UserNamespace")
    assert "seccomp filter is in force on this program" in after["cause"]
    assert "clone3" in after["remedy"]
    assert without is None, "what needs no namespace still works under the filter"


@nested
def test_a_caller_whose_id_is_not_mapped() -> None:
    (error,) = told("tell(lambda: Sandbox(UserNamespace()).run(['true']))", "unshare", "-U")
    assert error is not None
    assert error["errno"] == errno.EPERM
    assert "has no place in its own user namespace's map" in error["cause"]


@ROOT
@pytest.mark.parametrize("of_a_mount", [False, True])
def test_a_chroot(tmp_path: Path, of_a_mount: bool) -> None:
    """Also where the directory is a mount point, which a chroot cannot be told from by what it sees."""
    (tmp_path / "proc").mkdir()
    tmp_path.chmod(0o755)
    code = f"""
import subprocess
from isolate import diagnosis
from isolate.engine import native
native.launcher_fd()
box = Sandbox(UserNamespace())
box.compile()
if {of_a_mount}:
    subprocess.run(["mount", "--bind", {str(tmp_path)!r}, {str(tmp_path)!r}], check=True)
subprocess.run(["mount", "--rbind", "/proc", {str(tmp_path / "proc")!r}], check=True)
tell(lambda: box.check())
os.chroot({str(tmp_path)!r})
os.chdir("/")
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
tell(lambda: box.spawn("true", stdin=0, stdout=1, stderr=2))
"""
    before, after = told(code, "unshare", "-m")
    assert before is None
    assert after is not None
    assert after["errno"] == errno.EPERM
    assert "chroot" in after["cause"]


def test_namespaces_without_privileges() -> None:
    code = (
        TELL
        + """
tell(lambda: Sandbox(PidNamespace()).run(["true"]))
tell(lambda: Sandbox(UserNamespace(), PidNamespace()).run(["true"]))
"""
    )
    alone, together = map(json.loads, as_ordinary_user(code).splitlines())
    assert (alone["errno"], alone["part"]) == (errno.EPERM, "PidNamespace")
    assert "CAP_SYS_ADMIN" in alone["cause"]
    assert "UserNamespace()" in alone["remedy"]
    assert together is None


def test_the_users_limit_of_processes() -> None:
    code = (
        TELL
        + """
import resource
box = Sandbox()
tell(lambda: box.run(["true"]))
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
tell(lambda: box.run(["true"]))
"""
    )
    before, after = map(json.loads, as_ordinary_user(code).splitlines())
    assert before is None
    assert after["errno"] == errno.EAGAIN
    assert "may have 0 processes and threads (RLIMIT_NPROC)" in after["cause"]
    assert "ulimit -u" in after["remedy"]


@ROOT
def test_the_sandboxs_own_limit_of_processes() -> None:
    assert Sandbox(Limits(pids=2)).run(["true"]).verdict is Verdict.OK
    error = failure(lambda: Sandbox(Limits(pids=1)).run(["true"]))
    assert error.errno == errno.EAGAIN
    assert error.cause is not None
    assert "Limits(pids=1) leaves no room" in error.cause
    assert error.remedy is not None
    assert "at least 2" in error.remedy


@ROOT
def test_the_limit_of_the_callers_own_group() -> None:
    """A Python in a group for few processes starts a sandbox of its own."""

    def attempt(pids: int) -> dict[str, Any] | None:
        code = TELL + "tell(lambda: Sandbox().run(['true']))"
        result = Sandbox(Limits(pids=pids)).run([sys.executable, "-c", code], env=os.environ, text=True)
        assert result.stdout, result.stderr
        return json.loads(result.stdout.splitlines()[0])  # type: ignore[no-any-return]

    assert attempt(16) is None
    error = attempt(3)  # init, Python, the launcher
    assert error is not None
    assert error["errno"] == errno.EAGAIN
    assert "processes and threads and may have 3 (pids.max)" in error["cause"]
    assert "TasksMax=" in error["remedy"]


def test_no_descriptors_left() -> None:
    code = """
import resource
box = Sandbox()
tell(lambda: box.run(["true"]))
used = max(map(int, os.listdir("/proc/self/fd")))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, used + 2))
tell(lambda: box.run(["true"]))
"""
    before, after = told(code)
    assert before is None
    assert after is not None
    assert after["errno"] == errno.EMFILE
    assert "RLIMIT_NOFILE" in after["cause"]


# ---- programs ----------------------------------------------------------------------------------------------------


def test_a_program_that_is_missing_names_the_directories_searched() -> None:
    error = failure(lambda: Sandbox().run(["no-such-program"], env={"PATH": "/opt/here:/usr/there"}))
    assert (error.errno, error.path, error.syscall) == (errno.ENOENT, "no-such-program", "execve")
    assert error.cause is not None
    assert "searched inside: /opt/here, /usr/there" in error.cause
    absolute = failure(lambda: Sandbox().run(["/no/such/program"]))
    assert absolute.cause == "/no/such/program does not exist inside the sandbox"
    relative = failure(lambda: Sandbox().run(["./no-such-program"], cwd="/tmp"))
    assert relative.cause is not None
    assert "(relative to /tmp)" in relative.cause
    below = failure(lambda: Sandbox().run(["/etc/passwd/x"]))
    assert below.errno == errno.ENOTDIR


def test_a_program_that_exits_127_is_no_error() -> None:
    for status in (125, 126, 127):
        result = Sandbox().run(["sh", "-c", f"exit {status}"])
        assert (result.returncode, result.verdict) == (status, Verdict.EXITED)


def test_a_directory_and_a_file_without_the_bit(script: Callable[[bytes, int], str], tmp_path: Path) -> None:
    assert failure(lambda: Sandbox().run(["/etc"])).cause == "/etc is a directory"
    plain = script(b"#!/bin/sh\n", 0o644)
    error = failure(lambda: Sandbox().run([plain]))
    assert (error.errno, error.cause) == (errno.EACCES, f"{plain} is not executable (mode 0644)")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe").chmod(0o755)
    assert failure(lambda: Sandbox().run([str(tmp_path / "pipe")])).cause == f"{tmp_path}/pipe is a FIFO, not a program"


def test_what_the_search_found_but_may_not_execute_is_named(script: Callable[[bytes, int], str]) -> None:
    plain = Path(script(b"#!/bin/sh\n", 0o600))
    error = failure(lambda: Sandbox().run([plain.name], env={"PATH": f"/nowhere:{plain.parent}:/etc"}))
    assert (error.errno, error.path) == (errno.EACCES, str(plain))


@ROOT
def test_a_mode_that_is_not_for_this_user(tmp_path: Path) -> None:
    code = TELL + "tell(lambda: Sandbox().run(['/usr/local/no-such/../../bin/true']))\n"
    tmp = Path("/tmp") / f"isolate-mode-{os.getpid()}"
    tmp.mkdir(mode=0o755)
    try:
        file = tmp / "program"
        file.write_bytes(b"#!/bin/sh\n")
        file.chmod(0o744)
        code = TELL + f"tell(lambda: Sandbox().run([{str(file)!r}]))\n"
        error = json.loads(as_ordinary_user(code))
        assert "has mode 0744, which does not let the payload's user" in error["cause"]
        tmp.chmod(0o700)
        hidden = json.loads(as_ordinary_user(code))
        assert "may not search a directory on the way" in hidden["cause"]
    finally:
        file.unlink()
        tmp.rmdir()


@ROOT
def test_a_noexec_mount() -> None:
    code = """
import shutil, subprocess
shutil.copy("/bin/true", "/mnt/program")
tell(lambda: Sandbox().run(["/mnt/program"]))
subprocess.run(["mount", "-o", "remount,noexec", "/mnt"], check=True)
tell(lambda: Sandbox().run(["/mnt/program"]))
"""
    inside = 'mount -t tmpfs -o size=1M none /mnt && exec "$@"'
    before, after = told(code, "unshare", "-m", "sh", "-c", inside, "sh")
    assert before is None
    assert after is not None
    assert (after["errno"], after["cause"]) == (errno.EACCES, "/mnt/program lies on a mount with noexec")


def elf(machine: int, *, bits: int = 64, order: str = "<") -> bytes:
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    return ident + struct.pack(f"{order}HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, 0, 0, 0, 0) + bytes(128)


@pytest.mark.parametrize(
    ("number", "order", "name"), [(183, "<", "aarch64"), (243, "<", "riscv64"), (22, ">", "s390x"), (62, "<", "x86_64")]
)
def test_a_foreign_architecture(script: Callable[[bytes, int], str], number: int, order: str, name: str) -> None:
    own = os.uname().machine
    if name == own:
        pytest.skip("its own")
    file = script(elf(number, order=order), 0o755)
    done = Sandbox().run(["true"])
    assert done.verdict is Verdict.OK
    error = failure(lambda: Sandbox().run([file]))
    assert error.errno == errno.ENOEXEC
    assert error.cause == f"{file} is a program for {name}, and this machine is {own}"


def test_a_text_without_an_interpreter_line(script: Callable[[bytes, int], str]) -> None:
    file = script(b"echo hello\n", 0o755)
    error = failure(lambda: Sandbox().run([file]))
    assert error.errno == errno.ENOEXEC
    assert error.cause is not None
    assert "a text without a #! line" in error.cause
    assert Sandbox().run(["sh", file]).stdout == b"hello\n"
    empty = script(b"", 0o755)
    assert "is empty" in str(failure(lambda: Sandbox().run([empty])))
    noise = script(bytes(range(1, 64)) + bytes(64), 0o755)
    assert "neither an ELF program nor a script" in str(failure(lambda: Sandbox().run([noise])))


def test_a_missing_interpreter_is_named(script: Callable[[bytes, int], str]) -> None:
    file = script(b"#! /opt/no/such/perl -w\nprint 1\n", 0o755)
    error = failure(lambda: Sandbox().run([file]))
    assert error.errno == errno.ENOENT
    assert error.cause == f"{file} is a script whose interpreter /opt/no/such/perl does not exist inside"
    dos = script(b"#!/bin/sh\r\nexit 0\r\n", 0o755)
    assert "ends in a carriage return" in str(failure(lambda: Sandbox().run([dos])))
    assert Sandbox().run([script(b"#!/bin/sh\nexit 0\n", 0o755)]).verdict is Verdict.OK


def test_a_missing_loader_is_named(script: Callable[[bytes, int], str]) -> None:
    """A real program whose loader's name is changed, byte for byte."""
    image = Path(os.path.realpath("/bin/true")).read_bytes()
    at = image.find(b"/ld-linux") - image[: image.find(b"/ld-linux")][::-1].find(b"\0")
    if image.find(b"/ld-linux") < 0:
        pytest.skip("/bin/true has no loader here")
    loader = image[at : image.index(b"\0", at)]
    assert Sandbox().run([script(image, 0o755)]).verdict is Verdict.OK
    changed = b"/xyz" + loader[4:]
    file = script(image.replace(loader, changed, 1), 0o755)
    error = failure(lambda: Sandbox().run([file]))
    assert error.errno == errno.ENOENT
    assert error.cause == f"{file} needs the dynamic loader {changed.decode()}, which does not exist inside"


@ROOT
def test_an_interpreter_that_may_not_be_executed(script: Callable[[bytes, int], str]) -> None:
    file = script(b"#!/etc/passwd\n", 0o755)
    error = failure(lambda: Sandbox().run([file]))
    assert error.errno == errno.EACCES
    assert error.cause is not None
    assert "the interpreter /etc/passwd" in error.cause


def test_arguments_that_are_too_long() -> None:
    assert Sandbox().run(["true", "x" * (128 * 1024 - 1)]).verdict is Verdict.OK
    single = failure(lambda: Sandbox().run(["true", "x" * (128 * 1024)]))
    assert single.errno == errno.E2BIG
    assert single.cause is not None
    assert "131073 bytes: the kernel takes 131072 for one" in single.cause
    many = failure(lambda: Sandbox().run(["true", *["x" * 1000] * 8000]))
    assert many.cause is not None
    assert "more than a quarter" in many.cause


def test_the_working_directory() -> None:
    error = failure(lambda: Sandbox().run(["true"], cwd="/no/such/directory"))
    assert (error.errno, error.path, error.syscall) == (errno.ENOENT, "/no/such/directory", "chdir")
    assert error.cause is not None


# ---- mounts ------------------------------------------------------------------------------------------------------


def test_a_missing_source_says_what_is_missing(tmp_path: Path) -> None:
    user: list[Any] = [] if os.geteuid() == 0 else [UserNamespace()]
    missing = tmp_path / "a" / "b"
    error = failure(lambda: Sandbox(*user, Root(Bind(str(missing), "/x"))).check())
    assert (error.part, error.errno, error.path) == ("Root", errno.ENOENT, str(missing))
    assert error.cause == f"the source {missing} does not exist on the host (already {tmp_path / 'a'} does not)"
    link = tmp_path / "link"
    link.symlink_to("/no/such/file")
    dangling = failure(lambda: Sandbox(*user, Root(Bind(str(link), "/x"))).check())
    assert dangling.cause == f"{link} is a symbolic link to /no/such/file, which does not exist on the host"
    missing.mkdir(parents=True)
    Sandbox(*user, Root(Bind(str(missing), "/x"))).check()


def test_a_target_on_something_read_only(tmp_path: Path) -> None:
    user: list[Any] = [] if os.geteuid() == 0 else [UserNamespace()]
    error = failure(lambda: Sandbox(*user, Root(Bind(str(tmp_path), "/"), Tmpfs("/new"))).check())
    assert (error.part, error.errno, error.path) == ("Root", errno.EROFS, "/new")
    assert error.cause is not None
    assert "read-only" in error.cause
    (tmp_path / "new").mkdir()
    Sandbox(*user, Root(Bind(str(tmp_path), "/"), Tmpfs("/new"))).check()


def test_a_directory_on_a_file(tmp_path: Path) -> None:
    user: list[Any] = [] if os.geteuid() == 0 else [UserNamespace()]
    (tmp_path / "file").write_text("")
    error = failure(lambda: Sandbox(*user, Root(Bind(str(tmp_path), "/"), Tmpfs("/file"))).check())
    assert error.path == "/file"
    assert error.cause is not None
    assert "a directory cannot be mounted on a file" in error.cause


def test_a_namespace_that_is_not_there() -> None:
    error = failure(lambda: Sandbox(NetNamespace(path="/run/netns-of-nobody/x")).check())
    assert (error.part, error.errno, error.path) == ("NetNamespace", errno.ENOENT, "/run/netns-of-nobody/x")
    assert error.cause == "/run/netns-of-nobody/x does not exist on the host (already /run/netns-of-nobody does not)"


@dataclass(frozen=True)
class Mounts:
    """A part of a user's own: mounts a file system, nowhere."""

    kind: bytes
    options: tuple[tuple[bytes, bytes], ...] = ()

    def steps(self, context: object) -> Iterator[Step]:
        fs, mount = Register("fs"), Register("mount")
        options = [call("fsconfig", fs, 1, key, value, 0) for key, value in self.options]
        ops = (
            call("fsopen", self.kind, FSOPEN_CLOEXEC, out=fs),
            *options,
            call("fsconfig", fs, 6, 0, 0, 0),
            call("fsmount", fs, 1, 0, out=mount),
            call("close", mount),
            call("close", fs),
        )
        yield Step(Phase.ROOT, f"mount {self.kind.decode()}", ops)


PROC = """
box = Sandbox(UserNamespace(), Root(Dir("/empty"), Proc()))
tell(box.check)
"""


@ROOT
def test_proc_refused_because_the_callers_is_masked() -> None:
    assert told(PROC, "unshare", "-m") == [None]
    mask = 'mount -t tmpfs -o size=4k none /proc/irq && exec "$@"'
    (error,) = told(PROC, "unshare", "-m", "sh", "-c", mask, "sh")
    assert error is not None
    assert (error["kind"], error["part"], error["errno"]) == ("UnsupportedError", "Root", errno.EPERM)
    assert "masked (/proc/irq)" in error["cause"]
    assert "systempaths=unconfined" in error["remedy"]


def test_proc_without_a_pid_namespace_of_its_own() -> None:
    root = Root(Dir("/empty"), FileSystem("proc", "/own"))
    error = failure(lambda: Sandbox(UserNamespace(), root).check())
    assert error.errno == errno.EPERM
    assert error.remedy == "add PidNamespace() to the sandbox"
    Sandbox(UserNamespace(), PidNamespace(), root).check()


def test_overlay_on_an_upper_that_cannot_be_one(tmp_path: Path) -> None:
    """By the library's own entry, and by one that mounts it by its type."""
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()

    def entries(upper: str, work: str) -> list[Any]:
        lower = str(tmp_path / "lower")
        options = {"lowerdir": lower, "upperdir": upper, "workdir": work}
        return [Overlay("/o", lower=[lower], upper=upper, work=work), FileSystem("overlay", "/o", options=options)]

    base = [] if os.geteuid() == 0 else [UserNamespace()]
    for good, bad in zip(
        entries(str(tmp_path / "upper"), str(tmp_path / "work")), entries("/proc/sys", "/proc/sys/kernel"), strict=True
    ):
        Sandbox(*base, Root(Dir("/empty"), good)).check()
        error = failure(lambda bad=bad: Sandbox(*base, Root(Dir("/empty"), bad)).check())  # type: ignore[misc]
        assert isinstance(error, UnsupportedError)
        assert error.errno == errno.EINVAL
        assert "overlayfs does not take these layers" in str(error.cause)
        assert error.remedy


def test_a_file_system_that_the_kernel_has_not() -> None:
    from isolate import MountNamespace

    base: list[Any] = [MountNamespace()] if os.geteuid() == 0 else [UserNamespace(), MountNamespace()]
    error = failure(lambda: Sandbox(*base, Mounts(b"nosuchfs")).check())
    assert isinstance(error, UnsupportedError)
    assert error.remedy == "as root: modprobe nosuchfs"


def test_mounting_without_privileges() -> None:
    code = TELL + PROC.replace("UserNamespace(), ", "")
    error = json.loads(as_ordinary_user(code))
    assert error["errno"] == errno.EPERM
    assert "CAP_SYS_ADMIN" in error["cause"] or "user namespace" in error["cause"]


# ---- id maps -----------------------------------------------------------------------------------------------------


def helpers_box(first: int, count: int) -> str:
    return (
        TELL
        + f"""
ids = [(0, os.getuid(), 1), (1, {first}, {count})]
tell(lambda: Sandbox(UserNamespace(map=IdMap(ids, ids, helpers=True))).run(["true"]))
"""
    )


@pytest.mark.skipif(not os.path.exists("/usr/bin/newuidmap"), reason="newuidmap is not installed (package: uidmap)")
def test_ranges_that_nobody_granted() -> None:
    error = json.loads(as_ordinary_user(helpers_box(3_000_000_000, 65536)))
    assert (error["part"], error["errno"], error["path"]) == ("UserNamespace", errno.ECHILD, "/usr/bin/newuidmap")
    assert "/etc/subuid has no entry for" in error["cause"]
    assert "usermod --add-subuids 3000000000-3000065535" in error["remedy"]


def helper_op(program: str = "newuidmap") -> RunHost:
    ranges = (b"0", b"1000", b"1", b"1", b"100000", b"65536")
    return RunHost(b"/usr/bin/" + program.encode(), (program.encode(), *ranges))


def test_what_keeps_newuidmap_from_granting(tmp_path: Path) -> None:
    """Recorded facts: the kernel plays no part in it, only files."""
    host = Host(str(tmp_path), euid=4_000_000)
    found = refused.helper(Failure(host, errno.ECHILD, Step(Phase.ID_MAPS, "map"), helper_op(), 0))
    assert found is not None
    assert found.cause == "newuidmap is not installed"
    assert "uidmap" in str(found.remedy)
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/newuidmap").write_text("")
    found = refused.helper(Failure(host, errno.ECHILD, Step(Phase.ID_MAPS, "map"), helper_op(), 0))
    assert found is not None
    assert "neither set-user-ID" in found.cause
    (tmp_path / "usr/bin/newuidmap").chmod(0o4755)
    found = refused.helper(Failure(host, errno.ECHILD, Step(Phase.ID_MAPS, "map"), helper_op(), 0))
    assert found is not None
    assert found.cause == "/etc/subuid does not exist, so newuidmap grants no ids"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/subuid").write_text("somebody:100000:65536\n")
    found = refused.helper(Failure(host, errno.ECHILD, Step(Phase.ID_MAPS, "map"), helper_op(), 0))
    assert found is not None
    assert found.cause == "/etc/subuid has no entry for 4000000, so newuidmap grants no ids"
    (tmp_path / "etc/subuid").write_text("4000000:100000:1000\n")
    found = refused.helper(Failure(host, errno.ECHILD, Step(Phase.ID_MAPS, "map"), helper_op(), 0))
    assert found is not None
    assert "gives 4000000 100000-100999, and" in found.cause


# ---- the launcher ------------------------------------------------------------------------------------------------


def test_a_launcher_that_is_killed() -> None:
    box = Sandbox(UserNamespace(), PidNamespace())
    with box.spawn(["sleep", "60"]) as process:
        os.kill(process._session.pid, signal.SIGKILL)
        error = failure(lambda: process.wait(10))
    assert error.errno == errno.EPIPE
    assert error.cause is not None
    assert "the launcher was killed from outside" in error.cause


# ---- the classifier on recorded facts ------------------------------------------------------------------------------


class Recorded(Host):
    """A host of which a few files are known."""

    def __init__(self, euid: int = 1000, **files: str) -> None:
        super().__init__("/nonexistent", euid=euid)
        self.files = {name.replace("__", "/"): text for name, text in files.items()}

    def read(self, path: str) -> str | None:
        return self.files.get(path.lstrip("/"))

    def exists(self, path: str) -> bool:
        return any(name == path.lstrip("/") or name.startswith(path.lstrip("/") + "/") for name in self.files)


NEWUSER, NEWNET = 0x10000000, 0x40000000
PLAIN = "CapEff:\t0000000000000000\nSeccomp:\t0\n"
FILTERED = "CapEff:\t0000000000000000\nSeccomp:\t2\n"


def cause_of(host: Host, error: int, flags: int = NEWUSER, *, into_cgroup: bool = False) -> clone.Finding:
    found = clone.clone(host, error, flags, into_cgroup=into_cgroup)
    assert found is not None
    return found


def test_debians_switch() -> None:
    host = Recorded(proc__self__status=PLAIN, proc__sys__kernel__unprivileged_userns_clone="0\n")
    found = cause_of(host, errno.EPERM)
    assert found.unsupported
    assert "kernel.unprivileged_userns_clone = 0" in found.cause


def test_ubuntus_restriction() -> None:
    restricted = {"proc__sys__kernel__apparmor_restrict_unprivileged_userns": "1\n"}
    host = Recorded(proc__self__status=PLAIN, **restricted)
    for found in (
        cause_of(host, errno.EPERM),
        # clone succeeds where the profile unprivileged_userns is loaded; what comes after is refused.
        steps.certain(host, errno.EACCES, Step(Phase.ID_MAPS, "uid_map"), call("openat", 0), NEWUSER),
    ):
        assert found is not None
        assert found.unsupported
        assert "AppArmor" in found.cause
        assert "userns," in str(found.remedy)
    root = Recorded(euid=0, proc__self__status="CapEff:\t000001ffffffffff\nSeccomp:\t0\n", **restricted)
    other = clone.user_namespace(root)
    assert other is not None
    assert "AppArmor" not in other.cause  # root is not restricted: the cause is another


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("var__run__secrets__kubernetes.io__x", "securityContext.seccompProfile"),
        (".dockerenv", "docker run --security-opt seccomp=unconfined"),
        ("run__.containerenv", "podman run --security-opt"),
        ("nothing", "RestrictNamespaces="),
    ],
)
def test_the_remedy_for_a_filter_depends_on_the_container(
    mark: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    host = Recorded(**{"proc__self__status": FILTERED, mark: ""})
    found = cause_of(host, errno.EPERM)
    assert found.unsupported
    assert words in str(found.remedy)


def test_clone_into_a_cgroup() -> None:
    host = Recorded(proc__self__status=PLAIN)
    assert "delegate" in str(cause_of(host, errno.EACCES, 0, into_cgroup=True).remedy)
    assert "internal processes" in cause_of(host, errno.EBUSY, 0, into_cgroup=True).cause
    assert "clone3 (Linux 5.7)" in cause_of(host, errno.ENOSYS, 0, into_cgroup=True).cause
    filtered = Recorded(proc__self__status=FILTERED)
    assert "answers with ENOSYS" in cause_of(filtered, errno.ENOSYS, 0, into_cgroup=True).cause


def test_a_kernel_without_a_kind_of_namespace() -> None:
    host = Recorded(proc__self__status=PLAIN, proc__self__ns__user="", proc__self__ns__mnt="")
    found = cause_of(host, errno.EINVAL, NEWUSER | NEWNET)
    assert found == clone.Finding(
        "this kernel has no net namespaces (CONFIG_NET_NS)", "use a kernel that has them", True
    )


def test_a_groups_limit_of_processes_is_found_upwards() -> None:
    host = Recorded(
        proc__self__status=PLAIN,
        proc__self__cgroup="0::/a/b\n",
        proc__self__mountinfo="30 1 0:20 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        **{
            "sys__fs__cgroup__a__b__pids.max": "max\n",
            "sys__fs__cgroup__a__b__pids.current": "7\n",
            "sys__fs__cgroup__a__pids.max": "12\n",
            "sys__fs__cgroup__a__pids.current": "12\n",
        },
    )
    found = cause_of(host, errno.EAGAIN, 0)
    assert found.cause == "the cgroup /a has 12 processes and threads and may have 12 (pids.max); a start takes 3"
    assert "memory" in cause_of(host, errno.ENOMEM, 0).cause


def test_a_call_that_the_kernel_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    step, op = Step(Phase.ROOT, "do it"), call("listmount")
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "h", "5.14.0-1-amd64", "v", "x86_64")))
    found = steps.likely(Recorded(proc__self__status=PLAIN), errno.ENOSYS, step, op)
    assert found is not None
    assert found.unsupported
    assert found.cause == "listmount came with Linux 6.8; this is 5.14.0-1-amd64"
    old = steps.likely(Recorded(proc__self__status=PLAIN), errno.ENOSYS, step, call("bpf"))
    assert old is not None
    assert "built without bpf" in old.cause


def test_a_diagnosis_that_fails_hides_nothing() -> None:
    class Broken(Host):
        def read(self, path: str) -> str | None:
            raise RuntimeError("no such luck")

    box = Sandbox(UserNamespace())
    record = Record(
        lib.ISO_RECORD_FAILED,
        errno.EPERM,
        lib.ISO_OP_NONE,
        lib.ISO_STAGE_CLONE_INIT,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        b"",
        b"",
        b"",
    )
    error = setup_error(box.compile(), record, [b"true"], host=Broken())
    assert error.errno == errno.EPERM
    assert str(error.step).startswith("make the sandbox's first process")
    assert error.cause == "not known: its diagnosis failed too (RuntimeError: no such luck)"


def test_targets() -> None:
    op = Target(Register(), b"/x", Register())
    step = Step(Phase.ROOT, "mount")
    host = Recorded(proc__self__status=PLAIN)
    for number in (errno.EROFS, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.EOVERFLOW, errno.EACCES, errno.ENOSPC):
        assert steps.likely(host, number, step, op) is not None, number
    assert steps.likely(host, errno.EIO, step, op) is None


def test_starting_the_launcher() -> None:
    plain, filtered = Recorded(proc__self__status=PLAIN), Recorded(proc__self__status=FILTERED)
    assert start_error(lib.ISO_SPAWN_CLONE, errno.EAGAIN, plain).syscall == "clone"
    assert "memfd_noexec" in str(start_error(lib.ISO_SPAWN_EXEC, errno.EACCES, plain))
    assert "not open" in str(start_error(lib.ISO_SPAWN_FILES, errno.EBADF, plain))
    error = start_error(lib.ISO_START_OWNER, errno.ENOSYS, filtered)
    assert isinstance(error, UnsupportedError)
    assert "pidfd_open" in str(error)


def test_every_errno_of_exec_has_words() -> None:
    numbers = (
        errno.ENOENT,
        errno.EACCES,
        errno.ENOEXEC,
        errno.E2BIG,
        errno.ETXTBSY,
        errno.ELOOP,
        errno.ELIBBAD,
        errno.EISDIR,
        errno.EAGAIN,
        errno.ENOMEM,
        errno.EPERM,
        errno.EIO,
    )
    causes = {program.not_executed(number, None, (b"/x",), b"")[1].cause for number in numbers}
    assert len(causes) == len(numbers)


def test_machines_by_name() -> None:
    assert program.machine_of(elf(62)) == "x86_64"
    assert program.machine_of(elf(62, bits=32)) == "x32"
    assert program.machine_of(elf(3, bits=32)) == "i386"
    assert program.machine_of(elf(21)) == "ppc64le"
    assert program.machine_of(elf(21, order=">")) == "ppc64"
    assert program.machine_of(elf(9999)) == "machine 9999"
    assert program.machine_of(b"#!/bin/sh") is None


def test_nothing_of_the_host_is_read_while_all_goes_well() -> None:
    """The diagnosis is not even imported by a sandbox that starts."""
    code = "import sys, isolate; isolate.Sandbox().run(['true']); print('isolate.diagnosis.setup' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_run_block_is_read_back() -> None:
    from isolate.engine.run_block import run_block

    block = run_block(
        [b"a", b"bc"],
        [b"X=1", b"PATH=/p"],
        program=b"a",
        path=b"/p",
        cwd=b"/w",
        fds=[(0, 0)],
        slots=6,
        started=False,
        tty=False,
    )
    assert program.Start.read(block) == ((b"a", b"bc"), (b"X=1", b"PATH=/p"), b"/p", b"/w")


# ---- what a step says of an errno covers no remedy -------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_work_on_another_file_system_has_a_remedy(tmp_path: Path) -> None:
    """By the library's own part: its step has a word on the errno, and the remedy is told all the same."""
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    lower.mkdir()
    upper.mkdir()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as work:
        box = Sandbox(Root(Bind("/usr"), Overlay("/layer", lower=[lower], upper=upper, work=work)))
        error = failure(lambda: box.run(["true"]))
    assert error.cause
    assert error.remedy
    # Control: beside upper it is an overlay.
    (tmp_path / "work").mkdir()
    box = Sandbox(Root(Bind("/usr"), Overlay("/layer", lower=[lower], upper=upper, work=tmp_path / "work")))
    box.check()


def test_a_hint_is_a_cause_or_a_whole_finding() -> None:
    """For every step of the library: a cause alone leaves remedy and unsupported to what the diagnosis finds."""
    host = Host()
    own = Step(Phase.ROOT, "mount", (call("fsopen", b"overlay", 0),), hints={errno.ENODEV: "no such thing here"})
    plain = Sandbox(_Saying(own))
    record = _record(plain, own, errno.ENODEV)
    error = setup_error(plain.compile(), record, [b"true"], b"", host)
    assert type(error) is not SetupError
    assert isinstance(error, UnsupportedError)
    assert (error.cause, error.remedy) == ("no such thing here", "as root: modprobe overlay")
    whole = Step(
        Phase.ROOT, "mount", (call("fsopen", b"overlay", 0),), hints={errno.ENODEV: Finding("this", "and that")}
    )
    box = Sandbox(_Saying(whole))
    error = setup_error(box.compile(), _record(box, whole, errno.ENODEV), [b"true"], b"", host)
    assert (error.cause, error.remedy, isinstance(error, UnsupportedError)) == ("this", "and that", False)


class _Saying:
    """A part of one step."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def steps(self, context: Context) -> Iterable[Step]:
        return (self.step,)


def _record(box: Sandbox, step: Step, error: int) -> Record:
    tape = box.compile()
    index = next(i for i, s in enumerate(tape.plan.steps) if s.text == step.text)
    op = tape.op_steps.index(index)
    return Record(
        kind=lib.ISO_RECORD_FAILED,
        error=error,
        op=op,
        stage=lib.ISO_STAGE_OPS,
        status=0,
        init_status=0,
        complete=0,
        user_ns=0,
        system_ns=0,
        max_rss=0,
        wall_ns=0,
        program_ns=0,
        head=b"",
        skipped=b"",
        report=b"",
    )
