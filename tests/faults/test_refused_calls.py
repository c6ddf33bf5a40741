"""Each call that takes something from the program is refused once, by a filter around the caller.

Then the program does not start, and the error names the part: it never runs with a protection missing.
"""

from __future__ import annotations

import os
import sys

import pytest

from isolate import Capabilities, Credentials, Sandbox
from isolate.landlock.part import landlock_abi
from isolate.seccomp import Seccomp, arg32, deny

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

CODE = """
import sys
from isolate import Credentials, Landlock, Rlimits, Sandbox, Scheduling, SetupError, UserNamespace
parts = {"plain": (), "user": (UserNamespace(),), "uid": (Credentials(uid=1234, gid=1234),)}[sys.argv[1]]
landlock = (Landlock(handled="make_dir"),) if sys.argv[2] == "1" else ()
look = '''
grep -E '^(Cap|NoNew|Uid|Gid|Groups)' /proc/self/status
capsh --print | grep -i secure
ulimit -n; ulimit -t; ulimit -c; umask; nice
cat /proc/self/oom_score_adj
mkdir /tmp/isolate-test-never 2>/dev/null && rmdir /tmp/isolate-test-never && echo made
exit 0
'''
try:
    box = Sandbox(*parts, *landlock, Rlimits(nofile=64, cpu=100), Scheduling(nice=3, oom_score_adj=700))
    result = box.run(["sh", "-c", look], text=True)
except SetupError as error:
    print("refused", error.part, error.syscall, error.errno)
else:
    print(result.stdout)
"""
CALLS = [
    "setgroups",
    "setresuid",
    "setresgid",
    "getresuid",
    "getresgid",
    "getgroups",
    "capget",
    "capset",
    "prlimit64",
    "setpriority",
    "getpriority",
    "keyctl",
    "landlock_create_ruleset",
    "landlock_restrict_self",
]
OPTIONS = {
    "PR_SET_KEEPCAPS": 8,
    "PR_CAPBSET_READ": 23,
    "PR_CAPBSET_DROP": 24,
    "PR_GET_SECUREBITS": 27,
    "PR_SET_SECUREBITS": 28,
    "PR_SET_NO_NEW_PRIVS": 38,
    "PR_GET_NO_NEW_PRIVS": 39,
    "PR_CAP_AMBIENT": 47,
}
PARTS = {
    "Capabilities",
    "Credentials",
    "Landlock",
    "NoNewPrivs",
    "Rlimits",
    "Sandbox",
    "Scheduling",
    "SessionKeyring",
    "UserNamespace",
}


def inside(kind: str, *filters: Seccomp) -> str:
    """What the inner sandbox has, started from within an outer one that takes nothing but the calls named."""
    mine = tuple(Capabilities.of().permitted)
    outer = Sandbox(*filters, Capabilities(mine, securebits=0), Credentials(groups=(4, 27)))
    result = outer.run([sys.executable, "-c", CODE, kind, str(int(landlock_abi() > 0))], text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return str(result.stdout.strip())


@pytest.mark.parametrize("kind", ["plain", "user", "uid"])
def test_undisturbed(kind: str) -> None:
    """The control: with nothing refused it runs."""
    text = inside(kind, Seccomp(otherwise="allow"))
    assert "NoNewPrivs:\t1" in text
    assert "CapBnd:\t0000000000000000" in text
    assert "\n700" in text
    assert "made" not in text or landlock_abi() == 0


KINDS = {"user": "EPERM", "uid": "EPERM", "plain": "ENOMEM"}
EACH = [
    # Every day each call in one kind of sandbox, in turns.
    pytest.param(what, kind, marks=[] if (number + other) % len(KINDS) == 0 else pytest.mark.slow)
    for number, what in enumerate([*CALLS, *OPTIONS])
    for other, kind in enumerate(KINDS)
]


@pytest.mark.parametrize(("what", "kind"), EACH)
def test_refused(what: str, kind: str) -> None:
    error = KINDS[kind]
    rule = deny("prctl", errno=error, when=arg32(0) == OPTIONS[what]) if what in OPTIONS else deny(what, errno=error)
    words = inside(kind, Seccomp(rule, otherwise="allow")).split()
    assert words[0] == "refused"
    assert words[1] in PARTS


@pytest.mark.parametrize("what", ["wait4", "rt_sigtimedwait"])
def test_what_init_waits_by_is_refused(what: str) -> None:
    """It asked again and again, for ever; test_undisturbed is the control."""
    assert inside("plain", Seccomp(deny(what), otherwise="allow")).split()[:2] == ["refused", "Sandbox"]
