"""Run under systemd by tests/vm/in-systemd: a group that was not delegated, then a scope asked for over D-Bus.

    scope.py take_over     the caller moves itself into a scope, by Cgroup.take_over()
    scope.py by_itself     the caller stays where it is, and what it starts is in a scope
    scope.py refused       systemd cannot be asked
    scope.py asked         the same, where it is not the only way (root): the scope alone

Ends with a line "scope: passed" or with a traceback.
"""

from __future__ import annotations

import contextlib
import glob
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import isolate
from isolate.cgroups import naming
from isolate.cgroups import scope as scopes
from isolate.cgroups.hierarchy import discover

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BOMB = [sys.executable, "-I", "-S", "-c", "x = bytearray(160 << 20)"]
#: An ordinary user may drop the groups of its login in a user namespace only.
USER = [isolate.UserNamespace()] if os.geteuid() else []


def own() -> str:
    """This process's group."""
    v2 = discover().v2
    assert v2 is not None
    return v2.own


def ours(pid: int) -> list[str]:
    """Directories of scopes and groups that belong to a program."""
    start = naming.start_time(pid)
    found = glob.glob("/sys/fs/cgroup/**/*isolate-*", recursive=True)
    return [d for d in found if f"-{pid}-" in d and (start is None or f"-{pid}-{start}-" in d)]


def of_runs(pid: int) -> list[str]:
    """Those of its runs, and those that it has made: all but its scope and the leaf with the scope's process."""
    return [d for d in ours(pid) if not d.endswith((".scope", "-self"))]


def fds() -> set[str]:
    """Descriptors that are open."""
    return {f"{n} {os.readlink(f'/proc/self/fd/{n}')}" for n in os.listdir("/proc/self/fd") if int(n) > 2 and _open(n)}


def _open(number: str) -> bool:
    try:
        os.fstat(int(number))
    except OSError:
        return False  # that of listdir itself
    return True


def until(done: Callable[[], bool], what: Callable[[], str], seconds: float = 20.0) -> float:
    """Wait; how long it took. ``what`` tells what is missing in the end."""
    start = time.monotonic()
    while not done():
        assert time.monotonic() - start < seconds, what()
        time.sleep(0.02)  # systemd tells only whoever subscribes, and a group that goes tells nobody
    return time.monotonic() - start


def take_over() -> None:
    """Asked for by name: this process moves."""
    before = own()
    assert before.endswith(".service"), before
    top = isolate.Cgroup.take_over()
    print(f"now in {own()}", flush=True)
    assert top != before
    assert top.endswith(".scope"), top
    assert os.path.dirname(own()) == top
    result = isolate.Sandbox(isolate.Limits(memory="64M", pids=20), *USER).run(BOMB)
    assert result.verdict is isolate.Verdict.OOM, result
    free = isolate.Sandbox(isolate.Limits(pids=20), *USER).run(BOMB)
    assert free.verdict is isolate.Verdict.OK, free
    with isolate.Cgroup(isolate.Limits(memory="64M")) as group:
        assert os.path.dirname(group.path) == top
        assert isolate.Sandbox(*USER, group).run(["true"]).verdict is isolate.Verdict.OK
    assert isolate.Cgroup.take_over() == top
    assert not [n for n in os.listdir(top) if n.startswith("isolate-") and not n.endswith("-self")]
    assert not scopes.mine().directory()


def by_itself() -> None:
    """Chosen by itself: this process stays."""
    isolate.Sandbox(*USER).run(["true"])  # the launcher's own descriptor is opened once
    before, open_before = own(), fds()
    box = isolate.Sandbox(isolate.Limits(memory="64M", pids=20), *USER)
    text = box.explain()
    assert "systemd is asked over D-Bus for a scope with Delegate=yes" in text, text
    box.check()
    assert not ours(os.getpid())
    assert fds() == open_before, (fds(), open_before)

    result = box.run(BOMB)
    assert result.verdict is isolate.Verdict.OOM, result
    assert result.stats.oom_kill, result
    free = isolate.Sandbox(isolate.Limits(pids=20), *USER).run(BOMB)
    assert free.verdict is isolate.Verdict.OK, free
    assert own() == before
    top = scopes.mine().directory()
    print(f"scope {top}", flush=True)
    assert top.endswith(".scope"), top
    try:
        print("a child:", os.waitpid(-1, os.WNOHANG), flush=True)
        raise AssertionError("the scope's process is a child of this one")
    except ChildProcessError:
        pass
    box.check()  # there is a scope now, so the limits are tried, too
    several(top)
    further(top)
    remade(top)
    inherited()
    killed()
    isolate.Cgroup.sweep()
    assert box.run(["true"]).verdict is isolate.Verdict.OK
    assert own() == before


def several(top: str) -> None:
    """From several threads, many in a row: one scope, nothing left in it, no descriptor more."""
    box = isolate.Sandbox(isolate.Limits(memory="64M", pids=20), *USER)
    verdicts: list[object] = []
    box.run(["true"])
    before = fds()

    def run() -> None:
        verdicts.extend([box.run(["true"]).verdict for _ in range(13)])

    start = time.monotonic()
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{len(verdicts)} runs from 4 threads in {time.monotonic() - start:.2f} s", flush=True)
    assert verdicts == [isolate.Verdict.OK] * 52, verdicts
    assert scopes.mine().directory() == top
    assert [os.path.basename(d) for d in glob.glob(f"{top}/isolate-*")] == [naming.prefix() + "self"]
    assert fds() == before


def further(top: str) -> None:
    """What else is started in groups: a Cgroup, a pool, a further program."""
    with isolate.Cgroup(isolate.Limits(memory="64M")) as group:
        assert os.path.dirname(group.path) == top, group.path
        assert isolate.Sandbox(*USER, group).run(BOMB).verdict is isolate.Verdict.SIGNALED
        assert group.stats().oom_kill
        inner = isolate.Sandbox(isolate.Limits(pids=20, parent=group), *USER)
        assert inner.run(["true"]).verdict is isolate.Verdict.OK
    with isolate.Cgroup() as group:
        child = subprocess.Popen(["sleep", "60"])
        group.add(child.pid)
        assert child.pid in group.processes()
        group.kill()
        assert child.wait() == -signal.SIGKILL
    with isolate.CgroupPool(isolate.Limits(memory="64M"), size=2) as pool:
        assert isolate.Sandbox(pool, *USER).run(BOMB).verdict is isolate.Verdict.OOM
    box = isolate.Sandbox(isolate.Limits(memory="64M"), isolate.PidNamespace(), *USER)
    with box.spawn(["sleep", "60"]) as process:
        with process.exec(["cat", "/proc/self/cgroup"], stdout=subprocess.PIPE) as second:
            assert second.stdout is not None
            said = second.stdout.read().decode()
        assert os.path.basename(top) in said, said
        process.kill()


def remade(top: str) -> None:
    """A scope that somebody stops takes down what is in it; the next start asks for another."""
    box = isolate.Sandbox(isolate.Limits(memory="64M"), *USER)
    box.run(["true"])
    manager = ["--user"] if os.geteuid() else []
    subprocess.run(["systemctl", *manager, "stop", os.path.basename(top)], check=True)
    until(lambda: not scopes.mine().directory(), lambda: "the scope was stopped")
    assert box.run(BOMB).verdict is isolate.Verdict.OOM
    again = scopes.mine().directory()
    assert again not in ("", top), again


def inherited() -> None:
    """A forked child has none of it: it gets a scope of its own, which goes with it."""
    box = isolate.Sandbox(isolate.Limits(memory="64M"), *USER)
    box.run(["true"])
    mine = scopes.mine().directory()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert not scopes.mine().directory()
            assert box.run(BOMB).verdict is isolate.Verdict.OOM
            assert scopes.mine().directory() not in ("", mine)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    until(lambda: not ours(pid), lambda: f"a forked child's scope: {ours(pid)}")
    assert scopes.mine().directory() == mine


VICTIM = """
import isolate, sys
box = isolate.Sandbox(isolate.Limits(memory="64M"), *([isolate.UserNamespace()] if sys.argv[1] != "0" else []))
group = isolate.Cgroup(isolate.Limits(memory="64M")).create()
with box.spawn(["sleep", "60"]) as process:
    from isolate.cgroups.scope import mine
    print(process.pid, mine()._holder.pid, flush=True)
    process.wait()
"""


def left(starts: Mapping[int, int | None]) -> list[str]:
    """What the kernel says of those processes that are still there."""
    alive = [pid for pid, start in starts.items() if naming.start_time(pid) == start]
    return [Path(f"/proc/{pid}/{name}").read_text() for pid in alive for name in ("stat", "cgroup", "wchan")]


def killed() -> None:
    """SIGKILL of a program: its scope, our process in it, its groups and what ran in them go."""
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, str(os.geteuid())], stdout=subprocess.PIPE)
    assert victim.stdout is not None
    inside, holder = map(int, victim.stdout.readline().split())
    starts = {pid: naming.start_time(pid) for pid in (inside, holder)}
    assert all(starts.values()), starts
    units = [os.path.basename(d) for d in ours(victim.pid) if d.endswith(".scope")]
    assert len(units) == 1, ours(victim.pid)
    victim.kill()
    pid = victim.pid
    victim.wait()
    victim.stdout.close()
    took = until(
        lambda: not of_runs(pid) and all(naming.start_time(p) != start for p, start in starts.items()),
        lambda: f"left after SIGKILL of {pid}: {ours(pid)} {left(starts)}",
    )
    manager = ["--user"] if os.geteuid() else []
    show = ["systemctl", *manager, "show", "-p", "LoadState", "--value", units[0]]
    until(
        lambda: subprocess.run(show, check=True, capture_output=True).stdout.strip() == b"not-found",
        lambda: f"{units[0]} is still loaded, with {ours(pid)}",
    )
    # The scope is systemd's to remove, once. A user's manager was seen to give up on directories with nobody in them.
    for directory in sorted(ours(pid), reverse=True):
        print(f"systemd has left {directory}", flush=True)
        with contextlib.suppress(FileNotFoundError):  # it is slow, and has not given up
            os.rmdir(directory)
    print(f"nothing left {took:.2f} s after SIGKILL", flush=True)


def asked() -> None:
    """Root need not ask; where it does, the system's manager answers."""
    before = own()
    scopes.mine().make()
    top = scopes.mine().directory()
    assert top.endswith(".scope"), top
    assert own() == before
    box = isolate.Sandbox(isolate.Limits(memory="64M", parent=top))
    assert box.run(BOMB).verdict is isolate.Verdict.OOM
    assert isolate.Sandbox(isolate.Limits(parent=top)).run(BOMB).verdict is isolate.Verdict.OK
    # Found by itself: the top of the hierarchy, since nothing forbids it.
    assert "systemd is asked" not in isolate.Sandbox(isolate.Limits(memory="64M")).explain()
    assert own() == before


def refused() -> None:
    """Without jeepney, or a bus: the error says what is missing, and nothing is asked."""
    sys.modules["jeepney"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        isolate.Sandbox(isolate.Limits(memory="64M")).run(["true"])
    except isolate.UnsupportedError as error:
        print(error, flush=True)
        remedy = str(error.remedy)
    else:
        raise AssertionError("a place was found")
    assert "isolate-linux[systemd]" in remedy, remedy
    assert "systemd-run --user --scope -p Delegate=yes" in remedy, remedy
    del sys.modules["jeepney"]
    assert "systemd is asked" in isolate.Sandbox(isolate.Limits(memory="64M")).explain()
    os.environ["XDG_RUNTIME_DIR"] = "/nowhere"
    try:
        isolate.Sandbox(isolate.Limits(memory="64M")).run(["true"])
    except isolate.UnsupportedError as error:
        remedy = str(error.remedy)
    else:
        raise AssertionError("a bus was found")
    assert "loginctl enable-linger" in remedy, remedy


def main() -> None:
    """The way that is named."""
    print(f"uid {os.geteuid()} in {own()}", flush=True)
    {"take_over": take_over, "by_itself": by_itself, "asked": asked, "refused": refused}[sys.argv[1]]()
    print("scope: passed", flush=True)


main()
