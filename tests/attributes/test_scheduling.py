"""Scheduling: against chrt, ionice, taskset and /proc."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isolate import ConflictError, PidNamespace, Sandbox, Scheduling, SetupError, UserNamespace
from tests.ordinary import as_ordinary_user

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("chrt", "ionice", "taskset"))), reason="chrt, ionice and taskset (package util-linux)"
)
LOOK = "chrt -p $$; nice; ionice -p $$; taskset -p $$; cat /proc/$$/oom_score_adj"
CPUS = sorted(os.sched_getaffinity(0))


def look(*parts: object) -> list[str]:
    """What the tools of util-linux say of a shell inside, in a row."""
    result = Sandbox(*parts).run(["sh", "-c", LOOK], text=True)  # type: ignore[arg-type]
    assert result.returncode == 0, result.stderr
    return [line.rsplit(": ", 1)[-1] if "current" in line else line for line in result.stdout.splitlines()]


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"nice": 20}, ValueError),
        ({"nice": -21}, ValueError),
        ({"nice": "5"}, TypeError),
        ({"nice": True}, TypeError),
        ({"policy": "bacth"}, ValueError),
        ({"policy": "deadline"}, ValueError),
        ({"policy": "fifo", "priority": 0}, ValueError),
        ({"policy": "rr", "priority": 100}, ValueError),
        ({"affinity": ()}, ValueError),
        ({"affinity": {-1}}, ValueError),
        ({"affinity": {8192}}, ValueError),
        ({"affinity": 1}, TypeError),
        ({"affinity": "0-1"}, TypeError),
        ({"ioprio": "best"}, ValueError),
        ({"ioprio": ("best-effort", 8)}, ValueError),
        ({"ioprio": ("idle",)}, ValueError),
        ({"oom_score_adj": 1001}, ValueError),
        ({"oom_score_adj": -1001}, ValueError),
    ],
    ids=str,
)
def test_wrong_values(wrong: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error, match="Scheduling: "):
        Scheduling(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "fifo"},
        {"priority": 5},
        {"policy": "batch", "priority": 5},
        {"policy": "idle", "nice": 3},
        {"policy": "rr", "priority": 5, "nice": 1},
        {"ioprio": ("idle", 3)},
        {"ioprio": "best-effort"},
        {"ioprio": ("none", 0)},
    ],
    ids=str,
)
def test_contradictions(wrong: dict[str, object]) -> None:
    with pytest.raises(ConflictError):
        Scheduling(**wrong)  # type: ignore[arg-type]


def test_the_nearest_word_is_told() -> None:
    with pytest.raises(ValueError, match="did you mean 'batch'"):
        Scheduling(policy="bacth")


@given(st.sets(st.integers(0, 8191), min_size=1, max_size=20), st.integers(-20, 19), st.integers(-1000, 1000))
def test_values(cpus: set[int], nice: int, oom: int) -> None:
    value = Scheduling(nice=nice, affinity=cpus, oom_score_adj=oom, ioprio=["best-effort", 3])  # type: ignore[arg-type]
    assert value.affinity == frozenset(cpus)
    assert eval(repr(value)) == value
    assert hash(eval(repr(value))) == hash(value)


# ---- in the kernel ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [(), (UserNamespace(),), (UserNamespace(), PidNamespace())], ids=["", "user", "pid"])
def test_what_anybody_may(parts: tuple[object, ...]) -> None:
    wanted = Scheduling(nice=7, policy="batch", affinity={CPUS[-1]}, ioprio=("best-effort", 6))
    found = look(*parts, wanted)
    # In a pid namespace /proc is still the host's: the last line is another process's.
    assert found[:5] == ["SCHED_BATCH", "0", "7", "best-effort: prio 6", f"{1 << CPUS[-1]:x}"]


def test_unchanged_without() -> None:
    policy, _, nice, ioprio, cpus, oom = look()
    assert (policy, nice, cpus) == ("SCHED_OTHER", str(os.nice(0)), f"{sum(1 << c for c in CPUS):x}")
    assert ioprio.startswith(("none", "best-effort"))
    assert int(oom) == int(Path("/proc/self/oom_score_adj").read_text())


def test_idle() -> None:
    found = look(Scheduling(policy="idle", ioprio="idle"))
    assert (found[0], found[3]) == ("SCHED_IDLE", "idle")


@as_root
@pytest.mark.parametrize("policy", ["fifo", "rr"])
def test_real_time(policy: str) -> None:
    found = look(Scheduling(policy=policy, priority=3))
    assert found[:2] == [f"SCHED_{policy.upper()}", "3"]


@as_root
def test_real_time_io_and_lower_nice() -> None:
    found = look(Scheduling(nice=-3, ioprio=("realtime", 2)))
    assert found[2:4] == ["-3", "realtime: prio 2"]


@as_root
def test_oom_score_adj() -> None:
    assert look(Scheduling(oom_score_adj=501))[5] == "501"
    box = Sandbox(UserNamespace(), PidNamespace(), Scheduling(oom_score_adj=77))
    result = box.run(["cat", "/proc/self/oom_score_adj"])
    assert result.stdout == b"77\n"


def test_cpus_that_are_not_there() -> None:
    with pytest.raises(SetupError, match="some of these CPUs") as caught:
        Sandbox(Scheduling(affinity={CPUS[0], 8191})).run(["true"])
    assert (caught.value.errno, caught.value.part) == (errno.ERANGE, "Scheduling")
    with pytest.raises(SetupError, match="none of these CPUs") as caught:
        Sandbox(Scheduling(affinity={8191})).run(["true"])
    assert caught.value.errno == errno.EINVAL


def test_what_an_ordinary_user_may_not() -> None:
    """Nor with the capabilities of a user namespace of its own; what raises no priority works."""
    out = as_ordinary_user(
        "from isolate import PidNamespace, Sandbox, Scheduling, SetupError, UserNamespace\n"
        "for parts in ((), (UserNamespace(),)):\n"
        "    for wrong in (dict(nice=-5), dict(policy='fifo', priority=1), dict(ioprio=('realtime', 0)),\n"
        "                  dict(oom_score_adj=-999)):\n"
        "        try:\n"
        "            Sandbox(*parts, Scheduling(**wrong)).run(['true'])\n"
        "            print('ran', wrong)\n"
        "        except SetupError as error:\n"
        "            print(error.errno, error.part, bool(error.cause))\n"
        "box = Sandbox(UserNamespace(), Scheduling(oom_score_adj=555))\n"
        "print(box.run(['cat', '/proc/self/oom_score_adj']).stdout)\n"
        "print(Sandbox(Scheduling(nice=9)).run(['nice']).stdout)\n"
    )
    lines = out.splitlines()
    expected = [f"{e} Scheduling True" for e in (errno.EACCES, errno.EPERM, errno.EPERM, errno.EACCES)]
    assert lines == [*expected, *expected, "b'555\\n'", "b'9\\n'"]
