"""Outlines: files with all their metadata whose contents are another file's, by overlayfs's attributes (overlayfs.rst).

A mount with a data-only layer shows an outline with the contents of the file that its attribute names there. Everybody
else sees a file of the right size that is one hole: whoever reads a layer itself has to look up the contents, with
:func:`contents_of`. Since Linux 6.16 the attributes may be those that root of a user namespace can make
(``user.overlay.*``).
"""

from __future__ import annotations

import os
import stat

__all__ = ["MARKS", "contents_of", "is_name", "mark", "named"]

_NO_DATA = "user.overlay.metacopy"
_PLACE = "user.overlay.redirect"
#: The attributes of an outline.
MARKS = (_NO_DATA.encode(), _PLACE.encode())
#: Both attributes fit into an inode of 256 bytes of ext4 if the name of the contents is as long as this.
_LENGTH = 11


def is_name(text: str) -> bool:
    """Whether contents can have this name."""
    return len(text) == _LENGTH and text.isascii() and text.replace("-", "0").replace("_", "0").isalnum()


def mark(fd: int, name: str) -> None:
    """Let the contents of an open file be those of this name."""
    os.setxattr(fd, _NO_DATA, b"")
    os.setxattr(fd, _PLACE, b"/" + name.encode())


def named(fd: int) -> str | None:
    """The name of the contents of an outline; None for a file that has its own.

    :raises ValueError: it names something that is no contents.
    """
    try:
        value = os.getxattr(fd, _PLACE)
    except OSError:
        return None  # there is none, or no file system for attributes
    name = os.fsdecode(value)[1:]
    if value[:1] != b"/" or not is_name(name):
        raise ValueError(f"its contents are said to be at {value[:60]!r}")
    return name


def contents_of(fd: int, contents: int | None) -> int:
    """The descriptor of the file to read: the same one for a file that has its contents itself, else another, and the
    first one is closed.

    ``contents`` is the directory of the store's contents, None where outlines are not expected.

    :raises ValueError: it is an outline whose contents are not there.
    """
    name = named(fd)
    if name is None:
        return fd
    if contents is None:
        raise ValueError("the contents are elsewhere, so this cannot be read on its own")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        found = os.open(name, flags, dir_fd=contents)
    except FileNotFoundError:
        raise ValueError(f"its contents, {name}, are missing") from None
    row = os.fstat(found)
    if not stat.S_ISREG(row.st_mode) or row.st_size != os.fstat(fd).st_size:
        os.close(found)
        raise ValueError(f"its contents, {name}, have another size")
    os.close(fd)
    return found
