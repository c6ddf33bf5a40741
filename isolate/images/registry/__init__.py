"""A client of registries that speak the protocol of opencontainers/distribution-spec."""

from isolate.images.registry.client import Pulled as Pulled
from isolate.images.registry.client import Registry as Registry

__all__ = ["Pulled", "Registry"]
