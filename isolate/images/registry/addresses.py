"""Addresses of registries: which machine, and what of them may be told."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from isolate.images.errors import RegistryError

__all__ = ["is_loopback", "origin", "without_secrets"]


def is_loopback(host: str) -> bool:
    """Whether a host's name, with a port or without, says that it is this machine."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what credentials are for."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise RegistryError(None, "PROTOCOL", "the registry names an address that is none", url=url) from None
    return parts.scheme, (parts.hostname or "").lower(), port or (443 if parts.scheme == "https" else 80)


def without_secrets(url: str) -> str:
    """An address for messages: the query of a signed one, and a password, are left out."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an address that is none"
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" + ("?…" if parts.query else "")
