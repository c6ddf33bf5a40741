"""The store: a directory that holds images, without a daemon or a database."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from isolate.images.blobs import Lease
from isolate.images.digests import is_digest
from isolate.images.disk import doing
from isolate.images.documents import INDEX_TYPES, LARGEST, parse, read_index, read_manifest
from isolate.images.errors import ImageError, StoreError
from isolate.images.image import Image, descriptor, make_manifest
from isolate.images.opening import Opened
from isolate.images.platform import Platform
from isolate.images.progress import Reporter
from isolate.images.pull import Pull, choose, unpack
from isolate.images.push import Push, Sent
from isolate.images.reference import Reference
from isolate.images.registry.client import Registry
from isolate.images.trees import Trees

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

    from isolate.images.bounds import Bounds
    from isolate.images.progress import ProgressCall
    from isolate.kernel.paths import StrOrBytesPath
    from isolate.namespaces.ids import IdMap

__all__ = ["DEFAULT_STORE", "Sent", "Store"]

T = TypeVar("T")
DEFAULT_STORE = "~/.local/share/isolate"


class Store:
    """Images in a directory: made where it is missing, shared by as many processes as there are.

    ``read_only`` opens what is there and changes nothing; it is so by itself on a file system that is mounted so.
    ``map`` (an :class:`isolate.IdMap`) are the ids that files of layers can have here: None is all of them for root,
    and the caller alone for others.

    Nothing half made has a name in it, whatever is killed and whenever the power fails. What is in use cannot be
    collected: locks hold it that end with their process. The directory has mode 0700, since images have set-uid files.

    Close it, or use it in a ``with``; an image is a value and stays good.

    :raises StoreError: it is no store, of a newer format, or belongs to somebody else.

    >>> with Store("/tmp/images") as store:  # doctest: +SKIP
    ...     debian = store.pull("registry.example/debian:12")
    """

    def __init__(
        self, path: StrOrBytesPath = DEFAULT_STORE, *, read_only: bool = False, map: IdMap | None = None
    ) -> None:
        self._opened = Opened(path, read_only=read_only)
        self._trees = Trees(self._opened, map)

    @property
    def path(self) -> str:
        """Where it is."""
        return self._opened.path

    @property
    def read_only(self) -> bool:
        """Whether nothing can be added."""
        return self._opened.read_only

    @property
    def trees(self) -> Trees:
        """The extracted layers, for what mounts them."""
        return self._trees

    @property
    def opened(self) -> Opened:
        """The directories, for what keeps more in them."""
        return self._opened

    def close(self) -> None:
        """Close its descriptors."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self.path!r}{', read_only=True' if self.read_only else ''})"

    def _writable(self) -> None:
        if self._opened.fd < 0:
            raise StoreError("the store is closed", path=self.path)
        if self.read_only:
            raise StoreError("the store is read-only", path=self.path, errno=30, remedy="use one that can be written")

    # ---- names --------------------------------------------------------------------------------------------------

    def tags(self) -> dict[Reference, str]:
        """Every name with the digest that it stands for."""
        with doing("reading the names", self.path):
            return dict(self._opened.refs.all())

    def tag(self, image: Image | str, name: str | Reference) -> Reference:
        """Let a name stand for an image of this store."""
        self._writable()
        reference = _tagged(Reference.parse(name))
        with Lease() as lease:
            found = self._resolve(image)
            self._hold(found, lease)
            with doing("naming an image", self.path):
                self._opened.refs.set(reference, found)
        return reference

    def untag(self, name: str | Reference) -> bool:
        """Take a name away; False where there was none. What it stood for stays until :meth:`collect`."""
        self._writable()
        with doing("removing a name", self.path):
            return self._opened.refs.remove(Reference.parse(name))

    def _resolve(self, image: Image | str | Reference) -> str:
        """The digest of a manifest or an index in this store."""
        if isinstance(image, Image):
            if self._opened.blobs.size(image.digest) is None:
                raise StoreError("the image is not in this store", path=self.path, remedy="store.add(image) adds it")
            return image.digest
        if isinstance(image, str) and is_digest(image):
            return image
        reference = Reference.parse(image)
        if reference.digest is not None:
            return reference.digest
        with doing("reading a name", self.path):
            found = self._opened.refs.get(reference)
        if found is None:
            near = _nearest(reference, self.tags())
            raise StoreError(
                f"no image is named {reference.short}", path=self.path,
                remedy=f"did you mean {near}?" if near else "pull, load or add it first",
            )  # fmt: skip
        return found

    def _document(self, digest: str) -> tuple[bytes, str]:
        data = self._opened.blobs.read(digest, LARGEST["manifest"])
        if data is None:
            raise StoreError(f"{digest} is not in the store", path=self.path, remedy="pull, load or add it first")
        document = parse(data, "manifest")
        kind = document.get("mediaType")
        if not isinstance(kind, str):
            kind = INDEX_TYPES[0] if "manifests" in document else "application/vnd.oci.image.manifest.v1+json"
        return data, kind

    def open(self, image: str | Reference, *, platform: Platform | str | None = None) -> Image:
        """The image of a name or a digest; of an index the one for ``platform``, or this machine.

        :raises StoreError: there is none. :raises ImageError: it is damaged, or none is for that platform.
        """
        wanted = None if platform is None else Platform.parse(platform)
        digest = self._resolve(image)
        data, kind = self._document(digest)
        if kind in INDEX_TYPES:
            digest = choose(read_index(data, kind), wanted, str(image)).digest
            data, kind = self._document(digest)
        manifest = read_manifest(data, kind)
        config = self._opened.blobs.read(manifest.config.digest, LARGEST["config"])
        if config is None:
            raise StoreError(
                f"the configuration {manifest.config.digest} is missing", path=self.path, remedy="pull again"
            )
        return Image.read(data, config, media_type=kind, source=self._opened.source)

    def _hold(self, digest: str, lease: Lease) -> None:
        """Keep a manifest or index and all that it names from being collected."""
        data, kind = self._document(digest)
        self._hold_blob(digest, lease)
        if kind in INDEX_TYPES:
            for row in read_index(data, kind).manifests:
                if self._opened.blobs.size(row.digest) is not None:
                    self._hold(row.digest, lease)
            return
        manifest = read_manifest(data, kind)
        for blob in (manifest.config, *manifest.layers):
            self._hold_blob(blob.digest, lease)

    def _hold_blob(self, digest: str, lease: Lease) -> None:
        fd = self._opened.blobs.hold(digest)
        if fd is not None:
            lease.add(fd)

    # ---- registries ---------------------------------------------------------------------------------------------

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

        Of an image for several platforms, the one for ``platform`` (``"linux/arm64"``), or for this machine.
        ``registry`` is the reference's own unless one is given, with its credentials and mirrors. ``bounds`` are for
        each layer. With ``unpack=False`` the layers are kept as they came, and not extracted. Every digest is verified:
        of the manifest where the reference has it, and of all that the manifest names.

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
        self, name: str | Reference, registry: Registry | None, platform: Platform | str | None, bounds: Bounds | None,
        trees: bool, report: Reporter,
    ) -> Image:  # fmt: skip
        self._writable()
        reference = Reference.parse(name)
        wanted = None if platform is None else Platform.parse(platform)
        with _registry(registry, reference) as client:
            pull = Pull(self._opened, self._trees, client, reference.repository, report)
            with pull.lease, doing("pulling", self.path):
                image = pull.find(reference, wanted)
                pull.layers(image, bounds, trees=trees)
                if reference.tag is not None:
                    self._opened.refs.set(reference, image.digest)
                return image

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
        self, image: Image | str, registry: Registry | str | Reference | None, name: str | None, compression: str,
        report: Reporter,
    ) -> Sent:  # fmt: skip
        if isinstance(registry, Registry):
            if name is None:
                raise TypeError("push to a Registry needs a name, such as 'me/app:1'")
            reference = Reference.parse(name if name.startswith(f"{registry.host}/") else f"{registry.host}/{name}")
        else:
            if registry is None and isinstance(image, Image):
                raise TypeError("push needs to know where to: push(image, 'registry.example/me/app:1')")
            reference = Reference.parse(registry if registry is not None else str(image))
        client = registry if isinstance(registry, Registry) else None
        with _registry(client, reference) as who, Lease() as lease, doing("pushing", self.path):
            push = Push(self._opened, who, reference, report)
            with push.lease:
                if isinstance(image, Image):
                    image = self._add(image, None, None, False, report, lease, compression)
                digest = self._resolve(image)
                self._hold(digest, lease)
                sent = push.send(digest, self._document(digest)[1])
                self._remember(reference, digest)
                return sent

    def _remember(self, reference: Reference, digest: str) -> None:
        """Let the name stand for what was sent, unless it stands for another image: a later push can mount from it."""
        if reference.tag is None or self.read_only:
            return
        name = _tagged(reference)
        known = self._opened.refs.get(name)
        if known is None or (known != digest and self._id(known) == self._id(digest) is not None):
            self._opened.refs.set(name, digest)

    def _id(self, digest: str) -> str | None:
        """The digest of the configuration that a manifest names."""
        try:
            return read_manifest(*self._document(digest)).config.digest
        except (StoreError, ImageError):
            return None

    # ---- values -------------------------------------------------------------------------------------------------

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

    def _add(
        self, image: Image, name: str | Reference | None, bounds: Bounds | None, trees: bool, report: Reporter,
        lease: Lease, compression: str,
    ) -> Image:  # fmt: skip
        from isolate.images.packing import pack  # loaded late: most programs only pull

        if not isinstance(image, Image):
            raise TypeError(f"Store.add takes an Image, not {image!r}")
        blobs = self._opened.blobs
        complete = self._opened.blobs.size(image.digest) is not None if image.received is not None else False
        if not (complete and self.read_only):
            self._writable()
        with doing("adding an image", self.path):
            packed = [pack(self._opened, layer, compression, report, lease) for layer in image.layers]
            image = image.packed(packed)
            lease.add(blobs.add(image.document, image.id))
            if image.received is None:
                data = make_manifest(image.document, map(descriptor, packed))
                image = Image(image.layers, image.document, data)
            lease.add(blobs.add(image.manifest, image.digest))
            if trees:
                unpack(self._opened, self._trees, image, bounds, report, lease)
            if name is not None:
                self._opened.refs.set(_tagged(Reference.parse(name)), image.digest)
        return image

    # ---- for what runs images -----------------------------------------------------------------------------------

    def lease(self, image: Image) -> tuple[Lease, list[int]]:
        """The trees of an image's layers as descriptors, the lowest first, and what keeps them from collection.

        Whoever closes the lease closes them. A process that inherits one of its descriptors holds the layers as well.
        """
        lease = Lease()
        try:
            with doing("opening the layers", self.path):
                return lease, self._trees.lease(image.diffids, lease)
        except BaseException:
            lease.close()
            raise

    async def _aside(
        self, progress: ProgressCall | None, registry: Registry | None, do: Callable[[Reporter, Registry | None], T]
    ) -> T:
        """A verb in a thread of its own; when the task is cancelled it is told to stop, and waited for."""
        from isolate.images.aside import aside  # loaded late: asyncio costs more than the rest of this module

        stop = threading.Event()
        report = Reporter(progress, stop)
        watched = None if registry is None else registry.watch(stop)
        return await aside(lambda: do(report, watched), stop)


def _tagged(reference: Reference) -> Reference:
    if reference.tag is None:
        raise ValueError(f"a name in a store has a tag: {reference.name}:latest, not {reference}")
    return Reference(reference.registry, reference.repository, reference.tag)


def _nearest(reference: Reference, known: dict[Reference, str]) -> str | None:
    import difflib

    found = difflib.get_close_matches(reference.short, [own.short for own in known], n=1)
    return found[0] if found else None


@contextmanager
def _registry(given: Registry | None, reference: Reference) -> Iterator[Registry]:
    if given is not None:
        yield given
        return
    with Registry(reference.registry) as own:
        yield own
