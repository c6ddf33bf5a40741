"""The part of a store that keeps what was put together in this program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isolate.images.blobs import Lease
from isolate.images.disk import doing
from isolate.images.holding import Holding, tagged
from isolate.images.image import Image, descriptor, make_manifest
from isolate.images.progress import Reporter
from isolate.images.pull import unpack
from isolate.images.reference import Reference

if TYPE_CHECKING:
    from isolate.images.bounds import Bounds
    from isolate.images.progress import ProgressCall

__all__ = ["Adding"]


class Adding(Holding):
    """The part of :class:`Store` that adds."""

    def add(
        self,
        image: Image,
        name: str | Reference | None = None,
        *,
        bounds: Bounds | None = None,
        unpack: bool = True,
        progress: ProgressCall | None = None,
    ) -> Image:
        """Keep an image that was put together here, with the content of its new layers; the same with their forms.

        ``name`` stands for it from then on; without one, :meth:`collect` takes it unless it is told to keep it.
        """
        with Lease() as lease:
            return self._add(image, name, bounds, unpack, Reporter(progress), lease, "none")

    async def aadd(
        self,
        image: Image,
        name: str | Reference | None = None,
        *,
        bounds: Bounds | None = None,
        unpack: bool = True,
        progress: ProgressCall | None = None,
    ) -> Image:
        """:meth:`add`, without blocking the event loop."""
        with Lease() as lease:
            return await self._aside(
                progress, None, lambda r, _: self._add(image, name, bounds, unpack, r, lease, "none")
            )

    def _add(
        self,
        image: Image,
        name: str | Reference | None,
        bounds: Bounds | None,
        trees: bool,
        report: Reporter,
        lease: Lease,
        compression: str,
    ) -> Image:
        from isolate.images.packing import Forms, pack  # loaded late: most programs only pull

        if not isinstance(image, Image):
            raise TypeError(f"Store.add takes an Image, not {image!r}")
        blobs = self._opened.blobs
        complete = self._opened.blobs.size(image.digest) is not None if image.received is not None else False
        if not (complete and self.read_only):
            self._writable()
        with doing("adding an image", self.path):
            forms = Forms(self._opened)
            packed = [pack(self._opened, layer, compression, report, lease, forms) for layer in image.layers]
            image = image.packed(packed)
            lease.add(blobs.add(image.document, image.id))
            if image.received is None:
                data = make_manifest(image.document, map(descriptor, packed))
                image = Image(image.layers, image.document, data)
            lease.add(blobs.add(image.manifest, image.digest))
            if trees:
                self._unpack(image, bounds, report, lease)
            if name is not None:
                self._opened.refs.set(tagged(Reference.parse(name)), image.digest)
        return image

    def _unpack(self, image: Image, bounds: Bounds | None, report: Reporter, lease: Lease) -> None:
        unpack(self._opened, self._trees, image, bounds, report, lease)
