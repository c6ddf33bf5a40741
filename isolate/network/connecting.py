"""``connect``: attach something that runs already."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from isolate.network.interface import Interface

if TYPE_CHECKING:
    from isolate.namespaces import NetNamespace
    from isolate.network.handle import Network
    from isolate.network.place import Connection, Running

__all__ = ["connect"]


def connect(network: Network, target: NetNamespace | Running | int, **options: Any) -> Connection:
    """Attach something that runs already to a network: a :class:`~isolate.Process`, a pid, or a network namespace.

    ``options`` are those of :class:`Interface`. The device is the first of ``eth0``, ``eth1``, … that is free there. It
    is taken out by ``close()`` of what is returned, and with the network.

    :raises SetupError: the process has ended, or the caller may not join its network.
    """
    part = Interface(network, **options)
    return network.connect(target, replace(part.wish(), device=part.device or ""))
