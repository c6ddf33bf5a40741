"""A registry: what it has of a repository, fetched and verified; what is pushed to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from isolate.images.digests import digest_of, is_digest, split, verify
from isolate.images.documents import (
    INDEX_TYPES,
    LARGEST,
    MANIFEST_TYPES,
    OCI_INDEX,
    Descriptor,
    Index,
    dump,
    parse,
    read_index,
)
from isolate.images.errors import DigestError, ImageError, RegistryError
from isolate.images.reference import DOCKER_HUB, Reference
from isolate.images.registry.auth import Authority
from isolate.images.registry.credentials import Credentials, lookup
from isolate.images.registry.http import Answer, Transport, is_loopback, without_secrets

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator

    from typing_extensions import Self

    from isolate.images.blobs import Partial

__all__ = ["Pulled", "Registry"]

ACCEPT = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
CHUNK = 32 << 20  # what is uploaded in one request, so that a broken one costs no more
_ATTEMPTS = 5
_PROGRESS = 16384  # bytes that a connection must bring before it breaks
_MOST_PAGES = 1000
_LARGEST_PAGE = 4 << 20
_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.ASCII)
_UPLOADED = re.compile(r"(?:bytes=)?0-([0-9]{1,19})", re.ASCII)
_NEXT = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?', re.ASCII)


@dataclass(frozen=True)
class Pulled:
    """A document as a registry gave it, verified where a digest was asked for."""

    media_type: str
    digest: str
    data: bytes


class Registry:
    """A registry by its host name, such as ``"registry.example"``, ``"localhost:5000"`` or ``"docker.io"``.

    ``credentials`` are (user, password); ``()`` for none; None looks in the files of docker and podman
    (``$REGISTRY_AUTH_FILE``, ``~/.docker/config.json``, ``$XDG_RUNTIME_DIR/containers/auth.json``) and asks the helpers
    named there. They are sent to this registry and to token servers of its host or of a domain above or below; others
    have to be named in ``realms``.

    ``mirrors`` are hosts that are asked before it when something is read; what they give is verified like all else.
    ``plain_http``: without TLS; None is so for this machine alone. ``ca`` is a file with the certificates that are
    trusted. ``timeout``: seconds in which an answer must begin, a document must be whole, and a blob must move on.
    ``parallel``: how many blobs at once.

    Needs urllib3 (``isolate-linux[images]``). Honours ``HTTPS_PROXY`` and ``NO_PROXY``. May be used from several
    threads; close it, or use it in a ``with``, to close its connections.

    >>> with Registry("localhost:5000") as registry:  # doctest: +SKIP
    ...     registry.tags("me/app")
    ['1']
    """

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
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout <= 3600:
            raise ValueError(f"Registry: timeout must be seconds, above 0 and up to 3600, not {timeout!r}")
        if isinstance(parallel, bool) or not isinstance(parallel, int) or not 1 <= parallel <= 16:
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
        self._authority: Authority | None = None
        self._mirrors = tuple(
            Registry(mirror, ca=ca, timeout=timeout, plain_http=None if is_loopback(mirror) else plain_http)
            for mirror in mirrors
        )

    def __repr__(self) -> str:
        return f"Registry({self.host!r})"

    def close(self) -> None:
        """Close its connections."""
        self._transport.close()
        for mirror in self._mirrors:
            mirror.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- requests -----------------------------------------------------------------------------------------------

    def _who(self) -> Authority:
        # Two threads may both make one: they are equal, and the last stays.
        if self._authority is None:
            credentials = lookup(self.host) if self._ask_files else self._given
            self._authority = Authority(
                self._transport, self.host, self._api, credentials, self._realms, plain=self._plain
            )
        return self._authority

    def _request(
        self,
        method: str,
        url: str,
        scope: str,
        headers: dict[str, str] | None = None,
        body: Callable[[], bytes | Iterable[bytes]] | None = None,
    ) -> Answer:
        """One request, authorized; a second time where the registry says what for."""
        reading = method in ("GET", "HEAD")
        elsewhere = urlsplit(url)[:2] != urlsplit(self._base)[:2]
        for again in (False, True):
            own = dict(headers or {})
            known = None if elsewhere else self._who().header(scope)
            if known is not None:
                own["Authorization"] = known
            if reading:
                answer = self._transport.follow(method, url, own, plain=self._plain)
            else:
                answer = self._transport.once(method, url, own, None if body is None else body())
            challenge = answer.headers.get("WWW-Authenticate")
            if answer.status != 401 or challenge is None or again or elsewhere:
                return answer
            answer.close()
            self._who().answer(challenge, scope, url)
        raise AssertionError("unreachable")

    def _url(self, repository: str, rest: str) -> str:
        return f"{self._base}/v2/{repository}/{rest}"

    # ---- documents ----------------------------------------------------------------------------------------------

    def manifest(self, repository: str, wanted: str = "latest") -> Pulled:
        """A manifest or an index, by tag or digest, from the mirrors or from the registry.

        :raises RegistryError: there is none, or the registry does not keep to the protocol.
        :raises DigestError: it is not what was asked for.
        """
        Reference(self.host, repository)
        for mirror in self._mirrors:
            try:
                return mirror.manifest(repository, wanted)
            except (RegistryError, DigestError):
                continue  # the registry itself has the last word
        return self._manifest(repository, wanted)

    def _manifest(self, repository: str, wanted: str) -> Pulled:
        url = self._url(repository, f"manifests/{wanted}")
        answer = self._request("GET", url, f"repository:{repository}:pull", {"Accept": ACCEPT})
        if answer.status != 200:
            raise answer.failure(f"no manifest {self.host}/{repository}{'@' if is_digest(wanted) else ':'}{wanted}")
        kind = (answer.headers.get("Content-Type") or "").partition(";")[0].strip()
        said = answer.headers.get("Docker-Content-Digest")
        data = answer.document(LARGEST["manifest"])
        if is_digest(wanted):
            verify(data, wanted, f"the manifest that {self.host} sent")
            return Pulled(kind, wanted, data)
        digest = digest_of(data)
        if said and is_digest(said):
            verify(data, said, f"the manifest that {self.host} sent, by its own header,")
        return Pulled(kind, digest, data)

    def blob(self, repository: str, descriptor: Descriptor, largest: int) -> bytes:
        """A small blob as a whole, such as a configuration.

        :raises RegistryError: it is not there, or larger. :raises DigestError: it is another.
        """
        if descriptor.size > largest:
            raise RegistryError(
                None, "TOO_LARGE", f"{descriptor.digest} is said to have {descriptor.size} bytes; {largest} are taken"
            )
        for mirror in self._mirrors:
            try:
                return mirror.blob(repository, descriptor, largest)
            except (RegistryError, DigestError):
                continue
        url = self._url(repository, f"blobs/{descriptor.digest}")
        answer = self._request("GET", url, f"repository:{repository}:pull")
        if answer.status != 200:
            raise answer.failure(f"no blob {descriptor.digest} in {self.host}/{repository}")
        return verify(answer.document(descriptor.size), descriptor.digest, f"the blob that {self.host} sent")

    def download(
        self, repository: str, descriptor: Descriptor, partial: Partial, tell: Callable[[int], object] = lambda _: None
    ) -> None:
        """The bytes of a blob behind those that are there already, from the mirrors or from the registry.

        A connection that breaks is taken up again where it broke, as long as something came. The caller verifies.

        :raises RegistryError: no more can be had; what has come is kept.
        """
        for source in (*self._mirrors, self):
            try:
                source._download(repository, descriptor, partial, tell)
            except RegistryError:
                if source is self:
                    raise
            else:
                return

    def _download(
        self, repository: str, descriptor: Descriptor, partial: Partial, tell: Callable[[int], object]
    ) -> None:
        failed = 0
        while partial.size < descriptor.size:
            before = partial.size
            try:
                self._download_once(repository, descriptor, partial, tell)
            except RegistryError as error:
                if error.status is not None and error.code not in ("TIMEOUT", "CUT_OFF"):
                    raise
                # One that breaks again and again goes on as long as it brings something; one in drips does not.
                failed = 0 if error.code != "TIMEOUT" and partial.size >= before + _PROGRESS else failed + 1
                if failed >= (2 if error.code == "TIMEOUT" else _ATTEMPTS):
                    raise

    def _download_once(
        self, repository: str, descriptor: Descriptor, partial: Partial, tell: Callable[[int], object]
    ) -> None:
        url = self._url(repository, f"blobs/{descriptor.digest}")
        headers = {"Range": f"bytes={partial.size}-"} if partial.size else {}
        answer = self._request("GET", url, f"repository:{repository}:pull", headers)
        try:
            if partial.size and answer.status in (200, 416):
                partial.restart()  # the registry has no ranges, or what is there is not of this blob
                if answer.status == 416:
                    return
            elif answer.status == 206:
                _check_range(answer, partial.size, descriptor.size)
            elif answer.status != 200:
                raise answer.failure(f"no blob {descriptor.digest} in {self.host}/{repository}")
            for piece in answer.pieces():
                if partial.size + len(piece) > descriptor.size:
                    raise RegistryError(
                        answer.status,
                        "TOO_LARGE",
                        f"the blob has more than its {descriptor.size} bytes",
                        url=without_secrets(url),
                    )
                partial.write(piece)
                tell(partial.size)
            if partial.size < descriptor.size:
                raise RegistryError(
                    answer.status,
                    "CUT_OFF",
                    f"the blob ended after {partial.size} of {descriptor.size} bytes",
                    url=without_secrets(url),
                    remedy="try again: what has come is kept",
                )
        finally:
            answer.close()

    # ---- lists --------------------------------------------------------------------------------------------------

    def tags(self, repository: str) -> list[str]:
        """The tags of a repository, in the registry's order."""
        Reference(self.host, repository)
        return [
            str(tag)
            for page in self._pages(self._url(repository, "tags/list?n=1000"), repository)
            for tag in page.get("tags") or ()
        ]

    def _pages(self, url: str, repository: str) -> Iterator[dict[str, Any]]:
        seen: set[str] = set()
        while True:
            if url in seen or len(seen) >= _MOST_PAGES:
                raise RegistryError(None, "PROTOCOL", "the registry's list has no end", url=without_secrets(url))
            seen.add(url)
            answer = self._request("GET", url, f"repository:{repository}:pull")
            if answer.status != 200:
                raise answer.failure(f"no list of {self.host}/{repository}")
            more = _NEXT.search(answer.headers.get("Link") or "")
            try:
                yield parse(answer.document(_LARGEST_PAGE), "list")
            except ImageError as error:
                raise RegistryError(200, "PROTOCOL", str(error), url=without_secrets(url)) from None
            if more is None:
                return
            # The same rules as for a redirect: not to somewhere without TLS, nor with credentials to somewhere else.
            answer.headers = {"Location": more[1]}
            url = self._transport.target(answer, plain=self._plain)

    def referrers(self, repository: str, digest: str, artifact_type: str | None = None) -> tuple[Descriptor, ...]:
        """What refers to a manifest: signatures, bills of materials (distribution-spec, "Listing Referrers").

        Where the registry has no such list, the tag that stands for it is looked at.
        """
        Reference(self.host, repository, None, digest)
        query = f"?{urlencode({'artifactType': artifact_type})}" if artifact_type else ""
        url = self._url(repository, f"referrers/{digest}{query}")
        answer = self._request("GET", url, f"repository:{repository}:pull", {"Accept": OCI_INDEX})
        found: tuple[Descriptor, ...]
        if answer.status == 200:
            try:
                found = read_index(answer.document(LARGEST["index"])).manifests
            except ImageError as error:
                raise RegistryError(200, "PROTOCOL", str(error), url=without_secrets(url)) from None
        else:
            answer.close()
            index = self._fallback(repository, digest)
            found = () if index is None else index.manifests
        return tuple(d for d in found if artifact_type is None or d.artifact_type == artifact_type)

    def _fallback(self, repository: str, digest: str) -> Index | None:
        try:
            pulled = self._manifest(repository, fallback_tag(digest))
        except RegistryError as error:
            if error.status == 404:
                return None
            raise
        return read_index(pulled.data, pulled.media_type)

    # ---- pushing ------------------------------------------------------------------------------------------------

    def has(self, repository: str, digest: str) -> bool:
        """Whether a repository has a blob."""
        url = self._url(repository, f"blobs/{digest}")
        answer = self._request("HEAD", url, _push_scope(repository))
        answer.close()
        return answer.status == 200

    def mount(self, repository: str, digest: str, source: str) -> str | None:
        """Take a blob over from another repository of the same registry.

        None where it is there now; else the place to upload it to, which the registry opened instead.
        """
        scope = f"{_push_scope(repository)} repository:{source}:pull"
        query = urlencode({"mount": digest, "from": source})
        answer = self._request("POST", self._url(repository, f"blobs/uploads/?{query}"), scope, _EMPTY)
        if answer.status == 201:
            answer.close()
            return None
        if answer.status != 202:
            raise answer.failure(f"no upload to {self.host}/{repository}")
        answer.close()
        return self._transport.target(answer, plain=self._plain)

    def upload(
        self,
        repository: str,
        digest: str,
        size: int,
        read: Callable[[int, int], Iterable[bytes]],
        tell: Callable[[int], object] = lambda _: None,
        *,
        place: str | None = None,
    ) -> None:
        """Send a blob: ``read(start, end)`` gives its bytes. A chunk that breaks is taken up again where it broke.

        :raises RegistryError: the registry refuses, or cannot be reached.
        """
        scope = _push_scope(repository)
        if place is None:
            answer = self._request("POST", self._url(repository, "blobs/uploads/"), scope, _EMPTY)
            if answer.status != 202:
                raise answer.failure(f"no upload to {self.host}/{repository}")
            answer.close()
            place = self._transport.target(answer, plain=self._plain)
        done, failed = 0, 0
        while done + CHUNK < size:
            end = done + CHUNK
            try:
                answer = self._send("PATCH", place, scope, read, done, end, tell)
            except RegistryError as error:
                failed += 1
                if error.status is not None or failed >= _ATTEMPTS:
                    raise
                place, done = self._uploaded(place, scope)
                continue
            if answer.status not in (202, 204):
                raise answer.failure(f"the upload to {self.host}/{repository} was refused")
            answer.close()
            place, done = self._transport.target(answer, plain=self._plain), end
        joint = "&" if urlsplit(place).query else "?"
        answer = self._send("PUT", f"{place}{joint}{urlencode({'digest': digest})}", scope, read, done, size, tell)
        if answer.status not in (201, 204):
            raise answer.failure(f"the upload to {self.host}/{repository} was refused")
        answer.close()

    def _send(
        self,
        method: str,
        place: str,
        scope: str,
        read: Callable[[int, int], Iterable[bytes]],
        start: int,
        end: int,
        tell: Callable[[int], object],
    ) -> Answer:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(end - start)}
        if method == "PATCH":
            headers["Content-Range"] = f"{start}-{end - 1}"

        def body() -> Iterator[bytes]:
            at = start
            for piece in read(start, end):
                yield piece
                at += len(piece)
                tell(at)

        return self._request(method, place, scope, headers, body)

    def _uploaded(self, place: str, scope: str) -> tuple[str, int]:
        """Where an upload that broke can go on."""
        answer = self._request("GET", place, scope)
        if answer.status != 204:
            raise answer.failure("the upload cannot be taken up again")
        match = _UPLOADED.fullmatch(answer.headers.get("Range") or "")
        if match is None:
            raise RegistryError(204, "PROTOCOL", "the registry does not say what it has", url=without_secrets(place))
        answer.close()
        place = self._transport.target(answer, plain=self._plain) if answer.headers.get("Location") else place
        # "0-0" is one byte, or none: registries differ. Nothing is lost by sending it again only if it is none.
        return place, 0 if match[1] == "0" else int(match[1]) + 1

    def put_manifest(self, repository: str, data: bytes, media_type: str, wanted: str | None = None) -> str:
        """Put a manifest or an index under a tag or its digest; its digest.

        One with a ``subject`` is also put into the list of what refers to that, where the registry has none itself.
        """
        digest = digest_of(data)
        url = self._url(repository, f"manifests/{wanted or digest}")
        answer = self._request(
            "PUT",
            url,
            _push_scope(repository),
            {"Content-Type": media_type, "Content-Length": str(len(data))},
            lambda: data,
        )
        if answer.status not in (201, 202):
            raise answer.failure(f"{self.host}/{repository} does not take the manifest")
        said, has_list = answer.headers.get("Docker-Content-Digest"), answer.headers.get("OCI-Subject")
        answer.close()
        if said and is_digest(said) and split(said)[0] == "sha256" and said != digest:
            raise DigestError(digest, said, f"the manifest that {self.host} says it keeps")
        document = parse(data, "manifest")
        subject = document.get("subject")
        if isinstance(subject, dict) and is_digest(subject.get("digest")) and not has_list:
            self._refer(repository, str(subject["digest"]), document, Descriptor(media_type, digest, len(data)))
        return digest

    def _refer(self, repository: str, subject: str, document: dict[str, Any], own: Descriptor) -> None:
        index = self._fallback(repository, subject)
        kind = document.get("artifactType") or (document.get("config") or {}).get("mediaType")
        annotations = tuple(sorted((document.get("annotations") or {}).items()))
        entry = Descriptor(own.media_type, own.digest, own.size, annotations, kind)
        others = [d for d in (() if index is None else index.manifests) if d.digest != own.digest]
        rows = [d.document() for d in (*others, entry)]
        data = dump({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows})
        self.put_manifest(repository, data, OCI_INDEX, fallback_tag(subject))

    def watch(self, check: Callable[[], object]) -> Self:
        """The same registry for a verb that can be stopped: ``check`` raises where it is to stop."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._transport = Transport(timeout=self._transport.timeout, ca=self._transport.ca, check=check)
        other._authority = None
        other._mirrors = tuple(mirror.watch(check) for mirror in self._mirrors)
        return other


_EMPTY = {"Content-Length": "0"}


def fallback_tag(digest: str) -> str:
    """The tag that stands for a list of referrers (distribution-spec, "Referrers Tag Schema")."""
    algorithm, digits = split(digest)
    return f"{algorithm[:32]}-{digits[:64]}"


def _push_scope(repository: str) -> str:
    return f"repository:{repository}:pull,push"


def _check_range(answer: Answer, start: int, size: int) -> None:
    match = _RANGE.fullmatch(answer.headers.get("Content-Range") or "")
    if match is None or int(match[1]) != start or match[3] not in ("*", str(size)):
        said = answer.headers.get("Content-Range")
        raise RegistryError(
            206,
            "PROTOCOL",
            f"asked for bytes {start} to {size - 1}, and the registry sends {said!r}",
            url=without_secrets(answer.url),
        )


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
