"""From a store to a registry: what it lacks, and no more; then the documents that name it."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.images.blobs import CHUNK, Lease
from isolate.images.documents import MANIFEST_TYPES, Descriptor, read_index, read_manifest
from isolate.images.errors import ImageError, RegistryError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.images.opening import Opened
    from isolate.images.progress import Reporter
    from isolate.images.reference import Reference
    from isolate.images.registry.client import Registry

__all__ = ["Push", "Sent"]


@dataclass(frozen=True)
class Sent:
    """The result of a push.

    The registry knows the image by ``reference`` and ``digest`` now. ``bytes`` went over the wire as blobs and
    documents (without headers); ``uploaded``, ``mounted`` (taken from another repository of the registry) and
    ``skipped`` (there already) are numbers of blobs.
    """

    reference: Reference
    digest: str
    bytes: int
    uploaded: int
    mounted: int
    skipped: int


class Push:
    """One push, and what it holds of the store until it is done."""

    def __init__(self, opened: Opened, registry: Registry, reference: Reference, report: Reporter) -> None:
        self._opened = opened
        self._registry = registry
        self._reference = reference
        self._report = report
        self._lock = threading.Lock()
        self._bytes = self._uploaded = self._mounted = self._skipped = 0
        self._sources: dict[str, list[str]] | None = None
        self.lease: Lease = Lease()

    def send(self, digest: str, media_type: str) -> Sent:
        """A manifest, or an index with what it names, all of it in the store."""
        data = self._read(digest)
        if media_type in MANIFEST_TYPES:
            self._blobs_of([data])
        else:
            rows = [row for row in read_index(data, media_type).manifests if row.media_type in MANIFEST_TYPES]
            documents = [(row, self._read(row.digest)) for row in rows]
            self._blobs_of(document for _, document in documents)
            for row, document in documents:
                self._put(document, row.media_type, None)
        self._put(data, media_type, self._reference.tag)
        return Sent(self._reference, digest, self._bytes, self._uploaded, self._mounted, self._skipped)

    def _read(self, digest: str) -> bytes:
        data = self._opened.blobs.read(digest, 4 << 20)
        if data is None:
            raise StoreError(
                f"{digest} is not in the store", path=self._opened.path, remedy="pull or add the image first"
            )
        return data

    def _put(self, data: bytes, media_type: str, tag: str | None) -> None:
        self._registry.put_manifest(self._reference.repository, data, media_type, tag)
        self._bytes += len(data)

    def _blobs_of(self, manifests: Iterable[bytes]) -> None:
        found = [read_manifest(data) for data in manifests]
        layers = {layer.digest: layer for manifest in found for layer in manifest.layers}
        configs = {manifest.config.digest: manifest.config for manifest in found}
        with self._report.workers(self._registry.parallel, "isolate-push") as pool:
            for job in [pool.submit(self._blob, one) for one in layers.values()]:
                job.result()
            # If a layer was new, so is the configuration that has its digest: do not ask for it.
            new = len(found) == 1 and self._uploaded > 0
            for job in [pool.submit(self._blob, one, new) for one in configs.values() if one.digest not in layers]:
                job.result()

    def _blob(self, blob: Descriptor, new: bool = False) -> None:
        registry, repository = self._registry, self._reference.repository
        if not new and registry.has(repository, blob.digest):
            self._count("exists", blob, skipped=1)
            return
        place: str | None = None
        for source in self._known(blob.digest):
            place = registry.mount(repository, blob.digest, source)
            if place is None:
                self._count("mounted", blob, mounted=1)
                return
            break  # the registry has opened an upload instead
        fd = self._opened.blobs.hold(blob.digest)
        if fd is None:
            raise StoreError(
                f"the blob {blob.digest} is not in the store",
                path=self._opened.path,
                remedy="pull the image again, or push it to the registry that has it",
            )
        with self._lock:
            self.lease.add(fd)
        size = os.fstat(fd).st_size
        if size != blob.size:
            raise ImageError("manifest", f"says that {blob.digest} has {blob.size} bytes; it has {size}")

        def read(start: int, end: int) -> Iterator[bytes]:
            while start < end:
                piece = os.pread(fd, min(CHUNK, end - start), start)
                if not piece:
                    raise StoreError(f"the blob {blob.digest} is shorter than it was", remedy="check() the store")
                start += len(piece)
                yield piece

        def tell(done: int) -> None:
            self._report("upload", blob.digest, done, size)

        tell(0)
        registry.upload(repository, blob.digest, size, read, tell, place=place)
        self._count(None, blob, uploaded=1)

    def _count(
        self, what: str | None, blob: Descriptor, *, uploaded: int = 0, mounted: int = 0, skipped: int = 0
    ) -> None:
        with self._lock:
            self._uploaded += uploaded
            self._mounted += mounted
            self._skipped += skipped
            self._bytes += blob.size if uploaded else 0
        if what is not None:
            self._report(what, blob.digest, blob.size, blob.size)

    def _known(self, digest: str) -> list[str]:
        """Other repositories of this registry that a name in the store says have the blob."""
        with self._lock:
            if self._sources is None:
                self._sources = self._look()
            return self._sources.get(digest, [])

    def _look(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        own = self._reference
        for reference, digest in self._opened.refs.all():
            if reference.registry != own.registry or reference.repository == own.repository:
                continue
            try:
                data = self._opened.blobs.read(digest, 4 << 20)
                manifest = None if data is None else read_manifest(data)
            except (ImageError, StoreError, RegistryError):
                continue  # an index, or damaged: it only helps to save bytes
            for one in () if manifest is None else (*manifest.layers, manifest.config):
                found.setdefault(one.digest, []).append(reference.repository)
        return found
