"""Calls decided in Python: answers, memory, descriptors, mistakes, slowness, and ends."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from isolate import Sandbox, Seccomp, Verdict
from isolate.seccomp import allow, deny
from isolate.seccomp.notify import Call, Reply, StaleCall
from tests.snapshot import SOON, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from isolate.sandbox.result import Result

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def run(handlers: dict[str, Any], code: str, *more: Seccomp, **options: Any) -> Result[str]:
    policy = Seccomp(otherwise="allow", notify=handlers, **options)
    return Sandbox(policy, *more).run([sys.executable, "-c", code], text=True, timeout=60, env=ENV)


def reports(monkeypatch: pytest.MonkeyPatch, ours: Callable[[Any], bool]) -> list[Any]:
    """What is told of errors that nobody can catch. Those of other threads and of the collector are not the test's."""
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: reported.append(report) if ours(report) else None)
    return reported


def until(done: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    deadline = time.monotonic() + SOON
    while not done() and time.monotonic() < deadline:
        threading.Event().wait(0.01)


GETPPID = "import ctypes; c = ctypes.CDLL(None, use_errno=True); print(c.syscall(110), ctypes.get_errno())"
PPID = (
    "from isolate import syscalls\nfrom isolate.engine import native\n"
    "print(native.call(syscalls.number('getppid')), native.call(syscalls.number('getpgid'), 7) != 99)"
)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply.value(4242), "4242"),
        (Reply.value(-1), "-1"),
        (Reply.value(2**40), str(2**40)),
        (Reply.errno("EXDEV"), "-18"),
        (Reply.errno(5), "-5"),
    ],
)
def test_answers(reply: Reply, expected: str) -> None:
    seen = []

    def handler(call: Call) -> Reply:
        seen.append((call.name, call.arch, call.pid > 0, call.valid()))
        return reply

    result = run({"getppid": handler}, PPID)
    assert result.stdout.split() == [expected, "True"], result
    assert seen == [("getppid", seen[0][1], True, True)]
    assert run({"getppid": lambda _: Reply.proceed()}, PPID).stdout.split()[0] not in ("4242", "-18"), "the control"


def test_memory_is_read_and_written(tmp_path: Path) -> None:
    """A program's uname() is answered with another name, and its paths are seen."""
    paths = []

    def uname(call: Call) -> Reply:
        call.write(call.args[0] + 65, b"another.host\0")
        return Reply.value(0)

    def openat(call: Call) -> Reply:
        paths.append(call.read_string(call.args[1]))
        assert call.read(call.args[1], 1) == paths[-1][:1]
        return Reply.errno("ENOENT") if paths[-1].endswith(b"hidden") else Reply.proceed()

    (tmp_path / "hidden").write_text("x")
    code = (
        f"import os; print(os.uname().nodename)\n"
        f"try: print(open({str(tmp_path / 'hidden')!r}).read())\nexcept FileNotFoundError: print('hidden')\n"
    )
    result = run({"uname": uname, "openat": openat}, code)
    assert result.stdout.split() == ["another.host", "hidden"], result
    assert os.fsencode(tmp_path / "hidden") in paths
    control = Sandbox().run([sys.executable, "-c", code], text=True, timeout=60, env=ENV)
    assert control.stdout.split()[1] == "x"
    assert control.stdout.split()[0] != "another.host"


def test_reads_of_memory_are_bounded() -> None:
    found: list[Any] = []

    def handler(call: Call) -> Reply:
        for do in (lambda: call.read(0, 16), lambda: call.read(call.args[0], 1 << 30), lambda: call.read_string(8)):
            try:
                found.append(do())
            except (OSError, ValueError) as error:
                found.append(type(error).__name__)
        return Reply.value(1)

    assert run({"getppid": handler}, PPID).stdout.split()[0] == "1"
    assert found == ["OSError", "ValueError", "OSError"]


def test_a_descriptor_is_handed_in() -> None:
    def handler(call: Call) -> Reply:
        if call.read_string(call.args[1]) != b"/from/outside":
            return Reply.proceed()
        read, write = os.pipe()
        os.write(write, b"opened by the caller")
        os.close(write)
        try:
            return Reply.descriptor(read)
        finally:
            os.close(read)

    before = Snapshot.take()
    result = run({"openat": handler}, "print(open('/from/outside').read())")
    assert result.stdout.strip() == "opened by the caller", result
    del result
    before.compare()


async def _later(call: Call) -> Reply:
    import asyncio

    await asyncio.sleep(0)
    return Reply.value(77)


def test_async_handlers() -> None:
    assert run({"getppid": _later}, PPID).stdout.split()[0] == "77"


def test_a_handler_that_raises_is_eio_and_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(call: Call) -> Reply:
        raise RuntimeError("broken")

    def wrong(call: Call) -> Any:
        return 5

    reported = reports(monkeypatch, lambda report: report.object in (broken, wrong))
    assert run({"getppid": broken}, PPID).stdout.split()[0] == "-5"
    assert run({"getppid": wrong}, PPID).stdout.split()[0] == "-5"
    # The program has its answer before the mistake is told.
    until(lambda: len(reported) == 2)
    assert [type(report.exc_value) for report in reported] == [RuntimeError, TypeError]
    assert "getppid" in reported[0].err_msg


def test_a_slow_handler_is_etimedout_and_its_late_answer_dropped() -> None:
    release = threading.Event()
    finished = threading.Event()

    def slow(call: Call) -> Reply:
        release.wait(30)
        finished.set()
        return Reply.value(1)

    start = time.monotonic()
    result = run({"getppid": slow}, PPID, notify_timeout=0.3)
    assert result.stdout.split()[0] == "-110", result
    assert time.monotonic() - start < 25  # the handler waits for longer
    release.set()
    assert finished.wait(10)


def test_a_program_killed_while_its_call_waits() -> None:
    """The call is void then; the handler is told, and the run ends."""
    state: list[Any] = []
    arrived = threading.Event()
    go_on = threading.Event()

    def handler(call: Call) -> Reply:
        arrived.set()
        go_on.wait(30)
        state.append(call.valid())
        try:
            call.read(call.args[0], 1)
        except StaleCall:
            state.append("stale")
        return Reply.value(1)

    policy = Seccomp(otherwise="allow", notify={"getppid": handler}, notify_timeout=60)
    with Sandbox(policy).spawn([sys.executable, "-c", PPID], env=ENV) as process:
        assert arrived.wait(30)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        go_on.set()
        for _ in range(100):
            if len(state) == 2:
                break
            threading.Event().wait(0.05)
    assert state == [False, "stale"]


def test_several_at_once() -> None:
    barrier = threading.Barrier(4, timeout=20)

    def handler(call: Call) -> Reply:
        barrier.wait()
        return Reply.value(8)

    code = (
        "import os\nfrom isolate import syscalls\nfrom isolate.engine import native\n"
        "for _ in range(3):\n    if os.fork() == 0: break\n"
        "os.write(1, b'%d\\n' % native.call(syscalls.number('getppid')))\n"
        "try:\n    while True: os.wait()\nexcept OSError: pass\n"
    )
    result = run({"getppid": handler}, code)
    assert result.stdout.split() == ["8"] * 4, result


def test_one_policy_in_many_runs() -> None:
    policy = Seccomp(otherwise="allow", notify={"getppid": lambda _: Reply.value(3)})
    box = Sandbox(policy)
    for _ in range(5):
        assert box.run([sys.executable, "-c", PPID], text=True, env=ENV, timeout=60).stdout.split()[0] == "3"
    other = Sandbox(policy, Seccomp.default())
    assert other.run([sys.executable, "-c", PPID], text=True, env=ENV, timeout=60).stdout.split()[0] == "3"


def test_beside_policies_that_refuse_much() -> None:
    """The way out for the listener is open whatever the other policies say."""
    result = run({"getppid": lambda _: Reply.value(6)}, "import os; print(os.getppid())", Seccomp.strict())
    assert result.stdout.split() == ["6"], result
    passed = Sandbox(Seccomp(otherwise="allow", notify={"getppid": lambda _: Reply.value(6)}))
    read, write = os.pipe()
    try:
        args = [sys.executable, "-c", "import os; print(os.getppid(), os.fstat(6).st_mode != 0)"]
        assert passed.run(args, text=True, pass_fds={6: write}, timeout=60).stdout.split() == ["6", "True"]
    finally:
        os.close(read)
        os.close(write)


def test_a_dead_supervisor_does_not_hang_the_program() -> None:
    """The caller closes the supervisor while a program runs: its calls fail with ENOSYS from then on."""
    first = threading.Event()
    policy = Seccomp(otherwise="allow", notify={"getppid": lambda _: (first.set(), Reply.value(5))[1]})
    code = (
        "import sys\nfrom isolate import syscalls\nfrom isolate.engine import native\n"
        "print(native.call(syscalls.number('getppid')), flush=True)\nsys.stdin.readline()\n"
        "print(native.call(syscalls.number('getppid')), flush=True)\n"
    )
    with Sandbox(policy).spawn([sys.executable, "-c", code], env=ENV, stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline().strip() == b"5"
        policy.__dict__["_supervisor"].close()
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdin.flush()
        assert process.stdout.readline().strip() == b"-38"
        assert process.wait() == 0


def test_the_threads_end_with_the_policy() -> None:
    before = set(threading.enumerate())  # with those of earlier tests, which may end at any time
    box: Any = Sandbox(Seccomp(otherwise="allow", notify={"getppid": lambda _: Reply.value(3)}))
    (thread,) = set(threading.enumerate()) - before
    assert thread.name == "isolate-seccomp"
    del box
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Seccomp(notify={"opneat": len}), ValueError, "did you mean 'openat'"),
        (lambda: Seccomp(notify={"openat": 3}), TypeError, "cannot be called"),  # type: ignore[dict-item]
        (lambda: Seccomp(notify={"sendmsg": len}), ValueError, "sendmsg cannot have a handler"),
        (lambda: Seccomp(notify={"openat": len}, notify_timeout=0), ValueError, "positive"),
        (lambda: Seccomp(notify={"openat": len}) + allow("read"), TypeError, "of their own"),
        (lambda: Reply.errno(9999), ValueError, "out of range"),
        (lambda: Reply.descriptor(-1), ValueError, "not a descriptor"),
        (lambda: Reply.value("1"), ValueError, "signed 64-bit"),  # type: ignore[arg-type]
        (
            lambda: Sandbox(*(Seccomp(otherwise="allow", notify={n: len}) for n in ("read", "write"))),
            ValueError,
            "one set",
        ),
        (lambda: Sandbox(Seccomp(allow("read"))), ValueError, "refuses execve"),
        (lambda: Sandbox(Seccomp.strict(), Seccomp.strict("kill")), ValueError, "2 policies refuse the call seccomp"),
    ],
)
def test_refused(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


def test_policies_stack_in_an_order_that_works() -> None:
    result = Sandbox(Seccomp.strict(), Seccomp.default(), Seccomp(deny("getppid"), otherwise="allow")).run(
        [sys.executable, "-c", "import os; print(os.getpid() > 0)"], text=True, timeout=60
    )
    assert result.stdout.split() == ["True"]
    assert result.verdict is Verdict.OK


def test_the_caller_killed_while_a_call_waits(tmp_path: Path) -> None:
    """Nothing hangs on a supervisor that is gone: the sandbox goes with it."""
    script = tmp_path / "caller.py"
    script.write_text(
        "import os, signal, sys\nfrom isolate import Sandbox, Seccomp\n"
        "def handler(call):\n    print(call.pid, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Sandbox(Seccomp(otherwise='allow', notify={'getppid': handler})).run("
        "[sys.executable, '-c', 'import os; os.getppid()'], timeout=60)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, env=ENV)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    deadline = time.monotonic() + SOON
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    assert not os.path.exists(f"/proc/{pid}")


# ---- a program that nobody vouches for, and mistakes of handlers ---------------------------------------------------

BROKEN = """
import sys, threading, time
from isolate import Sandbox, Seccomp
told, real = threading.Event(), sys.stderr
class Told:
    def write(self, text):
        real.write(text)
        real.flush()
        told.set()
sys.stderr = Told()
def raises(call): raise RuntimeError("broken")
async def also(call): return None
handlers = {"raises": raises, "none": lambda call: None, "async none": also, "exits": lambda call: sys.exit(3)}
handler = handlers[sys.argv[1]]
start = time.monotonic()
result = Sandbox(Seccomp(otherwise="allow", notify={"getppid": handler}, notify_timeout=50)).run(
    [sys.executable, "-c", sys.argv[2]], text=True, timeout=60, env={"PYTHONPATH": sys.argv[3]})
print(result.stdout.split()[0], time.monotonic() - start < 40)
told.wait(10)  # the mistake is told after the answer, by a thread that ends with this program
"""


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("raises", "RuntimeError: broken"),
        ("none", "not None"),
        ("async none", "not None"),
        ("exits", "SystemExit: 3"),
    ],
)
def test_23_a_broken_handler_answers_first(kind: str, told: str) -> None:
    """With the interpreter's own hook, which takes no report but its own: the answer came only after the timeout."""
    command = [sys.executable, "-c", BROKEN, kind, PPID, ENV["PYTHONPATH"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, env=ENV)
    assert done.stdout.split() == ["-5", "True"], done.stderr
    assert told in done.stderr
    assert "getppid" in done.stderr


def test_23_a_report_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def hook(report: Any) -> None:
        told.append(report.exc_value)
        raise ValueError("the hook is broken, too")

    mistake = ZeroDivisionError()

    def handler(call: Call) -> Reply:
        raise mistake

    monkeypatch.setattr(sys, "unraisablehook", hook)
    assert run({"getppid": handler}, PPID, notify_timeout=20).stdout.split()[0] == "-5"
    until(lambda: mistake in told)  # else another test's hook is told


FLOOD = """
import threading, sys
from isolate import syscalls
from isolate.engine import native
found = []
def ask(): found.append(native.call(syscalls.number("getppid")))
threads = [threading.Thread(target=ask) for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 300)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(found), sorted(set(found)))
"""


def test_23_a_flood_takes_a_bounded_number_of_threads() -> None:
    """300 calls at once whose handlers wait; meanwhile, and later, another program of the same policy is answered."""
    release, most = threading.Event(), [0]

    def handlers() -> int:
        return sum(thread.name == "isolate-seccomp-handler" for thread in threading.enumerate())

    def handler(call: Call) -> Reply:
        most[0] = max(most[0], handlers())
        if call.name == "getpgid":
            return Reply.value(7)
        release.wait(60)
        return Reply.value(5)

    policy = Seccomp(otherwise="allow", notify={"getppid": handler, "getpgid": handler}, notify_timeout=50)
    box = Sandbox(policy)
    quick = "import os; print(os.getpgid(0))"
    with box.spawn([sys.executable, "-c", FLOOD], env=ENV, stdout=-1) as process:
        deadline = time.monotonic() + 30
        while handlers() < 16 and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        beside = box.run([sys.executable, "-c", quick], env=ENV, text=True, timeout=30)
        assert beside.stdout == "7\n", beside
        assert most[0] <= 64
        release.set()
        assert process.stdout is not None
        assert process.stdout.read() == b"300 [5]\n"
    assert box.run([sys.executable, "-c", quick], env=ENV, text=True, timeout=30).stdout == "7\n"


def test_23_handlers_that_never_return_do_not_stop_the_others() -> None:
    release = threading.Event()

    def handler(call: Call) -> Reply:
        if call.name == "getppid":
            release.wait(60)
        return Reply.value(7)

    policy = Seccomp(otherwise="allow", notify={"getppid": handler, "getpgid": handler}, notify_timeout=0.5)
    box = Sandbox(policy)
    try:
        flood = box.run([sys.executable, "-c", FLOOD, "100"], env=ENV, text=True, timeout=50)
        assert flood.stdout == "100 [-110]\n", flood
        # Each call has half a second for its answer, which on a busy machine may come too late.
        code = "import os\nfor _ in range(100):\n try: print(os.getpgid(0)); break\n except OSError: pass"
        assert box.run([sys.executable, "-c", code], env=ENV, text=True, timeout=60).stdout == "7\n"
    finally:
        release.set()


@pytest.mark.parametrize("address", [0, 8, 2**47, 2**63 - 1, 2**63, 2**64 - 8, 2**64, 2**70, -1])
def test_23_addresses_that_are_none(address: int) -> None:
    found: list[Any] = []

    def handler(call: Call) -> Reply:
        for do in (
            lambda: call.read(address, 16),
            lambda: call.read_string(address),
            lambda: call.write(address, b"x" * 16),
        ):
            try:
                found.append(do())
            except OSError as error:
                found.append(error.errno)
        return Reply.value(1)

    assert run({"getppid": handler}, PPID).stdout.split()[0] == "1"
    assert found == [14, 14, 14]  # EFAULT


def test_23_memory_of_a_program_that_has_ended(tmp_path: Path) -> None:
    """It ends between the look whether it still waits and the transfer: a write got nowhere, for ever."""
    found: list[Any] = []
    done = threading.Event()

    def handler(call: Call) -> Reply:
        valid = call.valid

        def and_then_dead() -> bool:
            held = valid()
            if not held:
                return False
            os.kill(call.pid, signal.SIGKILL)
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                try:
                    with open(f"/proc/{call.pid}/stat", "rb") as file:
                        if file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X"):
                            break
                except OSError:
                    break
            return held

        call.valid = and_then_dead  # type: ignore[method-assign]
        try:
            call.write(call.args[0], b"x" * 4)
        except OSError as error:
            found.append(type(error))
        done.set()
        return Reply.value(0)

    result = run({"uname": handler}, "import os; os.uname()")
    assert result.verdict is Verdict.SIGNALED
    assert done.wait(10)
    assert found == [StaleCall]


def test_23_an_error_in_the_supervisor_ends_one_program_and_not_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from isolate.seccomp import supervisor

    unexpected = OSError(5, "unexpected")
    reported = reports(monkeypatch, lambda report: report.exc_value is unexpected)
    real, broken = supervisor._receive, [True]
    handlers = {"getppid": lambda _: Reply.value(5)}

    def receive(state: Any, *arguments: Any) -> None:
        # The threads of earlier tests' policies also come here, whenever one of their programs ends.
        if broken and state.handlers == handlers:
            broken.pop()
            raise unexpected
        real(state, *arguments)

    monkeypatch.setattr(supervisor, "_receive", receive)
    policy = Seccomp(otherwise="allow", notify=handlers)
    box = Sandbox(policy)
    first = box.run([sys.executable, "-c", PPID], text=True, timeout=60, env=ENV)
    assert first.stdout.split()[0] == "-38"
    assert box.run([sys.executable, "-c", PPID], text=True, timeout=60, env=ENV).stdout.split()[0] == "5"
    until(lambda: bool(reported))
    assert len(reported) == 1


def test_23_a_reply_that_cannot_be_given_is_an_error_for_the_program() -> None:
    reply = Reply("descriptor", fd=-1)
    assert run({"getppid": lambda _: reply}, PPID, notify_timeout=30).stdout.split()[0].startswith("-")
    with pytest.raises(ValueError, match="new_fd"):
        Reply.descriptor(0, new_fd=-1)
    with pytest.raises(ValueError, match="no reply is of the kind"):
        Reply("descripter")
