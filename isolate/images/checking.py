"""Whether a store is what it says: names, documents, blobs, trees."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.images.blobs import Lease, chunks
from isolate.images.contents import faults_of, outlined
from isolate.images.digests import hasher, is_digest, split
from isolate.images.disk import open_directory
from isolate.images.documents import INDEX_TYPES, packing_of, read_index
from isolate.images.errors import DigestError, ImageError, LayerError, StoreError
from isolate.images.pack.start import write_layer
from isolate.images.trees import above

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.images.holding import Holding
    from isolate.images.image import Image
    from isolate.images.layer import Layer
    from isolate.images.progress import Reporter

__all__ = ["Fault", "check"]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: ``what`` it is about (a name, a digest, a file of the store), and ``why``."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


def check(store: Holding, *, deep: bool, report: Reporter) -> list[Fault]:
    """See :meth:`isolate.images.Store.check`."""
    faults: list[Fault] = []
    images: dict[str, Image] = {}
    with Lease() as lease:
        for reference, digest in store.tags().items():
            report.check()
            try:
                faults += _named(store, digest, images, lease)
            except (ImageError, DigestError, StoreError, ValueError) as error:
                faults.append(Fault(reference.short, str(error)))
        faults += _blobs(store, deep, report)
        forms = {layer.diffid: layer for image in images.values() for layer in image.layers}
        stacks = [image.diffids for image in images.values()]
        faults += _layers(store, deep, report, forms, stacks, lease)
    return list(dict.fromkeys(faults))


def _named(store: Holding, digest: str, images: dict[str, Image], lease: Lease) -> Iterator[Fault]:
    data, kind = store.document(digest)
    store.hold(digest, lease)
    if kind in INDEX_TYPES:
        rows = [row for row in read_index(data, kind).manifests if store.opened.blobs.size(row.digest) is not None]
        for row in rows:
            yield from _named(store, row.digest, images, lease)
        return
    image = store.open(digest)
    images[digest] = image
    for layer in image.layers:
        size = store.opened.blobs.size(layer.digest)
        if size is None:
            yield Fault(layer.digest, f"a layer of {digest}, missing")
        elif size != layer.size:
            yield Fault(layer.digest, f"a layer of {layer.size} bytes by its manifest has {size}")


def _blobs(store: Holding, deep: bool, report: Reporter) -> Iterator[Fault]:
    for digest in store.opened.blobs.names():
        if not is_digest(digest):
            yield Fault(f"blobs/{digest.replace(':', '/')}", "is no name of a blob")
            continue
        if not deep:
            continue
        fd = store.opened.blobs.hold(digest)
        if fd is None:
            continue  # collected meanwhile
        try:
            state, size, done = hasher(digest), os.fstat(fd).st_size, 0
            for piece in chunks(fd):
                state.update(piece)
                done += len(piece)
                report("check", digest, done, size)
        finally:
            os.close(fd)
        got = f"{split(digest)[0]}:{state.hexdigest()}"
        if got != digest:
            yield Fault(digest, f"the bytes have the digest {got}")


def _layers(
    store: Holding, deep: bool, report: Reporter, forms: dict[str, Layer], stacks: list[tuple[str, ...]], lease: Lease
) -> Iterator[Fault]:
    read: set[int] = set()  # contents that several layers have, by inode
    for name in sorted(os.listdir(store.opened.layers_fd)):
        report.check()
        if name.startswith("."):
            continue  # being made, or left by one that was killed
        fd = store.trees.hold_name(name)
        if fd is None:
            continue
        lease.add(fd)
        diffid = f"sha256:{name[:64]}"
        if not is_digest(diffid):
            yield Fault(f"layers/{name}", "is no name of a layer")
            continue
        try:
            info = store.trees.info(fd)
            if info.get("diffid") != diffid:
                yield Fault(f"layers/{name}", f"holds {info.get('diffid')!r}")
            store.trees.facts(fd)
            os.close(open_directory("tree", fd))
        except (StoreError, OSError, ValueError) as error:
            yield Fault(f"layers/{name}", str(error))
            continue
        if outlined(fd):
            faults = faults_of(fd, store.opened.contents(), read, deep=deep)
            yield from (Fault(f"layers/{name}/contents/{file}", why) for file, why in faults)
        layer = forms.get(diffid)
        if deep and layer is not None and not store.read_only:
            below = _below(name, diffid, stacks, store)
            if below is not None:
                yield from _same(store, fd, name, layer, below, report)


def _below(name: str, diffid: str, stacks: list[tuple[str, ...]], store: Holding) -> tuple[str, ...] | None:
    """The layers below a layer in one of the images; None for what was above those of an image without a name."""
    for stack in stacks:
        for index, own in enumerate(stack):
            if own == diffid and (name in store.trees.names(diffid, stack[:index])):
                return stack[:index]
    return None


def _same(
    store: Holding, fd: int, name: str, layer: Layer, below: tuple[str, ...], report: Reporter
) -> Iterator[Fault]:
    """Extract the layer once more, and compare the trees as archives."""
    report("check", layer.diffid, 0, None)
    blob = store.opened.blobs.hold(layer.digest)
    if blob is None or packing_of(layer.media_type) is None:
        return
    with Lease() as lease:
        lease.add(blob)
        try:
            trees = store.trees.lease(below, lease)
            archive = lease.add(os.open(f"/proc/self/fd/{blob}", os.O_RDONLY | os.O_CLOEXEC))
            staged = store.trees.stage(archive, layer, below, trees, None)
        except (StoreError, LayerError, DigestError) as error:
            yield Fault(layer.diffid, str(error))
            return
        try:
            if _packed(store, fd) != _packed(store, staged.fd):  # which shares nothing, so no damage either
                yield Fault(
                    f"layers/{name}", f"is not what the layer {layer.diffid} is made into (above {above(below)})"
                )
            report("check", layer.diffid, staged.size, staged.size)
        finally:
            store.trees.throw_away(staged.name, staged.fd)


def _packed(store: Holding, fd: int) -> tuple[str, bytes]:
    """The digest of a tree as an archive, with all its times, and its facts."""
    tree = open_directory("tree", fd)
    sink = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        contents, map = store.opened.contents(), store.trees.reading_map()
        written = write_layer(tree, sink, epoch=None, contents=contents, map=map)
        return written.diffid, store.trees.facts(fd).to_bytes()
    finally:
        os.close(sink)
        os.close(tree)
