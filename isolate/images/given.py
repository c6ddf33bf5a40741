"""The part of a store that each start of a sandbox gets: the directories of an image's layers, held while it lives."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from isolate.images.contents import outlined
from isolate.images.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.engine.plan import Launched
    from isolate.images.store import Store
    from isolate.images.upper import Upper

__all__ = ["Given"]


class Given:
    """A resource of each start: the layers, the uppermost first, the contents of their outlines, then the upper, as
    descriptors."""

    def __init__(
        self,
        store: Store,
        diffids: Sequence[str],
        upper: Upper | None,
        stubs: Sequence[bytes],
        only: Sequence[int] | None = None,
        *,
        contents: bool = False,
    ) -> None:
        """``only`` are the numbers of the layers that are wanted, the uppermost first; None: all. With ``contents`` the
        contents of outlines are wanted, too."""
        self._store = store
        self._diffids = tuple(diffids)
        self._wanted = tuple(reversed(range(len(self._diffids)))) if only is None else tuple(only)
        self._upper = upper
        self._stubs = tuple(stubs)
        self._contents = contents
        self.count: int = len(self._wanted) + contents + (upper is not None)

    def take(self) -> Holding:
        """For one start.

        :raises StoreError: a layer is not unpacked here, or the upper is in use.
        """
        holding = Holding()
        try:
            for index in self._wanted:
                fd = self._store.trees.hold(self._diffids[index], self._diffids[:index])
                if fd is None:
                    raise StoreError(
                        f"layer {self._diffids[index]} is not unpacked in this store",
                        path=self._store.path,
                        remedy="store.add(image), or pull or load it with unpack=True",
                    )
                holding.fds.append(fd)
                if not self._contents and outlined(fd):
                    raise StoreError(
                        f"the contents of layer {self._diffids[index]} lie elsewhere since the sandbox was planned",
                        path=self._store.path,
                        cause='it was unpacked anew, by a store with share="contents"',
                        remedy="make the Sandbox once more",
                    )
            if self._contents:
                contents = self._store.opened.contents()
                if contents is None:
                    raise StoreError("the directory with the contents of files is gone", path=self._store.path)
                holding.fds.append(os.dup(contents))
            if self._upper is not None:
                holding.fds.append(self._upper.begin(self._stubs))
                holding.upper = self._upper
        except BaseException:
            holding.close()
            raise
        return holding


class Holding:
    """The resources of one start; closed with its end."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self.upper: Upper | None = None

    def started(self, session: Launched) -> None:
        """The launcher holds it as well from here on."""

    def close(self) -> None:
        """The sandbox has ended."""
        while self.fds:
            os.close(self.fds.pop())
        upper, self.upper = self.upper, None
        if upper is not None:
            upper.end()
