"""A program does not inherit the caller's priorities, unless that is said by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from isolate import Sandbox, Scheduling
from tests.ordinary import as_ordinary_user

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can have a priority to hand on")
SHOW = (
    "import ctypes, os; libc = ctypes.CDLL(None); p = os.sched_getscheduler(0);"
    "print(p, os.sched_getparam(0).sched_priority, os.getpriority(0, 0), libc.syscall(252, 1, 0) >> 13,"
    " libc.syscall(252, 1, 0) & 7)"
)
NUMBERS = "{'ioprio_set': 251}" if os.uname().machine == "x86_64" else "{'ioprio_set': 30}"


def shown(cases: list[tuple[str, str]]) -> list[str]:
    """Policy, priority, nice value, I/O class and level of programs whose caller, each another one, did this first."""
    show = SHOW if os.uname().machine == "x86_64" else SHOW.replace("252", "31")
    code = (
        "import ctypes, os\nfrom isolate import Sandbox, Scheduling\n"
        f"def ioprio(value): assert ctypes.CDLL(None).syscall({NUMBERS}['ioprio_set'], 1, 0, value) == 0\n"
        f"for before, parts in {cases!r}:\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        exec(before)\n"
        f"        r = eval(f'Sandbox({{parts}})').run(['python3', '-I', '-S', '-c', {show!r}])\n"
        "        assert r.ok, r.stderr\n"
        "        print(r.stdout.decode().strip(), flush=True)\n"
        "        os._exit(0)\n"
        "    assert os.waitpid(pid, 0)[1] == 0, (before, parts)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


FIFO = "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(7))"
RR = "os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))"


CASES = [
    ("pass", "", "0 0 0 0 0"),
    (FIFO, "", "0 0 0 0 0"),
    (FIFO, "Scheduling(policy='inherit')", "1 7 0 0 0"),
    (FIFO, "Scheduling(nice=3)", "0 0 3 0 0"),
    (FIFO, "Scheduling(policy='batch')", "3 0 0 0 0"),
    (RR, "", "0 0 0 0 0"),
    ("os.nice(-5)", "", "0 0 0 0 0"),
    ("os.nice(-5)", "Scheduling(nice=-2)", "0 0 -2 0 0"),
    ("os.nice(-5)", "Scheduling(policy='inherit')", "0 0 -5 0 0"),
    ("os.nice(5)", "", "0 0 5 0 0"),
    ("os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)); os.nice(-3)", "", "0 0 0 0 0"),
    ("os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))", "", "3 0 0 0 0"),
    ("os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))", "", "5 0 0 0 0"),
    ("ioprio(1 << 13 | 2)", "", "0 0 0 0 0"),
    ("ioprio(1 << 13 | 2)", "Scheduling(ioprio='inherit')", "0 0 0 1 2"),
    ("ioprio(2 << 13 | 0)", "", "0 0 0 0 0"),
    ("ioprio(2 << 13 | 6)", "", "0 0 0 2 6"),
    ("ioprio(3 << 13)", "", "0 0 0 3 0"),
    ("ioprio(1 << 13 | 2)", "Scheduling(ioprio=('best-effort', 1))", "0 0 0 2 1"),
]


@root_only
def test_05_priorities_are_not_inherited() -> None:
    """Each beside its control: by name, the same caller's program has them."""
    found = shown([(before, parts) for before, parts, _ in CASES])
    assert [(*case[:2], told) for case, told in zip(CASES, found, strict=True)] == CASES


@root_only
def test_05_an_ordinary_user_with_a_priority() -> None:
    """A service with CPUSchedulingPolicy=fifo and User=: what it starts is ordinary without any right."""
    code = (
        "import os\nfrom isolate import Sandbox\nassert os.sched_getscheduler(0) == os.SCHED_FIFO\n"
        "r = Sandbox().run(['python3', '-c', 'import os; print(os.sched_getscheduler(0))']); print(r.stdout.decode())\n"
    )
    order = [
        "chrt",
        "-f",
        "5",
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        sys.executable,
        "-c",
        code,
    ]
    done = subprocess.run(order, capture_output=True, text=True, check=False, cwd="/")
    assert done.stdout.split()[-1:] == ["0"], done.stderr


def test_05_a_caller_that_the_oom_killer_spares(tmp_path: Path) -> None:
    """What may lower it is tried for real; else a file in its place shows that it is raised where it is below 0."""
    code = (
        "import os, subprocess, sys\nfrom isolate import Sandbox, Scheduling\n"
        "score = lambda *p: Sandbox(*p).run(['cat', '/proc/self/oom_score_adj']).stdout.decode().strip()\n"
        "fd = os.open('/proc/self/oom_score_adj', os.O_WRONLY)\n"
        "try:\n    os.write(fd, b'-500')\nexcept PermissionError:\n    sys.exit(3)\n"
        "print(score(), score(Scheduling(oom_score_adj='inherit')), score(Scheduling(oom_score_adj=-200)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        _instead(tmp_path)
    else:
        assert done.stdout.split() == ["0", "-500", "-200"], done.stderr


def _instead(tmp_path: Path) -> None:
    """Without CAP_SYS_RESOURCE: the step on a file of ours in place of the one in /proc."""
    for value in (b"-500\n", b"-1\n", b"300\n"):
        raised = _step_on(tmp_path / "score", value)
        assert raised == (b"0" + value[1:] if value.startswith(b"-") else value)
        # As a rule the caller has seen to it, and the launcher does not look.
        assert _step_on(tmp_path / "score", value, told=True) == value


def _step_on(file: Path, value: bytes, *, told: bool = False) -> bytes:
    """What the step makes of a file with this value: where the caller has ``told`` of its own, and where it cannot."""
    from isolate.attributes import ordinary
    from isolate.engine.plan import FLAGS, Call, Step, Test

    step = ordinary.killable()
    path = os.fsencode(file)
    ops = tuple(
        Call(o.name, (o.args[0], path, *o.args[2:]), o.out, o.errors, o.policy, o.label, o.expect)
        if isinstance(o, Call) and o.name == "openat"
        else o
        for o in step.ops
        if told or not isinstance(o, Test) or o.value is not FLAGS
    )
    file.write_bytes(value)

    class Score:
        """The step, on another file."""

        def steps(self, context: object) -> list[Step]:
            """It."""
            return [Step(step.phase, step.text, ops)]

    assert Sandbox(Score()).run(["true"]).ok  # type: ignore[arg-type]
    return file.read_bytes()


def test_05_words_are_checked() -> None:
    for wrong in ({"policy": "inherrit"}, {"oom_score_adj": "inherit!"}, {"ioprio": "inherits"}):
        with pytest.raises(ValueError, match="inherit"):
            Scheduling(**wrong)  # type: ignore[arg-type]
    assert "no real-time policy" in Sandbox().explain()
    kept = Sandbox(Scheduling(policy="inherit", ioprio="inherit", oom_score_adj="inherit")).explain()
    assert "real-time" not in kept
    assert "oom_score_adj" not in kept


def test_05_on_the_calling_thread_what_is_not_said_stays() -> None:
    with Scheduling(nice=os.nice(0)):
        assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_05_an_ordinary_user_starts_as_before() -> None:
    out = as_ordinary_user(
        "from isolate import *\n"
        "print(Sandbox(Credentials(groups=None)).run(['cat', '/proc/self/oom_score_adj']).stdout.decode(), end='')\n"
    )
    assert out == Path("/proc/self/oom_score_adj").read_text()
