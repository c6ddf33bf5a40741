"""The files that limit and count a program, kept from that program.

The files of a group belong to whoever made it, which is often the very id that the program has: it could raise its
limits, reset its counters, freeze itself or move to another group. So every cgroup file system that the sandbox shows
is read-only there. That takes a mount namespace, and without privileges a user namespace for that; both are brought.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from isolate.capabilities import Cap, Capabilities
from isolate.engine.plan import Cover, Jump, Label, Phase, Register, Step, call
from isolate.kernel.constants import AT_FDCWD, CLONE_NEWUSER, O_CLOEXEC, O_PATH, O_RDONLY
from isolate.namespaces.part import MountNamespace, UserNamespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Context, Part

#: In ``Context.shared``: another part has these steps already.
_SHARED: Final = "cgroup file systems"


def brings() -> Iterator[Part]:
    """The parts that the cover needs."""
    yield MountNamespace()
    if os.geteuid() != 0:
        # As the program would be without it; it gives the right to change mounts, and keeps from changing them back.
        yield UserNamespace(uid=os.geteuid(), gid=os.getegid())


def cover_steps(context: Context) -> Iterator[Step]:
    """Make every cgroup file system read-only that is seen inside; say so where the program could undo it."""
    if _SHARED in context.shared:
        return
    context.shared[_SHARED] = True
    mounts = context.find(MountNamespace)
    proc = Register("the caller's /proc")
    outer = Register("the caller's mount namespace")
    opening = (
        call("openat", AT_FDCWD, b"/proc", O_PATH | O_CLOEXEC, 0, out=proc),
        call("openat", proc, b"self/ns/mnt", O_RDONLY | O_CLOEXEC, 0, out=outer),
    )
    yield Step(Phase.CGROUP, "hold on to /proc, which tells of every mount", opening, path=b"/proc")
    hints = {
        errno.EPERM: "the cgroup file systems that are seen inside cannot be made read-only, so the program could lift "
        "its limits: add MountNamespace() and, without privileges, UserNamespace()",
        errno.EBUSY: "cgroup file systems are being mounted as fast as they are made read-only",
        errno.ENOENT: "/proc does not show this process: which cgroup file systems are seen inside cannot be told",
    }
    apart = mounts is not None and mounts.joined
    covering = (Cover(proc, outer, apart=apart), call("close", outer), call("close", proc))
    yield Step(Phase.COVER, "cgroup file systems are read-only inside", covering, hints=hints)
    reason = liftable(context)
    if reason:
        end = Label()
        yield Step(Phase.CGROUP, f"not held against this program: {reason}", (Jump(end, skip=True), end))


def liftable(context: Context) -> str:
    """Why the program could lift its limits all the same, "" where it cannot.

    It would mount a cgroup file system itself, and write there as the owner of its group.
    """
    user = context.find(UserNamespace)
    if user is not None and not user.joined and user.ids(context).inside(context.euid, context.egid)[0] is None:
        return ""  # nobody inside is the group's owner
    caps = context.find(Capabilities)
    if caps is not None and any(Cap.SYS_ADMIN in held for held in (caps.permitted, caps.bounding, caps.inheritable)):
        return "it has CAP_SYS_ADMIN, and can mount the cgroup file system itself"
    if user is not None and not user.nested and not user.joined:
        return ""
    if user is not None and user.nested:
        return "it may make user namespaces, and mount the cgroup file system in one"
    simulators = [simulate for part in context.parts if (simulate := getattr(part, "simulate", None)) is not None]
    if simulators and all(simulate("unshare", CLONE_NEWUSER).makes_call for simulate in simulators):
        return "its filter allows user namespaces, in which it can mount the cgroup file system"
    return ""
