"""The connection to a registry: where it is, who asks, and one request with what it is authorized by."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from isolate.images.reference import DOCKER_HUB, Reference
from isolate.images.registry.addresses import is_loopback, origin
from isolate.images.registry.auth import Authority, Scope
from isolate.images.registry.credentials import Credentials, lookup
from isolate.images.registry.http import Answer, Transport
from isolate.kernel.checks import is_int, is_number
from isolate.kernel.closing import Closing

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    from typing_extensions import Self

__all__ = ["Connection"]


class Connection(Closing):
    """The part of :class:`Registry` that asks; what is asked for is in the others."""

    def __init__(
        self,
        host: str,
        *,
        credentials: tuple[str, str] | tuple[()] | None = None,
        mirrors: Iterable[str] = (),
        plain_http: bool | None = None,
        ca: str | os.PathLike[str] | None = None,
        realms: Iterable[str] = (),
        timeout: float = 30.0,
        parallel: int = 3,
    ) -> None:
        self.host: str = _host(host)
        if isinstance(mirrors, str):
            raise TypeError(f"Registry: mirrors must be several hosts, not {mirrors!r}")
        if not is_number(timeout) or not 0 < timeout <= 3600:
            raise ValueError(f"Registry: timeout must be seconds, above 0 and up to 3600, not {timeout!r}")
        if not is_int(parallel) or not 1 <= parallel <= 16:
            raise ValueError(f"Registry: parallel must be from 1 to 16, not {parallel!r}")
        self.parallel = parallel
        self._given = None if credentials is None else _credentials(credentials)
        self._ask_files = credentials is None
        self._api = "registry-1.docker.io" if self.host == DOCKER_HUB else self.host
        self._plain = plain_http is True  # said for this registry, wherever it leads
        plain = is_loopback(self._api) if plain_http is None else plain_http
        self._base = f"{'http' if plain else 'https'}://{self._api}"
        self._transport = Transport(timeout=timeout, ca=ca)
        self._realms = tuple(realms)
        self._found: dict[str, Credentials | None] = {}  # by repository
        self._authorities: dict[Credentials | None, Authority] = {}
        mirror_of = cast("Callable[..., Self]", type(self))
        self._mirrors: tuple[Self, ...] = tuple(
            mirror_of(mirror, ca=ca, timeout=timeout, plain_http=None if is_loopback(mirror) else plain_http)
            for mirror in mirrors
        )

    def __repr__(self) -> str:
        return f"Registry({self.host!r})"

    def close(self) -> None:
        """Close its connections."""
        self._transport.close()
        for mirror in self._mirrors:
            mirror.close()

    # ---- requests -----------------------------------------------------------------------------------------------

    def _who(self, repository: str) -> Authority:
        # Two threads may both make one: they are equal, and the last stays.
        if repository not in self._found:
            self._found[repository] = lookup(self.host, repository) if self._ask_files else self._given
        own = self._found[repository]
        if own not in self._authorities:
            self._authorities[own] = Authority(
                self._transport, self.host, self._api, own, self._realms, plain=self._plain
            )
        return self._authorities[own]

    def _as_one(self, repository: str, other: str) -> bool:
        """Whether two repositories are reached by the same credentials."""
        return self._who(repository).credentials == self._who(other).credentials

    def _request(
        self,
        method: str,
        url: str,
        scope: Scope,
        headers: dict[str, str] | None = None,
        body: Callable[[], bytes | Iterable[bytes]] | None = None,
    ) -> Answer:
        """One request, authorized; a second time where the registry says what for."""
        reading = method in ("GET", "HEAD")
        elsewhere = origin(url) != origin(self._base)
        for again in (False, True):
            own = dict(headers or {})
            known = None if elsewhere else self._who(scope.repository).header(str(scope))
            if known is not None:
                own["Authorization"] = known
            if reading:
                answer = self._transport.follow(method, url, own, plain=self._plain)
            else:
                answer = self._transport.patiently(method, url, own, body or (lambda: None))
            challenge = answer.headers.get("WWW-Authenticate")
            if answer.status != 401 or challenge is None or again or elsewhere:
                return answer
            answer.close()
            self._who(scope.repository).answer(challenge, str(scope), url)
        raise AssertionError("unreachable")

    def _url(self, repository: str, rest: str) -> str:
        return f"{self._base}/v2/{repository}/{rest}"

    def watch(self, check: Callable[[], object]) -> Self:
        """The same registry for a verb that can be stopped: ``check`` raises where it is to stop."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._transport = Transport(timeout=self._transport.timeout, ca=self._transport.ca, check=check)
        other._found, other._authorities = {}, {}
        other._mirrors = tuple(mirror.watch(check) for mirror in self._mirrors)
        return other


def _credentials(given: object) -> Credentials | None:
    if given == ():
        return None
    if isinstance(given, tuple) and len(given) == 2 and all(isinstance(word, str) for word in given):
        if ":" in given[0]:
            raise ValueError("Registry: a user's name has no colon")
        return Credentials(*given)
    raise TypeError("Registry: credentials must be (user, password), or () for none")


def _host(host: str) -> str:
    if not isinstance(host, str):
        raise TypeError(f"Registry: host must be a str such as 'registry.example', not {host!r}")
    if "://" in host:
        plain = ", plain_http=True" if host.startswith("http:") else ""
        raise ValueError(f"Registry: a host has no scheme: Registry({host.partition('://')[2].rstrip('/')!r}{plain})")
    return Reference(DOCKER_HUB if host in ("index.docker.io", "registry-1.docker.io") else host, "x").registry
