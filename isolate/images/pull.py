"""From a registry into a store: documents, then layers side by side, then trees in order; names last."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from isolate.images.blobs import Lease, Partial
from isolate.images.digests import is_digest
from isolate.images.disk import doing
from isolate.images.documents import INDEX_TYPES, LARGEST, MANIFEST_TYPES, Descriptor, Index, read_index, read_manifest
from isolate.images.errors import DigestError, ImageError
from isolate.images.image import Image, descriptor
from isolate.images.platform import Platform
from isolate.images.registry.client import Pulled

if TYPE_CHECKING:
    from concurrent.futures import Future

    from isolate.images.bounds import Bounds
    from isolate.images.opening import Opened
    from isolate.images.progress import Reporter
    from isolate.images.reference import Reference
    from isolate.images.registry.client import Registry
    from isolate.images.trees import Staged, Trees

__all__ = ["Pull", "choose", "unpack"]

_WAIT = 3600.0  # seconds for another process that downloads the same


def choose(index: Index, platform: Platform | None, what: str) -> Descriptor:
    """The manifest of an index that fits the platform, or this machine.

    :raises ImageError: none does; the message has those that there are.
    """
    wanted = platform or Platform.host()
    rows = [
        (descriptor, own)
        for descriptor, own in zip(index.manifests, index.platforms, strict=True)
        if descriptor.media_type in MANIFEST_TYPES and (own is None or own.os != "unknown")
    ]
    at = wanted.choose(own for _, own in rows if own is not None)
    if at is not None:
        return [descriptor for descriptor, own in rows if own is not None][at]
    if len(rows) == 1 and rows[0][1] is None:
        return rows[0][0]
    known = ", ".join(sorted({str(own) for _, own in rows if own is not None})) or "none"
    raise ImageError(what, f"has no image for {wanted}; it has: {known}")


class Pull:
    """One pull, and what it holds of the store until it is done."""

    def __init__(self, opened: Opened, trees: Trees, registry: Registry, repository: str, report: Reporter) -> None:
        self._opened = opened
        self._trees = trees
        self._registry = registry
        self._repository = repository
        self._report = report
        self.lease: Lease = Lease()

    def document(self, wanted: str, kind: str | None = None) -> Pulled:
        """A manifest or index: from the store if it is named by digest and there, else from the registry; kept."""
        blobs = self._opened.blobs
        if is_digest(wanted) and kind is not None:
            data = blobs.read(wanted, LARGEST["manifest"])
            if data is not None:
                self.lease.add(blobs.add(data, wanted))
                return Pulled(kind, wanted, data)
        pulled = self._registry.manifest(self._repository, wanted)
        if kind is not None and pulled.media_type not in ("", kind):
            raise ImageError(
                "manifest", f"is {kind!r} by its index, and {pulled.media_type!r} by the registry: two ways to read it"
            )
        self.lease.add(blobs.add(pulled.data, pulled.digest))
        return pulled

    def image(self, pulled: Pulled) -> Image:
        """The image of a manifest, its configuration fetched."""
        manifest = read_manifest(pulled.data, pulled.media_type or None)
        blobs = self._opened.blobs
        config = blobs.read(manifest.config.digest, LARGEST["config"])
        if config is None:
            config = self._registry.blob(self._repository, manifest.config, LARGEST["config"])
        self.lease.add(blobs.add(config, manifest.config.digest))
        if len(config) != manifest.config.size:
            raise ImageError("manifest", f"says that the config has {manifest.config.size} bytes; it has {len(config)}")
        return Image.read(pulled.data, config, media_type=pulled.media_type or None, source=self._opened.source)

    def find(self, reference: Reference, platform: Platform | None) -> Image:
        """The image that a reference stands for."""
        pulled = self.document(reference.wanted)
        if pulled.media_type in INDEX_TYPES or (pulled.media_type not in MANIFEST_TYPES and _is_index(pulled.data)):
            chosen = choose(read_index(pulled.data, pulled.media_type or None), platform, str(reference))
            pulled = self.document(chosen.digest, chosen.media_type)
        image = self.image(pulled)
        if platform is not None and not platform.runs(image.platform):
            raise ImageError(str(reference), f"is for {image.platform}, not for {platform}")
        return image

    def layers(self, image: Image, bounds: Bounds | None, *, trees: bool) -> None:
        """Download what is missing, side by side; extract in order as it comes."""
        unique = {layer.digest: descriptor(layer) for layer in image.layers}
        with self._report.workers(self._registry.parallel, "isolate-pull") as pool:
            jobs = {digest: pool.submit(self._blob, blob) for digest, blob in unique.items()}
            if trees:
                unpack(self._opened, self._trees, image, bounds, self._report, self.lease, jobs)
            for job in jobs.values():
                job.result()

    def everything(self, pulled: Pulled) -> list[Image]:
        """An index with all that it names, whatever machine it is for; its images, and what else lies beside them."""
        images: list[Image] = []
        wanted: dict[str, Descriptor] = {}
        for row in read_index(pulled.data, pulled.media_type or None).manifests:
            if row.media_type not in MANIFEST_TYPES:
                continue
            document = self.document(row.digest, row.media_type)
            manifest = read_manifest(document.data, row.media_type)
            try:
                images.append(self.image(document))
            except ImageError:
                # Something about an image, such as how it was built: kept as it is.
                wanted[manifest.config.digest] = manifest.config
            wanted.update((layer.digest, layer) for layer in manifest.layers)
        self._all(wanted)
        return images

    def _all(self, wanted: dict[str, Descriptor]) -> None:
        with self._report.workers(self._registry.parallel, "isolate-pull") as pool:
            for job in [pool.submit(self._blob, blob) for blob in wanted.values()]:
                job.result()

    def _blob(self, layer: Descriptor) -> int:
        with doing("keeping a layer", self._opened.path):
            fd, resumed = self._fetch(layer)
            if fd is None and resumed:
                # The data of an earlier attempt was wrong, or the rest was: try once more, from the beginning.
                fd, _ = self._fetch(layer)
            assert fd is not None
            return self.lease.add(fd)

    def _fetch(self, layer: Descriptor) -> tuple[int | None, bool]:
        """The held blob, and whether an earlier attempt was gone on with; None where that was of no use."""
        with self._opened.blobs.partial(layer.digest, seconds=_WAIT, check=self._report.check) as partial:
            if not isinstance(partial, Partial):
                self._report("exists", layer.digest, layer.size, layer.size)
                return partial, False

            def tell(done: int) -> None:
                self._report("download", layer.digest, done, layer.size)

            tell(0)
            partial.rehash(layer.size, tell)
            resumed = partial.size > 0
            self._registry.download(self._repository, layer, partial, tell)
            try:
                return partial.finish(f"layer of {self._registry.host}/{self._repository}"), resumed
            except DigestError:
                if not resumed:
                    raise
                return None, True


def unpack(
    opened: Opened,
    trees: Trees,
    image: Image,
    bounds: Bounds | None,
    report: Reporter,
    lease: Lease,
    jobs: dict[str, Future[int]] | None = None,
) -> None:
    """Extract the layers of an image that are not yet, the lowest first, and name them all at once."""
    staged: list[Staged] = []
    stack: list[int] = []
    try:
        for index, layer in enumerate(image.layers):
            below = image.diffids[:index]
            held = trees.hold(layer.diffid, below)
            if held is None:
                if jobs is not None:
                    blob = jobs[layer.digest].result()
                else:
                    found = opened.blobs.hold(layer.digest)
                    if found is None:
                        raise ImageError("layer", f"{layer.digest} is not in the store")
                    blob = lease.add(found)
                report("extract", layer.diffid, 0, None)
                archive = os.open(f"/proc/self/fd/{blob}", os.O_RDONLY | os.O_CLOEXEC)  # with a place of its own
                try:
                    one = trees.stage(archive, layer, below, stack, bounds, share=trees.share)
                finally:
                    os.close(archive)
                staged.append(one)
                held = one.fd
                report("extract", layer.diffid, one.size, one.size)
            else:
                lease.add(held)
                report("exists", layer.diffid, layer.size, layer.size)
            stack.append(os.open("tree", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=held))
        with doing("naming the layers", opened.path):
            done, staged = staged, []
            trees.publish(done, lease)
    finally:
        for fd in stack:
            os.close(fd)
        for one in staged:
            trees.throw_away(one.name, one.fd)


def _is_index(data: bytes) -> bool:
    """For a registry that sends no media type of ours: what the document itself says."""
    try:
        read_index(data)
    except ImageError:
        return False
    return True
