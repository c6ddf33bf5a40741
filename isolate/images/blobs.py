"""The blobs of a store: manifests, configurations and packed layers, each named by its digest and verified before.

A blob in use is held by a shared lock on its file; whoever wants to remove it takes an exclusive one. A lock ends with
the process, whatever ends it.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from isolate.images.digests import hasher, split
from isolate.images.disk import HELD, Patience, Unnamed, is_named, rename_new, subdirectory, try_lock
from isolate.images.errors import DigestError, StoreError
from isolate.kernel.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


__all__ = ["Blobs", "Lease", "Partial", "chunks"]

CHUNK = 1 << 18
_WAIT_STEP = 0.05


def chunks(fd: int, start: int = 0, size: int = CHUNK) -> Iterator[bytes]:
    """The bytes of a file from a place on, whatever the descriptor's own place is."""
    while chunk := os.pread(fd, size, start):
        start += len(chunk)
        yield chunk


class Lease(Closing):
    """Descriptors whose locks keep things of a store from being collected, until it is closed."""

    def __init__(self) -> None:
        self._fds: list[int] = []

    def add(self, fd: int) -> int:
        """Hold a descriptor; it is closed with the lease."""
        self._fds.append(fd)
        return fd

    def close(self) -> None:
        """Let go of all."""
        while self._fds:
            os.close(self._fds.pop())

    def __del__(self) -> None:
        self.close()


class Partial:
    """A download that is under way, or can go on: locked by whoever writes it.

    ``size`` is what is there; :meth:`write` adds, :meth:`finish` verifies it and gives it its name among the blobs.
    """

    def __init__(self, blobs: Blobs, digest: str, fd: int, name: str) -> None:
        self._blobs = blobs
        self.digest = digest
        self.fd: int = fd
        self._name = name
        self._hash: Any = hasher(digest)
        self.size: int = 0

    def rehash(self, largest: int, tell: Callable[[int], object] = lambda _: None) -> None:
        """Take what an earlier attempt left, up to so many bytes, into the hash."""
        if os.fstat(self.fd).st_size > largest:
            self.restart()
            return
        for chunk in chunks(self.fd):
            self._hash.update(chunk)
            self.size += len(chunk)
            tell(self.size)

    def restart(self) -> None:
        """Forget what is there."""
        os.ftruncate(self.fd, 0)
        self._hash = hasher(self.digest)
        self.size = 0

    def write(self, data: bytes) -> None:
        """Add bytes at the end."""
        view = memoryview(data)
        while view:
            done = os.pwrite(self.fd, view, self.size)
            self._hash.update(view[:done])
            self.size += done
            view = view[done:]

    def finish(self, what: str = "blob") -> int:
        """Verify, force to disk, name. The descriptor, with a shared lock, is the caller's.

        :raises DigestError: it is not what was asked for; what was there is gone.
        """
        got = f"{split(self.digest)[0]}:{self._hash.hexdigest()}"
        if got != self.digest:
            self.discard()
            raise DigestError(self.digest, got, what)
        os.fsync(self.fd)
        held = self._blobs.publish(self)
        self.fd = -1
        return held

    def discard(self) -> None:
        """Remove it: what is there is wrong."""
        if self.fd >= 0 and is_named(self.fd, self._name, self._blobs.partial_fd):
            os.unlink(self._name, dir_fd=self._blobs.partial_fd)
        self.close()

    def close(self) -> None:
        """Let go; what is there stays for another attempt."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Blobs:
    """``blobs/`` and ``partial/`` of a store."""

    def __init__(self, store: int, *, create: bool) -> None:
        self.partial_fd: int = -1
        self._kinds: dict[str, int] = {}
        top = subdirectory(store, "blobs", create=create)
        try:
            for algorithm in ("sha256", "sha512"):
                try:
                    self._kinds[algorithm] = subdirectory(top, algorithm, create=create)
                except FileNotFoundError:
                    continue
            self.partial_fd = subdirectory(store, "partial", create=create)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(top)

    def close(self) -> None:
        """Close the directories."""
        for fd in (*self._kinds.values(), self.partial_fd):
            if fd >= 0:
                os.close(fd)
        self._kinds.clear()
        self.partial_fd = -1

    def place(self, digest: str) -> tuple[int, str]:
        """The directory and the name of a blob."""
        algorithm, digits = split(digest)
        if algorithm not in self._kinds:
            raise FileNotFoundError(2, "no blobs of that algorithm", algorithm)
        return self._kinds[algorithm], digits

    def directories(self) -> Iterator[tuple[str, int]]:
        """Each algorithm with the descriptor of its directory."""
        yield from self._kinds.items()

    def names(self) -> Iterator[str]:
        """The digests of all blobs."""
        for algorithm, fd in self._kinds.items():
            for name in sorted(os.listdir(fd)):
                if not name.startswith("."):
                    yield f"{algorithm}:{name}"

    def size(self, digest: str) -> int | None:
        """Bytes of a blob; None where there is none."""
        try:
            at, name = self.place(digest)
            return os.stat(name, dir_fd=at, follow_symlinks=False).st_size
        except FileNotFoundError:
            return None

    def hold(self, digest: str) -> int | None:
        """A descriptor of a blob, with a shared lock; None where there is none.

        The lock is taken and then the name looked at again: a collector may have removed it between.
        """
        patience = Patience(f"the blob {digest}", HELD)
        while True:
            try:
                at, name = self.place(digest)
                fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=at)
            except FileNotFoundError:
                return None
            try:
                if try_lock(fd, exclusive=False) and is_named(fd, name, at):
                    fd, held = -1, fd
                    return held
            finally:
                if fd >= 0:
                    os.close(fd)
            patience.pause(_WAIT_STEP / 10)  # a collector holds it, for the moment in which it removes it

    def read(self, digest: str, largest: int) -> bytes | None:
        """The verified bytes of a small blob; None where there is none.

        :raises DigestError: the disk has other bytes. :raises StoreError: it is larger than such a thing may be.
        """
        fd = self.hold(digest)
        if fd is None:
            return None
        try:
            if os.fstat(fd).st_size > largest:
                raise StoreError(f"blob {digest} has more than {largest} bytes: it is no document")
            data = b"".join(chunks(fd))
        finally:
            os.close(fd)
        state = hasher(digest)
        state.update(data)
        got = f"{split(digest)[0]}:{state.hexdigest()}"
        if got != digest:
            raise DigestError(digest, got, "blob in the store")
        return data

    def add(self, data: bytes, digest: str) -> int:
        """Keep bytes whose digest the caller has computed. A descriptor with a shared lock."""
        at, name = self.place(digest)
        while True:
            held = self.hold(digest)
            if held is not None:
                return held
            with Unnamed(at) as file:
                file.write(data)
                try_lock(file.fd, exclusive=False)
                if file.name(name):
                    return file.take()

    def keep(self, file: Unnamed, digest: str) -> int:
        """Give an unnamed file of :meth:`unnamed` its name. A descriptor with a shared lock."""
        _, name = self.place(digest)
        while True:
            held = self.hold(digest)
            if held is not None:
                return held
            try_lock(file.fd, exclusive=False)
            if file.name(name):
                return file.take()

    def unnamed(self, algorithm: str = "sha256") -> Unnamed:
        """A file among the blobs that has no name yet."""
        return Unnamed(self._kinds[algorithm])

    @contextmanager
    def partial(
        self, digest: str, *, seconds: float, check: Callable[[], object] = lambda: None
    ) -> Iterator[Partial | int]:
        """The place of a download: a :class:`Partial`, or the held descriptor of the blob if it is there (by now).

        While another process downloads the same, this waits for it, so long at most.

        :raises StoreError: the other took longer.
        """
        name = digest.replace(":", "-")
        end = time.monotonic() + seconds
        while True:
            held = self.hold(digest)
            if held is not None:
                yield held
                return
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644, dir_fd=self.partial_fd)
            if try_lock(fd, exclusive=True):
                # Its writer may have named it among the blobs, or removed it, before it let go of the lock.
                if is_named(fd, name, self.partial_fd):
                    break
                os.close(fd)
                continue
            os.close(fd)
            if time.monotonic() >= end:
                raise StoreError(
                    f"{digest} is being downloaded by another process",
                    cause=f"that one took more than {seconds:g} s",
                    remedy="try again later; lslocks(8) shows which process it is",
                )
            check()
            time.sleep(_WAIT_STEP)
        partial = Partial(self, digest, fd, name)
        try:
            yield partial
        finally:
            partial.close()

    def publish(self, partial: Partial) -> int:
        """For :meth:`Partial.finish`: the file moves from ``partial/`` to ``blobs/``; who was first, has it."""
        at, name = self.place(partial.digest)
        own = partial.digest.replace(":", "-")
        try_lock(partial.fd, exclusive=False)  # from exclusive to shared: the new lock may come after somebody else's
        if is_named(partial.fd, own, self.partial_fd) and rename_new(self.partial_fd, own, at, name):
            os.fsync(at)
            return partial.fd
        held = self.hold(partial.digest)
        os.close(partial.fd)
        with suppress(FileNotFoundError):
            os.unlink(own, dir_fd=self.partial_fd)
        if held is None:
            raise StoreError(
                f"{partial.digest} was removed while it was being kept",
                cause="a collection took it at that moment",
                remedy="try again",
            )
        return held
