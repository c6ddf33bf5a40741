"""An image as a value: layers, and the document that says what they are for (image-spec's ``config.md``)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from isolate.images.config import Config
from isolate.images.digests import check_digest, digest_of
from isolate.images.documents import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    dump,
    layer_type,
    packing_of,
    parse,
    read_manifest,
)
from isolate.images.errors import ImageError
from isolate.images.layer import Layer
from isolate.images.platform import Platform
from isolate.kernel import checks
from isolate.kernel.checks import keywords

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from isolate.images.layer import LayerBytes

__all__ = ["History", "Image", "descriptor", "make_manifest"]

_EPOCH = "1970-01-01T00:00:00Z"


@keywords
@dataclass(frozen=True)
class History:
    """How a layer, or a step without one, came to be, for people to read."""

    created_by: str = ""
    created: str | None = None
    author: str = ""
    comment: str = ""
    empty: bool = False

    def __post_init__(self) -> None:
        checks.fields(self)

    def document(self) -> dict[str, Any]:
        """As it stands in an image's configuration."""
        found: dict[str, Any] = {}
        for name in ("created", "author", "created_by", "comment"):
            if getattr(self, name):
                found[name] = getattr(self, name)
        if self.empty:
            found["empty_layer"] = True
        return found


@dataclass(frozen=True, eq=False)
class Image:
    """Layers, the lowest first, and a configuration. Immutable; ``+ layer`` and :meth:`with_` make others.

    ``id`` is the digest of the configuration: it says what is in the image (the configuration holds the digests of the
    plain layers) and nothing of how the layers are compressed. ``digest`` is of the manifest, which is what a registry
    knows the image by, and says that too. An image that was pulled keeps both documents to the byte.

    Two images are equal if both are.

    :raises ImageError: the configuration is none, or does not have as many layers as there are.
    """

    layers: tuple[Layer, ...] = field(repr=False)
    #: The configuration, to the byte.
    document: bytes = field(repr=False)
    #: The manifest, to the byte, where the image came with one.
    received: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        found = self._parsed
        rootfs = found.get("rootfs")
        ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        if not isinstance(ids, list):
            raise ImageError("config", "has no rootfs.diff_ids: it is not the configuration of an image")
        for index, layer in enumerate(self.layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"Image: layers must be Layer, not {layer!r}")
            if index >= len(ids) or layer.diffid != ids[index]:
                raise ImageError("config", f"rootfs.diff_ids[{index}] is not {layer.diffid}, that of the layer")
        if len(ids) != len(self.layers):
            raise ImageError("config", f"names {len(ids)} layers, and the manifest {len(self.layers)}")
        try:
            _ = self.config, self.platform
        except (ValueError, TypeError, AttributeError) as error:
            raise ImageError("config", str(error)) from None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Image):
            return NotImplemented
        return self.document == other.document and self.manifest == other.manifest

    def __hash__(self) -> int:
        return hash(self.document)

    def __repr__(self) -> str:
        return f"<Image {self.digest[:19]} of {len(self.layers)} layers for {self.platform}>"

    @staticmethod
    def empty(platform: Platform | str | None = None, *, created: str = _EPOCH) -> Image:
        """An image without layers, for this machine unless another platform is named (``FROM scratch``)."""
        found = Platform.host() if platform is None else Platform.parse(platform)
        document = {**found.document(), "created": created, "config": {}, "rootfs": {"type": "layers", "diff_ids": []}}
        return Image((), dump(document))

    @staticmethod
    def read(
        manifest: bytes,
        config: bytes,
        *,
        media_type: str | None = None,
        source: Callable[[str], LayerBytes] | None = None,
    ) -> Image:
        """From a manifest and the configuration that it names, both verified by the caller.

        ``source`` gives what reads the bytes of a layer's digest.

        :raises ImageError: they break a rule, or it is an artefact that is no image.
        """
        found = read_manifest(manifest, media_type)
        document = parse(config, "config")
        rootfs = document.get("rootfs")
        ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        if not isinstance(ids, list):
            raise ImageError("config", f"({found.config.media_type}) is not the configuration of an image")
        if len(ids) != len(found.layers):
            raise ImageError("config", f"names {len(ids)} layers, and the manifest {len(found.layers)}")
        layers = []
        for index, (diffid, layer) in enumerate(zip(ids, found.layers, strict=True)):
            try:
                check_digest(diffid, f"rootfs.diff_ids[{index}]")
            except (ValueError, TypeError) as error:
                raise ImageError("config", str(error)) from None
            if packing_of(layer.media_type) is None:
                raise ImageError("manifest", f"layer {index} is {layer.media_type!r}: no layer of a known kind")
            own = None if source is None else source(layer.digest)
            layers.append(Layer(diffid, layer.digest, layer.size, layer.media_type, own))
        return Image(tuple(layers), config, manifest)

    # ---- what it says -------------------------------------------------------------------------------------------

    @cached_property
    def _parsed(self) -> dict[str, Any]:
        return parse(self.document, "config")

    @cached_property
    def config(self) -> Config:
        """The settings of the program."""
        return Config.read(self._parsed.get("config") or {})

    @cached_property
    def platform(self) -> Platform:
        """The kind of machine that the image is for."""
        found = self._parsed
        return Platform(
            found.get("architecture") or "unknown",
            found.get("os") or "linux",
            found.get("variant") or "",
            found.get("os.version") or "",
        )

    @property
    def created(self) -> str | None:
        """When, as RFC 3339."""
        value = self._parsed.get("created")
        return value if isinstance(value, str) else None

    @cached_property
    def history(self) -> tuple[History, ...]:
        """How it came to be, where that is told."""
        rows = self._parsed.get("history") or ()
        found = []
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict):
                words = {n: str(row.get(n) or "") for n in ("created_by", "author", "comment")}
                when = row.get("created")
                when = when if isinstance(when, str) else None  # somebody else's text: for people, and no more
                found.append(History(created=when, empty=bool(row.get("empty_layer")), **words))
        return tuple(found)

    @property
    def diffids(self) -> tuple[str, ...]:
        """The digests of the plain layers, the lowest first."""
        return tuple(layer.diffid for layer in self.layers)

    @cached_property
    def id(self) -> str:
        """The digest of the configuration."""
        return digest_of(self.document)

    @cached_property
    def manifest(self) -> bytes:
        """The manifest: as received, or for the layers in the form in which they are (new ones: not compressed)."""
        if self.received is not None:
            return self.received
        return make_manifest(self.document, [descriptor(layer) for layer in self.layers])

    @cached_property
    def digest(self) -> str:
        """The digest of the manifest."""
        return digest_of(self.manifest)

    @property
    def media_type(self) -> str:
        """Of the manifest."""
        return self.described.media_type

    @cached_property
    def described(self) -> Manifest:
        """The manifest, read."""
        return read_manifest(self.manifest)

    @property
    def annotations(self) -> dict[str, str]:
        """Of the manifest."""
        return dict(self.described.annotations)

    # ---- others made of it --------------------------------------------------------------------------------------

    def __add__(self, layer: Layer) -> Image:
        if not isinstance(layer, Layer):
            return NotImplemented
        return self.add(layer)

    def add(self, layer: Layer, history: History | None = None) -> Image:
        """The same with one layer more on top (what ``+`` does), and what its history says."""
        document = self._copy()
        document["rootfs"] = {"type": "layers", "diff_ids": [*self.diffids, layer.diffid]}
        self._tell(document, history or History(created=_EPOCH, comment="isolate"))
        return Image((*self.layers, layer), dump(document))

    def with_(self, config: Config, *, history: History | None = None) -> Image:
        """The same with what the configuration says: what it does not say stays (:meth:`Config.over`)."""
        if not isinstance(config, Config):
            raise TypeError(f"Image.with_ takes a Config, not {config!r}")
        document = self._copy()
        own = {k: v for k, v in (document.get("config") or {}).items() if k not in _CONFIG_KEYS}
        document["config"] = {**own, **config.over(self.config).document()}
        if history is not None:
            self._tell(document, history)
        return Image(self.layers, dump(document))

    def for_platform(self, platform: Platform | str) -> Image:
        """The same, said to be for another kind of machine."""
        document = self._copy()
        for key in ("variant", "os.version", "os.features"):
            document.pop(key, None)
        return Image(self.layers, dump({**document, **Platform.parse(platform).document()}))

    def packed(self, layers: Iterable[Layer]) -> Image:
        """The same image with its layers in these forms; they are the same layers."""
        found = tuple(layers)
        if tuple(layer.diffid for layer in found) != self.diffids:
            raise ValueError("Image.packed: these are other layers")
        return self if found == self.layers else Image(found, self.document)

    def _copy(self) -> dict[str, Any]:
        copy: dict[str, Any] = json.loads(dump(self._parsed))
        return copy

    def _tell(self, document: dict[str, Any], history: History) -> None:
        rows = document.get("history")
        if not isinstance(rows, list):
            # If there are any rows, there is one for each layer.
            rows = [History(created=_EPOCH).document() for _ in self.layers]
        document["history"] = [*rows, history.document()]


_CONFIG_KEYS = {
    "User",
    "Env",
    "Entrypoint",
    "Cmd",
    "WorkingDir",
    "Volumes",
    "ExposedPorts",
    "Labels",
    "StopSignal",
    "Healthcheck",
    "Shell",
    "OnBuild",
}


def descriptor(layer: Layer) -> Descriptor:
    """A layer as it stands in a manifest."""
    return Descriptor(layer.media_type, layer.digest, layer.size)


def make_manifest(config: bytes, layers: Iterable[Descriptor], annotations: Mapping[str, str] | None = None) -> bytes:
    """The manifest of a configuration and the forms of its layers, always the same bytes for the same."""
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": Descriptor(OCI_CONFIG, digest_of(config), len(config)).document(),
        # An OCI manifest names layers of OCI's kinds.
        "layers": [
            Descriptor(layer_type(packing_of(d.media_type) or "none"), d.digest, d.size, d.annotations).document()
            for d in layers
        ],
    }
    if annotations:
        document["annotations"] = dict(annotations)
    return dump(document)
