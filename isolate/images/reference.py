"""Names of images: ``registry/repository:tag@digest``, by the grammar of distribution/reference."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from isolate.images.digests import check_digest
from isolate.kernel.checks import keywords

__all__ = ["DOCKER_HUB", "Reference"]

DOCKER_HUB = "docker.io"
_NAME_MAX = 255
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]+\])(?::[0-9]{{1,5}})?", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)


@keywords
@dataclass(frozen=True, order=True)
class Reference:
    """The name of an image: a registry, a repository there, and a tag or a digest or both.

    Only a digest determines the bytes; a registry can change a tag. :meth:`parse` reads the short names that people
    type. ``str()`` is the complete name, without defaults.

    :raises ValueError: a word that no registry would take.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        for name in ("registry", "repository"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"Reference: {name} must be a str, not {getattr(self, name)!r}")
        if _REGISTRY.fullmatch(self.registry) is None:
            raise ValueError(f"Reference: registry must be a host name, with a port or not, not {self.registry!r}")
        port = re.search(r":([0-9]+)$", self.registry)
        if port is not None and not 1 <= int(port[1]) <= 65535:
            raise ValueError(f"Reference: a port is from 1 to 65535, not {port[1]}")
        if _REPOSITORY.fullmatch(self.repository) is None:
            raise ValueError(_why_no_repository(self.repository))
        if len(self.registry) + 1 + len(self.repository) > _NAME_MAX:
            raise ValueError(f"Reference: registry and repository have at most {_NAME_MAX} characters together")
        if self.tag is not None:
            if not isinstance(self.tag, str):
                raise TypeError(f"Reference: tag must be a str, not {self.tag!r}")
            if _TAG.fullmatch(self.tag) is None:
                raise ValueError(
                    f"Reference: a tag has up to 128 letters, digits, '_', '.' and '-', and starts with none of the "
                    f"last two; not {self.tag!r}"
                )
        if self.digest is not None:
            check_digest(self.digest, "Reference: digest")

    @staticmethod
    def parse(text: str | Reference) -> Reference:
        """Read a name as docker does: ``debian`` is ``docker.io/library/debian:latest``.

        The first word is a registry if it has a dot or a colon or is ``localhost``. The tag ``latest`` is added only
        where neither tag nor digest is given.

        :raises ValueError: not a name; the message says which part.
        """
        if isinstance(text, Reference):
            return text
        if not isinstance(text, str):
            raise TypeError(f"a reference must be a str such as 'registry.example/debian:12', not {text!r}")
        if not text or len(text) > 1024:
            raise ValueError("a reference must have from 1 to 1024 characters, such as 'registry.example/debian:12'")
        if "://" in text:
            raise ValueError(f"a reference has no scheme: not {text!r}, but {text.partition('://')[2]!r}")
        rest, at, digest = text.partition("@")
        first, slash, other = rest.partition("/")
        if slash and (any(c in first for c in ".:") or first == "localhost" or first.lower() != first):
            registry, rest = first, other
        else:
            registry = DOCKER_HUB
        name, colon, tag = rest.rpartition(":")
        if not colon:
            name, tag = rest, ""
        if registry in ("index.docker.io", "registry-1.docker.io"):
            registry = DOCKER_HUB
        if registry == DOCKER_HUB and "/" not in name:
            name = f"library/{name}" if name else name
        found = Reference(registry, name, tag if colon else None, digest if at else None)
        return replace(found, tag="latest") if found.tag is None and found.digest is None else found

    def __str__(self) -> str:
        text = self.name
        if self.tag is not None:
            text += f":{self.tag}"
        if self.digest is not None:
            text += f"@{self.digest}"
        return text

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def short(self) -> str:
        """As people type it: without what :meth:`parse` adds."""
        name = self.name
        if self.registry == DOCKER_HUB:
            name = self.repository.removeprefix("library/") if self.repository.count("/") == 1 else self.repository
            # A name whose first component would be read as a registry keeps its registry.
            if Reference.parse(name).repository != self.repository:
                name = self.name
        tag = "" if self.tag is None or (self.tag == "latest" and self.digest is None) else f":{self.tag}"
        return f"{name}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def wanted(self) -> str:
        """The reference to request from a registry: the digest if there is one, else the tag, else ``latest``."""
        return self.digest or self.tag or "latest"

    def with_tag(self, tag: str) -> Reference:
        """The same repository, by tag alone."""
        return replace(self, tag=tag, digest=None)

    def with_digest(self, digest: str) -> Reference:
        """The same repository, by digest alone."""
        return replace(self, tag=None, digest=digest)


def _why_no_repository(text: str) -> str:
    if text != text.lower() and _REPOSITORY.fullmatch(text.lower()):
        return f"Reference: a repository is lower-case: {text.lower()!r}, not {text!r}"
    return (
        "Reference: a repository is words of lower-case letters and digits, joined by '.', '_', '__' or '-', with '/' "
        f"between; not {text[:300]!r}"
    )
