"""The store: a directory that holds images, without a daemon or a database."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

from isolate.images.blobs import Lease
from isolate.images.bounds import Bounds
from isolate.images.digests import is_digest
from isolate.images.disk import doing
from isolate.images.documents import INDEX_TYPES, read_manifest
from isolate.images.errors import ImageError, StoreError
from isolate.images.holding import DEFAULT_STORE, Holding, tagged
from isolate.images.image import Image, descriptor, make_manifest
from isolate.images.platform import Platform
from isolate.images.progress import Reporter
from isolate.images.pull import Pull, unpack
from isolate.images.push import Push, Sent
from isolate.images.reference import Reference
from isolate.images.registry.client import Registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.images.checking import Fault
    from isolate.images.collecting import Collected
    from isolate.images.progress import ProgressCall
    from isolate.images.registry.client import Pulled
    from isolate.kernel.paths import StrOrBytesPath

__all__ = ["DEFAULT_STORE", "Sent", "Store"]


class Store(Holding):
    """Images in a directory: made where it is missing, shared by as many processes as there are.

    ``read_only`` opens what is there and changes nothing; it is so by itself on a file system that is mounted so.
    ``map`` (an :class:`isolate.IdMap`) are the ids that files of layers can have here: None is all of them for root,
    and the caller alone for others.

    ``share``: equal files of layers that are unpacked from now on are one file on disk, in whatever image they are. It
    takes a second look at each file, which costs about a quarter more; programs see a link count above one. Files are
    equal if contents, mode, owner, time and attributes are.

    Nothing half made has a name in it, whatever is killed and whenever the power fails. What is in use cannot be
    collected: locks hold it that end with their process. The directory has mode 0700, since images have set-uid files.

    Close it, or use it in a ``with``; an image is a value and stays good.

    :raises StoreError: it is no store, of a newer format, or belongs to somebody else.

    >>> with Store("/tmp/images") as store:  # doctest: +SKIP
    ...     debian = store.pull("registry.example/debian:12")
    """

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

        Of an image for several platforms, the one for ``platform`` (``"linux/arm64"``), or for this machine; with
        ``platform="all"`` all are kept, the name stands for the whole, and the one for this machine is unpacked.
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
            reference = Reference.parse(registry if registry is not None else str(image))
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

    # ---- files --------------------------------------------------------------------------------------------------

    def load(
        self,
        source: StrOrBytesPath | IO[bytes],
        name: str | Reference | None = None,
        *,
        bounds: Bounds | None = None,
        unpack: bool = True,
        progress: ProgressCall | None = None,
    ) -> tuple[Image, ...]:
        """The images of a directory in image-spec's layout, or of an archive of one, or of what ``docker save`` writes.

        ``source`` is a path, or a file that is read from where it stands to its end (a pipe as well). Archives may be
        compressed by gzip or zstd. Whole names that the images come with stand for them from then on; ``name`` names
        the image if it is the only one. Of an index, the image for this machine is returned; all are kept.

        :raises ImageError: it is neither, or names what is not there. :raises LayerError: an archive breaks a rule.
        :raises DigestError: a file is another than its name says. Nothing is named then.
        """
        return self._load(source, name, bounds, unpack, Reporter(progress))

    async def aload(
        self,
        source: StrOrBytesPath | IO[bytes],
        name: str | Reference | None = None,
        *,
        bounds: Bounds | None = None,
        unpack: bool = True,
        progress: ProgressCall | None = None,
    ) -> tuple[Image, ...]:
        """:meth:`load`, without blocking the event loop."""
        return await self._aside(progress, None, lambda r, _: self._load(source, name, bounds, unpack, r))

    def _load(
        self,
        source: StrOrBytesPath | IO[bytes],
        name: str | Reference | None,
        bounds: Bounds | None,
        trees: bool,
        report: Reporter,
    ) -> tuple[Image, ...]:
        from isolate.images import reading  # loaded late: most programs only pull

        self._writable()
        largest = (bounds or Bounds()).limits()[0]
        with Lease() as lease, doing("loading", self.path):
            if isinstance(source, (str, bytes, os.PathLike)):
                path = os.fsdecode(source)
                if os.path.isdir(path):
                    content = reading.read_directory(self._opened, path, lease, report, largest)
                else:
                    with _archive(path) as file:
                        content = reading.read_archive(self._opened, file, lease, report, largest)
            else:
                content = reading.read_archive(self._opened, source, lease, report, largest)
            found = reading.images_of(content, self._opened, lease)
            if name is not None and len(found) != 1:
                raise ImageError("archive", f"has {len(found)} images, so one name does not fit")
            images = []
            for one in found:
                image = one.image or self.open(one.digest)
                if trees:
                    self._unpack(image, bounds, report, lease)
                images.append(image)
            for one in found:
                references = [own for text in one.names if (own := _whole_name(text)) is not None]
                for reference in (*references, *((Reference.parse(name),) if name is not None else ())):
                    self._opened.refs.set(tagged(reference), one.digest)
            return tuple(images)

    def _unpack(self, image: Image, bounds: Bounds | None, report: Reporter, lease: Lease) -> None:
        unpack(self._opened, self._trees, image, bounds, report, lease)

    def save(
        self,
        images: Image | str | Reference | Iterable[Image | str | Reference],
        target: StrOrBytesPath | IO[bytes],
        *,
        format: str = "oci",
        progress: ProgressCall | None = None,
    ) -> None:
        """Write images of this store, with their names, where other tools read them. The same images, the same bytes.

        ``format`` is ``"oci"`` (a directory in image-spec's layout; one that is there gets them added),
        ``"oci-archive"`` (the same as an archive) or ``"docker-archive"`` (what ``docker load`` reads). An archive may
        also be written to a file that is open. One that cannot be written whole does not get its name.
        """
        self._save(images, target, format, Reporter(progress))

    async def asave(
        self,
        images: Image | str | Reference | Iterable[Image | str | Reference],
        target: StrOrBytesPath | IO[bytes],
        *,
        format: str = "oci",
        progress: ProgressCall | None = None,
    ) -> None:
        """:meth:`save`, without blocking the event loop."""
        await self._aside(progress, None, lambda r, _: self._save(images, target, format, r))

    def _save(
        self,
        images: Image | str | Reference | Iterable[Image | str | Reference],
        target: StrOrBytesPath | IO[bytes],
        form: str,
        report: Reporter,
    ) -> None:
        from isolate.images import writing  # loaded late: most programs only pull

        if form not in ("oci", "oci-archive", "docker-archive"):
            raise ValueError(f"format must be 'oci', 'oci-archive' or 'docker-archive', not {form!r}")
        wanted = [images] if isinstance(images, (Image, str, Reference)) else list(images)
        is_path = isinstance(target, (str, bytes, os.PathLike))
        if form == "oci" and not is_path:
            raise TypeError("save: a layout is a directory; format='oci-archive' writes to a file")
        with Lease() as lease, doing("saving", None):
            rows = []
            for one in wanted:
                if isinstance(one, Image):
                    one = self._add(one, None, None, False, report, lease, "none")
                digest = self._resolve(one)
                self.hold(digest, lease)
                name = None if isinstance(one, Image) or is_digest(one) else Reference.parse(one)
                data, kind = self.document(digest)
                rows.append((digest, kind, len(data), name if name is None or name.tag else None))
            if form == "oci":
                writing.write_layout(self._opened, os.fsdecode(target), rows, report)  # type: ignore[arg-type]
                return
            with _whole_file(target) as file:
                if form == "oci-archive":
                    writing.write_layout_archive(self._opened, file, rows, report)
                else:
                    pairs = [(self.open(row[0]), row[3]) for row in rows]
                    writing.write_docker(self._opened, file, pairs, report)

    # ---- the disk -----------------------------------------------------------------------------------------------

    def check(self, *, deep: bool = False, progress: ProgressCall | None = None) -> list[Fault]:
        """What is wrong with the store; nothing, whatever was killed and whenever the power failed.

        Every name, document, blob and tree that is named is looked at. ``deep`` also reads every byte: blobs against
        their digests, and trees against their layers, extracted once more. What is left of a verb that was cut off is
        no fault: it has no name.
        """
        from isolate.images.checking import check  # loaded late: most programs only pull

        with doing("checking", self.path):
            return check(self, deep=deep, report=Reporter(progress))

    async def acheck(self, *, deep: bool = False, progress: ProgressCall | None = None) -> list[Fault]:
        """:meth:`check`, without blocking the event loop."""
        from isolate.images.checking import check  # loaded late: as above

        return await self._aside(progress, None, lambda r, _: check(self, deep=deep, report=r))

    def collect(
        self, keep: Iterable[Image | str | Reference] = (), *, progress: ProgressCall | None = None
    ) -> Collected:
        """Remove what no name needs, nor any of ``keep``, nor anybody who uses it now.

        Blobs, trees, downloads that were cut off, and what killed programs have left. What runs, or is being pulled or
        pushed, stays.
        """
        return self._collect(keep, Reporter(progress))

    async def acollect(
        self, keep: Iterable[Image | str | Reference] = (), *, progress: ProgressCall | None = None
    ) -> Collected:
        """:meth:`collect`, without blocking the event loop."""
        return await self._aside(progress, None, lambda r, _: self._collect(keep, r))

    def _collect(self, keep: Iterable[Image | str | Reference], report: Reporter) -> Collected:
        from isolate.images.collecting import collect  # loaded late: most programs only pull

        self._writable()
        kept = [one.digest if isinstance(one, Image) else self._resolve(one) for one in keep]
        with doing("collecting", self.path):
            return collect(self._opened, self._trees, kept, report)


def _whole_name(text: str) -> Reference | None:
    """A name that an image came with, if it is one: others have a tag alone there, or a word of their own."""
    if "/" not in text and ":" not in text:
        return None
    try:
        found = Reference.parse(text)
    except ValueError:
        return None
    return found if found.tag is not None else None


@contextmanager
def _whole_file(target: StrOrBytesPath | IO[bytes]) -> Iterator[IO[bytes]]:
    """A file to write, which gets its name when it is whole; or the one that was given."""
    if not isinstance(target, (str, bytes, os.PathLike)):
        yield target
        return
    path = os.path.abspath(os.fsdecode(target))
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as device:  # a pipe, or /dev/stdout
            yield device
        return
    own = f"{path}.new-{secrets.token_hex(8)}"
    try:
        with open(own, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(own, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(own)
        raise


@contextmanager
def _registry(given: Registry | None, reference: Reference, report: Reporter) -> Iterator[Registry]:
    if given is not None:
        yield given
        return
    with Registry(reference.registry).watch(report.check) as own:
        yield own


def _archive(path: str) -> IO[bytes]:
    """The caller's file: where it cannot be opened, that says nothing of the store."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise StoreError("the archive cannot be opened", errno=error.errno, path=path) from error
