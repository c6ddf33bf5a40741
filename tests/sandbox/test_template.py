"""Starts from a tree that is made once: they are what a start without it is, whatever changes between two of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import isolate
from isolate import syscalls
from isolate.engine import native, waiting
from isolate.engine.dividing import NotDivided, divide
from isolate.sandbox import parked
from tests.boxes import SYSTEM
from tests.ordinary import as_ordinary_user
from tests.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def box_of(*entries: Any, parts: tuple[Any, ...] = (), template: bool = True) -> isolate.Sandbox:
    return isolate.Sandbox(
        isolate.UserNamespace(),
        isolate.IpcNamespace(),
        isolate.UtsNamespace(),
        *parts,
        isolate.Root(*SYSTEM, isolate.Proc(), isolate.Dev(), isolate.Tmpfs("/tmp", size="1M"), *entries),
        template=template,
    )


_mountinfo = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
_changes = [0]
_parked: dict[int, int] = {}


def mount_changes() -> int:
    """Goes up when somebody mounts or unmounts something. The kernel tells also of what is as it was again."""
    poll = select.poll()
    poll.register(_mountinfo, select.POLLPRI)
    _changes[0] += bool(poll.poll(0))
    return _changes[0]


def changed(box: isolate.Sandbox) -> bool:
    """Whether another program has mounted or unmounted something since the sandbox's tree was made."""
    return mount_changes() != _parked.get(id(box))


def used(box: isolate.Sandbox) -> int:
    """How many starts were from a tree."""
    return sum(starts.used for starts in box._starts.values() if isinstance(starts, parked.Starts))


def so_many(box: isolate.Sandbox, count: int) -> bool:
    """Whether so many starts were from the tree. Fewer are right if another program has mounted something meanwhile."""
    return used(box) == count or (used(box) < count and changed(box))


def launchers(box: isolate.Sandbox) -> list[int]:
    """Process ids of the launchers that are parked."""
    found = (starts.launcher for starts in box._starts.values() if isinstance(starts, parked.Starts))
    return [pid for pid in found if pid is not None]


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def waits(launcher: int) -> list[int]:
    """The inits that wait for the next start of a launcher that is parked."""
    found = [init for fork in children(launcher) for init in children(fork)]
    return [init for init in found if blocked(init)]


def blocked(pid: int) -> bool:
    """Whether a process waits for a message."""
    try:
        return Path(f"/proc/{pid}/syscall").read_text().startswith(f"{syscalls.number('recvmsg')} ")
    except OSError:
        return False


def parked_box(box: isolate.Sandbox) -> isolate.Sandbox:
    """The sandbox, once its tree is ready."""
    _parked[id(box)] = mount_changes()
    for _ in range(2):
        assert box.run(["true"]).ok
    (starts,) = box._starts.values()
    assert isinstance(starts, parked.Starts)
    deadline = time.monotonic() + 20
    while not starts.is_ready():
        assert time.monotonic() < deadline
        if starts.launcher is None:  # one was given up only now: another is made some starts later
            assert box.run(["true"]).ok
        time.sleep(0.002)
    return box


def from_tree(box: isolate.Sandbox, *args: str, **keywords: Any) -> bytes:
    """What a program writes that is started from the tree."""
    for _ in range(5):
        before = used(box)
        result = box.run(["sh", "-c", *args], **keywords)
        assert result.ok, result
        if used(box) == before + 1:
            return result.stdout
        # Another program has mounted something: so it is to be.
        assert changed(box), "it was started without the tree"
        parked_box(box)
    raise AssertionError("the mount table changes all the time")


def without(box: isolate.Sandbox, *args: str) -> bytes:
    """What a program writes that is started without it, as it must be."""
    before = used(box)
    result = box.run(["sh", "-c", *args])
    assert result.ok, result
    assert used(box) == before, "it was started from the tree"
    return result.stdout


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    yield
    parked.end_all()


LOOK = """
ls -lniR --time-style=+ /dev | sed 's/^ *[0-9]* //' ; stat -c '%n %u %g %a %F' / /tmp /proc /usr /dev/shm
awk '{print $4,$5,$6,$9,$10,$11}' /proc/self/mountinfo | sort
grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Umask|Sig|Cpus_allowed|NSpid|NSsid|Shd)' /proc/self/status
cat /proc/self/limits /proc/self/setgroups /proc/self/gid_map /proc/self/oom_score_adj /proc/self/cgroup; pwd
ls /proc/self/fd
cat /proc/sys/user/max_user_namespaces /proc/sys/user/max_inotify_instances; hostname; nice; env; ls -A / /tmp
"""
AS_USER = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent.parent.parent)!r})
from tests.sandbox.test_template import *
plain, tree = box_of(template=False), parked_box(box_of())
look = LOOK.replace("/proc/self/gid_map ", "")
first, second = plain.run(["sh", "-c", look]).stdout, from_tree(tree, look)
assert first == second, (first, second)
assert (int(tree.run(["cat", "/proc/self/uid_map"]).stdout.split()[0])) == 0
parked.end_all()
print("the same")
"""


@pytest.mark.root
def test_what_is_inside_is_the_same() -> None:
    look = LOOK
    plain, tree = box_of(template=False), parked_box(box_of())
    assert plain.run(["sh", "-c", look]).stdout.decode().splitlines() == from_tree(tree, look).decode().splitlines()
    assert used(plain) == 0


def test_it_is_the_same_for_an_ordinary_user() -> None:
    assert as_ordinary_user(AS_USER) == "the same\n"


@pytest.mark.root
def test_with_a_network_and_an_id_that_nobody_has() -> None:
    ids = isolate.UserNamespace(map=isolate.IdMap.single(0, 0, host_uid=65534, host_gid=65534))
    look = "cat /proc/net/dev | cut -d: -f1; stat -c '%u %g' / /dev/full /usr; cat /proc/self/uid_map"
    plain, tree = (
        box_of(parts=(isolate.NetNamespace(),), template=template).replace(ids) for template in (False, True)
    )
    told = from_tree(parked_box(tree), look)
    assert b"lo" in told
    assert told == plain.run(["sh", "-c", look]).stdout


@pytest.mark.root
def test_nothing_is_left_for_the_next_one() -> None:
    tree = parked_box(box_of())
    from_tree(tree, "echo secret > /tmp/x; echo secret > /dev/shm/x; hostname changed 2>/dev/null; exit 0")
    assert (
        from_tree(tree, "ls -A /tmp /dev/shm; hostname")
        == b"/dev/shm:\n\n/tmp:\n" + os.uname().nodename.encode() + b"\n"
    )


@pytest.mark.root
@pytest.mark.parametrize("template", [False, True])
def test_a_source_that_is_swapped(tmp_path: Path, template: bool) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("first")
    tree = box_of(isolate.Bind(str(source), "/source"), template=template)
    if template:
        parked_box(tree)
        assert from_tree(tree, "cat /source/file") == b"first"
    source.rename(tmp_path / "old")
    source.mkdir()
    (source / "file").write_text("second")
    assert without(tree, "cat /source/file") == b"second"
    # And by a symbolic link.
    source.rename(tmp_path / "older")
    source.symlink_to("old")
    assert without(tree, "cat /source/file") == b"first"


@pytest.mark.root
def test_a_source_that_has_gone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    tree = parked_box(box_of(isolate.Bind(str(source), "/source")))
    source.rename(tmp_path / "old")
    with pytest.raises(isolate.SetupError, match="source"):
        tree.run(["true"])
    assert used(tree) == 0


@pytest.mark.root
def test_a_file_is_seen_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("first")
    tree = parked_box(box_of(isolate.Bind(str(file), "/etc/file")))
    assert from_tree(tree, "cat /etc/file") == b"first"
    file.write_text("changed")  # the same file
    assert from_tree(tree, "cat /etc/file") == b"changed"
    other = tmp_path / "other"
    other.write_text("replaced")
    other.rename(file)
    assert without(tree, "cat /etc/file") == b"replaced"


IN_MOUNTS = f"""
import ctypes, sys; sys.path.insert(0, {str(Path(__file__).parent.parent.parent)!r})
from tests.sandbox.test_template import *
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0 and libc.mount(None, b"/", None, 0x44000, None) == 0
os.makedirs(sys.argv[1] + "/below", exist_ok=True)
open(sys.argv[1] + "/below/hidden", "w").write("x")
tree = parked_box(box_of(isolate.Bind(sys.argv[1], "/source")))
assert from_tree(tree, "ls /source/below") == b"hidden\\n"
assert libc.mount(b"none", sys.argv[1].encode() + b"/below", b"tmpfs", 0, None) == 0
assert without(tree, "ls /source/below") == b""
parked_box(tree)
assert from_tree(tree, "ls /source/below") == b""
assert libc.umount2(sys.argv[1].encode() + b"/below", 0) == 0, "the tree holds it"
assert without(tree, "ls /source/below") == b"hidden\\n"
parked.end_all()
print("seen")
"""


@pytest.mark.root
def test_a_mount_below_a_source(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IN_MOUNTS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("seen\n", 0), done.stderr


HEARD_ONCE = f"""
import ctypes, os, sys; sys.path.insert(0, {str(Path(__file__).parent.parent.parent)!r})
from tests.sandbox.test_template import *
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
tree = parked_box(box_of())
(starts,) = tree._starts.values()
launcher = starts._launcher
fits = lambda: bool(parked.lib.iso_fits(launcher._compared))
assert fits() and fits(), "control"
assert libc.mount(b"none", sys.argv[1].encode(), b"tmpfs", 0, None) == 0
assert not fits()
assert not fits(), "another thread, which asks before the first one has given it up"
parked.end_all()
print("seen")
"""


@pytest.mark.root
def test_a_mount_is_told_to_every_thread(tmp_path: Path) -> None:
    """The kernel tells a change of the mounts to one reader of a file once, and threads share the launcher's."""
    done = subprocess.run(
        [sys.executable, "-c", HEARD_ONCE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("seen\n", 0), done.stderr


def _limit() -> Callable[[], None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] - 1, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _affinity() -> Callable[[], None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    return lambda: os.sched_setaffinity(0, before)


def _groups() -> Callable[[], None]:
    before = os.getgroups()
    os.setgroups([*before, 12345])
    return lambda: os.setgroups(before)


def _adj() -> Callable[[], None]:
    file = Path("/proc/self/oom_score_adj")
    before = file.read_text()
    file.write_text("123")
    return lambda: file.write_text(before) and None  # type: ignore[return-value, func-returns-value]


def _core() -> Callable[[], None]:
    file = Path("/proc/self/coredump_filter")
    before = file.read_text()
    file.write_text("0x7f")
    return lambda: file.write_text(f"0x{before}") and None  # type: ignore[return-value, func-returns-value]


CHANGES = {
    "rlimit": _limit,
    "affinity": _affinity,
    "groups": _groups,
    "oom_score_adj": _adj,
    "coredump_filter": _core,
}


@pytest.mark.root
@pytest.mark.parametrize("what", CHANGES)
def test_what_this_thread_hands_on(what: str) -> None:
    if what == "affinity" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor")
    look = (
        "cat /proc/self/limits /proc/self/oom_score_adj /proc/self/coredump_filter; grep Cpus_allowed /proc/self/status"
    )
    tree, plain = parked_box(box_of()), box_of(template=False)
    assert from_tree(tree, look)
    back = CHANGES[what]()
    try:
        assert without(tree, look) == plain.run(["sh", "-c", look]).stdout
    finally:
        back()


REFUSED = """
import ctypes, sys; sys.path.insert(0, {place!r})
from tests.sandbox.test_template import box_of, from_tree, parked_box, without

libc = ctypes.CDLL(None)
look = ["python3", "-c", "import ctypes; print(ctypes.CDLL(None).prctl({get}, 0, 0, 0, 0))"]
tree = parked_box(box_of())
assert from_tree(tree, "true") == b""
before = tree.run(look).stdout
if libc.prctl({set}, 1, {value}, 0, 0) == 0:
    assert without(tree, "true") == b""
    assert box_of(template=False).run(look).stdout == tree.run(look).stdout != before
else:
    print("not here")
"""


@pytest.mark.root
@pytest.mark.parametrize(
    ("what", "set_", "get", "value"), [("MDWE", 65, 66, 0), ("MCE kill policy", 33, 34, 1), ("merged pages", 67, 68, 0)]
)
def test_what_this_process_has_refused_itself(what: str, set_: int, get: int, value: int) -> None:
    """It cannot be taken back: in a process of its own."""
    code = REFUSED.format(place=str(Path(__file__).parent.parent.parent), set=set_, get=get, value=value)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    if done.stdout:
        pytest.skip(f"this kernel has no {what}")


@pytest.mark.root
def test_in_a_thread_of_its_own_that_has_given_something_up() -> None:
    tree = parked_box(box_of())
    told: list[Any] = []

    def restricted() -> None:
        isolate.NoNewPrivs().enter()
        told.append(without(tree, "true"))

    thread = threading.Thread(target=restricted)
    thread.start()
    thread.join()
    assert told == [b""]
    assert from_tree(parked_box(tree), "true") == b""


@pytest.mark.root
def test_in_a_block_nothing_is_from_a_tree() -> None:
    tree = parked_box(box_of())
    with isolate.UtsNamespace(hostname="block"):
        assert without(tree, "true") == b""
    assert from_tree(tree, "true") == b""


@pytest.mark.root
def test_a_launcher_that_is_killed() -> None:
    tree = parked_box(box_of())
    (pid,) = launchers(tree)
    os.kill(pid, signal.SIGKILL)
    assert tree.run(["true"]).ok
    assert from_tree(parked_box(tree), "echo again") == b"again\n"


@pytest.mark.root
def test_a_launcher_that_is_killed_leaves_what_it_has_started() -> None:
    tree = parked_box(box_of())
    (pid,) = launchers(tree)
    with tree.spawn(["cat"], stdin=isolate.PIPE, stdout=isolate.PIPE) as process:
        assert so_many(tree, 1)
        os.kill(pid, signal.SIGKILL)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"still there")
        process.stdin.close()
        assert process.stdout.read() == b"still there"
        assert process.wait() == 0


OWNER = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent.parent.parent)!r})
from tests.sandbox.test_template import *
tree = parked_box(box_of())
process = tree.spawn(["sleep", "1000"])
assert so_many(tree, 1)
print(json.dumps([*launchers(tree), process._session.pid, process.pid]), flush=True)
time.sleep(1000)
"""


@pytest.mark.root
def test_all_ends_with_its_owner() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    fds = [os.pidfd_open(pid) for pid in json.loads(owner.stdout.readline())]
    assert len(fds) == 3
    owner.kill()
    owner.wait()
    owner.stdout.close()
    try:
        for fd in fds:
            assert waiting.wait([(fd, waiting.READABLE)], 30), "it outlives its owner"
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.root
def test_a_forked_child_has_its_own() -> None:
    tree = parked_box(box_of())
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            before = used(tree)
            good = tree.run(["true"]).ok and used(tree) <= before
            os._exit(0 if good else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert from_tree(tree, "echo mine") == b"mine\n"


LOCKED = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent.parent.parent)!r})
from tests.sandbox.test_template import *
old, new = parked_box(box_of()), box_of(isolate.Dir("/new"))
held, ends = threading.Event(), threading.Event()

def inside():
    with parked._lock, old._lock, new._lock:
        held.set()
        ends.wait(60)

thread = threading.Thread(target=inside)
thread.start()
held.wait(60)
pid = os.fork()
if pid == 0:
    parked_box(new)
    parked_box(old)
    os._exit(0 if from_tree(old, "echo child") == b"child\\n" else 1)
pidfd = os.pidfd_open(pid)
done = waiting.wait([(pidfd, waiting.READABLE)], 30)
os.kill(pid, 9)
print(os.waitpid(pid, 0)[1])
ends.set()
thread.join()
"""


@pytest.mark.slow
@pytest.mark.root
def test_a_forked_child_waits_for_no_thread_of_its_parents() -> None:
    """A thread makes a tree, and holds locks, while another one forks."""
    done = subprocess.run([sys.executable, "-c", LOCKED], capture_output=True, text=True, check=False, timeout=100)
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr


@pytest.mark.root
def test_threads() -> None:
    tree, wrong = parked_box(box_of()), list[Any]()

    def many(n: int) -> None:
        for i in range(10):
            result = tree.run(["echo", f"{n} {i}"])
            if result.stdout != f"{n} {i}\n".encode():
                wrong.append(result)

    threads = [threading.Thread(target=many, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert so_many(tree, 60)


@pytest.mark.root
def test_streams_and_descriptors_and_long_arguments(tmp_path: Path) -> None:
    tree = parked_box(box_of())
    assert from_tree(tree, "cat", input=b"fed") == b"fed"
    long = "x" * 100_000
    assert from_tree(tree, f"echo {long}").strip() == long.encode()
    with open(tmp_path / "file", "w+b") as file:
        file.write(b"passed")
        file.flush()
        file.seek(0)
        assert from_tree(tree, "cat <&9; ls /proc/self/fd | wc -l", pass_fds={9: file.fileno()}).split() == [b"passed5"]
    result = tree.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (result.returncode, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
    assert tree.run(["sleep", "10"], timeout=0.05).verdict == isolate.Verdict.TIMEOUT
    assert tree.run(["sh", "-c", "while :; do :; done"], cpu_time=0.1).verdict == isolate.Verdict.CPU_TIME
    with pytest.raises(isolate.SetupError, match="no-such-program"):
        tree.run(["no-such-program"])


HANDED = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent.parent.parent)!r})
from tests.sandbox.test_template import *
box = box_of(template=sys.argv[1] == "tree")
runner = isolate.Pool(box, size=1) if sys.argv[1] == "pool" else box
ours, theirs = os.pipe()
os.write(theirs, b"x" * 100)
passed = [ours, *(os.dup(ours) for _ in range(247))]
show = 'echo $# $(ls /proc/self/fd | wc -w) $(head -c 1 <&$1) ${{#2}}; echo error >&2; cat'
for turn, limit in enumerate((resource.RLIM_INFINITY, 4096), 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    if sys.argv[1] == "tree":
        parked_box(box)
    for count in (1, 248):
        for size in (10, 60000):
            fds = passed[:count]
            words = ["sh", str(fds[-1] if fds[-1] < 10 else ours), "y" * size]
            result = runner.run(["sh", "-c", show, *words], pass_fds=fds, input=b"fed")
            print(result.stdout, result.stderr)
            result = runner.run(["sh", "-c", show, *words], pass_fds=fds, input=b"fed", stderr=subprocess.STDOUT)
            print(result.stdout, result.stderr)
    # Not each of them: another one's mount on this host sends a start the other way.
    assert used(box) >= turn if sys.argv[1] == "tree" else used(box) == 0
"""


def test_what_is_handed_over_is_the_same_however_it_starts() -> None:
    """Streams, all the descriptors that a message takes, longer arguments than it takes, also where no file may be so
    long: by a launcher of its own, by one that is parked, and by a sandbox that waits."""
    told = {
        how: subprocess.run(
            [sys.executable, "-c", HANDED, how], capture_output=True, text=True, timeout=60, check=False
        )
        for how in ("plain", "tree", "pool")
    }  # the first is the control: no message, a descriptor table
    assert [done.stderr for done in told.values()] == ["", "", ""]
    expected = []
    for count in (1, 248):
        for size in (10, 60000):
            start = f"2 {count + 4} x {size}\\n"
            expected += [f"b'{start}fed' b'error\\n'", f"b'{start}error\\nfed' None"]
    for how, done in told.items():
        assert done.stdout.splitlines() == expected * 2, how


@pytest.mark.root
def test_limits_hold_and_groups_go() -> None:
    before = Snapshot.take()
    limits = isolate.Limits(memory="32M", pids=10)
    plain, tree = (box_of(parts=(limits,), template=template) for template in (False, True))
    parked_box(tree)
    code = "head -c 100000000 /dev/zero | tail -c 99999999 | wc -c"
    told = [box.run(["sh", "-c", code]) for box in (plain, tree)]
    assert so_many(tree, 1)
    assert [result.verdict for result in told] == [isolate.Verdict.OOM] * 2
    forks = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 30 & done 2>/dev/null; exit 0"
    assert tree.run(["sh", "-c", forks]).verdict == plain.run(["sh", "-c", forks]).verdict
    result = tree.run(["true"])
    assert result.ok
    assert result.applied["Limits"]
    assert result.peak_memory > 0
    assert so_many(tree, 3)
    before.compare()


@pytest.mark.root
def test_what_lies_beneath_is_not_reached() -> None:
    """Whoever has all capabilities inside cannot take the root off, under which the hidden directory lies."""
    caps = isolate.Capabilities.all()
    tree = parked_box(box_of(parts=(caps,)))
    code = "umount -l / 2>&1; umount /dev 2>&1; mount -o remount,rw / 2>&1; touch /x 2>&1; ls -A / /proc/1/cwd/; exit 0"
    told = from_tree(tree, code)
    assert b"old-root" not in told
    assert b"empty-file" not in told
    assert b"Read-only file system" in told or b"denied" in told or b"not permitted" in told
    assert sorted(from_tree(tree, "ls -A /").split()) == [
        b"bin",
        b"dev",
        b"lib",
        b"lib64",
        b"proc",
        b"tmp",
        b"usr",
    ]


@pytest.mark.root
def test_nothing_leaks() -> None:
    parked.end_all()
    before = Snapshot.take()
    tree = parked_box(box_of())
    held = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        from_tree(tree, "true")
    with tree.spawn(["true"]) as process:
        process.wait()
    assert len(os.listdir("/proc/self/fd")) <= held
    assert held - len(before.fds) <= 6
    pids = launchers(tree)
    parked.end_all()
    before.compare()
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}/exe") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in pids)


@pytest.mark.root
def test_so_many_are_kept() -> None:
    trees = [parked_box(box_of(isolate.Dir(f"/d{n}"))) for n in range(parked.LAUNCHERS + 2)]
    assert sum(len(launchers(tree)) for tree in trees) == parked.LAUNCHERS
    assert trees[0].run(["true"]).ok
    assert from_tree(trees[-1], "true") == b""


@pytest.mark.root
def test_a_parked_launcher_holds_little() -> None:
    tree = parked_box(box_of())
    (pid,) = launchers(tree)
    from_tree(tree, "true")
    held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert not [path for path in held if path.startswith("/dev") or ".py" in path]
    assert len(held) <= 16
    status = Path(f"/proc/{pid}/status").read_text()
    assert "VmRSS" in status


def test_which_sandboxes_have_one(tmp_path: Path) -> None:
    for reason, box in {
        "user namespace": isolate.Sandbox(isolate.Root(*SYSTEM, isolate.Proc())),
        "mount namespace": isolate.Sandbox(isolate.UserNamespace(), isolate.PidNamespace()),
        "no root": isolate.Sandbox(isolate.UserNamespace(), isolate.PidNamespace(), isolate.MountNamespace()),
        "no tree|hands descriptors": box_of(isolate.Overlay("/o", lower=[str(tmp_path)])),
    }.items():
        with pytest.raises(NotDivided, match=reason):
            divide(box._plan())
    # What is mounted in what each start makes for itself, or in files of the host's, is no part of a tree made once.
    for entry in (
        isolate.Bind(str(tmp_path), "/tmp/inner"),
        isolate.Mask("/usr/share"),
        isolate.File("/w", "x", read_only=False),
    ):
        with pytest.raises(NotDivided):
            divide(box_of(entry)._plan())
    divide(box_of(isolate.File("/note", "x"), isolate.Mask("/note"), isolate.ReadOnly("/note"))._plan())


def test_explain_says_it() -> None:
    assert re.search(r"done once \(template\): (\d+(-\d+)?, )+\d+(-\d+)?\n", box_of().explain())
    assert "done once" not in box_of(template=False).explain()
    assert "set up anew" in isolate.Sandbox(isolate.UserNamespace(), template=True).explain()
    assert "set up anew: template=False" in isolate.Sandbox(template=False).explain()


def test_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs/template.rst").read_text()
    (block,) = re.findall(r"^\.\. code-block:: python\n\n((?:    .*\n|\n)+)", page, re.M)
    names: dict[str, Any] = {}
    exec(textwrap.dedent(block).replace("range(100)", "range(4)"), names)
    assert "from the second start on" in names["box"].explain()
    assert names["box"].run(["/bin/sh", "-c", "exit 3"]).returncode == 3


def test_the_argument() -> None:
    with pytest.raises(TypeError, match="template"):
        isolate.Sandbox(template="yes")  # type: ignore[arg-type]
    box = box_of(template=False)
    assert not (box + isolate.NoNewPrivs()).template
    assert not box.without(isolate.IpcNamespace).template


FOREIGN_DOMAIN = f"""
import ctypes, sys; sys.path.insert(0, {str(Path(__file__).parent.parent.parent)!r})
from tests.sandbox.test_template import *
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

# In a thread, in a domain without TCP connections. (One about files would refuse the mounts of every start.)
def restricted(call):
    def work():
        ruleset = libc.syscall(444, (ctypes.c_uint64 * 2)(0, 2), 16, 0)  # LANDLOCK_ACCESS_NET_CONNECT_TCP
        assert ruleset >= 0 and libc.syscall(446, ruleset, 0) == 0, ctypes.get_errno()
        os.close(ruleset)
        told.append(call())
    told = []
    thread = threading.Thread(target=work)
    thread.start(); thread.join()
    return told[0]

def connects(box):
    result = box.run(["bash", "-c", "echo > /dev/tcp/127.0.0.1/1"])
    assert b"denied" in result.stderr or b"refused" in result.stderr, result
    return b"denied" not in result.stderr

def park():
    parked_box(tree)
    return connects(tree)

if sys.argv[1]:
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS: the kernel gives a domain with it, too
assert restricted(lambda: connects(box_of(template=False))) is False and connects(box_of(template=False)), "control"
tree = parked_box(box_of())
assert connects(tree) and so_many(tree, 1), "control"
assert not restricted(lambda: connects(tree)), "from a launcher that is in no domain"
assert so_many(tree, 1)
assert connects(parked_box(tree)) and so_many(tree, 2)
tree = box_of(isolate.Dir("/other"))
assert not restricted(park)
assert so_many(tree, 1), "control: in the domain there is a tree, too"
assert connects(tree), "from a launcher that is in a domain"
assert so_many(tree, 1)
parked.end_all()
print("seen")
"""


@pytest.mark.root
@pytest.mark.parametrize("no_new_privs", ["", "no_new_privs"])
def test_a_landlock_domain_of_foreign_code(no_new_privs: str) -> None:
    """The kernel tells nobody of a domain; but who is in one has no access to a launcher that is not."""
    if native.call(syscalls.number("landlock_create_ruleset"), 0, 0, 1) < 4:
        pytest.skip("the kernel's Landlock knows no network")
    code = [sys.executable, "-c", FOREIGN_DOMAIN, no_new_privs]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("seen\n", 0), done.stderr


ORDINARY_DOMAIN = f"""
import ctypes, sys; sys.path.insert(0, {str(Path(__file__).parent.parent.parent)!r})
from tests.sandbox.test_template import *
parked_box(box_of())
parked.end_all()
assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0
tree = box_of(isolate.Dir("/other"))
for _ in range(3):
    assert tree.run(["true"]).ok
    time.sleep(0.1)
print(used(tree), native.lib.iso_watches(os.getpid()))
"""


def test_where_nothing_tells_of_a_domain_there_is_no_tree() -> None:
    """An ordinary user may not look at a launcher, and with no_new_privs the kernel gives a domain at any time."""
    if native.call(syscalls.number("landlock_create_ruleset"), 0, 0, 1) < 1:
        pytest.skip("the kernel has no Landlock")
    assert as_ordinary_user(ORDINARY_DOMAIN).startswith("0 ")


@pytest.mark.root
def test_a_pool_stands_on_it() -> None:
    """What waits is begun by the parked launcher, runs once, and is without a tree where the launcher does not fit."""
    before = Snapshot.take()
    look = "hostname; cat /proc/self/limits; ls -A / /tmp /dev; readlink /proc/self/ns/pid | cut -c1-4; cat"
    expected = box_of(template=False).run(["sh", "-c", look], input=b"fed").stdout
    tree = parked_box(box_of())
    with isolate.Pool(tree, size=2) as pool:
        assert so_many(tree, 2)
        for n in range(3):
            result = pool.run(["sh", "-c", look + f"; exit {n}"], input=b"fed")
            assert (result.returncode, result.stdout) == (n, expected)
        assert so_many(tree, 5)
        with pool.spawn(["cat"], stdin=isolate.PIPE, stdout=isolate.PIPE) as process:
            assert process.communicate(b"through")[0] == b"through"
        assert pool.run(["sleep", "9"], timeout=0.1).verdict == isolate.Verdict.TIMEOUT
        with pytest.raises(isolate.SetupError, match="no-such-program"):
            pool.run(["no-such-program"])
        count = used(tree)
        back = _limit()
        try:
            assert pool.run(["true"]).ok
        finally:
            back()
        assert used(tree) == count, "what was begun then is under another limit"
    parked.end_all()
    before.compare()


def waits_for(launcher: int) -> int:
    """The fork of a launcher that waits for the next start."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        if len(children) == 1:
            return int(children[0])
        time.sleep(0.002)
    raise AssertionError("nobody waits, or more than one")


@pytest.mark.root
def test_a_fork_that_waits_is_killed() -> None:
    tree = parked_box(box_of())
    (launcher,) = launchers(tree)
    os.kill(waits_for(launcher), signal.SIGKILL)
    assert tree.run(["true"]).ok
    assert from_tree(parked_box(tree), "echo again") == b"again\n"


@pytest.mark.root
def test_one_always_waits() -> None:
    """Also while what was started goes on, and it ends with the launcher."""
    tree = parked_box(box_of())
    (launcher,) = launchers(tree)
    with contextlib.ExitStack() as stack:
        alive = [stack.enter_context(tree.spawn(["cat"], stdin=isolate.PIPE)) for _ in range(3)]
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
            if len(children) == len(alive) + 1:
                break
            time.sleep(0.002)
        assert len(children) == len(alive) + 1
        (waiting_fork,) = set(map(int, children)) - {process._session.pid for process in alive}
        fd = os.pidfd_open(waiting_fork)
        try:
            os.kill(launcher, signal.SIGKILL)
            assert waiting.wait([(fd, waiting.READABLE)], 30), "it outlives its launcher"
        finally:
            os.close(fd)
        assert all(process.poll() is None for process in alive)
