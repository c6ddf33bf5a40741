"""Removing from a store: first out of the way by rename, then deleted, whatever is in it."""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

from isolate.images.confined.remove import remove_tree
from isolate.images.disk import open_directory, try_lock
from isolate.images.errors import StoreError

if TYPE_CHECKING:
    from isolate.images.opening import Opened
    from isolate.namespaces.ids import IdMap

__all__ = ["discard", "empty", "set_aside"]


def set_aside(opened: Opened, at: int, name: str) -> str | None:
    """Move something to the trash, from which nothing is used again; its name there, None where it was not there."""
    new = secrets.token_hex(16)
    try:
        os.rename(name, new, src_dir_fd=at, dst_dir_fd=opened.trash_fd)
    except FileNotFoundError:
        return None
    return new


def discard(opened: Opened, at: int, name: str, map: IdMap | None) -> None:
    """Move something to the trash, and delete it there; what cannot be deleted now is left to :func:`empty`."""
    new = set_aside(opened, at, name)
    if new is not None:
        with contextlib.suppress(StoreError):
            remove_tree(opened.trash_fd, new.encode(), map)


def empty(opened: Opened, map: IdMap | None) -> list[StoreError]:
    """Delete what is in the trash; what could not be deleted, and why. While another process does it, this does not."""
    failed: list[StoreError] = []
    own = open_directory(".", opened.trash_fd)
    try:
        if not try_lock(own, exclusive=True):
            return failed
        for name in os.listdir(own):
            try:
                remove_tree(own, os.fsencode(name), map)
            except StoreError as error:
                failed.append(error)
    finally:
        os.close(own)
    return failed
