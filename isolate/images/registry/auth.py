"""Authorization: the challenge of a registry, and the token that answers it (distribution's ``spec/auth``)."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from isolate.images.errors import RegistryError
from isolate.images.registry.addresses import is_loopback, origin, without_secrets
from isolate.kernel.checks import is_number

if TYPE_CHECKING:
    from collections.abc import Iterable

    from isolate.images.registry.credentials import Credentials
    from isolate.images.registry.http import Transport

__all__ = ["Authority", "Challenge", "Scope", "challenges"]

_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_PARAMETER = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))\s*', re.ASCII)
_SCHEME = re.compile(rf"\s*({_TOKEN})(?:\s+|$)", re.ASCII)
_LARGEST_TOKEN = 1 << 17
_LARGEST_CHALLENGE = 8192
_EARLY = 10.0  # seconds before its end, a token counts as ended

#: Realms that are elsewhere and known to be of the same registry.
_KNOWN_REALMS = {"docker.io": ("auth.docker.io",), "registry.access.redhat.com": ("registry.redhat.io",)}


@dataclass(frozen=True)
class Scope:
    """The scope of a request: a repository, to read or also to write it, and another one to take a blob from."""

    repository: str
    push: bool = False
    source: str | None = None

    def __str__(self) -> str:
        own = f"repository:{self.repository}:{'pull,push' if self.push else 'pull'}"
        return own if self.source is None else f"{own} repository:{self.source}:pull"


@dataclass(frozen=True)
class Challenge:
    """One way that a registry offers (``WWW-Authenticate``)."""

    scheme: str
    parameters: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str:
        """A parameter, or ``""``."""
        return dict(self.parameters).get(name, "")


def challenges(header: str) -> list[Challenge]:
    """Parse a header (RFC 9110, 11.6.1). What cannot be parsed is left out."""
    found: list[Challenge] = []
    at = 0
    if len(header) > _LARGEST_CHALLENGE:
        return found
    while at < len(header):
        match = _SCHEME.match(header, at)
        if match is None:
            break
        at = match.end()
        parameters: dict[str, str] = {}
        while (pair := _PARAMETER.match(header, at)) is not None:
            value = pair[3] if pair[2] is None else re.sub(r"\\(.)", r"\1", pair[2])
            parameters.setdefault(pair[1].lower(), value)
            at = pair.end()
            if header[at : at + 1] != ",":
                break
            at += 1
            # Behind the comma: another parameter, or another scheme.
            if _PARAMETER.match(header, at) is None:
                break
        found.append(Challenge(match[1].lower(), tuple(parameters.items())))
        while header[at : at + 1] in (",", " "):
            at += 1
    return found


class Authority:
    """The authorization for one registry by one set of credentials: asked for when the registry demands it, kept until
    it ends."""

    def __init__(
        self,
        transport: Transport,
        registry: str,
        host: str,
        credentials: Credentials | None,
        realms: Iterable[str],
        *,
        plain: bool,
    ) -> None:
        self._transport = transport
        self._registry = registry
        self._host = urlsplit(f"//{host}").hostname or host
        self.credentials = credentials
        self._realms = {*_KNOWN_REALMS.get(registry, ()), *realms}
        self._plain = plain
        self._lock = threading.Lock()
        self._tokens: dict[str, tuple[str, float]] = {}  # by scope
        self._basic = False

    def header(self, scope: str) -> str | None:
        """The header that is known to be needed for a scope, before any request."""
        with self._lock:
            if self._basic and self.credentials is not None:
                return self.credentials.basic
            token, end = self._tokens.get(scope, ("", 0.0))
        return f"Bearer {token}" if token and time.monotonic() < end else None

    def answer(self, header: str, scope: str, url: str) -> str:
        """The header that answers a challenge.

        :raises RegistryError: none can be made: no credentials, a realm elsewhere, a token server that refuses.
        """
        offered = challenges(header)
        for challenge in offered:
            if challenge.scheme == "bearer" and challenge.get("realm"):
                return self._bearer(challenge, scope)
        for challenge in offered:
            if challenge.scheme == "basic":
                if self.credentials is None or not self.credentials.user:
                    raise RegistryError(
                        401,
                        "UNAUTHORIZED",
                        f"{self._registry} wants a user and a password",
                        url=without_secrets(url),
                        remedy="log in (docker login, podman login), or pass credentials=(user, password)",
                    )
                if urlsplit(url).scheme == "http" and not is_loopback(self._host) and not self._plain:
                    raise RegistryError(401, "TOKEN", "a password is not sent without TLS", url=without_secrets(url))
                with self._lock:
                    self._basic = True
                return self.credentials.basic
        raise RegistryError(
            401, "TOKEN", "the registry wants authorization of a kind that is not known", url=without_secrets(url)
        )

    def _check_realm(self, realm: str) -> None:
        scheme, host, _ = origin(realm)
        if scheme not in ("http", "https") or not host or "@" in urlsplit(realm).netloc:
            raise RegistryError(401, "TOKEN", f"the registry names a token server that is none: {realm!r}")
        if scheme == "http" and not is_loopback(host) and not (self._plain and host == self._host):
            raise RegistryError(
                401, "TOKEN", f"the registry names a token server without TLS: {without_secrets(realm)}"
            )
        # The same host, a domain above it (registry.gitlab.com: gitlab.com) or below it.
        near = host == self._host or (
            host.count(".") >= 1 and (self._host.endswith(f".{host}") or host.endswith(f".{self._host}"))
        )
        if not near and host not in self._realms:
            raise RegistryError(
                401,
                "TOKEN",
                f"{self._registry} sends to a token server elsewhere: {without_secrets(realm)}",
                remedy=f"if {host} is known to belong to it: Registry({self._registry!r}, realms=({host!r},))",
            )

    def _bearer(self, challenge: Challenge, scope: str) -> str:
        realm = challenge.get("realm")
        self._check_realm(realm)
        service = challenge.get("service")
        headers: dict[str, str] = {}
        scopes = scope.split(" ") if scope else []
        if self.credentials is not None and self.credentials.identity:
            form = {
                "grant_type": "refresh_token",
                "service": service,
                "client_id": "isolate",
                "scope": scope,
                "refresh_token": self.credentials.identity,
            }
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            answer = self._transport.patiently("POST", realm, headers, urlencode(form).encode)
        else:
            query = [("service", service)] if service else []
            query += [("scope", one) for one in scopes]
            if self.credentials is not None and self.credentials.user:
                headers["Authorization"] = self.credentials.basic
                query.append(("account", self.credentials.user))
            joint = "&" if urlsplit(realm).query else "?"
            answer = self._transport.patiently("GET", f"{realm}{joint}{urlencode(query)}" if query else realm, headers)
        if answer.status != 200:
            raise answer.failure(f"the token server of {self._registry} refused")
        token, seconds = _read_token(answer.document(_LARGEST_TOKEN), realm)
        with self._lock:
            self._tokens[scope] = token, time.monotonic() + max(seconds - _EARLY, 1.0)
        return f"Bearer {token}"


def _read_token(data: bytes, realm: str) -> tuple[str, float]:
    try:
        document = json.loads(data)
        token = document.get("token") or document.get("access_token")
        seconds = document.get("expires_in") or 60
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError("it has no token")
        if not is_number(seconds) or not 0 < seconds < 1e9:
            seconds = 60
    except (ValueError, AttributeError, RecursionError) as error:
        raise RegistryError(
            200, "TOKEN", f"the token server's answer cannot be read: {error}", url=without_secrets(realm)
        ) from None
    return token, float(seconds)
