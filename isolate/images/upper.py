"""The changes that a sandbox writes on top of an image: listed, kept as a layer, or discarded."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from isolate.engine.descriptors import OwnedDescriptor
from isolate.errors import ConflictError
from isolate.images.bounds import Bounds
from isolate.images.disk import new_directory
from isolate.images.errors import StoreError
from isolate.images.layer import FileBytes, Layer, unnamed
from isolate.images.pack.start import difference, remove
from isolate.kernel.checks import keywords

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from typing_extensions import Self

    from isolate.images.image import Image
    from isolate.images.pack.change import Changes
    from isolate.images.store import Store

__all__ = ["Upper"]


@keywords
class Upper:
    """A place in a store for the changes that sandboxes make to an image: ``ImageRoot(image, store=s, writable=u)``.

    One sandbox after the other can use it, all over the same image. :meth:`changes` tells what they changed,
    :meth:`commit` makes a layer of it. It is gone when the ``with`` block is left, when :meth:`discard` is called, or,
    however this process ends, when the store is collected next.

    :raises StoreError: the store cannot be written.
    """

    def __init__(self, store: Store) -> None:
        if store.read_only:
            raise StoreError("the store is read-only: changes have no place in it", path=store.path, errno=30)
        self._store = store
        self._image: Image | None = None
        self._lock = threading.Lock()
        self._users = 0
        self._stubs: set[bytes] = set()
        self._at = store.opened.uppers_fd
        # A process that can lock it may remove it. That is impossible while this process or one of its sandboxes lives.
        self._name, fd = new_directory(self._at)
        self._fd: OwnedDescriptor | None = OwnedDescriptor(fd)
        for name in ("fs", "work"):
            os.mkdir(name, 0o755, dir_fd=self._fd)

    def __repr__(self) -> str:
        state = (
            "discarded" if self._fd is None else "in use" if self._users else "not used" if not self._image else "kept"
        )
        return f"<Upper in {self._store.path}: {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def _directory(self) -> OwnedDescriptor:
        if self._fd is None:
            raise StoreError("the upper has been discarded", path=self._store.path, remedy="make another: Upper(store)")
        return self._fd

    # ---- for what mounts it ------------------------------------------------------------------------------------

    def use(self, image: Image, store: Store) -> None:
        """Say what it is on top of: once.

        :raises ConflictError: another image, or another store.
        """
        with self._lock:
            if store.path != self._store.path:
                raise ConflictError(f"the upper lies in the store {self._store.path}, the image in {store.path}")
            if self._image is not None and self._image.diffids != image.diffids:
                raise ConflictError("an upper has the changes of one image: make another for another image")
            self._image = image

    def begin(self, stubs: Iterable[bytes]) -> int:
        """A descriptor of the directory, for one sandbox. It has a fresh work directory.

        ``stubs`` are the places of its root that something is mounted on, with their parents.

        :raises StoreError: another sandbox uses it.
        """
        fd = self._directory()
        with self._lock:
            if self._users:
                raise StoreError(
                    "the upper is in use by another sandbox",
                    path=self._store.path,
                    cause="what two mounts at once do to one upper directory is undefined",
                    remedy="wait until that has ended, or give each an upper of its own",
                )
            # A volatile mount leaves a mark in its work directory, which then serves no other.
            remove(fd, "work", map=self._store.trees.reading_map())
            os.mkdir("work", 0o755, dir_fd=fd)
            self._like_the_top(fd)
            self._users += 1
            self._stubs.update(stubs)
        return os.dup(fd)

    def _like_the_top(self, fd: int) -> None:
        """Before its first use: the root directory is as the image has it."""
        if self._image is None or not self._image.diffids or os.stat("fs", dir_fd=fd).st_mtime_ns == 0:
            return
        lease, trees = self._store.lease(self._image)
        with lease:
            top = os.stat(trees[-1])
        if os.listdir(tree := os.open("fs", os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd)):
            os.close(tree)
            return
        try:
            if (top.st_uid, top.st_gid) != (os.geteuid(), os.getegid()) and os.geteuid() == 0:
                os.fchown(tree, top.st_uid, top.st_gid)
            os.fchmod(tree, top.st_mode & 0o7777)
        finally:
            os.close(tree)

    def end(self) -> None:
        """The sandbox has ended."""
        with self._lock:
            self._users -= 1

    # ---- for whoever owns it -----------------------------------------------------------------------------------

    def _compared(
        self, out: int | None, epoch: int | None, bounds: Bounds | None = None
    ) -> tuple[Changes, Layer | None]:
        fd = self._directory()
        if self._image is None:
            raise StoreError(
                "no sandbox has used this upper", remedy="give it to one: ImageRoot(image, writable=upper)"
            )
        lease, trees = self._store.lease(self._image)
        with lease:
            tree = os.open("fs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            try:
                changes, written = difference(
                    tree,
                    trees[::-1],
                    upper=True,
                    stubs=self._stubs,
                    facts=self._store.trees.facts_of(trees[::-1]),
                    contents=self._store.opened.contents(),
                    out=out,
                    epoch=epoch,
                    bounds=bounds,
                    map=self._store.trees.reading_map(),
                )
            finally:
                os.close(tree)
        if written is None:
            return changes, None
        assert isinstance(out, OwnedDescriptor)
        return changes, Layer(written.diffid, written.diffid, written.size, source=FileBytes(out))

    def changes(self) -> Changes:
        """The differences from the image, in the order of paths. A file that is as before is no change.

        :raises LayerError: a difference cannot be expressed in an archive.
        """
        return self._compared(None, None)[0]

    def commit(self, epoch: int | None = 0, *, bounds: Bounds | None = None) -> Layer:
        """A layer of the changes: with the same contents the same bytes, whenever they were made.

        ``epoch`` is the latest time of a file, in seconds; None keeps the times. ``bounds`` are for the archive
        (default: ``Bounds()``): a file full of holes costs a program nothing, and its archive is as large as it looks.
        The upper stays as it is.

        :raises StoreError: a sandbox still uses it. :raises LayerError: it has what no archive can say.
        """
        if self._users:
            raise StoreError("a sandbox still writes to the upper", remedy="wait for its end, or kill it")
        layer = self._compared(unnamed(self._store.path), epoch, bounds or Bounds())[1]
        assert layer is not None
        return layer

    def discard(self) -> None:
        """Remove the changes. A second time does nothing.

        :raises StoreError: a sandbox still uses it.
        """
        if self._fd is None:
            return
        if self._users:
            raise StoreError("a sandbox still writes to the upper", remedy="wait for its end, or kill it")
        remove(self._at, self._name, map=self._store.trees.reading_map())
        self._fd.close()
        self._fd = None
