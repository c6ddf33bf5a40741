"""A store's directory: found or made, its format looked at, everything in it reached from one descriptor."""

from __future__ import annotations

import errno
import os
import stat
import threading
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from isolate.images.blobs import Blobs
from isolate.images.digests import split
from isolate.images.disk import Unnamed, doing, open_directory, read_small, replace, subdirectory
from isolate.images.errors import StoreError
from isolate.images.refs import Refs
from isolate.kernel.paths import expanded

if TYPE_CHECKING:
    from isolate.kernel.paths import StrOrBytesPath

__all__ = ["FORMAT", "BlobBytes", "Opened"]

FORMAT = 2
_PLAIN, _WITH_CONTENTS = 1, 2  # the second one: layers may have files whose contents are in contents/
_TRIED = "user.isolate.tried"
_WORDS = "isolate-store"
_OWN = {"format", "blobs", "partial", "contents", "layers", "objects", "refs", "uppers", "trash"}
_NOT_OURS = "name an empty directory, or one that a Store has made"


def _place(path: str) -> str:
    try:
        return os.path.abspath(expanded(path))
    except FileNotFoundError as error:
        raise StoreError(
            "opening the store failed",
            errno=error.errno,
            path=path,
            cause=error.strerror,
            remedy="name a directory by its whole path (ISOLATE_STORE for the commands), or set HOME",
        ) from None


class Opened:
    """The descriptors of a store.

    :raises StoreError: it is no store, of a newer format, somebody else's, or cannot be made there.
    """

    def __init__(self, path: StrOrBytesPath, *, read_only: bool) -> None:
        self.path: str = _place(os.fsdecode(path))
        self.read_only: bool = read_only
        self.fd: int = -1
        self.layers_fd: int = -1
        self.trash_fd: int = -1
        self.uppers_fd: int = -1
        self.objects_fd: int = -1
        self._contents_fd: int = -1
        self._lock = threading.Lock()
        self._blobs: Blobs | None = None
        self._refs: Refs | None = None
        try:
            with doing("opening the store", self.path):
                self._open()
        except BaseException:
            self.close()
            raise

    @property
    def blobs(self) -> Blobs:
        """Manifests, configurations, packed layers."""
        assert self._blobs is not None
        return self._blobs

    @property
    def refs(self) -> Refs:
        """The names."""
        assert self._refs is not None
        return self._refs

    def _open(self) -> None:
        if not self.read_only:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            try:
                os.mkdir(self.path, 0o700)
            except FileExistsError:
                pass
            except OSError as error:
                if error.errno != 30 or not os.path.isdir(self.path):  # EROFS: it may be there all the same
                    raise
        try:
            self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StoreError("there is no store", path=self.path, remedy="Store(path) makes one") from None
        except NotADirectoryError:
            raise StoreError("a store is a directory", path=self.path, remedy=_NOT_OURS) from None
        self._whose()
        if not self.read_only and os.fstatvfs(self.fd).f_flag & os.ST_RDONLY:
            self.read_only = True
        self._check_format()
        create = not self.read_only
        try:
            self._blobs = Blobs(self.fd, create=create)
            self._refs = Refs(self.fd, create=create)
            # Set-uid files of images are beneath: nobody else may reach them.
            self.layers_fd = subdirectory(self.fd, "layers", create=create)
            self.uppers_fd = subdirectory(self.fd, "uppers", create=create)
            self.trash_fd = subdirectory(self.fd, "trash", create=create)
            self.objects_fd = subdirectory(self.fd, "objects", create=create)
        except FileNotFoundError as error:
            raise StoreError(
                "the store lacks a part of its own",
                path=self.path,
                cause=f"{error.filename} is missing",
                remedy="open it once where it can be written",
            ) from None

    def _whose(self) -> None:
        found = os.fstat(self.fd)
        if self.read_only:
            return
        if found.st_uid != os.geteuid():
            raise StoreError(
                f"the store belongs to uid {found.st_uid}, and this process is uid {os.geteuid()}",
                path=self.path,
                cause="whoever owns the directory could change what is run from it",
                remedy="use a store of your own, or open it with read_only=True",
            )
        if stat.S_IMODE(found.st_mode) & 0o022:
            raise StoreError(
                "others may write to the store's directory",
                path=self.path,
                cause=f"its mode is {found.st_mode & 0o7777:04o}",
                remedy="chmod go-w it, if nobody else has",
            )

    def _check_format(self) -> None:
        try:
            text = read_small(self.fd, "format", 256).decode("ascii", "replace")
        except FileNotFoundError:
            others = set(os.listdir(self.fd)) - _OWN
            if others:
                raise StoreError(
                    "the directory is no store, and not empty",
                    path=self.path,
                    cause=f"it holds {sorted(others)[0]!r}",
                    remedy=_NOT_OURS,
                ) from None
            if self.read_only:
                raise StoreError("the directory is no store", path=self.path, remedy=_NOT_OURS) from None
            with Unnamed(self.fd) as file:
                file.write(f"{_WORDS} {_PLAIN}\n".encode())
                if not file.name("format"):  # another process makes the same store
                    self._check_format()
            return
        words = text.split()
        if len(words) != 2 or words[0] != _WORDS or not (words[1].isascii() and words[1].isdecimal()):
            raise StoreError("the file 'format' is not a store's", path=self.path, remedy=_NOT_OURS)
        if int(words[1]) > FORMAT:
            raise StoreError(
                f"the store has format {words[1]}, and this version of isolate knows {FORMAT}",
                path=self.path,
                cause="a newer version has written it",
                remedy="use that version, or another directory",
            )

    def close(self) -> None:
        """Close every descriptor."""
        if self._blobs is not None:
            self._blobs.close()
        if self._refs is not None:
            self._refs.close()
        for name in ("fd", "layers_fd", "trash_fd", "uppers_fd", "objects_fd", "_contents_fd"):
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
            setattr(self, name, -1)

    def contents(self, *, create: bool = False) -> int | None:
        """The directory with the contents of outlines; None where there is none. ``create`` makes it."""
        with self._lock:
            if self._contents_fd < 0 and self.fd >= 0:
                try:
                    self._contents_fd = open_directory("contents", self.fd)
                except FileNotFoundError:
                    if not create:
                        return None
                    self._make_contents()
            return self._contents_fd if self._contents_fd >= 0 else None

    def _make_contents(self) -> None:
        try:
            os.setxattr(self.fd, _TRIED, b"")
            os.removexattr(self.fd, _TRIED)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            raise StoreError(
                "the contents of files cannot be shared here",
                errno=error.errno,
                path=self.path,
                cause="the file system has no extended attributes for users",
                remedy="keep the store on ext4, XFS, btrfs or tmpfs; or share=True, which shares by links",
            ) from None
        # Versions that know nothing of it must not take an outline for a file, nor remove the contents.
        replace(self.fd, "format", f"{_WORDS} {_WITH_CONTENTS}\n".encode())
        fd = subdirectory(self.fd, "contents")
        # A sandbox looks in there by the rights of others, where its ids are not the store's.
        os.fchmod(fd, 0o755)
        self._contents_fd = fd

    def source(self, digest: str) -> BlobBytes:
        """A function that reads a blob, also when this store has been closed."""
        algorithm, digits = split(digest)
        return BlobBytes(os.path.join(self.path, "blobs", algorithm, digits))


@dataclass(frozen=True)
class BlobBytes:
    """The bytes of a blob of a store, by its place."""

    path: str

    def open(self) -> IO[bytes]:
        """A reader of their own, at their beginning."""
        return open(self.path, "rb")
