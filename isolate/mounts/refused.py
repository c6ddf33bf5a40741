"""Why the kernel refuses a new procfs, sysfs or overlay: for every step that makes one."""

from __future__ import annotations

import functools
from errno import EBUSY, EINVAL, ELOOP, ENODEV, ENOENT, ENOTDIR, EPERM, ESTALE
from typing import TYPE_CHECKING

from isolate.engine.finding import Finding

if TYPE_CHECKING:
    from isolate.diagnosis.host import Failure

__all__ = ["DATA_ONLY", "OVERLAY", "refused"]

#: The meaning of an errno of overlayfs, however it is mounted.
OVERLAY = {
    EINVAL: Finding(
        "overlayfs does not take these layers: the upper's file system cannot be one (an overlay itself, NFS, FAT, no"
        " extended attributes), upper and work are not in one file system, one layer lies within another or in another"
        " mount namespace, or has mounts below that a user namespace may not uncover",
        "put upper and work side by side on tmpfs, ext4, XFS or btrfs (ephemeral: a tmpfs of the sandbox's own); where"
        " a layer has mounts below, as / has, Bind its directories instead, or be root",
        True,
    ),
    EPERM: Finding(
        "overlayfs in a user namespace needs Linux 5.11, and an upper whose owner is in the id map; elsewhere it needs"
        " CAP_SYS_ADMIN",
        "upgrade the kernel, or use layers that the caller owns",
        True,
    ),
    ENODEV: Finding("this kernel has no overlayfs, or its module is not loaded", "as root: modprobe overlay", True),
    EBUSY: Finding("upper or work is in use by another overlay", "give each its own"),
    ELOOP: Finding(
        "these are layers within layers: the kernel stacks two overlays at most", "name the layers themselves"
    ),
    ENOENT: Finding("a layer does not exist", "make it, or name another"),
    ENOTDIR: Finding("a layer must be a directory", "name the directory"),
    ESTALE: Finding("upper was used with other lower layers before (the index feature)", "empty upper and work"),
}
#: The same with a data-only layer.
DATA_ONLY = {
    **OVERLAY,
    EINVAL: Finding(
        "files of the image have their contents in a data-only layer, which this kernel's overlayfs does not mount with"
        " user.overlay attributes",
        'use Linux 6.16, or a store without share="contents"',
        True,
    ),
}


def refused(kind: str) -> Finding:
    """EPERM for a new ``proc`` or ``sysfs``."""
    return Finding(
        f"in a user namespace the kernel refuses a new {kind} where the host's own is partly covered, as in Docker and"
        " Kubernetes; elsewhere CAP_SYS_ADMIN is missing",
        "run the outer container with an uncovered one (Docker: --security-opt systempaths=unconfined; Podman:"
        " --security-opt unmask=ALL; Kubernetes: procMount: Unmasked), or as root without UserNamespace()",
        ask=functools.partial(_asked, kind),
    )


def _asked(kind: str, failure: Failure) -> Finding | None:
    """proc and sysfs in a user namespace: only where the caller sees all of its own (fs/namespace.c)."""
    from isolate.diagnosis import clone  # loaded late: only an error needs it

    host, flags = failure.host, failure.flags
    namespace, part, flag = (
        ("pid", "PidNamespace", 0x20000000) if kind == "proc" else ("net", "NetNamespace", 0x40000000)
    )
    if flags & clone.NEWUSER and not flags & flag:
        return Finding(
            f"{kind} shows a {namespace} namespace, and may be mounted only by who owns it: the user namespace here "
            "does not",
            f"add {part}() to the sandbox",
        )
    if not flags & clone.NEWUSER:
        return clone.seccomp(host, f"mounting {kind}")
    point = "/proc" if kind == "proc" else "/sys"
    hidden = host.over_proc() if kind == "proc" else []
    own = host.mount_of(point)
    if hidden:
        container = host.container()
        remedy = {
            "Docker": "docker run --security-opt systempaths=unconfined",
            "Podman": "podman run --security-opt unmask=ALL",
            "Kubernetes": "securityContext.procMount: Unmasked (with hostUsers: false)",
        }.get(
            container or "",
            "start this container with an unmasked /proc (Docker: --security-opt systempaths=unconfined)",
        )
        shown = ", ".join(hidden[:4]) + (" …" if len(hidden) > 4 else "")
        return Finding(
            f"the caller's own /proc is masked ({shown}), and the kernel mounts no new one in a user namespace that "
            "would show more",
            f"{remedy}; or show that /proc: presets.nested(), isolate run --preset nested",
            True,
        )
    if own is None or own[1] != kind:
        return Finding(
            f"the caller has no {kind} at {point}, and the kernel mounts a new one in a user namespace only beside "
            "one that is fully visible",
            f"mount it at {point} outside first; or leave it out",
            True,
        )
    return clone.seccomp(host, f"mounting {kind}") or Finding(
        f"the kernel mounts no new {kind} in a user namespace that would show more than the caller's own does",
        "leave it out",
        True,
    )
