"""The contents of a registry: documents, blobs and lists, fetched and verified."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from isolate.images.digests import digest_of, is_digest, split, verify
from isolate.images.documents import (
    INDEX_TYPES,
    LARGEST,
    MANIFEST_TYPES,
    OCI_INDEX,
    Descriptor,
    Index,
    parse,
    read_index,
)
from isolate.images.errors import DigestError, ImageError, RegistryError
from isolate.images.reference import Reference
from isolate.images.registry.addresses import without_secrets
from isolate.images.registry.auth import Scope
from isolate.images.registry.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isolate.images.blobs import Partial
    from isolate.images.registry.http import Answer

__all__ = ["ATTEMPTS", "Fetching", "Pulled", "fallback_tag"]

ACCEPT = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
ATTEMPTS = 5
_PROGRESS = 16384  # bytes that a connection must bring before it breaks
_MOST_PAGES = 1000
_LARGEST_PAGE = 4 << 20
_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.ASCII)
_NEXT = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?', re.ASCII)


@dataclass(frozen=True)
class Pulled:
    """A document as a registry gave it, verified where a digest was asked for."""

    media_type: str
    digest: str
    data: bytes


class Fetching(Connection):
    """The part of :class:`Registry` that reads."""

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
        answer = self._request("GET", url, Scope(repository), {"Accept": ACCEPT})
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
        answer = self._request("GET", url, Scope(repository))
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
        sources: tuple[Fetching, ...] = (*self._mirrors, self)
        for source in sources:
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
                if failed >= (2 if error.code == "TIMEOUT" else ATTEMPTS):
                    raise

    def _download_once(
        self, repository: str, descriptor: Descriptor, partial: Partial, tell: Callable[[int], object]
    ) -> None:
        url = self._url(repository, f"blobs/{descriptor.digest}")
        headers = {"Range": f"bytes={partial.size}-"} if partial.size else {}
        answer = self._request("GET", url, Scope(repository), headers)
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
            answer = self._request("GET", url, Scope(repository))
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
        """The artifacts that refer to a manifest, such as signatures (distribution-spec, "Listing Referrers").

        If the registry has no such list, the tag that replaces it is read.
        """
        Reference(self.host, repository, None, digest)
        query = f"?{urlencode({'artifactType': artifact_type})}" if artifact_type else ""
        url = self._url(repository, f"referrers/{digest}{query}")
        answer = self._request("GET", url, Scope(repository), {"Accept": OCI_INDEX})
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


def fallback_tag(digest: str) -> str:
    """The tag that stands for a list of referrers (distribution-spec, "Referrers Tag Schema")."""
    algorithm, digits = split(digest)
    return f"{algorithm[:32]}-{digits[:64]}"


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
