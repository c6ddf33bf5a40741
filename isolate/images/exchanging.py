"""The part of a store that exchanges images with registries."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from isolate.images.adding import Adding
from isolate.images.blobs import Lease
from isolate.images.disk import doing
from isolate.images.documents import INDEX_TYPES, read_manifest
from isolate.images.errors import ImageError, StoreError
from isolate.images.holding import tagged
from isolate.images.image import Image
from isolate.images.platform import Platform
from isolate.images.progress import Reporter
from isolate.images.pull import Pull
from isolate.images.push import Push, Sent
from isolate.images.reference import Reference
from isolate.images.registry.client import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.images.bounds import Bounds
    from isolate.images.progress import ProgressCall
    from isolate.images.registry.client import Pulled

__all__ = ["Exchanging"]


class Exchanging(Adding):
    """The part of :class:`Store` that pulls and pushes."""

    def pull(
        self,
        reference: str | Reference,
        *,
        registry: Registry | None = None,
        platform: Platform | str | None = None,
        bounds: Bounds | None = None,
        unpack: bool = True,
        progress: ProgressCall | None = None,
    ) -> Image:
        """Fetch an image: what is in the store already is not fetched again; what was cut off goes on.

        If the image is for several platforms, the one for ``platform`` (``"linux/arm64"``) or for this machine is kept.
        With ``platform="all"`` all are kept, the name stands for the whole, and the one for this machine is unpacked.
        ``registry`` is the reference's own unless one is given, with its credentials and mirrors. ``bounds`` are for
        each layer. With ``unpack=False`` the layers are kept as they came, and not extracted. Every digest is verified:
        of the manifest where the reference has it, and of all that the manifest names. A tag becomes a name in the
        store; what is pulled by digest alone has none: :meth:`tag` it, or keep it from :meth:`collect`.

        :raises RegistryError: it is not there, or the registry fails. :raises DigestError: it lies.
        :raises ImageError: a document, :raises LayerError: a layer breaks a rule. :raises StoreError: the disk is full.
        """
        return self._pull(reference, registry, platform, bounds, unpack, Reporter(progress))

    async def apull(
        self,
        reference: str | Reference,
        *,
        registry: Registry | None = None,
        platform: Platform | str | None = None,
        bounds: Bounds | None = None,
        unpack: bool = True,
        progress: ProgressCall | None = None,
    ) -> Image:
        """:meth:`pull`, without blocking the event loop; cancelling the task ends it, and keeps what has come."""
        return await self._aside(
            progress, registry, lambda r, who: self._pull(reference, who, platform, bounds, unpack, r)
        )

    def _pull(
        self,
        name: str | Reference,
        registry: Registry | None,
        platform: Platform | str | None,
        bounds: Bounds | None,
        trees: bool,
        report: Reporter,
    ) -> Image:
        self._writable()
        reference = Reference.parse(name)
        every = platform == "all"
        wanted = None if platform is None or every else Platform.parse(platform)
        with _registry(registry, reference, report) as client:
            pull = Pull(self._opened, self._trees, client, reference.repository, report)
            with pull.lease, doing("pulling", self.path):
                if every:
                    found = pull.document(reference.wanted)
                    if found.media_type in INDEX_TYPES:
                        return self._all(pull, found, reference, bounds, trees, report)
                image = pull.find(reference, wanted)
                pull.layers(image, bounds, trees=trees)
                if reference.tag is not None:
                    self._opened.refs.set(reference, image.digest)
                return image

    def _all(
        self, pull: Pull, found: Pulled, reference: Reference, bounds: Bounds | None, trees: bool, report: Reporter
    ) -> Image:
        images = pull.everything(found)
        at = Platform.host().choose(image.platform for image in images)
        if not images:
            raise ImageError(str(reference), "is an index without an image")
        if trees and at is not None:
            self._unpack(images[at], bounds, report, pull.lease)
        if reference.tag is not None:
            self._opened.refs.set(reference, found.digest)
        return images[at or 0]

    def push(
        self,
        image: Image | str,
        registry: Registry | str | Reference | None = None,
        name: str | None = None,
        *,
        compression: str = "gzip",
        progress: ProgressCall | None = None,
    ) -> Sent:
        """Send an image: only what the registry lacks; what another of its repositories has is mounted there.

        ``push(image, "registry.example/me/app:1")``, ``push(image, Registry("registry.example"), "me/app:1")``, or
        ``push("registry.example/me/app:1")`` for what has that name here. New layers are sent compressed by
        ``"gzip"``, ``"zstd"`` or ``"none"``; those that came compressed stay as they are, so the digest of an image
        that was pulled stays, too. The name stands for what was sent from then on, unless it stands for another image.

        :raises RegistryError: the registry refuses, or fails. :raises StoreError: a layer is not here.
        :raises ValueError: an image by its digest, and no name to send it to.
        """
        return self._push(image, registry, name, compression, Reporter(progress))

    async def apush(
        self,
        image: Image | str,
        registry: Registry | str | Reference | None = None,
        name: str | None = None,
        *,
        compression: str = "gzip",
        progress: ProgressCall | None = None,
    ) -> Sent:
        """:meth:`push`, without blocking the event loop; cancelling the task ends it."""
        given = registry if isinstance(registry, Registry) else None
        return await self._aside(
            progress, given, lambda r, who: self._push(image, who or registry, name, compression, r)
        )

    def _push(
        self,
        image: Image | str,
        registry: Registry | str | Reference | None,
        name: str | None,
        compression: str,
        report: Reporter,
    ) -> Sent:
        if isinstance(registry, Registry):
            if name is None:
                raise TypeError("push to a Registry needs a name, such as 'me/app:1'")
            reference = Reference.parse(name if name.startswith(f"{registry.host}/") else f"{registry.host}/{name}")
        else:
            if registry is None and isinstance(image, Image):
                raise TypeError("push needs to know where to: push(image, 'registry.example/me/app:1')")
            reference = Reference.parse(registry) if registry is not None else self.named(str(image))
        client = registry if isinstance(registry, Registry) else None
        with _registry(client, reference, report) as who, Lease() as lease, doing("pushing", self.path):
            push = Push(self._opened, who, reference, report)
            with push.lease:
                if isinstance(image, Image):
                    image = self._add(image, None, None, False, report, lease, compression)
                digest = self._resolve(image)
                self.hold(digest, lease)
                sent = push.send(digest, self.document(digest)[1])
                self._remember(reference, digest)
                return sent

    def _remember(self, reference: Reference, digest: str) -> None:
        """Let the name stand for what was sent, unless it stands for another image: a later push can mount from it."""
        if reference.tag is None or self.read_only:
            return
        name = tagged(reference)
        known = self._opened.refs.get(name)
        if known is None or (known != digest and self._id(known) == self._id(digest) is not None):
            self._opened.refs.set(name, digest)

    def _id(self, digest: str) -> str | None:
        """The digest of the configuration that a manifest names."""
        try:
            return read_manifest(*self.document(digest)).config.digest
        except (StoreError, ImageError):
            return None


@contextmanager
def _registry(given: Registry | None, reference: Reference, report: Reporter) -> Iterator[Registry]:
    if given is not None:
        yield given
        return
    with Registry(reference.registry).watch(report.check) as own:
        yield own
