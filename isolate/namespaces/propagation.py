"""Whether mounts pass between a mount namespace and others (mount_namespaces(7), "Shared subtrees")."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from isolate.engine.plan import KEPT, Phase, Step, call
from isolate.kernel.constants import MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["propagation_steps"]


def propagation_steps(propagation: str) -> Iterator[Step]:
    """Off before the first mount; and shared again, where that is wanted, once all is mounted."""
    how = MS_SLAVE if propagation == "slave" else MS_PRIVATE
    yield Step(
        Phase.PROPAGATION,
        f"mounts made inside never show on the host ({propagation} propagation)",
        (call("mount", 0, b"/", 0, MS_REC | how, 0),),
        template=KEPT if propagation == "private" else None,
        path=b"/",
        hints={
            errno.EINVAL: "this program's root is no mount point (it runs in a plain chroot): before entering the"
            " chroot, mount its directory over itself (mount --rbind DIRECTORY DIRECTORY)"
        },
    )
    if propagation == "shared":
        # Once all that the sandbox has is mounted: groups of its own, which the host is no member of.
        sharing = (call("mount", 0, b"/", 0, MS_REC | MS_SHARED, 0),)
        yield Step(Phase.COVER, "mounts inside are shared with namespaces that are made inside", sharing, path=b"/")
