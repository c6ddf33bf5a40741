"""What is used up inside is not the caller's: inotify, signals, timers, message queues, namespaces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from isolate import Capabilities, ConflictError, IpcNamespace, PidNamespace, Sandbox, Seccomp, UserNamespace, presets
from tests.ordinary import as_ordinary_user

PYTHON = ["/usr/bin/python3", "-I", "-S", "-c"]
INOTIFY = "import ctypes; libc = ctypes.CDLL(None); made = 0\nwhile libc.inotify_init1(0) >= 0: made += 1\nprint(made)"
# Queued real-time signals with everything blocked, then timers.
SIGNALS = (
    "import ctypes, os, signal; libc = ctypes.CDLL(None, use_errno=True)\n"
    "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); n = 0\n"
    "while n < 200000 and libc.sigqueue(os.getpid(), 40, 0) == 0: n += 1\n"
    "print(n)"
)
TIMERS = (
    "import ctypes; libc = ctypes.CDLL(None); n = 0; t = ctypes.c_void_p()\n"
    "while n < 200000 and libc.timer_create(1, 0, ctypes.byref(t)) == 0: n += 1\n"
    "print(n)"
)


def quota(name: str) -> int:
    """What the caller may have."""
    return int(Path(f"/proc/sys/user/max_{name}").read_text())


def number(box: Sandbox, code: str) -> int:
    """What the program prints."""
    result = box.run([*PYTHON, code], timeout=60)
    assert result.ok, result.stderr
    return int(result.stdout)


@pytest.mark.parametrize("parts", [(), (Capabilities.all(),)], ids=["nothing", "all capabilities"])
def test_04_inotify_instances(parts: tuple[Capabilities, ...]) -> None:
    most = quota("inotify_instances")
    inside = number(Sandbox(UserNamespace(), PidNamespace(), *parts), INOTIFY)
    assert inside == most // 4
    assert number(Sandbox(UserNamespace(quotas={"inotify_instances": 3})), INOTIFY) == 3
    # Control: with a quota above the caller's it is the caller's that ends it.
    assert number(Sandbox(UserNamespace(quotas={"inotify_instances": 10 * most})), INOTIFY) > most // 4


def test_04_the_caller_has_its_own_left() -> None:
    """While the program holds all that it may have, the caller gets more."""
    import ctypes

    libc = ctypes.CDLL(None)
    code = INOTIFY.replace("print(made)", "print(made, flush=True); input()")
    boxes = [Sandbox(UserNamespace(), PidNamespace()).spawn([*PYTHON, code], stdin=-1, stdout=-1) for _ in range(2)]
    try:
        for process in boxes:
            assert process.stdout is not None
            assert int(process.stdout.readline()) > 0
        fd = libc.inotify_init1(0)
        assert fd >= 0
        os.close(fd)
    finally:
        for process in boxes:
            process.close()


def test_04_every_quota_is_written() -> None:
    names = ("inotify_instances", "inotify_watches", "fanotify_groups", "fanotify_marks")
    found = Sandbox(UserNamespace()).run(["cat", *(f"/proc/sys/user/max_{name}" for name in names)]).stdout.split()
    assert [int(n) for n in found] == [quota(name) // 4 for name in names]


def test_04_namespaces_where_any_can_be_made() -> None:
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "time", "uts")
    show = ["sh", "-c", "cd /proc/sys/user; cat " + " ".join(f"max_{kind}_namespaces" for kind in kinds)]
    usual = [quota(f"{kind}_namespaces") for kind in kinds]
    quarter = [n // 4 for n in usual]
    assert [int(n) for n in Sandbox(UserNamespace(nested=True)).run(show).stdout.split()] == quarter
    assert [int(n) for n in Sandbox(UserNamespace(), Capabilities.all()).run(show).stdout.split()] == quarter
    few = Sandbox(UserNamespace(quotas={"uts_namespaces": 1}), Capabilities.all(), Seccomp.none())
    assert few.run(["unshare", "--uts", "true"]).ok
    assert not few.run(["unshare", "--uts", "unshare", "--uts", "true"]).ok


@pytest.mark.parametrize("name", ["untrusted", "container"])
def test_04_signals_and_timers_of_the_presets(name: str) -> None:
    box = presets.untrusted() if name == "untrusted" else presets.container("/", writes="discard")
    assert 0 < number(box, SIGNALS) <= 1024
    assert 0 < number(box, TIMERS) <= 1024
    limits = box.run(["sh", "-c", "grep -E 'queue|signals' /proc/self/limits"]).stdout.decode()
    assert limits.split("\n")[0].split()[-3:-1] == ["1024", "1024"]
    assert limits.split("\n")[1].split()[-3:-1] == ["204800", "204800"]
    # Control: without the preset's limits more.
    assert number(Sandbox(UserNamespace(), IpcNamespace()), TIMERS) > 1024


def test_04_quotas_are_checked() -> None:
    with pytest.raises(ValueError, match="did you mean 'inotify_watches'"):
        UserNamespace(quotas={"max_inotify_watch": 1})
    with pytest.raises(ValueError, match="nested"):
        UserNamespace(quotas={"user_namespaces": 1})
    with pytest.raises(ValueError, match="must be in 0"):
        UserNamespace(quotas={"inotify_watches": -1})
    with pytest.raises(TypeError, match="must be an int"):
        UserNamespace(quotas={"inotify_watches": True})
    with pytest.raises(ConflictError, match="joined"):
        UserNamespace(pid=1, quotas={"inotify_watches": 1})
    assert hash(UserNamespace(quotas={"inotify_watches": 1})) == hash(UserNamespace(quotas={"inotify_watches": 1}))
    assert "at most 5 inotify watches" in Sandbox(UserNamespace(quotas={"inotify_watches": 5})).explain()


def test_04_an_ordinary_users_quotas() -> None:
    out = as_ordinary_user(
        "from isolate import *\n"
        "box = Sandbox(UserNamespace(), PidNamespace())\n"
        "print(box.run(['cat', '/proc/sys/user/max_inotify_instances'], text=True).stdout)\n"
    )
    assert out.strip() == str(quota("inotify_instances") // 4)
