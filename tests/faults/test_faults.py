"""Each system call of a start made to fail once: the named error, or exactly the sandbox that was asked for.

The everyday lane takes a part of the distinct calls, each with one of the errors in turn; the long lane (``-m slow``)
every call with all of them. The audit program tells from inside what holds; it must tell the same as in the undisturbed
run.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from isolate import NetNamespace, PidNamespace, Sandbox, SetupError, UserNamespace
from tests.boxes import boxes, groups
from tests.fence import Call, Fence, Outcome

ERRORS = (errno.ENOMEM, errno.EPERM, errno.EMFILE, errno.ENOSPC, errno.EINTR, errno.EAGAIN)
#: Calls that cannot fail in the kernel, and close, which frees the number whatever it answers: here it would not.
INFALLIBLE = {"getpid", "geteuid", "getegid", "getresuid", "getresgid", "umask", "close"}
#: The caller's own, once the program runs: an ordinary OSError with that errno says it.
WAITING = {"poll", "ppoll", "read", "recvmsg", "waitid", "openat", "newfstatat", "fstat", "lseek", "ioctl"}


OTHER = "other protection"
NAMES = list(boxes())
MS_BIND, MS_REC, MS_PRIVATE, CLONE_NEWNS = 0x1000, 0x4000, 0x40000, 0x20000
NOBODY = 65534


def become_somebody_with_subordinate_ids(directory: str) -> None:
    """Nobody, with ids in /etc/subuid and /etc/subgid: in a mount namespace, so the host's files stay as they are."""
    libc = ctypes.CDLL(None, use_errno=True)
    source = os.path.join(directory, "sub").encode()
    assert libc.unshare(CLONE_NEWNS) == 0
    assert libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) == 0
    for file in (b"/etc/subuid", b"/etc/subgid"):
        assert libc.mount(source, file, None, MS_BIND, None) == 0, os.strerror(ctypes.get_errno())
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: the change of ids took it


def host_namespaces() -> list[str]:
    return [os.readlink(f"/proc/self/ns/{n}") for n in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")]


class Case:
    """One sandbox, run again and again with another call failing."""

    def __init__(self, name: str, audit: str) -> None:
        # Starts from a tree have a lane of their own: test_template.
        self.box, self.directory = Sandbox(*boxes(audit)[name].parts, template=False), str(Path(audit).parent)
        inside = f"/audit/{Path(audit).name}" if name.startswith("root") else audit
        self.command = [inside, *host_namespaces()]
        self.ordinary = name == "newuidmap"
        Path(self.directory, "sub").write_text(f"{NOBODY}:100000:1000\n")
        if not self.ordinary:
            assert self.box.run(self.command).ok
        self.begin()

    def begin(self) -> None:
        """Once with no call failing: what is expected of the others."""
        self.groups = groups(self.box)
        self.undisturbed = Fence(self.once).drive()
        assert self.undisturbed.error is None, self.undisturbed.error
        assert self.undisturbed.gone is not None
        self.expected, leaked = self.undisturbed.value
        assert self.expected[:2] == ("result", "OK")
        assert leaked == []

    def once(self, begin: Any, end: Any) -> tuple[tuple[Any, ...], list[int]]:
        if self.ordinary:
            become_somebody_with_subordinate_ids(self.directory)
            self.box.compile()
        before = set(os.listdir("/proc/self/fd"))
        begin()
        told: tuple[Any, ...]
        try:
            result = self.box.run(self.command)
            stdout = re.sub(rb"isolate-[-0-9a-f]+", b"isolate-*", result.stdout)
            told = ("result", str(result.verdict), stdout, dict(result.applied))
        except SetupError as error:
            told = ("setup", error.errno, error.step, str(error))
        except OSError as error:
            told = ("os", error.errno, "", repr(error))
        except MemoryError as error:
            told = ("os", errno.ENOMEM, "", repr(error))
        end()
        return told, sorted(int(fd) for fd in set(os.listdir("/proc/self/fd")) - before)

    def disturb(self, call: Call, error: int) -> tuple[Outcome, list[str]]:
        hit: list[str] = []

        def decide(one: Call) -> int | None:
            if (one.role, one.index) != (call.role, call.index) or one.name in INFALLIBLE:
                return None
            hit.append(one.name)
            return error

        return Fence(self.once).drive(decide, limit=40), hit

    def wrong(self, call: Call, error: int) -> str | None:
        """What is not as it should be.

        What another program on this host does meanwhile, a mount for example, shows in what the audit program tells:
        a difference is one if it is there again beside an undisturbed run of the same time.
        """
        found = self._wrong(call, error)
        for _ in range(3):
            if found is None or OTHER not in found:
                break
            again = Fence(self.once).drive()
            assert again.error is None, again.error
            self.expected = again.value[0]
            found = self._wrong(call, error)
        return found

    def _wrong(self, call: Call, error: int) -> str | None:
        outcome, hit = self.disturb(call, error)
        what = f"{call.role} {call.index} {hit or call.name} {errno.errorcode[error]}: "
        if outcome.gone is None:
            return what + f"left behind {outcome.left}"
        left = [path for pattern in self.groups for path in glob.glob(pattern)]
        for path in left:
            os.rmdir(path)
        if left:
            return what + f"groups left behind: {left}"
        if outcome.error:
            return what + outcome.error
        told, leaked = outcome.value
        if leaked:
            return what + f"descriptors {leaked} left open after {told}"
        if told[0] == "result":
            if told == self.expected:
                return None
            here, there = told[2].splitlines(), self.expected[2].splitlines()
            other = [line for line in here if line not in there], [line for line in there if line not in here]
            return what + f"{OTHER}: {told[1]} {told[3]}: {other[0]} instead of {other[1]}"
        if told[1] != error:
            return what + f"another errno: {told}"
        if told[0] == "os":
            return None if call.role == "caller" and hit[0] in WAITING else what + f"not a SetupError: {told}"
        return what + f"the step has no name: {told}" if not told[2] or told[2].startswith("stage ") else None


def distinct(calls: list[Call]) -> list[Call]:
    """One of each kind of call in each process."""
    seen: Counter[tuple[Any, ...]] = Counter()
    chosen = []
    for call in calls:
        key = (call.role, call.name, call.args[0] if call.name in ("prctl", "seccomp") else None)
        seen[key] += 1
        if seen[key] == 1 and call.name not in INFALLIBLE:
            chosen.append(call)
    return chosen


@pytest.mark.root
@pytest.mark.parametrize(
    "name", ["without init", "root and limits", "root with owners", pytest.param("newuidmap", marks=pytest.mark.slow)]
)
def test_one_call_fails(name: str, audit: str) -> None:
    case = Case(name, audit)
    chosen = distinct(case.undisturbed.calls)
    assert {c.role for c in chosen} >= {"caller", "middle", "launcher", "init"}
    # A part of them, another one of each sandbox.
    some = list(enumerate(chosen))[NAMES.index(name) % 4 :: 4]
    wrong = [case.wrong(call, ERRORS[i % len(ERRORS)]) for i, call in some]
    assert not [w for w in wrong if w]


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_each_kind_of_call_fails(name: str, audit: str) -> None:
    case = Case(name, audit)
    wrong = [case.wrong(call, ERRORS[i % len(ERRORS)]) for i, call in enumerate(distinct(case.undisturbed.calls))]
    assert not [w for w in wrong if w]


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", NAMES)
def test_every_call_fails(name: str, error: int, audit: str) -> None:
    case = Case(name, audit)
    wrong = [case.wrong(call, error) for call in case.undisturbed.calls if call.name not in INFALLIBLE]
    print(f"{name}: {len(wrong)} calls with {errno.errorcode[error]}, {sum(map(bool, wrong))} not as it should be")
    assert not [w for w in wrong if w]


@pytest.mark.root
def test_the_audit_would_see_it(audit: str) -> None:
    """The positive control: a sandbox without a protection answers differently."""
    names = host_namespaces()
    whole = Sandbox(UserNamespace(), PidNamespace(), NetNamespace()).run([audit, *names]).stdout
    for missing in (Sandbox(UserNamespace(), PidNamespace()), Sandbox(PidNamespace(), NetNamespace())):
        assert missing.run([audit, *names]).stdout != whole
    assert b"SigBlk:\t0000000000000000\n" in whole


@pytest.mark.root
def test_an_injected_error_arrives(audit: str) -> None:
    """The positive control of the injection: mount fails, and the error says so."""
    case = Case("namespaces", audit)
    (mount,) = [c for c in case.undisturbed.calls if c.name == "mount"]
    outcome, hit = case.disturb(mount, errno.ENOSPC)
    assert hit == ["mount"]
    told, _ = outcome.value
    assert told[:2] == ("setup", errno.ENOSPC)
    assert "propagation" in told[2]
