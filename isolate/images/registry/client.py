"""A registry: what it has of a repository, fetched and verified; what is pushed to it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from isolate.images.digests import digest_of, is_digest, split
from isolate.images.documents import OCI_INDEX, Descriptor, dump, parse
from isolate.images.errors import DigestError, RegistryError
from isolate.images.registry.addresses import without_secrets
from isolate.images.registry.auth import Scope
from isolate.images.registry.fetching import ATTEMPTS, Fetching, Pulled, fallback_tag
from isolate.kernel.checks import keywords

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from isolate.images.registry.http import Answer

__all__ = ["Pulled", "Registry"]

CHUNK = 32 << 20  # what is uploaded in one request, so that a broken one costs no more
_UPLOADED = re.compile(r"(?:bytes=)?0-([0-9]{1,19})", re.ASCII)
_EMPTY = {"Content-Length": "0"}


@keywords
class Registry(Fetching):
    """A registry by its host name, such as ``"registry.example"``, ``"localhost:5000"`` or ``"docker.io"``.

    ``credentials`` are (user, password); ``()`` for none; None looks in the files of docker and podman
    (``$REGISTRY_AUTH_FILE``, ``~/.docker/config.json``, ``containers/auth.json`` in ``$XDG_RUNTIME_DIR``, in
    ``~/.config``, and ``/run/containers/UID/auth.json``) and asks the helpers named there. An entry may be for a path
    of the registry (``quay.io/team``, ``quay.io/team/app``): the longest that fits is taken. They are sent to
    this registry and to token servers of its host or of a domain above or below; others have to be named in ``realms``.

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

    def has(self, repository: str, digest: str) -> bool:
        """Whether a repository has a blob."""
        url = self._url(repository, f"blobs/{digest}")
        answer = self._request("HEAD", url, Scope(repository, push=True))
        answer.close()
        return answer.status == 200

    def mount(self, repository: str, digest: str, source: str) -> str | None:
        """Take a blob over from another repository of the same registry.

        None where it is there now; else the place to upload it to, which the registry opened instead. It is not tried
        where the other repository has credentials of its own: no request can be made as both.
        """
        if not self._as_one(repository, source):
            return self._begin(repository)
        scope = Scope(repository, push=True, source=source)
        query = urlencode({"mount": digest, "from": source})
        answer = self._request("POST", self._url(repository, f"blobs/uploads/?{query}"), scope, _EMPTY)
        if answer.status == 201:
            answer.close()
            return None
        return self._opened(answer, repository)

    def _begin(self, repository: str) -> str:
        """A place to upload to."""
        scope = Scope(repository, push=True)
        answer = self._request("POST", self._url(repository, "blobs/uploads/"), scope, _EMPTY)
        return self._opened(answer, repository)

    def _opened(self, answer: Answer, repository: str) -> str:
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
        scope = Scope(repository, push=True)
        if place is None:
            place = self._begin(repository)
        done, failed = 0, 0
        while done + CHUNK < size:
            end = done + CHUNK
            try:
                answer = self._send("PATCH", place, scope, read, done, end, tell)
            except RegistryError as error:
                failed += 1
                if error.status is not None or failed >= ATTEMPTS:
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
        scope: Scope,
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

    def _uploaded(self, place: str, scope: Scope) -> tuple[str, int]:
        """The position from which a broken upload can go on."""
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
            Scope(repository, push=True),
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
