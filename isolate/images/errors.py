"""Errors of archives, digests, registries and stores. Each names the fault, its place, its cause and a remedy."""

from __future__ import annotations

import os

from isolate.errors import IsolateError, advice
from isolate.errors import printable as escaped

__all__ = [
    "AmbiguousError",
    "DigestError",
    "ImageError",
    "LayerError",
    "RegistryError",
    "SignatureError",
    "StoreError",
    "printable",
]


def printable(text: str | bytes, longest: int = 300) -> str:
    """Text that somebody else chose, for a message: cut, and with whatever is not printable escaped."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    return escaped(text) if len(text) <= longest else f"{escaped(text[:longest])}…"


class LayerError(IsolateError, ValueError):
    """An archive breaks a rule, or cannot be made into a tree.

    ``entry`` is the name of the entry (bytes as in the archive; empty where the archive as a whole is meant), ``rule``
    the rule in words. Nothing of the archive is left where the tree was to be.
    """

    def __init__(self, entry: bytes, rule: str) -> None:
        super().__init__(entry, rule)
        self.entry = entry
        self.rule = rule

    def __str__(self) -> str:
        return f"{printable(self.entry)}: {self.rule}" if self.entry else self.rule


class DigestError(IsolateError, ValueError):
    """Bytes are not those that were asked for. They are thrown away.

    ``asked`` and ``got`` are digests (``"sha256:…"``), ``what`` names the thing in words.
    """

    def __init__(self, asked: str, got: str, what: str = "content") -> None:
        super().__init__(asked, got, what)
        self.asked = asked
        self.got = got
        self.what = what

    def __str__(self) -> str:
        return (
            f"{self.what} is not what was asked for: asked {printable(self.asked)}, got {printable(self.got)}\n"
            "  cause: it was changed or damaged where it came from, or on the way\n"
            "  remedy: try again; if it stays so, do not trust the source"
        )


class ImageError(IsolateError, ValueError):
    """A manifest, an index, a configuration or an archive of images breaks a rule. ``what`` it is, and the ``rule``."""

    def __init__(self, what: str, rule: str) -> None:
        super().__init__(what, rule)
        self.what = what
        self.rule = rule

    def __str__(self) -> str:
        return f"{printable(self.what)}: {printable(self.rule, 500)}"


class SignatureError(IsolateError):
    """No signature of a manifest holds. ``digest`` is the manifest's, ``reasons`` say of each signature why not."""

    def __init__(self, digest: str, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(digest, reasons)
        self.digest = digest
        self.reasons = reasons

    def __str__(self) -> str:
        why = "".join(f"\n  {printable(reason)}" for reason in self.reasons)
        return f"no signature of {self.digest} holds{why or ': there is none'}"


class RegistryError(IsolateError, OSError):
    """A registry refused, cannot be reached, or does not keep to the protocol.

    ``status`` is the HTTP status (None where there was no answer), ``code`` the registry's word for it, such as
    ``"MANIFEST_UNKNOWN"`` (None where it gave none; ``"UNREACHABLE"``, ``"TIMEOUT"``, ``"PROTOCOL"``, ``"TOO_LARGE"``,
    ``"REDIRECT"`` and ``"TOKEN"`` are ours), ``url`` what was asked, without credentials.
    """

    def __init__(
        self,
        status: int | None,
        code: str | None,
        message: str = "",
        *,
        url: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message
        self.url = url
        self.remedy = remedy

    def __str__(self) -> str:
        words = [
            word for word in (self.code, f"HTTP status {self.status}" if self.status is not None else None) if word
        ]
        text = printable(self.message) if self.message else "the registry gave no reason"
        if words:
            text += f" ({', '.join(map(printable, words))})"
        if self.url:
            text += f" [{printable(self.url)}]"
        return text + advice(None, self.remedy)

    def __reduce__(self) -> tuple[object, ...]:
        return _registry_error, (type(self), self.status, self.code, self.message, self.url, self.remedy)


def _registry_error(
    kind: type[RegistryError], status: int | None, code: str | None, message: str, url: str | None, remedy: str | None
) -> RegistryError:
    return kind(status, code, message, url=url, remedy=remedy)


class StoreError(IsolateError, OSError):
    """A store cannot do what was asked: it is full, read-only, busy, damaged, of a newer format, or has no such thing.

    ``errno`` is the kernel's where there is one, ``path`` where it happened, ``cause`` and ``remedy`` as elsewhere.
    """

    errno: int | None
    message: str
    path: str | None
    cause: str | None
    remedy: str | None

    def __init__(
        self,
        message: str,
        *,
        errno: int | None = None,
        path: str | bytes | os.PathLike[str] | None = None,
        cause: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.errno = errno
        self.path = None if path is None else os.fsdecode(path)
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        text = printable(self.message, 1000)
        if self.path is not None:
            text += f" [{printable(self.path)}]"
        if self.errno is not None:
            text += f": {os.strerror(self.errno)} (errno {self.errno})"
        return text + advice(self.cause, self.remedy)

    def __reduce__(self) -> tuple[object, ...]:
        return _store_error, (type(self), self.message, self.__dict__ | {"errno": self.errno})


class AmbiguousError(StoreError):
    """The digits of a digest with which several images of a store begin; ``candidates`` are their digests."""

    candidates: tuple[str, ...] = ()


def _store_error(kind: type[StoreError], message: str, state: dict[str, object]) -> StoreError:
    error = kind(message)
    for name, value in state.items():
        setattr(error, name, value)
    return error
