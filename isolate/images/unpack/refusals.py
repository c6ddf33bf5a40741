"""Why an entry cannot be made, in words."""

from __future__ import annotations

import errno
import os

from isolate.images.errors import LayerError

__all__ = ["again", "refused"]


def again(kind: str) -> str:
    return (
        "a second whiteout of it"
        if kind == "w"
        else "a second entry for one path, of which tools keep one or the other"
    )


_CAUSES = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EOPNOTSUPP: "the file system has no such extended attributes (tmpfs has user.* since Linux 6.6)",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the file is larger than the file system or the limits allow",
}


def refused(path: bytes, error: OSError) -> LayerError:
    """The file system's answer as an error of the entry; ``__cause__`` has the errno."""
    words = _CAUSES.get(error.errno or 0, os.strerror(error.errno or 0))
    return LayerError(path, f"the file system refuses it: {words} ({errno.errorcode.get(error.errno or 0, '?')})")
