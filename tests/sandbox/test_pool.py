"""``Pool``: a sandbox that waited for its program is the same sandbox, and nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import resource
import select
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import isolate
from isolate import PIPE, STDOUT, ConflictError, PidNamespace, Pool, Sandbox, SetupError, UserNamespace, Verdict
from isolate.engine.proc import children as children_of
from isolate.engine.session import Session
from tests.boxes import SYSTEM, boxes
from tests.faults.test_faults import Case, distinct, host_namespaces
from tests.fence import Fence
from tests.ordinary import as_ordinary_user
from tests.sandbox.test_template import mount_changes
from tests.snapshot import Snapshot, children, descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.tape import Tape

USER = Sandbox(UserNamespace(), PidNamespace())


def root(*more: Any) -> isolate.Root:
    return isolate.Root(
        *SYSTEM,
        isolate.Proc(),
        isolate.Dev(),
        isolate.Tmpfs("/tmp"),
        *more,
    )


# ---- the same sandbox ------------------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("name", [n for n in boxes() if n not in ("without init", "newuidmap")])
def test_what_holds_is_the_same(name: str, audit: str, clean: Snapshot) -> None:
    box = boxes(audit)[name]
    inside = f"/audit/{Path(audit).name}" if name.startswith("root") else audit
    command = [inside, *host_namespaces()]
    for _ in range(20):  # what another program mounts meanwhile is there in some of them
        seen, mounts = [], mount_changes()
        with Pool(box) as pool:
            for verbs in (box, pool, pool):
                result = verbs.run(command)
                assert result.verdict is Verdict.OK, result
                seen.append((re.sub(rb"isolate-[-0-9a-f]+", b"isolate-*", result.stdout or b""), result.applied))
        if mount_changes() == mounts:
            break
    assert seen[0] == seen[1] == seen[2]


FACTS = r"""
import ctypes, os, re, signal, socket, sys, time

def read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError as error:
        return repr(error)

mounts = {}
for line in read("/proc/self/mountinfo").splitlines():
    number, _, _, rest = line.split(" ", 3)
    mounts[number] = re.sub(r"isolate-[-0-9a-f]+", "isolate-*", rest)
print(sorted(mounts.values()))
# Init goes on when the program has been executed: it lets go of its capabilities, and then waits for whom to reap.
end = time.monotonic() + 20
while "\nState:\tS" not in read("/proc/1/status") and time.monotonic() < end:
    time.sleep(0.001)
# Numbers that every process has for itself, and what depends on the instant.
own = ("Tgid", "Pid", "PPid", "NStgid", "NSpid", "NSpgid", "NSsid", "SigQ", "Vm", "Rss", "voluntary", "nonvoluntary")
for process, instant in (("self", ()), ("1", ("State", "SigBlk", "SigPnd", "ShdPnd"))):
    for line in read(f"/proc/{process}/status").splitlines():
        if not line.startswith((*own, *instant)):
            print(process, line)
for name in (
    "attr/current", "cmdline", "cgroup", "comm", "coredump_filter", "environ", "gid_map", "limits", "oom_score_adj",
    "personality", "setgroups", "sys/user/max_user_namespaces", "timens_offsets", "timerslack_ns", "uid_map",
):
    path = f"/proc/{name}" if name.startswith("sys") else f"/proc/self/{name}"
    print(name, re.sub(r"isolate-[-0-9a-f]+|/[0-9]+$", "*", read(path), flags=re.MULTILINE))
print([kind for kind in sorted(os.listdir("/proc/self/ns")) if os.readlink(f"/proc/self/ns/{kind}") in sys.argv])
for number in sorted(map(int, os.listdir("/proc/self/fd"))):
    try:
        to = os.readlink(f"/proc/self/fd/{number}").partition(":")[0]
    except OSError:
        continue  # the one by which it lists
    about = dict(line.split(":", 1) for line in read(f"/proc/self/fdinfo/{number}").splitlines())
    print(number, to, about["flags"], mounts.get(about["mnt_id"].strip()))
libc, value, text = ctypes.CDLL(None), ctypes.c_int(), ctypes.create_string_buffer(200)
for option in (3, 7, 21, 23, 27, 30, 39, 42):  # dumpable, keepcaps, seccomp, …, no_new_privs, THP
    print(option, libc.prctl(option, 0, 0, 0, 0))
for option in (2, 37):  # PR_GET_PDEATHSIG, PR_GET_CHILD_SUBREAPER
    print(option, libc.prctl(option, ctypes.byref(value)), value.value)
keyctl = {"x86_64": 250, "aarch64": 219}[os.uname().machine]
libc.syscall(keyctl, 6, -3, text, len(text))  # KEYCTL_DESCRIBE of the session keyring
print(text.value)
print(os.getsid(0) == os.getpgrp() == os.getpid(), os.getppid(), os.umask(0), os.getcwd(), os.getgroups())
print(os.getresuid(), os.getresgid(), os.uname(), sorted(os.environ.items()), socket.if_nameindex())
print(os.sched_getscheduler(0), sorted(os.sched_getaffinity(0)), os.getpriority(0, 0))
print([signal.getsignal(number) for number in signal.valid_signals()], signal.pthread_sigmask(signal.SIG_BLOCK, ()))
for directory in filter(os.path.isdir, ("/", "/dev", "/etc", "/tmp", "/dev/shm", "/dev/pts")):
    found = os.stat(directory)
    print(directory, sorted(os.listdir(directory)), oct(found.st_mode), found.st_uid, found.st_gid)
for path in ("/proc/1/fd", "/proc/1/environ", "/usr/x", "/tmp/x", "/proc/sys/kernel/hostname", "/dev/null"):
    for action in (os.listdir, lambda path: open(path, "w").close(), os.remove):
        try:
            print(path, action(path))
        except OSError as error:
            print(path, error)
"""


def facts(verbs: Sandbox | Pool) -> list[str]:
    """What a program finds out about itself; by its arguments it knows the namespaces of the host."""
    host = [os.readlink(f"/proc/self/ns/{kind}") for kind in sorted(os.listdir("/proc/self/ns"))]
    return str(verbs.run(["python3", "-c", FACTS, *host], text=True).check().stdout).splitlines()


@pytest.mark.parametrize("name", [pytest.param("untrusted", marks=pytest.mark.root), "Landlock"])
def test_a_program_finds_the_same(name: str, clean: Snapshot) -> None:
    box = isolate.presets.untrusted()
    if name == "Landlock":
        box = Sandbox(UserNamespace(uid=5), root(), isolate.Landlock(read=["/"], execute=["/usr"], write=["/tmp"]))
    with Pool(box) as pool:
        expected = facts(box)
        assert len(expected) > 150
        for _ in range(2):
            assert facts(pool) == expected


SHOW = 'pwd; echo "$A-$1"; cat <&5; read line; echo "$line"; echo error >&2'


def test_arguments_are_those_of_the_run(tmp_path: Path, clean: Snapshot) -> None:
    file = tmp_path / "file"
    file.write_text("from a file\n")
    with Pool(USER, size=2) as pool, file.open() as passed:
        for _ in range(3):
            passed.seek(0)
            options: dict[str, Any] = {
                "env": {"A": "b", "PATH": os.defpath},
                "cwd": "/usr",
                "pass_fds": {5: passed.fileno()},
                "input": b"a line\n",
                "stderr": STDOUT,
            }
            told = pool.run(["sh", "-c", SHOW, "sh", "c\udcff"], **options).stdout
            assert told == b"/usr\nb-c\xff\nfrom a file\na line\nerror\n"
            passed.seek(0)
            assert USER.run(["sh", "-c", SHOW, "sh", "c\udcff"], **options).stdout == told, "the control"
        result = pool.run(["sh", "-c", "echo out; echo err >&2"])
        assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
        # Longer than a message between processes can be.
        many = ["x" * 1000] * 500
        assert pool.run(["sh", "-c", 'echo "$# ${#500}"', "sh", *many]).stdout == b"500 1000\n"


def test_more_descriptors_than_a_message_takes(clean: Snapshot) -> None:
    with open(os.devnull) as null:
        copies = [os.dup(null.fileno()) for _ in range(300)]
        try:
            with Pool(USER) as pool:
                for count in (1, 240, 300):
                    listed = pool.run(["sh", "-c", "ls /proc/self/fd | wc -l"], pass_fds=copies[:count]).stdout
                    assert int(listed or 0) == 3 + count + 1  # and the one by which it lists
        finally:
            for copy in copies:
                os.close(copy)


@pytest.mark.parametrize("parts", [(PidNamespace(),), ()], ids=["pid namespace", "none"])
def test_descriptors_within_the_programs_limit(parts: tuple[PidNamespace, ...], clean: Snapshot) -> None:
    """Passing them takes no more of it."""

    def tried(verbs: Sandbox | Pool) -> str:
        try:
            return str(verbs.run(["true"], pass_fds=passed).verdict.value)
        except SetupError as error:
            return f"{error.step}: {error.errno}"

    passed = [os.dup(0) for _ in range(4)]
    seen = set()
    try:
        # A limit below a number that is passed is refused, one well above it is not; which numbers are free, varies.
        for limit in range(min(passed) - 2, max(passed) + 12):
            box = Sandbox(UserNamespace(), *parts, isolate.Rlimits(nofile=limit))
            with Pool(box) as pool:
                told = tried(box)
                seen.add(told)
                assert (limit, tried(pool)) == (limit, told)
    finally:
        for fd in passed:
            os.close(fd)
    assert "OK" in seen
    assert len(seen) > 1


def test_spawn_pipes_and_terminals(clean: Snapshot) -> None:
    with Pool(USER) as pool:
        with pool.spawn(["cat"], stdin=PIPE, stdout=PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"through")
            process.stdin.close()
            assert process.stdout.read() == b"through"
            assert process.wait(10) == 0
        with pool.spawn(["sh", "-c", "stty size; test -t 0"], pty=(40, 100)) as process:
            assert process.pty is not None
            assert process.wait(10) == 0
            assert process.pty.read() == b"40 100\r\n"
        with pool.spawn(["sleep", "1000"]) as process, process.exec(["true"]) as further:
            assert further.wait(10) == 0


def test_each_is_used_once(clean: Snapshot) -> None:
    with Pool(Sandbox(UserNamespace(), PidNamespace(), root())) as pool:
        for _ in range(3):
            assert pool.run(["sh", "-c", "ls /tmp; echo secret > /tmp/mine; echo $$"]).stdout == b"2\n"


def test_streams_are_not_the_hosts_null_device(clean: Snapshot) -> None:
    """As in a sandbox that did not wait (see isolate.mounts.dev_null)."""
    script = "exec 3</dev/null; for n in 0 3; do grep mnt_id /proc/self/fdinfo/$n; done"
    box = Sandbox(UserNamespace(), PidNamespace(), root())
    with Pool(box) as pool:
        for verbs in (pool, box):
            first, second = str(verbs.run(["sh", "-c", script], text=True).stdout).splitlines()
            assert first == second


def test_limits_of_time_are_for_the_program(clean: Snapshot) -> None:
    with Pool(USER) as pool:
        assert pool.run(["true"]).ok
        started = time.monotonic()
        result = pool.run(["sleep", "1000"], timeout=0.2)
        assert result.verdict is Verdict.TIMEOUT
        assert 0.1 <= result.wall_time <= time.monotonic() - started
        assert pool.run(["sh", "-c", "while :; do :; done"], cpu_time=0.2).verdict is Verdict.CPU_TIME
        assert pool.run(["sh", "-c", "yes"], max_output=1000).verdict is Verdict.OUTPUT


@pytest.mark.root
def test_limits_of_a_group(clean: Snapshot) -> None:
    box = Sandbox(isolate.Limits(memory="32M", pids=20), UserNamespace(), PidNamespace())
    with Pool(box, size=2) as pool:
        bomb = pool.run(["python3", "-c", "x = bytearray(128 << 20)"], env={"PATH": os.defpath})
        assert bomb.verdict is Verdict.OOM
        assert pool.run(["true"]).ok


def test_as_an_ordinary_user() -> None:
    code = """
from isolate import NetNamespace, PidNamespace, Pool, Sandbox, UserNamespace
with Pool(Sandbox(UserNamespace(uid=7), PidNamespace(), NetNamespace()), size=2) as pool:
    for _ in range(3):
        print(pool.run(["id", "-u"], text=True).stdout.strip())
"""
    assert as_ordinary_user(code).split() == ["7", "7", "7"]


NET = ["readlink", "/proc/self/ns/net"]


def network(verbs: Sandbox | Pool) -> str:
    """The network of a program, by its link."""
    return str(verbs.run(NET, text=True).check().stdout).strip()


@pytest.mark.root
def test_what_is_in_force_on_the_thread_holds_for_what_it_starts(clean: Snapshot) -> None:
    """A sandbox that waits is not under it, and none that others get later may be."""
    box = Sandbox(PidNamespace())
    host = os.readlink("/proc/thread-self/ns/net")
    with Pool(box) as pool:
        session = pool._waiting[0]
        with isolate.NetNamespace():
            here = os.readlink("/proc/thread-self/ns/net")
            assert network(pool) == network(pool) == network(box) == here != host
            with Pool(box) as inner:
                mine = inner._waiting[0]
                assert network(inner) == network(inner) == here
                assert mine not in inner._waiting
                with isolate.NetNamespace():
                    assert network(inner) == os.readlink("/proc/thread-self/ns/net") != here
        assert isolate.in_thread(lambda: network(pool), isolate.NetNamespace()) not in (host, here)
        assert list(pool._waiting) == [session]
        assert network(pool) == network(pool) == host
        assert session not in pool._waiting
        other = threading.Thread(target=network, args=(pool,))
        session = pool._waiting[0]
        other.start()
        other.join()
        assert session not in pool._waiting, "another thread, with nothing in force, gets one that waits"


def test_what_is_entered_for_good() -> None:
    code = """
import threading
from isolate import NoNewPrivs, PidNamespace, Pool, Sandbox, UserNamespace
with Pool(Sandbox(UserNamespace(), PidNamespace())) as pool:
    session = pool._waiting[0]
    NoNewPrivs().enter()
    assert pool.run(["true"]).ok and pool._waiting[0] is session
    with Pool(pool.box) as second:
        session = second._waiting[0]
        assert second.run(["true"]).ok and second._waiting[0] is not session
        session = second._waiting[0]
        thread = threading.Thread(target=second.run, args=(["true"],))
        thread.start(), thread.join()
        assert second._waiting[0] is not session, "threads inherit it"
print("well")
"""
    assert as_ordinary_user(code) == "well\n"


# ---- failures --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_set_up(tmp_path: Path, clean: Snapshot) -> None:
    source = tmp_path / "source"
    source.mkdir()
    box = Sandbox(UserNamespace(), PidNamespace(), root(isolate.Bind(source, "/source")))
    with Pool(box) as pool:
        assert pool.run(["ls", "/source"]).ok
        source.rmdir()
        with contextlib.suppress(SetupError):  # the one that waits may have been set up before
            pool.run(["true"])
        failed(pool)
        with pytest.raises(SetupError) as raised:
            pool.run(["true"])
        assert (raised.value.errno, raised.value.part) == (errno.ENOENT, "Root")
        failed(pool)
        source.mkdir()
        assert pool.run(["ls", "/source"]).ok


def failed(pool: Pool) -> None:
    """Wait until the one that waits has told that it could not be set up."""
    poll = select.poll()
    poll.register(pool._waiting[0].fileno(), select.POLLIN)
    assert poll.poll(10_000)


def test_a_program_that_is_not_there(clean: Snapshot) -> None:
    with Pool(USER) as pool:
        with pytest.raises(SetupError, match="execute /no/such"):
            pool.run(["/no/such"])
        with pytest.raises(ValueError, match="not a descriptor"):
            pool.run(["true"], pass_fds=[-1])
        with pytest.raises(OSError, match="Bad file descriptor"):
            pool.run(["true"], stdout=999)
        assert pool.run(["true"]).ok


def test_one_that_was_killed_while_it_waited(clean: Snapshot) -> None:
    with Pool(USER) as pool:
        for victim in ("launcher", "init"):
            session = pool._waiting[0]
            pid = session.pid
            if victim == "init":
                while not (found := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
                    pass
                pid = int(found[0])
            os.kill(pid, signal.SIGKILL)
            assert session.wait_gone(10)
            assert pool.run(["echo", "well"]).stdout == b"well\n"


@pytest.mark.root
@pytest.mark.parametrize("by", ["the next run", "closing"])
def test_the_group_of_one_that_was_killed_goes_too(by: str, clean: Snapshot) -> None:
    box = Sandbox(isolate.Limits(pids=20), UserNamespace(), PidNamespace())
    group: Any = box.compile().plan.context.group
    with Pool(box) as pool:
        session = pool._waiting[0]
        directories = group.directories(session).values()
        while not all(map(os.path.isdir, directories)):
            pass
        os.kill(session.pid, signal.SIGKILL)
        assert session.wait_gone(10)
        if by == "the next run":
            assert pool.run(["true"]).ok
        else:
            pool.close()
        assert not any(map(os.path.isdir, directories))


def test_37_one_whose_init_was_just_killed_is_replaced(clean: Snapshot) -> None:
    with Pool(Sandbox(PidNamespace()), size=1) as pool:
        for _ in range(60):
            assert pool.run(["true"]).ok
            (session,) = pool._waiting
            for init in children_of(session.pid):
                os.kill(init, signal.SIGKILL)
            assert pool.run(["true"]).ok


def test_37_no_more_wait_than_were_asked_for(clean: Snapshot) -> None:
    most: list[int] = []

    def work(pool: Pool) -> None:
        for _ in range(8):
            assert pool.run(["true"]).ok
            most.append(len(pool))

    with Pool(Sandbox(PidNamespace()), size=2) as pool:
        threads = [threading.Thread(target=work, args=(pool,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(most) == 128, "control: all of them ran"
        assert max(most) <= 2


def test_refusals(clean: Snapshot) -> None:
    for size in (0, -1, 1025, True, 1.5, "2"):
        with pytest.raises(ValueError, match="size must be from 1 to 1024"):
            Pool(USER, size=size)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a pool is of a Sandbox"):
        Pool(UserNamespace())  # type: ignore[arg-type]
    with pytest.raises(ConflictError, match="init=False"):
        Pool(Sandbox(PidNamespace(init=False)))
    pool = Pool(USER)
    assert len(pool) == 0
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        pool.run(["true"])


# ---- ends ------------------------------------------------------------------------------------------------------------


def test_nothing_is_left(clean: Snapshot) -> None:
    held, before = descriptors(), children()
    with Pool(USER, size=5) as pool:
        assert len(pool) == 5
        assert pool.run(["true"]).ok
        assert len(pool) == 5
    assert (descriptors().keys() - held.keys(), children() - before) == (set(), set())
    assert len(pool) == 0


def test_what_runs_goes_on_when_the_pool_is_closed(clean: Snapshot) -> None:
    with Pool(USER) as pool:
        process = pool.spawn(["cat"], stdin=PIPE)
    with process:
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0


def test_a_pool_that_was_forgotten(clean: Snapshot) -> None:
    pool = Pool(USER, size=2)
    pool.__enter__()
    with pytest.warns(ResourceWarning, match="never closed"):
        del pool


def test_a_forked_child_has_its_own(clean: Snapshot) -> None:
    with Pool(USER) as pool:
        session = pool._waiting[0]
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = 0 if len(pool) == 0 and pool.run(["true"]).ok and len(pool) == 1 else 2
                pool.close()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert pool._waiting[0] is session
        assert pool.run(["echo", "well"]).stdout == b"well\n"


def test_from_many_threads(clean: Snapshot) -> None:
    wrong: list[object] = []
    with Pool(USER, size=3) as pool:

        def work(number: int) -> None:
            for i in range(10):
                told = pool.run(["echo", f"{number} {i}"]).stdout
                if told != f"{number} {i}\n".encode():
                    wrong.append(told)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(pool) <= 3 + 8


def test_asyncio(clean: Snapshot) -> None:
    async def main() -> list[bytes | None]:
        with Pool(USER, size=2) as pool:
            results = await asyncio.gather(*(pool.arun(["echo", str(i)]) for i in range(10)))
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(pool.arun(["sleep", "1000"]), 0.2)
            return [result.stdout for result in results]

    assert asyncio.run(main()) == [f"{i}\n".encode() for i in range(10)]


def test_closed_by_one_thread_while_another_runs(clean: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits in a pool that is closed, whoever was just setting one up."""
    waiting = Session.waiting
    pool = Pool(USER, size=2)

    def closed_meanwhile(tape: Tape, *, direct: bool = False) -> Session:
        session = waiting(tape, direct=direct)
        other = threading.Thread(target=pool.close)
        other.start()
        other.join()
        return session

    with pool:
        monkeypatch.setattr(Session, "waiting", closed_meanwhile)
        assert pool.run(["echo", "well"]).stdout == b"well\n"
        assert len(pool) == 0


@contextlib.contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """No more than so many can be opened."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = set(descriptors())
    free = [number for number in range(1000) if number not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[count], limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_entering_fails_and_leaves_nothing(clean: Snapshot) -> None:
    pool = Pool(USER, size=20)
    with free_descriptors(15), pytest.raises(SetupError) as raised:
        pool.__enter__()
    assert raised.value.errno == errno.EMFILE
    assert len(pool) == 0
    with pytest.raises(ValueError, match="closed"):
        pool.__enter__()


def test_no_descriptors_left_at_any_point(clean: Snapshot) -> None:
    """With so many free ones and no more: the program runs, or the error says so; nothing is left."""
    told: list[object] = []
    for free in range(14):
        with Pool(USER, size=2) as pool:
            with free_descriptors(free):
                try:
                    with pool.spawn(["sh", "-c", "true", "x" * 20_000], stdin=PIPE, stdout=PIPE) as process:
                        told.append(process.wait(10))
                except OSError as error:
                    told.append(errno.errorcode[error.errno or 0])
            assert pool.run(["true"]).ok
    refused = told.count("EMFILE")
    assert told == ["EMFILE"] * refused + [0] * (14 - refused)
    assert 0 < refused < 14


def test_what_cannot_be_replaced_ends_no_program(clean: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(cls: type[Session], tape: object) -> Session:
        raise OSError(errno.EMFILE, "no descriptors for the group of the next one")

    with Pool(USER, size=2) as pool:
        monkeypatch.setattr(Session, "waiting", classmethod(refused))
        for left in (1, 0, 0):
            assert pool.run(["echo", "well"]).stdout == b"well\n"
            assert len(pool) == left
        monkeypatch.undo()
        assert pool.run(["true"]).ok
        assert len(pool) == 2


def test_killed_at_random_instants(clean: Snapshot) -> None:
    """The Python program, while sandboxes wait, are told their program, run."""

    def program(begin: Any, end: Any) -> None:
        with Pool(USER, size=2) as pool:
            while True:
                pool.run(["true"])
                with pool.spawn(["sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000"], stdout=PIPE):
                    pass

    left = []
    for i in range(20):
        fence = Fence(program, asks=False)
        time.sleep(0.0015 * i)  # the instant is the experiment
        fence.kill()
        outcome = fence.drive()
        if outcome.gone is None:
            left.append((i, outcome.left))
    assert left == []


class Pooled:
    """A sandbox whose run is that of a pool."""

    def __init__(self, box: Sandbox) -> None:
        self.compile = box.compile
        self._box = box

    def run(self, command: list[str]) -> isolate.Result[bytes]:
        with Pool(self._box) as pool:
            return pool.run(command)


class PoolCase(Case):
    """Its calls made to fail."""

    def __init__(self, name: str, audit: str) -> None:
        super().__init__(name, audit)
        self.box = Pooled(self.box)  # type: ignore[assignment]
        self.undisturbed = Fence(self.once).drive()
        assert self.undisturbed.error is None, self.undisturbed.error
        assert self.undisturbed.value == (self.expected, [])


@pytest.mark.root
def test_one_call_fails(audit: str) -> None:
    case = PoolCase("user", audit)
    chosen = [call for call in distinct(case.undisturbed.calls) if call.role in ("caller", "init", "payload")]
    assert {"recvmsg", "sendmsg"} <= {call.name for call in chosen}
    errors = (errno.ENOMEM, errno.EMFILE, errno.EAGAIN)
    # Half of them; the long lane takes every call.
    wrong = [case.wrong(call, errors[i // 2 % len(errors)]) for i, call in list(enumerate(chosen))[::2]]
    assert not [w for w in wrong if w]


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("error", [errno.ENOMEM, errno.EPERM, errno.EMFILE], ids=errno.errorcode.get)
def test_every_call_fails(error: int, audit: str) -> None:
    case = PoolCase("user", audit)
    wrong = [case.wrong(call, error) for call in case.undisturbed.calls]
    assert not [w for w in wrong if w]
