"""Manifests and indexes: JSON of image-spec's and of Docker's kind, read from somebody who may lie."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isolate.images.digests import is_digest
from isolate.images.errors import ImageError
from isolate.images.platform import Platform
from isolate.kernel.checks import is_int

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "DOCKER_CONFIG",
    "DOCKER_LAYER",
    "DOCKER_LIST",
    "DOCKER_MANIFEST",
    "INDEX_TYPES",
    "MANIFEST_TYPES",
    "OCI_CONFIG",
    "OCI_EMPTY",
    "OCI_INDEX",
    "OCI_LAYER",
    "OCI_MANIFEST",
    "Descriptor",
    "Index",
    "Manifest",
    "dump",
    "layer_type",
    "packing_of",
    "parse",
    "read_index",
    "read_manifest",
]

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)

#: The largest size of each document: registries refuse manifests above 4 MiB; a config carries a whole history.
LARGEST = {"manifest": 4 << 20, "index": 4 << 20, "config": 8 << 20}
MOST_LAYERS = 1000
MOST_MANIFESTS = 10_000
_LARGEST_BLOB = 1 << 50

_COMPRESSIONS = {"": "none", ".gzip": "gzip", "+gzip": "gzip", "+zstd": "zstd", ".zstd": "zstd"}
_LAYER = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar|docker\.image\.rootfs\.(?:foreign\.)?diff\.tar)"
    r"(?P<how>[.+](?:gzip|zstd))?"
)
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}", re.ASCII)


@dataclass(frozen=True)
class Descriptor:
    """A document's reference to another piece: its kind, digest and size (image-spec's ``descriptor.md``)."""

    media_type: str
    digest: str
    size: int
    annotations: tuple[tuple[str, str], ...] = ()
    artifact_type: str | None = None

    def document(self) -> dict[str, Any]:
        """As it stands in a document."""
        found: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.artifact_type is not None:
            found["artifactType"] = self.artifact_type
        if self.annotations:
            found["annotations"] = dict(self.annotations)
        return found


@dataclass(frozen=True)
class Manifest:
    """One image's, or an artefact's: its configuration and its layers."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: tuple[tuple[str, str], ...] = ()
    subject: Descriptor | None = None
    artifact_type: str | None = None


@dataclass(frozen=True)
class Index:
    """Several manifests, one a platform."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    platforms: tuple[Platform | None, ...]
    annotations: tuple[tuple[str, str], ...] = ()
    subject: Descriptor | None = None


def dump(document: Any) -> bytes:
    """The one way in which this library writes JSON that has a digest: sorted keys, no spaces, UTF-8."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return found


def _no_constants(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def parse(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object, without duplicate keys: two readers must not see two things.

    :raises ImageError: it is none.
    """
    largest = LARGEST.get(what, 4 << 20)
    if len(data) > largest:
        raise ImageError(what, f"has {len(data)} bytes; at most {largest} are taken")
    try:
        found = json.loads(data.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
    except (ValueError, RecursionError) as error:
        raise ImageError(what, f"is not JSON that can be read: {error}") from None
    if not isinstance(found, dict):
        raise ImageError(what, "is not a JSON object")
    return found


def packing_of(media_type: str) -> str | None:
    """``"none"``, ``"gzip"`` or ``"zstd"`` for a layer of a known kind; None for what is no layer of ours."""
    match = _LAYER.fullmatch(media_type)
    return None if match is None else _COMPRESSIONS[match["how"] or ""]


def layer_type(compression: str) -> str:
    """The media type of an OCI layer."""
    return OCI_LAYER if compression == "none" else f"{OCI_LAYER}+{compression}"


def _annotations(document: dict[str, Any], what: str) -> tuple[tuple[str, str], ...]:
    found = document.get("annotations") or {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ImageError(what, "annotations must be an object of strings")
    return tuple(sorted(found.items()))


def _descriptor(document: Any, what: str) -> Descriptor:
    if not isinstance(document, dict):
        raise ImageError(what, "must be an object with mediaType, digest and size")
    kind, digest, size = document.get("mediaType"), document.get("digest"), document.get("size")
    if not isinstance(kind, str) or _MEDIA_TYPE.fullmatch(kind) is None:
        raise ImageError(what, f"has no media type but {kind!r}")
    if not is_digest(digest):
        raise ImageError(what, f"has no digest that can be verified but {digest!r}")
    if not is_int(size) or not 0 <= size <= _LARGEST_BLOB:
        raise ImageError(what, f"has no size but {size!r}")
    artifact = document.get("artifactType")
    if artifact is not None and not isinstance(artifact, str):
        raise ImageError(what, "artifactType must be a string")
    return Descriptor(kind, str(digest), size, _annotations(document, what), artifact)


def _kind(document: dict[str, Any], said: str | None, known: tuple[str, ...], what: str) -> str:
    """The media type on which descriptor (or header) and document agree (CVE-2021-41190)."""
    if document.get("schemaVersion") != 2:
        if document.get("schemaVersion") == 1:
            raise ImageError(what, "is of Docker's schema 1, which has no digests of content: push the image anew")
        raise ImageError(what, f"has schemaVersion {document.get('schemaVersion')!r}, not 2")
    own = document.get("mediaType")
    if own is not None and not isinstance(own, str):
        raise ImageError(what, "mediaType must be a string")
    if own is not None and said is not None and own != said:
        raise ImageError(what, f"says that it is {own!r}, and who gave it says {said!r}: it could be read in two ways")
    kind = own or said or known[0]
    if kind not in known:
        raise ImageError(what, f"is {kind!r}, which is no {what}")
    return kind


def _has_none_of(document: dict[str, Any], others: Iterable[str], what: str) -> None:
    """Refuse keys of another kind of document."""
    for key in others:
        if key in document:
            raise ImageError(what, f"has {key!r} as well: it could be read in two ways")


def _rows(document: dict[str, Any], key: str, most: int, what: str) -> list[Any]:
    rows = document.get(key)
    if not isinstance(rows, list) or len(rows) > most:
        raise ImageError(what, f"{key} must be a list of at most {most}")
    return rows


def _subject(document: dict[str, Any], what: str) -> Descriptor | None:
    subject = document.get("subject")
    return None if subject is None else _descriptor(subject, f"the {what}'s subject")


def read_manifest(data: bytes, said: str | None = None) -> Manifest:
    """Read a manifest; ``said`` is the media type that its descriptor or the registry named.

    :raises ImageError: a rule of image-spec's is broken, or it could also be read as an index.
    """
    what = "manifest"
    document = parse(data, what)
    kind = _kind(document, said, MANIFEST_TYPES, what)
    _has_none_of(document, ("manifests", "fsLayers", "history", "signatures"), what)
    layers = _rows(document, "layers", MOST_LAYERS, what)
    artifact = document.get("artifactType")
    if artifact is not None and not isinstance(artifact, str):
        raise ImageError(what, "artifactType must be a string")
    return Manifest(
        kind,
        _descriptor(document.get("config"), "the manifest's config"),
        tuple(_descriptor(layer, f"layer {index} of the manifest") for index, layer in enumerate(layers)),
        _annotations(document, what),
        _subject(document, what),
        artifact,
    )


def read_index(data: bytes, said: str | None = None) -> Index:
    """Read an index (Docker's "manifest list").

    :raises ImageError: a rule of image-spec's is broken, or it could also be read as a manifest.
    """
    what = "index"
    document = parse(data, what)
    kind = _kind(document, said, INDEX_TYPES, what)
    _has_none_of(document, ("layers", "config", "fsLayers"), what)
    rows = _rows(document, "manifests", MOST_MANIFESTS, what)
    return Index(
        kind,
        tuple(_descriptor(row, f"entry {index} of the index") for index, row in enumerate(rows)),
        tuple(_platform(row.get("platform"), f"entry {index} of the index") for index, row in enumerate(rows)),
        _annotations(document, what),
        _subject(document, what),
    )


def _platform(document: Any, what: str) -> Platform | None:
    if document is None:
        return None
    try:
        return Platform(
            document["architecture"], document["os"], document.get("variant") or "", document.get("os.version") or ""
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ImageError(what, f"has no platform that can be read: {error}") from None
