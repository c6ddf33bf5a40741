"""Requests over HTTP to somebody who may be slow, lie, redirect for ever or never end: each has its bound and error.

Built on urllib3, the extra ``isolate-linux[images]``.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from isolate.images.errors import RegistryError
from isolate.images.registry.addresses import is_loopback, origin, without_secrets
from isolate.images.registry.failures import remedy_of, translated, urllib3_of_extra

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = ["Answer", "Transport"]

MOST_REDIRECTS = 8
PIECE = 1 << 18
SLOWEST = 1024  # bytes a second, over as long as a read may take without any
_LARGEST_ERROR = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
SKIP_HEADER = "@@@SKIP_HEADER@@@"  # urllib3.util.SKIP_HEADER
_RETRIED = (429, 500, 502, 503, 504)
_REFUSED = (429, 503)  # for now; of such a request the server has taken nothing
_LONGEST_PAUSE = 30.0
_ATTEMPTS = 3


class Answer:
    """The head of an answer; its body is read in pieces, within the bounds."""

    def __init__(self, raw: Any, url: str, timeout: float, check: Callable[[], object]) -> None:
        self._raw = raw
        self.url = url
        self.status: int = raw.status
        self.headers: Mapping[str, str] = raw.headers
        self._timeout = timeout
        self._check = check

    def pieces(self, largest: int | None = None, seconds: float | None = None) -> Iterator[bytes]:
        """The body.

        :raises RegistryError: it is longer, takes longer, or comes in drips.
        """
        end = None if seconds is None else time.monotonic() + seconds
        window, since, got = self._timeout, time.monotonic(), 0
        total = 0
        with translated(self.url):
            while True:
                piece = self._raw.read1(PIECE, decode_content=False)
                if not piece:
                    return
                self._check()
                now = time.monotonic()
                total += len(piece)
                got += len(piece)
                if largest is not None and total > largest:
                    raise RegistryError(
                        self.status,
                        "TOO_LARGE",
                        f"the answer has more than {largest} bytes",
                        url=without_secrets(self.url),
                    )
                if end is not None and now > end:
                    raise RegistryError(
                        self.status,
                        "TIMEOUT",
                        f"the answer took more than {seconds:g} s",
                        url=without_secrets(self.url),
                    )
                if now - since > window:
                    if got < SLOWEST * (now - since):
                        raise RegistryError(
                            self.status,
                            "TIMEOUT",
                            f"the answer comes at less than {SLOWEST} bytes a second",
                            url=without_secrets(self.url),
                            remedy="try again: what has come is kept",
                        )
                    since, got = now, 0
                yield piece

    def document(self, largest: int) -> bytes:
        """The whole of a short body."""
        try:
            return b"".join(self.pieces(largest, self._timeout))
        finally:
            self.close()

    def close(self) -> None:
        """Done with it. What was not read is not waited for."""
        # Back to the pool if all was read, else the connection is closed.
        if getattr(self._raw, "length_remaining", None) == 0:
            self._raw.drain_conn()  # nothing comes; but only what was read to its end can be followed by another
            self._raw.release_conn()
        else:
            self._raw.close()

    def failure(self, what: str, remedy: str | None = None) -> RegistryError:
        """The error that an answer stands for, in the registry's own words if it has some."""
        code, message = None, what
        try:
            body = self.document(_LARGEST_ERROR)
            first = json.loads(body)["errors"][0]
            code = str(first.get("code") or "") or None
            told = str(first.get("message") or "")
            message = f"{what}: {told}" if told else what
        except (RegistryError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass
        return RegistryError(
            self.status, code, message, url=without_secrets(self.url), remedy=remedy or remedy_of(self.status)
        )


class Transport:
    """Connections, kept open; requests with deadlines; redirects followed by rule."""

    def __init__(
        self, *, timeout: float, ca: str | os.PathLike[str] | None = None, check: Callable[[], object] = lambda: None
    ) -> None:
        self.timeout = timeout
        self.check = check
        self.ca: str | None = None if ca is None else os.fspath(ca)
        self._pools: dict[str | None, Any] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            pool.clear()

    def _pool(self, url: str) -> Any:
        proxy = _proxy(url)
        with self._lock:
            pool = self._pools.get(proxy)
            if pool is None:
                pool = self._pools[proxy] = _make_pool(proxy, self.timeout, self.ca)
        return pool

    def once(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Iterable[bytes] | None = None
    ) -> Answer:
        """One request, whatever comes back."""
        self.check()
        if urlsplit(url).scheme not in ("http", "https"):
            raise RegistryError(None, "PROTOCOL", "the registry names an address that is not of HTTP", url=url)
        own = {"User-Agent": "isolate", "Accept-Encoding": "identity", **headers}
        if method != "GET":
            own["Accept-Encoding"] = SKIP_HEADER  # nothing that is worth it comes back
        with translated(url):
            raw = self._pool(url).request(
                method,
                url,
                headers=own,
                body=body,
                preload_content=False,
                redirect=False,
                retries=False,
                decode_content=False,
            )
        return Answer(raw, url, self.timeout, self.check)

    def patiently(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Callable[[], bytes | Iterable[bytes] | None] = lambda: None,
    ) -> Answer:
        """One request that changes something, sent again where the server has no time for it now."""
        pause = 0.5
        for _ in range(_ATTEMPTS - 1):
            answer = self.once(method, url, headers, body())
            if answer.status not in _REFUSED:
                return answer
            self._pause(answer, pause)
            pause *= 2
        return self.once(method, url, headers, body())

    def follow(self, method: str, url: str, headers: Mapping[str, str], *, plain: bool) -> Answer:
        """A GET or HEAD with its redirects. Credentials stay with the host that they are for.

        :raises RegistryError: redirects without end, from TLS to none, or to this machine.
        """
        seen = {url}
        own = dict(headers)
        pause = 0.5
        attempts = _ATTEMPTS
        while True:
            answer = self.once(method, url, own)
            if answer.status in _RETRIED and attempts > 1:
                attempts -= 1
                self._pause(answer, pause)
                pause *= 2
                continue
            if answer.status not in _REDIRECTS:
                return answer
            answer.close()
            target = self.target(answer, plain=plain)
            if target in seen or len(seen) > MOST_REDIRECTS:
                why = "in a circle" if target in seen else f"more than {MOST_REDIRECTS} times"
                raise RegistryError(
                    answer.status, "REDIRECT", f"the registry redirects {why}", url=without_secrets(url)
                )
            seen.add(target)
            if origin(target) != origin(url):
                own.pop("Authorization", None)
            url = target

    def target(self, answer: Answer, *, plain: bool) -> str:
        """The address that an answer's Location names, if it may be followed."""
        location = answer.headers.get("Location")
        shown = without_secrets(answer.url)
        if not location or len(location) > 16384:
            raise RegistryError(answer.status, "PROTOCOL", "the registry names no place to go on at", url=shown)
        target = urljoin(answer.url, location)
        scheme, host, _ = origin(target)
        old_scheme, old_host, _ = origin(answer.url)
        if scheme not in ("http", "https") or not host:
            raise RegistryError(answer.status, "REDIRECT", f"the registry leads to {target!r}", url=shown)
        if scheme == "http" and (old_scheme == "https" or not (plain or is_loopback(host))):
            raise RegistryError(
                answer.status, "REDIRECT", f"the registry leads to {without_secrets(target)}, without TLS", url=shown
            )
        if is_loopback(host) and not is_loopback(old_host):
            raise RegistryError(
                answer.status,
                "REDIRECT",
                f"the registry leads back to this machine: {without_secrets(target)}",
                url=shown,
            )
        return target

    def _pause(self, answer: Answer, otherwise: float) -> None:
        """Wait as long as the server asks for."""
        seconds = min(_after(answer.headers.get("Retry-After"), otherwise), _LONGEST_PAUSE, self.timeout)
        answer.close()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.1))


def _after(text: str | None, otherwise: float) -> float:
    return float(text) if text and text.isascii() and text.isdecimal() and len(text) < 6 else otherwise


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for an address; this machine is never reached through one."""
    import urllib.request as standard

    scheme, host, _ = origin(url)
    proxies = standard.getproxies_environment()
    bypass: Any = standard.__dict__["proxy_bypass_environment"]  # typeshed does not know it
    if is_loopback(host) or scheme not in proxies or bypass(host, proxies):
        return None
    return proxies[scheme]


def _make_pool(proxy: str | None, timeout: float, ca: str | None) -> Any:
    urllib3 = urllib3_of_extra()
    from http.client import HTTPException

    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class Limited:
        """A connection whose whole head of an answer comes in time: a server may send it byte by byte, for ever."""

        sock: Any

        def getresponse(self) -> Any:
            late = _Late(self.sock, timeout)
            try:
                answer = super().getresponse()  # type: ignore[misc]
            except (OSError, HTTPException):
                if late.done():
                    raise TimeoutError("the head of the answer did not come in time") from None
                raise
            # A head that was cut off is taken for a whole one.
            if late.done():
                raise TimeoutError("the head of the answer did not come in time")
            return answer

    class PlainConnection(Limited, HTTPConnection):
        pass

    class SecureConnection(Limited, HTTPSConnection):
        pass

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = PlainConnection  # pyright: ignore[reportAssignmentType]

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = SecureConnection  # pyright: ignore[reportAssignmentType]

    options: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=timeout, read=timeout + 1),
        "retries": False,
        "cert_reqs": "CERT_REQUIRED",
        "maxsize": 8,
    }
    if ca is not None:
        options["ca_certs"] = ca
    pool = urllib3.PoolManager(**options) if proxy is None else urllib3.ProxyManager(proxy, **options)
    pool.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return pool


class _Late:
    """Ends a connection after so many seconds, unless it is done before."""

    def __init__(self, sock: Any, seconds: float) -> None:
        self._sock = sock
        self._fired = False
        self._timer = threading.Timer(seconds, self._fire)
        self._timer.daemon = True
        self._timer.start()

    def _fire(self) -> None:
        self._fired = True
        try:
            self._sock.shutdown(2)
        except (OSError, AttributeError):
            pass  # it has ended meanwhile

    def done(self) -> bool:
        """Done; whether it was too late."""
        self._timer.cancel()
        return self._fired
