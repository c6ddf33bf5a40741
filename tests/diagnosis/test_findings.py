"""Findings stand with their steps: none of the library's covers another, and none is covered."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest

import isolate
from isolate.diagnosis import steps
from isolate.diagnosis.host import Finding, Host
from isolate.engine.plan import Engine, Plan, Step, call
from isolate.sandbox.defaults import defaults

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from isolate.engine.ops import Op

NEW = ("Mount", "Pid", "Net", "Ipc", "Uts", "Cgroup", "Time")
ENTRIES: tuple[Any, ...] = (
    isolate.Bind("/usr"),
    isolate.Bind("/etc", read_only=False),
    isolate.Bind("/bin", recursive=False, atime="noatime"),
    isolate.Tmpfs("/tmp"),
    isolate.Overlay("/layers", lower=["/usr"], upper="/var/tmp", work="/var/lib"),
    isolate.Overlay("/changes", lower=["/usr"]),
    isolate.Proc(),
    isolate.Sys(),
    isolate.Dev(),
    isolate.Mqueue(),
    isolate.CgroupFs("/sys/fs/cgroup"),
    isolate.Device("/null", (1, 3)),
    isolate.FileSystem("ramfs", "/ram"),
    isolate.File("/file", b"text"),
    isolate.Dir("/directory"),
    isolate.Symlink("file", "/link"),
    isolate.Mask("/usr/share"),
    isolate.ReadOnly("/tmp"),
)
PARTS: tuple[Any, ...] = (
    *(getattr(isolate, f"{kind}Namespace")() for kind in NEW),
    isolate.Root(*ENTRIES),
    isolate.Capabilities.none(),
    isolate.Credentials(),
    isolate.NoNewPrivs(),
    isolate.Rlimits(nofile=64),
    isolate.Scheduling(nice=5),
    isolate.SessionKeyring(),
    isolate.SetIdFiles(),
    isolate.Landlock(read=["/"], execute=["/usr"]),
    isolate.Seccomp.default(),
    isolate.HostProgram(["/bin/true"]),
    isolate.Sysctl({"kernel.msgmax": 8192}),
)
JOINED = tuple(getattr(isolate, f"{kind}Namespace")(path=f"/proc/1/ns/{kind}") for kind in ("User", *NEW))
MAPS = tuple(
    (isolate.UserNamespace(map=isolate.IdMap(ids, ids, helpers=helpers)),)
    for ids, helpers in (([(0, 0, 1)], False), ([(0, 0, 1), (1, 100000, 65536)], True))
)


def plans() -> Iterator[Plan]:
    for euid in (0, 65534):
        for parts in (PARTS, (isolate.UserNamespace(), *PARTS), JOINED, *MAPS):
            yield Plan(defaults(parts), euid=euid, egid=euid)


@pytest.fixture
def plain(tmp_path: Path) -> Host:
    """A host on which nothing is wrong."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("CapEff:\t000001ffffffffff\nSeccomp:\t0\nNoNewPrivs:\t0\n")
    return Host(str(tmp_path), euid=0)


def wrong(host: Host, step: Step, op: Op, error: int, flags: int) -> str | None:
    """What is wrong with a step's word on an errno."""
    hint = step.finding(error)
    assert hint is not None
    covering = steps.certain(host, error, step, op, flags)
    if covering is not None:
        return f"never told: {hint!r}, since the diagnosis says first: {covering!r}"
    usual = steps.likely(host, error, step, op)
    if usual is None or (hint.remedy is None and not hint.unsupported):
        return None  # a cause alone takes remedy and unsupported from what is usual
    if (usual.remedy and not hint.remedy) or (usual.unsupported and not hint.unsupported):
        return f"covers {usual!r} by less: {hint!r}"
    return None


def test_what_would_be_wrong_is_found(plain: Host) -> None:
    def judge(hints: dict[int, Finding]) -> str | None:
        opening = call("fsopen", b"overlay", 0)
        step = Step(isolate.Phase.ROOT, "mount", (opening,), hints=hints)
        return wrong(plain, step, opening, next(iter(hints)), 0)

    assert judge({errno.ENODEV: Finding("no overlayfs", "modprobe overlay", True)}) is None
    assert "covers" in str(judge({errno.ENODEV: Finding("no overlayfs", "modprobe overlay")}))
    assert judge({errno.ENODEV: Finding("no overlayfs")}) is None
    step = Step(isolate.Phase.DESCRIPTORS, "descriptors", hints={errno.EMFILE: Finding("too many", "fewer")})
    assert "never told" in str(wrong(plain, step, Engine("fds"), errno.EMFILE, 0))


def test_no_finding_covers_another(plain: Host) -> None:
    seen = 0
    found = set()
    for plan in plans():
        for step, part in zip(plan.steps, plan.owners, strict=True):
            for error in step.hints:
                told = [wrong(plain, step, op, error, int(plan.clone_flags)) for op in step.ops]
                seen += 1
                if told and None not in told:
                    found.add(f"{type(part).__name__}: {step.text}: {errno.errorcode[error]}: {told[0]}")
    assert seen > 300
    assert sorted(found) == []


def test_every_errno_of_overlayfs_is_told_by_the_library_itself(plain: Host) -> None:
    """Those that the host cannot do at all are told so: the library's step, not a part of the test's own."""
    (stacking,) = {
        step
        for step in Plan(defaults((isolate.UserNamespace(), isolate.Root(ENTRIES[5]))), euid=0, egid=0).steps
        if "overlay for" in step.text or "overlay of" in step.text or "overlay on" in step.text
    }
    lacking = {error for error, hint in stacking.hints.items() if isinstance(hint, Finding) and hint.unsupported}
    assert {errno.EINVAL, errno.EPERM, errno.ENODEV} <= lacking
    assert all(isinstance(hint, Finding) and hint.remedy for hint in stacking.hints.values())
