"""The layers of an image that have a directory at a path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolate.images.pack.stack import Stack

if TYPE_CHECKING:
    from isolate.images.image import Image
    from isolate.images.store import Store

__all__ = ["layers_of", "place_of"]


def place_of(image: Image, store: Store, path: bytes) -> tuple[bytes, bool]:
    """Where a path leads with the image as the root, without slashes at its ends, and whether there is a directory.

    A path whose links lead in a circle, or through a file, stays as it is.
    """
    lease, trees = store.lease(image)
    with lease:
        stack = Stack(tuple(reversed(trees)))
        try:
            found = stack.real(path, missing=True)
            return found, bool(stack.view(found))
        except (ValueError, OSError):
            return path.strip(b"/"), False
        finally:
            stack.close()


def layers_of(image: Image, store: Store, path: bytes) -> list[int]:
    """The numbers of the layers whose directory of that path shows, the uppermost first. No link is followed."""
    lease, trees = store.lease(image)
    with lease:
        stack = Stack(tuple(reversed(trees)))
        try:
            return [len(trees) - 1 - stack.trees.index(tree) for tree in stack.view(path)]
        finally:
            stack.close()
