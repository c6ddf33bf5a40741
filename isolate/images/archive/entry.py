"""One entry of an archive: a file, directory, link or node with its metadata."""

from __future__ import annotations

from typing import ClassVar

__all__ = ["BLOCK", "BLOCK_DEVICE", "CHARACTER_DEVICE", "DIRECTORY", "FIFO", "FILE", "HARD_LINK", "SYMLINK", "Entry"]

BLOCK = 512

# The kinds, as the typeflag of a header has them.
FILE, HARD_LINK, SYMLINK, CHARACTER_DEVICE, BLOCK_DEVICE, DIRECTORY, FIFO = "0", "1", "2", "3", "4", "5", "6"


class Entry:
    """The contents of one header, with its extended headers.

    ``path`` is relative to the top of the tree, with single slashes and neither ``.`` nor ``..``; the top itself is
    ``b""``. ``mtime`` is in nanoseconds since the epoch.
    """

    __slots__ = ("device", "gid", "kind", "link", "mode", "mtime", "path", "size", "uid", "xattrs")

    def __init__(
        self,
        path: bytes,
        kind: str,
        *,
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        size: int = 0,
        mtime: int = 0,
        link: bytes = b"",
        device: tuple[int, int] = (0, 0),
        xattrs: dict[bytes, bytes] | None = None,
    ) -> None:
        self.path: bytes = path
        self.kind: str = kind
        self.mode: int = mode
        self.uid: int = uid
        self.gid: int = gid
        self.size: int = size
        self.mtime: int = mtime
        self.link: bytes = link
        self.device: tuple[int, int] = device
        self.xattrs: dict[bytes, bytes] = {} if xattrs is None else xattrs

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"Entry({fields})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Entry):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__: ClassVar[None] = None  # type: ignore[assignment]
