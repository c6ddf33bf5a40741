"""Programs that do what they can to the container they are in: contained, and no call waits past its deadline."""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

import isolate
from isolate import (
    Capabilities,
    Dev,
    Limits,
    PidNamespace,
    Proc,
    Root,
    Sandbox,
    Seccomp,
    SetupError,
    Tmpfs,
    UserNamespace,
    Verdict,
)
from tests.boxes import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.snapshot import Snapshot

#: Root inside, with every capability over what is inside, and no filter: the worst that can be asked for.
POWERFUL = Sandbox(
    UserNamespace(),
    PidNamespace(),
    Root(
        *SYSTEM,
        Proc(),
        Dev(),
        Tmpfs("/tmp", size="16M"),
        Tmpfs("/scratch", size="1M", inodes=100),
    ),
    Capabilities.all(),
    Seccomp(otherwise="allow", foreign="allow"),
)
PATIENCE = 40.0


@pytest.fixture
def c(clean: Snapshot) -> Iterator[isolate.Container]:
    with POWERFUL.open() as container:
        yield container
        start = time.monotonic()
    assert time.monotonic() - start < PATIENCE


def within(function: Any, *args: Any, **options: Any) -> Any:
    """What a call gives, or the library's error; not later than its deadline and some patience."""
    start = time.monotonic()
    try:
        return function(*args, **options)
    except SetupError as error:
        return error
    finally:
        assert time.monotonic() - start < PATIENCE


def test_init_is_killed_and_stopped_from_inside(c: isolate.Container) -> None:
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV):
        c.run(["sh", "-c", f"kill -{int(number)} 1"], timeout=30)
        assert c.run(["true"], timeout=30).verdict is Verdict.OK


def test_everybody_is_stopped_and_killed_as_they_come(c: isolate.Container) -> None:
    """A program that stops, or kills, whoever else there is, all the time: the launcher's processes too."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        attack = f"import os\nwhile True:\n  try: os.kill(-1, {int(number)})\n  except OSError: pass\n"
        with c.spawn(["python3", "-c", attack]) as attacker:
            for _ in range(3):
                found = within(c.run, ["echo", "x"], timeout=1)
                assert isinstance(found, SetupError) or found.verdict in (
                    Verdict.OK,
                    Verdict.TIMEOUT,
                    Verdict.SIGNALED,
                ), found
            within(c.put, {"file": "x"}, "/tmp")
            within(c.get, "/tmp/*")
            assert c.running
            attacker.kill()
            attacker.wait(PATIENCE)
        assert c.run(["true"], timeout=10).verdict is Verdict.OK  # the control: without it all is well


def test_proc_is_replaced(c: isolate.Container) -> None:
    inside = (
        "mount -t tmpfs none /proc && mkdir -p /proc/self/ns /proc/1 /proc/self/fd && ln -s /tmp /proc/self/ns/mnt"
        " && echo forged > /proc/self/status && mkfifo /proc/meminfo"
    )
    assert c.run(["unshare", "--help"]).verdict is not None
    assert within(c.run, ["sh", "-c", inside], timeout=30).verdict is Verdict.OK
    assert c.run(["cat", "/proc/self/status"]).stdout == b"forged\n"
    assert c.run(["true"]).verdict is Verdict.OK
    assert c.read("/proc/self/status") == b"forged\n"
    with pytest.raises(SetupError) as caught:
        c.read("/proc/meminfo")
    assert caught.value.errno == errno.EINVAL
    assert c.run(["sleep", "9"], timeout=0.2).verdict is Verdict.TIMEOUT
    with c.spawn(["sleep", "9"]) as process:
        assert process.poll() is None


def test_the_root_is_covered(c: isolate.Container) -> None:
    """Mounts over the root and over the programs: what is run and read is what stands there, or an error."""
    assert within(c.run, ["mount", "-t", "tmpfs", "none", "/usr/lib"], timeout=30).verdict is Verdict.OK
    found = within(c.run, ["cat", "/etc/hostname"], timeout=30)
    assert isinstance(found, SetupError)
    assert found.step.startswith("execute")
    assert c.list("/usr/lib") == []
    c.write("/tmp/still", "there")
    assert c.read("/tmp/still") == b"there"


def test_the_newcomer_cannot_be_traced(c: isolate.Container) -> None:
    """Whoever looks for processes of ours in /proc may open none of their memory, descriptors or roots."""
    spy = (
        "import os, select, sys\nfound = []\nprint('ready', flush=True)\n"
        "while True:\n"
        "  for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "    try:\n"
        "      if open(f'/proc/{pid}/comm').read() != sys.argv[1]: continue\n"
        "      for what in ('mem', 'maps', 'environ', 'root/etc', 'cwd/.', 'fd/0', 'exe'):\n"
        "        try:\n"
        "          if what == 'exe': os.readlink(f'/proc/{pid}/exe')\n"
        "          elif '/' in what: os.stat(f'/proc/{pid}/' + what)\n"
        "          else:\n"
        "            with open(f'/proc/{pid}/' + what, 'rb', buffering=0) as file:\n"
        # Of a process that has ended and was not waited for, everybody may open these, and there is nothing in them.
        "              if what != 'fd/0' and not file.read(1): continue\n"
        "        except OSError as error:\n"
        "          if what != 'mem' or error.errno != 5: continue\n"  # EIO: opened, and nothing is at address 0
        "        if open(f'/proc/{pid}/comm').read() == sys.argv[1]: found.append((pid, what))\n"
        "    except OSError: pass\n"
        "  if select.select([0], [], [], 0)[0]: break\n"
        "print(found)\n"
    )
    with c.spawn(["python3", "-c", spy, "isolate-launche\n"], stdin=isolate.PIPE, stdout=isolate.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        for _ in range(60):
            c.run(["true"])
        assert process.communicate(b"enough") == (b"[]\n", None)
    with c.spawn(["sleep", "100"]):  # the control: a program of the same user is looked into
        assert b"maps" in (c.run(["python3", "-c", spy, "sleep\n"], input=b"enough").stdout or b"")


def test_file_systems_are_filled(c: isolate.Container) -> None:
    fill = "touch $(seq -f /scratch/%g 200); yes > /tmp/full; true"
    c.run(["sh", "-c", fill], timeout=20)
    for path in ("/tmp/more", "/scratch/more"):
        with pytest.raises(SetupError) as caught:
            c.write(path, b"x" * 100_000)
        assert caught.value.errno == errno.ENOSPC
    with pytest.raises(SetupError) as caught:
        c.get("/tmp", max_size="1M")
    assert caught.value.errno == errno.EFBIG
    assert c.run(["true"]).verdict is Verdict.OK
    assert [i.path for i in c.list("/tmp")] == ["/tmp/full"]  # nothing of a failed write is left


def test_processes_run_out() -> None:
    box = POWERFUL + Limits(pids=16)
    try:
        box.check()
    except isolate.UnsupportedError as error:
        pytest.skip(str(error))
    with box.open() as c:
        bomb = (
            "import os, time\ntry:\n  while True:\n    if not os.fork(): time.sleep(100)\n"
            "except OSError: time.sleep(100)\n"
        )
        with c.spawn(["python3", "-c", bomb]) as process:
            deadline = time.monotonic() + PATIENCE
            while (c.stats().pids or 0) < 16 and time.monotonic() < deadline:
                time.sleep(0.01)
            found = within(c.run, ["true"], timeout=2)
            assert isinstance(found, SetupError) or found.verdict is not Verdict.OK
            process.kill()
            process.wait(PATIENCE)
        assert c.run(["true"], timeout=30).verdict is Verdict.OK


def test_one_that_freezes_itself_ends_at_its_limit() -> None:
    box = POWERFUL + Limits()
    try:
        box.check()
    except isolate.UnsupportedError as error:
        pytest.skip(str(error))
    with box.open() as c:
        with c.spawn(["sleep", "100"]) as process:
            c.freeze()
            start = time.monotonic()
            process.kill()
            process.wait(PATIENCE)
            assert time.monotonic() - start < PATIENCE
        c.thaw()
        assert c.run(["true"]).verdict is Verdict.OK


def test_a_namespace_that_a_program_leaves_is_not_where_others_go(c: isolate.Container) -> None:
    """A program that unshares and pivots is alone there: commands are started where the container began."""
    leave = "mount --bind /tmp /tmp && cd /tmp && exec sleep 100"
    with c.spawn(["unshare", "--mount", "sh", "-c", leave]):
        assert "usr" in [i.path.strip("/") for i in c.list("/")]
        assert c.run(["ls", "/usr/bin/true"]).verdict is Verdict.OK


def test_a_command_that_does_not_end_by_itself_ends_with_its_block(c: isolate.Container) -> None:
    stubborn = "trap '' TERM HUP INT QUIT; (setsid sleep 1000 &) ; while :; do sleep 1; done"
    start = time.monotonic()
    with c.spawn(["sh", "-c", stubborn]):
        pass
    assert c.run(["sh", "-c", stubborn], timeout=0.2).verdict is Verdict.TIMEOUT
    assert time.monotonic() - start < PATIENCE
    names = c.run(["sh", "-c", "cat /proc/[0-9]*/comm"], text=True).stdout or ""
    assert "sleep" not in names
    assert os.path.exists("/proc/self")
