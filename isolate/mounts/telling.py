"""The layers of an overlay whose changes go to memory, handed to the caller, who can look at the changes afterwards.

The memory is a file system that is mounted nowhere any more but beneath the overlay. Whoever holds a descriptor of the
directory for changes keeps it, also when the sandbox has ended.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from isolate.engine.descriptors import OwnedDescriptor
from isolate.engine.handing import Handing, give
from isolate.engine.plan import Phase, Step, call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.engine.plan import Launched, Register
    from isolate.mounts.building import Building

__all__ = ["MOST", "Told", "telling"]

#: The largest number of layers that are handed over: SCM_MAX_FD is 253.
MOST = 250
_HINTS = {errno.ETOOMANYREFS: "as many descriptors as this user may have are on their way already (unix(7))"}


class Told:
    """The layers of one overlay of one start."""

    def __init__(self, place: bytes, building: Building, mark: str, *, contents: bool) -> None:
        #: The path of the overlay.
        self.place = place
        #: The attribute by which this overlay knows a directory that hides those below; others are a program's own.
        self.mark = mark
        self._building = building
        self._has_contents = contents
        self._fds: list[OwnedDescriptor] = []
        self._contents: OwnedDescriptor | None = None

    def receive(self, fds: list[int], session: Launched) -> None:
        """Keep them."""
        self._fds = [OwnedDescriptor(fd) for fd in fds]
        if self._has_contents:
            self._contents = self._fds.pop()

    @property
    def layers(self) -> Sequence[OwnedDescriptor]:
        """The directory for changes, and what lies below it, the uppermost first; none before they came."""
        return self._fds

    @property
    def contents(self) -> OwnedDescriptor | None:
        """The data-only layer, if there is one."""
        return self._contents

    def stubs(self) -> dict[bytes, bytes | None]:
        """The places that the root's entries made where they were missing, with the directories on the way,
        without the first slash, and what a symbolic link says."""
        made = {**dict.fromkeys(self._building.taken), **self._building.made}
        found: dict[bytes, bytes | None] = {}
        for place, link in made.items():
            path = place.strip(b"/")
            found[path] = link
            while path := path.rpartition(b"/")[0]:
                found.setdefault(path, None)
        return found

    def close(self) -> None:
        """Let go of them, and so of the memory."""
        self._fds = []  # closed with the last reference: somebody may be looking
        self._contents = None


def telling(
    building: Building,
    place: bytes,
    upper: Register,
    lower: Sequence[Register],
    *,
    own_xattrs: bool,
    contents: Register | None = None,
) -> Step | None:
    """The step that hands them over; None where nobody asks (on a thread), or there are too many."""
    context = building.context
    asked = any(getattr(part, "tells_changes", False) for part in context.parts)
    if not asked or len(lower) >= MOST:
        return None
    mark = f"{'user' if own_xattrs else 'trusted'}.overlay.opaque"
    fds = [upper, *lower, *(() if contents is None else (contents,))]
    handing = Handing(
        prepare=lambda: Told(place, building, mark, contents=contents is not None), count=len(fds), part="Overlay"
    )
    slot = handing.slot(context)
    ops = (*give(slot, fds), call("close", slot))
    return Step(Phase.ROOT, "hand its layers to the caller, who tells what has changed", ops, hints=_HINTS)
