"""What each start of a sandbox is given of a store: the directories of an image's layers, held while it lives."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from isolate.images.errors import StoreError
from isolate.namespaces.part import UserNamespace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isolate.engine.session import Session
    from isolate.images.store import Store
    from isolate.images.upper import Upper
    from isolate.namespaces.ids import IdMap

__all__ = ["Given", "shared_namespace"]

_KEPT = 16
_namespaces: dict[IdMap, UserNamespace] = {}
_lock = threading.Lock()


def shared_namespace(ids: IdMap) -> int:
    """The descriptor of a user namespace with that map and nobody in it: what mounts are mapped by. Made once."""
    with _lock:
        found = _namespaces.get(ids)
        if found is None:
            while len(_namespaces) >= _KEPT:
                # Whoever uses it has a descriptor of its own by now.
                _namespaces.pop(next(iter(_namespaces)))
            found = _namespaces[ids] = UserNamespace.create(map=ids)
        assert found.fd is not None
        return os.dup(found.fd)


class Given:
    """A resource of each start: the layers, the uppermost first, then the upper and a namespace, as descriptors."""

    def __init__(
        self, store: Store, diffids: Sequence[str], upper: Upper | None, stubs: Sequence[bytes], ids: IdMap | None
    ) -> None:
        self._store = store
        self._diffids = tuple(diffids)
        self._upper = upper
        self._stubs = tuple(stubs)
        self._ids = ids
        self.count = len(self._diffids) + (upper is not None) + (ids is not None)

    def take(self) -> Holding:
        """For one start.

        :raises StoreError: a layer is not unpacked here, or the upper is in use.
        """
        holding = Holding()
        try:
            for index in reversed(range(len(self._diffids))):
                fd = self._store.trees.hold(self._diffids[index], self._diffids[:index])
                if fd is None:
                    raise StoreError(
                        f"layer {self._diffids[index]} is not unpacked in this store", path=self._store.path,
                        remedy="store.add(image), or pull or load it with unpack=True",
                    )  # fmt: skip
                holding.fds.append(fd)
            if self._upper is not None:
                holding.fds.append(self._upper.begin(self._stubs))
                holding.upper = self._upper
            if self._ids is not None:
                holding.fds.append(shared_namespace(self._ids))
        except BaseException:
            holding.close()
            raise
        return holding


class Holding:
    """What one start holds; closed with its end."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self.upper: Upper | None = None

    def started(self, session: Session) -> None:
        """The launcher holds it as well from here on."""

    def close(self) -> None:
        """The sandbox has ended."""
        while self.fds:
            os.close(self.fds.pop())
        upper, self.upper = self.upper, None
        if upper is not None:
            upper.end()
