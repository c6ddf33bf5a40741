"""Paths as the kernel takes them: bytes without NUL, refused when they cannot mean what was meant."""

from __future__ import annotations

import errno
import os
from typing import TypeAlias

__all__ = ["StrOrBytesPath", "absolute", "encoded", "expanded", "inside", "text"]

StrOrBytesPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"

PATH_MAX = 4096  # with the NUL (limits.h)
NAME_MAX = 255


def absolute(path: object, what: str = "path") -> bytes:
    """An absolute path of the caller's, as bytes. ``..`` and symbolic links mean what they mean to the caller.

    :raises TypeError: not a path. :raises ValueError: relative, empty, too long or with a NUL.
    """
    data = _encode(path, what)
    if not data.startswith(b"/"):
        raise ValueError(f"{what} must be absolute, not {text(data)!r} (os.path.abspath makes it so)")
    return data


def inside(path: object, what: str = "target") -> bytes:
    """A path inside a root, as bytes: absolute, without ``..``, with single slashes and none at the end.

    :raises TypeError: not a path. :raises ValueError: as for :func:`absolute`, and for ``..``.
    """
    data = absolute(path, what)
    names = [name for name in data.split(b"/") if name not in (b"", b".")]
    if b".." in names:
        raise ValueError(f"{what} must not contain '..', as {text(data)!r} does: inside a root it has no sure meaning")
    if any(len(name) > NAME_MAX for name in names):
        raise ValueError(f"{what}: a name has at most {NAME_MAX} bytes")
    return b"/" + b"/".join(names)


def expanded(path: str) -> str:
    """A path whose ``~`` is the user's home directory.

    :func:`os.path.expanduser` leaves the ``~`` where there is no home (no ``HOME``, no entry in /etc/passwd). It would
    then be the name of a file in whatever directory the caller is in.

    :raises FileNotFoundError: there is no home, with the reason as ``strerror``.
    """
    found = os.path.expanduser(path)
    if not path.startswith("~") or os.path.isabs(found):
        return found
    who = path.partition("/")[0]
    if who != "~":
        why = f"there is no user {who[1:]!r} with a home directory (./{who} is the file of that name)"
    elif "HOME" in os.environ:
        why = f"HOME must be an absolute path, not {os.environ['HOME']!r}"
    else:
        why = f"uid {os.getuid()} has no home directory: HOME is not set, and the system knows no user of that number"
    raise FileNotFoundError(errno.ENOENT, why, path)


def text(path: bytes) -> str:
    """For messages. What cannot be printed is escaped where a message is made (:func:`isolate.errors.printable`)."""
    return os.fsdecode(path)


def encoded(value: str | bytes | os.PathLike[str] | os.PathLike[bytes], what: str) -> bytes:
    """Text or a path as the kernel's bytes.

    :raises ValueError: half of a surrogate pair, as JSON can have it: no bytes stand for it.
    """
    try:
        return os.fsencode(value)
    except UnicodeEncodeError:
        raise ValueError(f"{what} must be text that has bytes, not {value!r} (half of a surrogate pair)") from None


def _encode(path: object, what: str) -> bytes:
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"{what} must be a str, bytes or os.PathLike, not {path!r}")
    data = encoded(path, what)
    if not data:
        raise ValueError(f"{what} must not be empty")
    if b"\0" in data:
        raise ValueError(f"{what} must not contain a NUL byte: {data!r}")
    if len(data) >= PATH_MAX:
        raise ValueError(f"{what} must be shorter than {PATH_MAX} bytes, and has {len(data)}")
    return data
