"""What is read back before the program starts, and in what order the last things are done.

A call is answered with "done" and not made: whoever does not read back runs the program all the same.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from isolate import Bind, Credentials, PidNamespace, Root, Sandbox, SetupError, UserNamespace
from isolate.capabilities import steps as _capability_steps
from isolate.engine.plan import Context, Phase, Step, call
from tests.boxes import boxes
from tests.faults.test_faults import Case
from tests.fence import Call, Fence, calls_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

PRCTL = {24: "drop a bounding capability", 28: "securebits", 38: "no_new_privs"}
SETTERS = {"setresuid", "setresgid", "setgroups", "capset", "umask"}


class Changed(Case):
    """A program of another id, started by root: nothing that is left out is there by chance."""

    def __init__(self, audit: str) -> None:
        super().__init__("limits alone", audit)
        # Not dumpable: what the caller reads of it is not.
        self.box = Sandbox(Credentials(uid=1234, gid=1234, groups=(5,), umask=0o027), PidNamespace())
        self.undisturbed = Fence(self.once).drive()
        assert self.undisturbed.error is None, self.undisturbed.error
        self.expected, _ = self.undisturbed.value
        assert self.expected[0] == "result"

    def setters(self) -> dict[str, Call]:
        """Of each kind of call that takes something from the program, the one that what holds comes from."""
        found: dict[str, Call] = {}
        for one in self.undisturbed.calls:
            if one.role == "payload":
                name = PRCTL.get(one.args[0], "") if one.name == "prctl" else one.name
                # The first umask sets, the second reads back; the first drop is of a capability that there is; of the
                # three capset the last gives up.
                if name in SETTERS or name in PRCTL.values():
                    found[name] = one if name == "capset" else found.get(name, one)
        return found

    def pretend(self, one: Call) -> tuple[Any, ...]:
        """What is told when that call is not made and told to be."""
        hit = []

        def decide(now: Call) -> int | None:
            if (now.role, now.index) != (one.role, one.index):
                return None
            hit.append(now.name)
            return 0

        outcome = Fence(self.once).drive(decide)
        assert hit == [one.name]
        assert outcome.gone is not None, outcome.left
        assert outcome.error is None, outcome.error
        told: tuple[Any, ...] = outcome.value[0]
        return told


def test_what_is_told_to_be_done_is_read_back(audit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Changed(audit)
    setters = case.setters()
    assert set(setters) == {*SETTERS, *PRCTL.values()}
    for name, one in setters.items():
        told = case.pretend(one)
        assert told[0] == "setup", (name, told)
        assert told[2].startswith("verify"), (name, told)
    # The control: without reading back it runs, with other protection.
    monkeypatch.setattr(Credentials, "_verify", lambda *ignored: iter(()))
    monkeypatch.setattr(_capability_steps, "_verify", lambda *ignored: iter(()))
    blind = Changed(audit)
    for name, one in blind.setters().items():
        # Two have a second net: execve takes the capabilities of who is not root, the kernel asks for no_new_privs
        # before it takes a filter.
        if name in ("capset", "no_new_privs"):
            continue
        told = blind.pretend(one)
        assert told[0] == "result", (name, told)
        assert told != blind.expected, name


# ---- descriptors and the working directory -------------------------------------------------------------------------


def start_of(box: Sandbox) -> list[Call]:
    """All calls of a start."""
    return calls_of(lambda: box.run(["true"]).verdict)


OPENING = {
    "open",
    "openat",
    "openat2",
    "open_tree",
    "open_tree_attr",
    "fsopen",
    "fsmount",
    "fspick",
    "socket",
    "socketpair",
    "accept4",
    "pipe",
    "pipe2",
    "dup",
    "memfd_create",
    "pidfd_open",
    "epoll_create1",
    "eventfd2",
    "timerfd_create",
    "signalfd4",
    "inotify_init1",
    "landlock_create_ruleset",
    "recvmsg",
    "userfaultfd",
    "bpf",
}


@pytest.mark.parametrize("name", ["namespaces", "without init", "no pid namespace", "root and limits"])
def test_nothing_is_opened_once_all_is_closed(name: str) -> None:
    """close_range is as late as can be: behind it stand the descriptors' own places, the filter and execve."""
    own = [c for c in start_of(boxes()[name]) if c.role == ("init" if name == "without init" else "payload")]
    closing = max(i for i, c in enumerate(own) if c.name == "close_range" and c.args[:3] == (0, 0xFFFFFFFF, 4))
    assert {c.name for c in own[closing + 1 :]} <= {"dup3", "fcntl", "prctl", "seccomp", "execve"}
    assert own[-1].name == "execve"
    assert OPENING & {c.name for c in own[:closing]}, "the control: before it there are some"


#: Where the flag stands, and which it is. What is not here has close-on-exec always (pidfd_open) or is not used.
CLOEXEC = {
    "openat": (2, 0o2000000),
    "open_tree": (2, 0o2000000),
    "fsopen": (1, 1),
    "fsmount": (1, 1),
    "pipe2": (1, 0o2000000),
    "socket": (1, 0o2000000),
    "socketpair": (1, 0o2000000),
    "memfd_create": (1, 1),
    "recvmsg": (2, 0x40000000),
}
ALWAYS = {"pidfd_open", "landlock_create_ruleset"}
#: Its flags are in memory: the one place that calls it (interp.c, open2) sets the flag always.
IN_MEMORY = {"openat2"}


def test_every_descriptor_of_ours_is_close_on_exec() -> None:
    """Each as it is opened, in the caller, in the launcher and in all that comes of it."""
    seen = set()
    for name in ("root and limits", "root and limits of the host's"):
        for one in start_of(boxes()[name]):
            if one.name not in OPENING or one.name in ALWAYS | IN_MEMORY:
                continue
            seen.add(one.name)
            at, flag = CLOEXEC[one.name]
            assert one.args[at] & flag, one
    assert {"openat", "open_tree", "fsopen", "fsmount", "pipe2"} <= seen


@dataclass(frozen=True)
class Strays:
    """A part that leaves the working directory outside the root, by a descriptor."""

    fd: int
    phase: Phase

    def steps(self, context: Context) -> Iterator[Step]:
        yield Step(self.phase, "go outside", (call("fchdir", context.descriptor(self.fd)),))


@pytest.mark.parametrize("parts", [(), (UserNamespace(),)], ids=["root", "user namespace"])
def test_a_working_directory_outside_is_found(parts: tuple[Any, ...], tmp_path: Path) -> None:
    """The class of CVE-2024-21626, whatever led there."""
    (tmp_path / "secret").write_text("secret")
    os.chmod(tmp_path, 0o755)
    root = Root(*(Bind(f"/{name}") for name in ("usr", "bin", "lib", "lib64") if os.path.exists(f"/{name}")))
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(SetupError, match="the working directory is inside the root"):
            Sandbox(root, Strays(fd, Phase.PROGRAM), *parts).run(["/bin/cat", "secret"])
        # The control: once nobody looks any more it leads out.
        assert Sandbox(root, Strays(fd, Phase.FILTERED), *parts).run(["/bin/cat", "secret"]).stdout == b"secret"
    finally:
        os.close(fd)
