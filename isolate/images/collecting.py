"""Removing what nothing names and nobody uses: mark from the names, set aside under one lock, delete afterwards."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.images.contents import unused
from isolate.images.disk import is_named, open_directory, try_lock
from isolate.images.documents import INDEX_TYPES, LARGEST, parse, read_index, read_manifest
from isolate.images.errors import DigestError, ImageError, StoreError
from isolate.images.sharing import unshared
from isolate.images.trash import empty, set_aside

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.images.opening import Opened
    from isolate.images.progress import Reporter
    from isolate.images.trees import Trees

__all__ = ["Collected", "Marked", "collect", "mark"]


@dataclass(frozen=True)
class Collected:
    """The result of a collection.

    ``blobs``, ``layers`` and ``leftovers`` (of calls that were cut off) are the numbers of removed items, and ``bytes``
    is their size. ``in_use`` is the number of items that are still used and stay until the next collection. ``failed``
    lists reasons why an item could not be deleted yet.
    """

    blobs: int
    layers: int
    leftovers: int
    bytes: int
    in_use: int
    failed: tuple[str, ...] = ()


class Marked:
    """The items that the names need."""

    def __init__(self) -> None:
        self.blobs: set[str] = set()
        self.layers: set[str] = set()
        self.stacks: list[tuple[str, ...]] = []


def mark(opened: Opened, trees: Trees, roots: Iterable[str]) -> Marked:
    """Everything that manifests and indexes need, beginning with these digests.

    :raises StoreError: a document that is named is missing or damaged, so that nobody can say what it needs.
    """
    found = Marked()
    waiting = list(roots)
    while waiting:
        digest = waiting.pop()
        if digest in found.blobs:
            continue
        try:
            data = opened.blobs.read(digest, LARGEST["manifest"])
            if data is None:
                raise StoreError(f"the document {digest} is named and missing")
            found.blobs.add(digest)
            document = parse(data, "manifest")
            if "manifests" in document:
                kind = document.get("mediaType") or INDEX_TYPES[0]
                rows = read_index(data, str(kind)).manifests
                # An index also names images for other machines, which were never fetched.
                waiting += [row.digest for row in rows if opened.blobs.size(row.digest) is not None]
                continue
            manifest = read_manifest(data)
            found.blobs.update((manifest.config.digest, *(layer.digest for layer in manifest.layers)))
            config = opened.blobs.read(manifest.config.digest, LARGEST["config"])
            if config is None:
                raise StoreError(f"the configuration {manifest.config.digest} is named and missing")
            rootfs = parse(config, "config").get("rootfs")
        except (ImageError, DigestError, StoreError) as error:
            raise StoreError(
                "what the names need cannot be told",
                path=opened.path,
                cause=str(error),
                remedy="check() tells which names; pull those again, or untag() them",
            ) from None
        diffids = tuple(rootfs.get("diff_ids") or ()) if isinstance(rootfs, dict) else ()
        found.stacks.append(diffids)
        for index, diffid in enumerate(diffids):
            found.layers.update(trees.names(diffid, diffids[:index]))
    return found


def collect(opened: Opened, trees: Trees, keep: Iterable[str], report: Reporter) -> Collected:
    """See :meth:`isolate.images.Store.collect`."""
    held = opened.refs.locked()  # nobody names anything until what goes has gone
    blobs = layers = leftovers = size = in_use = 0
    try:
        marked = mark(opened, trees, [*(digest for _, digest in opened.refs.all()), *keep])
        for at, name, digest in _unmarked_blobs(opened, marked):
            report.check()
            gone = _take(opened, at, name, os.O_RDONLY)
            if gone is None:
                in_use += 1
            elif digest is None:
                leftovers, size = leftovers + 1, size + gone
            else:
                blobs, size = blobs + 1, size + gone
                report("delete", digest, gone, gone)
        for name in os.listdir(opened.layers_fd):
            report.check()
            if name in marked.layers:
                continue
            gone = _take_layer(opened, trees, name)
            if gone is None:
                in_use += 1
            elif name.startswith("."):
                leftovers, size = leftovers + 1, size + gone
            else:
                layers, size = layers + 1, size + gone
                report("delete", f"sha256:{name[:64]}", gone, gone)
        for name in os.listdir(opened.uppers_fd):
            report.check()
            if _take_directory(opened, opened.uppers_fd, name):
                leftovers += 1
    finally:
        os.close(held)
    failed = empty(opened, trees.map)
    unshared(opened.objects_fd)
    contents = opened.contents()
    if contents is not None:
        unused(contents)
    return Collected(blobs, layers, leftovers, size, in_use, tuple(str(error) for error in failed))


def _unmarked_blobs(opened: Opened, marked: Marked) -> Iterator[tuple[int, str, str | None]]:
    for algorithm, at in opened.blobs.directories():
        for name in os.listdir(at):
            digest = f"{algorithm}:{name}"
            if digest not in marked.blobs:
                yield at, name, None if name.startswith(".") else digest
    for name in os.listdir(opened.blobs.partial_fd):
        yield opened.blobs.partial_fd, name, None


def _take(opened: Opened, at: int, name: str, flags: int) -> int | None:
    """Set one file aside: its size; None where somebody uses it."""
    try:
        fd = os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    except FileNotFoundError:
        return 0
    try:
        if not try_lock(fd, exclusive=True):
            return None
        found = os.fstat(fd)
        if is_named(fd, name, at):
            set_aside(opened, at, name)
        return found.st_size if stat.S_ISREG(found.st_mode) else 0
    finally:
        os.close(fd)


def _take_layer(opened: Opened, trees: Trees, name: str) -> int | None:
    try:
        fd = open_directory(name, opened.layers_fd)
    except FileNotFoundError:
        return 0
    try:
        size = int(trees.info(fd).get("data") or 0)
    except (StoreError, ValueError, TypeError):
        size = 0
    finally:
        os.close(fd)
    return size if _take_directory(opened, opened.layers_fd, name) else None


def _take_directory(opened: Opened, at: int, name: str) -> bool:
    """Set one directory aside; False where somebody uses it."""
    try:
        fd = open_directory(name, at)
    except FileNotFoundError:
        return False
    try:
        if not try_lock(fd, exclusive=True):
            return False
        if is_named(fd, name, at):
            set_aside(opened, at, name)
        return True
    finally:
        os.close(fd)
