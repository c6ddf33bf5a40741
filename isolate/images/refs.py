"""The names in a store: ``refs/<registry>/<repository>/:<tag>``, each a file with a digest, replaced by rename."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from isolate.images.digests import is_digest
from isolate.images.disk import lock, open_directory, read_small, replace, subdirectory
from isolate.images.errors import StoreError
from isolate.images.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Refs"]

_LOCK_SECONDS = 60.0
_DEEPEST = 128  # a name has at most 255 characters


class Refs:
    """Which digest a name stands for. Names are changed, and counted by a collector, under one lock."""

    def __init__(self, store: int, *, create: bool) -> None:
        self.fd: int = subdirectory(store, "refs", create=create)

    def close(self) -> None:
        """Close the directory."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def locked(self) -> int:
        """A descriptor with the lock on all names; whoever closes it lets go."""
        fd = open_directory(".", self.fd)
        try:
            lock(fd, exclusive=True, seconds=_LOCK_SECONDS, what="the table of names")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _directory(self, reference: Reference, *, create: bool) -> int:
        at = os.dup(self.fd)
        for word in reference.name.split("/"):
            try:
                below = subdirectory(at, word, create=create)
            finally:
                os.close(at)
            at = below
        return at

    def get(self, reference: Reference) -> str | None:
        """The digest that a name with a tag stands for."""
        try:
            at = self._directory(reference, create=False)
        except FileNotFoundError:
            return None
        try:
            text = read_small(at, f":{reference.tag or 'latest'}", 256)
        except FileNotFoundError:
            return None
        finally:
            os.close(at)
        digest = text.decode("ascii", "replace").strip()
        if not is_digest(digest):
            raise StoreError(
                f"the name {reference.short} holds no digest",
                path=f"refs/{reference.name}/:{reference.tag}",
                cause="the file was damaged or written by something else",
                remedy="tag the image again",
            )
        return digest

    def set(self, reference: Reference, digest: str) -> None:
        """Let a name stand for a digest. What the digest needs must be held by the caller meanwhile."""
        held = self.locked()
        try:
            at = self._directory(reference, create=True)
            try:
                replace(at, f":{reference.tag or 'latest'}", f"{digest}\n".encode())
            finally:
                os.close(at)
        finally:
            os.close(held)

    def remove(self, reference: Reference) -> bool:
        """Take a name away, and directories that hold nothing any more; False where it was not there."""
        held = self.locked()
        try:
            at = self._directory(reference, create=False)
            try:
                os.unlink(f":{reference.tag or 'latest'}", dir_fd=at)
                os.fsync(at)
            finally:
                os.close(at)
        except FileNotFoundError:
            return False
        finally:
            os.close(held)
        words = reference.name.split("/")
        while words:
            try:
                os.rmdir("/".join(words), dir_fd=self.fd)
            except OSError:
                break  # it holds other names
            words.pop()
        return True

    def all(self) -> Iterator[tuple[Reference, str]]:
        """Every name with its digest, in the order of the names."""
        yield from self._walk(self.fd, ())

    def _walk(self, at: int, words: tuple[str, ...]) -> Iterator[tuple[Reference, str]]:
        if len(words) > _DEEPEST:
            return
        for name in sorted(os.listdir(at)):
            if name.startswith(":"):
                try:
                    reference = Reference(words[0], "/".join(words[1:]), name[1:])
                except (ValueError, IndexError):
                    continue  # nothing that this library writes
                digest = self.get(reference)
                if digest is not None:
                    yield reference, digest
            elif not name.startswith("."):
                try:
                    below = open_directory(name, at)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                try:
                    yield from self._walk(below, (*words, name))
                finally:
                    os.close(below)
