"""The contents of a store: names, documents, trees; found, opened, kept from collection."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, TypeVar

from isolate.images.blobs import Lease
from isolate.images.digests import is_digest
from isolate.images.disk import doing
from isolate.images.documents import INDEX_TYPES, LARGEST, OCI_MANIFEST, parse, read_index, read_manifest
from isolate.images.errors import AmbiguousError, StoreError
from isolate.images.image import Image
from isolate.images.opening import Opened
from isolate.images.platform import Platform
from isolate.images.progress import Reporter
from isolate.images.pull import choose
from isolate.images.reference import Reference
from isolate.images.trees import Trees
from isolate.kernel.checks import of_type
from isolate.kernel.closing import Closing
from isolate.namespaces.ids import IdMap

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from isolate.images.progress import ProgressCall
    from isolate.images.registry.client import Registry
    from isolate.kernel.paths import StrOrBytesPath

__all__ = ["DEFAULT_STORE", "Holding", "is_digits", "tagged"]

T = TypeVar("T")
DEFAULT_STORE = "~/.local/share/isolate"
_DIGITS = re.compile("(sha256:|sha512:)?[0-9a-f]{12,128}")  # as many digits as are shown
_SHOWN = 8  # candidates in a message


class Holding(Closing):
    """The part of :class:`Store` that looks and names; the long verbs are in the other."""

    def __init__(
        self,
        path: StrOrBytesPath = DEFAULT_STORE,
        *,
        read_only: bool = False,
        map: IdMap | None = None,
        share: bool | str = False,
    ) -> None:
        if map is not None:
            of_type("Store: map", map, IdMap, "an IdMap or None")
        if share is not True and share is not False and share != "contents":
            raise ValueError(f'Store: share must be True, False or "contents", not {share!r}')
        self._opened = Opened(path, read_only=read_only)
        self._trees = Trees(self._opened, map, share=share)

    @property
    def path(self) -> str:
        """The directory of the store."""
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
        reference = tagged(Reference.parse(name))
        with Lease() as lease:
            found = self._resolve(image)
            self.hold(found, lease)
            with doing("naming an image", self.path):
                self._opened.refs.set(reference, found)
        return reference

    def untag(self, name: str | Reference) -> bool:
        """Remove a name; False if there was none. The image stays in the store until :meth:`collect`."""
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
            tags = self.tags()
            if isinstance(image, str) and (begun := self.begun(image, tags)) is not None:
                return begun
            near = _nearest(reference, tags)
            raise StoreError(
                f"no image is named {reference.short}",
                path=self.path,
                remedy=f"did you mean {near}?" if near else "pull, load or add it first",
            )
        return found

    def begun(self, text: str, tags: Mapping[Reference, str] | None = None) -> str | None:
        """The digest of a named image that begins so; None where there is none, or a text is not twelve digits.

        :raises AmbiguousError: there are several.
        """
        if not is_digits(text):
            return None
        digits = text.rpartition(":")[2]
        found: dict[str, list[str]] = {}
        for reference, digest in (self.tags() if tags is None else tags).items():
            if digest.partition(":")[2].startswith(digits):
                found.setdefault(digest, []).append(reference.short)
        if len(found) <= 1:
            return next(iter(found), None)
        rows = [f"{digest.partition(':')[2][:24]} ({', '.join(names[:4])})" for digest, names in sorted(found.items())]
        error = AmbiguousError(
            f"{len(found)} images have a digest that begins with {digits}: {', '.join(rows[:_SHOWN])}",
            path=self.path,
            remedy="give more digits, or the name",
        )
        error.candidates = tuple(sorted(found))
        raise error

    def named(self, text: str) -> Reference:
        """The name that a text is, for what needs one: a digest, or digits of one, say not where an image goes.

        :raises ValueError: it is no name.
        """
        if is_digest(text) or (is_digits(text) and self._opened.refs.get(Reference.parse(text)) is None):
            raise ValueError(
                f"{text} is a digest, which does not say where the image goes: name the target too, such as"
                f" {text} registry.example/me/app:1"
            )
        return Reference.parse(text)

    def document(self, digest: str) -> tuple[bytes, str]:
        """A manifest or an index, verified, and its media type."""
        data = self._opened.blobs.read(digest, LARGEST["manifest"])
        if data is None:
            raise StoreError(f"{digest} is not in the store", path=self.path, remedy="pull, load or add it first")
        document = parse(data, "manifest")
        kind = document.get("mediaType")
        if not isinstance(kind, str):
            kind = INDEX_TYPES[0] if "manifests" in document else OCI_MANIFEST
        return data, kind

    def open(self, image: str | Reference, *, platform: Platform | str | None = None) -> Image:
        """The image of a name or a digest; of an index the one for ``platform``, or this machine.

        Of a digest that has a name the first twelve digits are enough.

        :raises StoreError: there is none. :raises AmbiguousError: digits that several begin with.
        :raises ImageError: it is damaged, or none is for that platform.
        """
        wanted = None if platform is None else Platform.parse(platform)
        digest = self._resolve(image)
        data, kind = self.document(digest)
        if kind in INDEX_TYPES:
            digest = choose(read_index(data, kind), wanted, str(image)).digest
            data, kind = self.document(digest)
        manifest = read_manifest(data, kind)
        config = self._opened.blobs.read(manifest.config.digest, LARGEST["config"])
        if config is None:
            raise StoreError(
                f"the configuration {manifest.config.digest} is missing", path=self.path, remedy="pull again"
            )
        return Image.read(data, config, media_type=kind, source=self._opened.source)

    def hold(self, digest: str, lease: Lease) -> None:
        """Keep a manifest or index and all that it names from being collected."""
        data, kind = self.document(digest)
        self._hold_blob(digest, lease)
        if kind in INDEX_TYPES:
            for row in read_index(data, kind).manifests:
                if self._opened.blobs.size(row.digest) is not None:
                    self.hold(row.digest, lease)
            return
        manifest = read_manifest(data, kind)
        for blob in (manifest.config, *manifest.layers):
            self._hold_blob(blob.digest, lease)

    def _hold_blob(self, digest: str, lease: Lease) -> None:
        fd = self._opened.blobs.hold(digest)
        if fd is not None:
            lease.add(fd)

    # ---- for what runs images -----------------------------------------------------------------------------------

    def lease(self, image: Image) -> tuple[Lease, list[int]]:
        """The trees of an image's layers as descriptors, the lowest first, and a lock against their collection.

        Closing the lease closes them. A process that inherits one of its descriptors holds the layers as well.
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
        watched = None if registry is None else registry.watch(report.check)
        return await aside(lambda: do(report, watched), stop)


def tagged(reference: Reference) -> Reference:
    """The name under which a store keeps it."""
    if reference.tag is None:
        raise ValueError(f"a name in a store has a tag: {reference.name}:latest, not {reference}")
    return Reference(reference.registry, reference.repository, reference.tag)


def is_digits(text: str) -> bool:
    """Whether it may be the beginning of a digest. Twelve digits at least: no name has those by chance."""
    return _DIGITS.fullmatch(text) is not None


def _nearest(reference: Reference, known: dict[Reference, str]) -> str | None:
    import difflib

    found = difflib.get_close_matches(reference.short, [own.short for own in known], n=1)
    return found[0] if found else None
