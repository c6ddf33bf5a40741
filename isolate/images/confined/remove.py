"""Remove a tree without following links, however deep it is."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from isolate.images.errors import StoreError
from isolate.kernel.trees import remove_here

if TYPE_CHECKING:
    from isolate.namespaces.ids import IdMap

__all__ = ["remove_tree"]


def remove_tree(directory: int, name: bytes, ids: IdMap | None) -> None:
    """As the caller, and where that is not enough as a child with the wanted ids.

    :raises StoreError: something cannot be removed.
    """
    try:
        remove_here(directory, name)
    except PermissionError as error:
        if os.geteuid() == 0:
            raise _failed(error) from error
        from isolate.images.confined import words
        from isolate.images.confined.maps import map_for
        from isolate.images.confined.start import confined  # loaded late: mostly the caller alone is enough

        fds = {words.TARGET: directory}
        confined("remove", {"name": words.text(name)}, ids=map_for(ids), fds=fds, writable=(directory,))
    except OSError as error:
        raise _failed(error) from error


def _failed(error: OSError) -> StoreError:
    causes = {
        errno.EBUSY: "something is mounted there",
        errno.EPERM: "it is immutable, or belongs to somebody else",
        errno.EACCES: "a directory in it belongs to somebody else",
    }
    number = error.errno or errno.EIO
    return StoreError("a tree cannot be removed", errno=number, path=error.filename, cause=causes.get(number))
