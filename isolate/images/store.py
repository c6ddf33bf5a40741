"""The store: a directory that holds images, without a daemon or a database."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, cast

from isolate.images.blobs import Lease
from isolate.images.bounds import Bounds
from isolate.images.digests import is_digest
from isolate.images.disk import doing
from isolate.images.errors import ImageError, StoreError
from isolate.images.exchanging import Exchanging
from isolate.images.holding import DEFAULT_STORE, tagged
from isolate.images.image import Image
from isolate.images.progress import Reporter
from isolate.images.push import Sent
from isolate.images.reference import Reference
from isolate.kernel.checks import keywords

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from isolate.images.checking import Fault
    from isolate.images.collecting import Collected
    from isolate.images.progress import ProgressCall
    from isolate.kernel.paths import StrOrBytesPath

__all__ = ["DEFAULT_STORE", "Sent", "Store"]


@keywords
class Store(Exchanging):
    """Images in a directory: made where it is missing, with its parents, and shared by any number of processes.

    ``read_only`` opens what is there and changes nothing; it is so by itself on a file system that is mounted so.
    ``map`` (an :class:`isolate.IdMap`) are the ids that files of layers can have here: None is all of them for root,
    and the caller alone for others.

    ``share``: equal files of layers that are unpacked from now on are one file on disk, in whatever image they are. It
    takes a second look at each file, after a child has unpacked it: the caller spends about twice the CPU time on a
    layer (0.4 s instead of 0.2 for 1,500 files of 10 MB). Programs see a link count above one. Files are equal if
    contents, mode, owner, time and attributes are. With ``"contents"`` the contents alone have to be equal in the
    lowest layers of images, which takes five times as much (1 s), and files are links in the others (Linux 6.16; it is
    tried when the first layer is unpacked).

    Nothing half made has a name in it, whatever is killed and whenever the power fails. Layers in use cannot be
    collected: they are locked, and each lock ends with its process. The directory has mode 0700, since images have
    set-uid files.

    Close it, or use it in a ``with``; an image is a value and stays good.

    :raises StoreError: it is no store, of a newer format, or belongs to somebody else.

    >>> with Store("/tmp/images") as store:  # doctest: +SKIP
    ...     debian = store.pull("registry.example/debian:12")
    """

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
        where = os.fspath(target) if isinstance(target, (str, bytes, os.PathLike)) else None
        with Lease() as lease, doing("saving", where):
            rows = []
            for one in wanted:
                if isinstance(one, Image):
                    one = self._add(one, None, None, False, report, lease, "none")
                digest = self._resolve(one)
                self.hold(digest, lease)
                name = None if isinstance(one, Image) or is_digest(one) else Reference.parse(one)
                data, kind = self.document(digest)
                if name is not None and name.digest is None and self._opened.refs.get(name) is None:
                    name = None  # digits of a digest are no name to keep
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
        """The faults of the store. There should be none, whatever was killed and whenever the power failed.

        Every name, document, blob and tree that is named is looked at. ``deep`` also reads every byte: blobs against
        their digests, and trees against their layers, extracted once more. The remains of a call that was cut off are
        no fault: they have no name.
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
        """Remove everything that is not needed by a name or by ``keep``, and that nobody uses now.

        This removes blobs, trees, downloads that were cut off, and the remains of killed programs. An image that runs,
        or that is being pulled or pushed, stays.
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
        with _made(path, path, "wb") as device:  # a pipe, or /dev/stdout
            yield device
        return
    own = f"{path}.new-{secrets.token_hex(8)}"
    try:
        with _made(own, path, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.rename(own, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(own)
        raise


def _made(path: str, said: str, mode: str) -> IO[bytes]:
    """The caller's file to write: as :func:`_archive` for one that is read."""
    try:
        return cast("IO[bytes]", open(path, mode))
    except OSError as error:
        raise StoreError("the archive cannot be made", errno=error.errno, path=said) from error


def _archive(path: str) -> IO[bytes]:
    """The caller's file: where it cannot be opened, that says nothing of the store."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise StoreError("the archive cannot be opened", errno=error.errno, path=path) from error
