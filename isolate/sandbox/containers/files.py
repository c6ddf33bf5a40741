"""The files of a container: ``c.put``, ``c.get``, ``c.read``, ``c.write``, ``c.list``.

Everything is done from the descriptor of the container's root, as the container's user, one name at a time or beneath
(openat2(2)): what the programs inside have made leads nowhere else, opens no device, and blocks nothing.
"""

from __future__ import annotations

from isolate.sandbox.containers.inward import Inward
from isolate.sandbox.containers.outward import Outward

__all__ = ["Files"]


class Files(Outward, Inward):
    """The files of one container, out of it and into it."""
