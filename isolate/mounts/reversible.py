"""A single mount as a block on the calling thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from isolate.thread.entering import Reversible

if TYPE_CHECKING:
    from isolate.mounts.building import TreeEntry
    from isolate.thread.change import Change

__all__ = ["ReversibleMount"]


class ReversibleMount(Reversible):
    """A single mount: what stands inside of a root, and by itself is a block on a path of the calling thread's."""

    __slots__ = ()

    def here(self) -> Change:
        """The mount on its target, which must exist; gone after, also when it is in use (MNT_DETACH)."""
        from isolate.mounts.change import MountChange  # loaded late: most mounts stand in a root

        return MountChange(cast("TreeEntry", self))

    def enter(self) -> None:
        """Mount it on its target, in the calling thread's mount namespace, to stay."""
        change = self.here()
        change.apply()
        change.release()
