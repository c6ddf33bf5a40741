"""The cgroup file system, as the sandbox's own cgroup namespace shows it."""

from __future__ import annotations

from dataclasses import dataclass
from errno import ENODEV, EPERM
from typing import TYPE_CHECKING

from isolate.engine.finding import Finding
from isolate.engine.plan import Phase, Register, Step, call
from isolate.kernel.checks import keywords
from isolate.kernel.constants import MOUNT_ATTR_RDONLY
from isolate.kernel.paths import StrOrBytesPath, inside, text
from isolate.mounts.calls import new_file_system
from isolate.mounts.pseudo import FLAGS
from isolate.namespaces.part import CgroupNamespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.engine.plan import Part
    from isolate.mounts.building import Building

__all__ = ["CgroupFs"]


@keywords
@dataclass(frozen=True)
class CgroupFs:
    """The v2 hierarchy, read-only, from the sandbox's own group downwards (cgroup_namespaces(7)).

    Programs can read what their group uses and what limits it has. Groups above and beside it are not shown.

    Needs CAP_SYS_ADMIN or a user namespace; Linux 4.6. Limits that a host has in v1 groups are not shown.

    Brings the cgroup namespace; put :class:`isolate.Limits` beside it, or the group is that of the caller. Always
    read-only: a program that could write there could lift the limits of what it starts.

    :param target: absolute path inside the sandbox.

    >>> CgroupFs().target
    b'/sys/fs/cgroup'
    """

    target: StrOrBytesPath = "/sys/fs/cgroup"

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", inside(self.target, "CgroupFs: target"))

    @property
    def place(self) -> bytes:
        """Its target."""
        return inside(self.target)

    def brings(self) -> Iterator[Part]:
        """The namespace whose view it is. In the first one a mount would also reset the host's mount options."""
        yield CgroupNamespace()

    def steps_in(self, building: Building) -> Iterator[Step]:
        """Make it, mount it."""
        fs, path = Register("cgroup2"), self.place
        yield Step(
            Phase.ROOT,
            f"cgroups on {text(path)}, read-only",
            (
                *new_file_system(b"cgroup2", fs, [], FLAGS | MOUNT_ATTR_RDONLY),
                *building.attach(fs, path, symlinks=False, mode=0o555),
                call("close", fs),
            ),
            path=path,
            hints={
                EPERM: Finding("the cgroup namespace belongs to another user namespace", "let both be new, or neither"),
                ENODEV: "this kernel has no cgroup v2",
            },
        )
