"""Failures of requests over HTTP as errors of registries, with what helps."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from isolate.images.errors import RegistryError
from isolate.images.registry.addresses import without_secrets
from isolate.kernel.extras import install

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["error_of", "remedy_of", "translated", "urllib3_of_extra"]


def urllib3_of_extra() -> Any:
    """The module, if it is installed."""
    try:
        import urllib3
    except ImportError as error:
        raise RegistryError(None, "MISSING", "registries need the package urllib3", remedy=install("images")) from error
    return urllib3


def remedy_of(status: int) -> str | None:
    """What helps where a registry answers with an HTTP status."""
    return {
        401: "log in (docker login, podman login), or pass credentials=(user, password)",
        403: "these credentials may not do that there",
        404: "look at the name for a mistake; a repository that is not public is also told to be missing",
        429: "wait: this registry allows so many requests in a time; with credentials it may allow more",
    }.get(status)


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Errors of urllib3 and of sockets as errors of registries."""
    urllib3 = urllib3_of_extra()
    try:
        yield
    except urllib3.exceptions.HTTPError as error:
        raise error_of(error, url) from error
    except (OSError, ValueError) as error:
        if isinstance(error, RegistryError):
            raise
        shown = without_secrets(url)
        remedy = _unreachable("", shown)
        raise RegistryError(None, "UNREACHABLE", f"the connection failed: {error}", url=shown, remedy=remedy) from error


def _unreachable(kind: str, url: str) -> str:
    if kind == "NameResolutionError":
        return "look at the host's name for a mistake; if it is right, ask this machine's resolver: getent hosts NAME"
    if kind == "ProxyError":
        return "HTTPS_PROXY names the proxy; unset it, or have NO_PROXY name the registry"
    return (
        f"try `curl -v {url}` on this machine; a port other than 443 is a part of the name (host:5000/name), and a"
        " registry without TLS needs plain_http=True"
    )


def error_of(error: Any, url: str) -> RegistryError:
    """The error about one of urllib3's."""
    kinds = urllib3_of_extra().exceptions
    shown = without_secrets(url)
    if isinstance(error, kinds.SSLError):
        remedy = "ca= names the certificate of whoever signed it; plain_http=True for a registry without TLS"
        return RegistryError(None, "TLS", f"no secure connection: {error}", url=shown, remedy=remedy)
    if isinstance(error, (kinds.NewConnectionError, kinds.NameResolutionError, kinds.ProxyError)):
        said = re.sub(
            r"^\w+\(host=[^()]*\): ", "", str(error)
        )  # the repr of urllib3's connection tells nobody anything
        remedy = _unreachable(type(error).__name__, shown)
        return RegistryError(None, "UNREACHABLE", f"no connection: {said}", url=shown, remedy=remedy)
    if isinstance(error, kinds.TimeoutError):  # urllib3 counts "no connection" among these, too
        return RegistryError(None, "TIMEOUT", "nothing came in time", url=shown, remedy="try again, or raise timeout=")
    return RegistryError(
        None, "BROKEN", f"the connection broke: {error}", url=shown, remedy="try again; what has come is kept"
    )
