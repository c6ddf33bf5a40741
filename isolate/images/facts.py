"""Metadata that a tree cannot hold: owners and devices that the caller cannot make, attributes that are never set."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from isolate.kernel.checks import is_int

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Fact", "Facts"]

_KEYS = {"uid", "gid", "mode", "mtime", "kind", "device", "xattrs", "same"}


# The child imports this for each layer: dataclasses would take longer than all the rest.
class Fact(NamedTuple):
    """The archive's metadata of one path, where the tree has other metadata.

    ``uid`` and ``gid``: owners that are not mapped here; the file belongs to root of the map instead. ``kind`` (``"3"``
    character, ``"4"`` block), ``device``, ``mode`` and ``mtime``: a device that was not made; a whiteout stands in its
    place, so that nothing of a lower layer shows. ``same``: a further hard link to such a device. ``xattrs``:
    attributes that are kept but not set.
    """

    uid: int | None = None
    gid: int | None = None
    kind: str | None = None
    device: tuple[int, int] | None = None
    mode: int | None = None
    mtime: int | None = None
    same: bytes | None = None
    xattrs: Mapping[bytes, bytes] = {}

    def to_json(self) -> dict[str, Any]:
        """As a table of JSON, without what is None."""
        found: dict[str, Any] = {}
        for name in ("uid", "gid", "kind", "mode", "mtime"):
            value = getattr(self, name)
            if value is not None:
                found[name] = value
        if self.device is not None:
            found["device"] = list(self.device)
        if self.same is not None:
            found["same"] = _text(self.same)
        if self.xattrs:
            found["xattrs"] = {_text(k): base64.b64encode(v).decode() for k, v in sorted(self.xattrs.items())}
        return found

    @classmethod
    def from_json(cls, table: object) -> Fact:
        """From a table; ValueError for anything that is not one."""
        if not isinstance(table, dict) or set(table) - _KEYS:
            raise ValueError(f"not a fact: {table!r}")
        numbers: dict[str, int] = {}
        for name in ("uid", "gid", "mode", "mtime"):
            value = table.get(name)
            if value is not None:
                if not is_int(value) or value < 0:
                    raise ValueError(f"not a number: {name}={value!r}")
                numbers[name] = value
        device = table.get("device")
        if device is not None and not (
            isinstance(device, list) and len(device) == 2 and all(type(n) is int and n >= 0 for n in device)
        ):
            raise ValueError(f"not a device: {device!r}")
        kind = table.get("kind")
        if kind not in (None, "3", "4"):
            raise ValueError(f"not a kind of device: {kind!r}")
        same, xattrs = table.get("same"), table.get("xattrs", {})
        if not isinstance(xattrs, dict) or not all(isinstance(value, str) for value in xattrs.values()):
            raise ValueError(f"not attributes: {xattrs!r}")
        if not (same is None or isinstance(same, str)):
            raise ValueError(f"not a fact: {table!r}")
        return cls(
            **numbers,
            kind=kind,
            device=None if device is None else (device[0], device[1]),
            same=None if same is None else _bytes(same),
            xattrs={_bytes(k): base64.b64decode(v, validate=True) for k, v in xattrs.items()},
        )


class Facts:
    """The facts of a layer, by path. Immutable; empty where the tree holds everything."""

    __slots__ = ("_by_path", "_data")

    def __init__(self, facts: Mapping[bytes, Fact] | bytes = b"") -> None:
        self._by_path: dict[bytes, Fact] | None = None if isinstance(facts, bytes) else dict(facts)
        self._data: bytes | None = facts if isinstance(facts, bytes) else None

    def _table(self) -> dict[bytes, Fact]:
        if self._by_path is None:
            assert self._data is not None
            self._by_path = dict(map(_line, self._data.splitlines()))
        return self._by_path

    def get(self, path: bytes) -> Fact | None:
        """The metadata of a path that the tree does not hold; None if it holds everything."""
        return self._table().get(path)

    def __iter__(self) -> Iterator[bytes]:
        return iter(sorted(self._table()))

    def __len__(self) -> int:
        return len(self._table())

    def __bool__(self) -> bool:
        return bool(self._data) if self._by_path is None else bool(self._by_path)

    def __getitem__(self, path: bytes) -> Fact:
        return self._table()[path]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Facts) and self._table() == other._table()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def __repr__(self) -> str:
        return f"<Facts of {len(self)} paths>"

    def to_bytes(self) -> bytes:
        """One line of JSON a path, in the order of the paths: the form that a store keeps."""
        return b"".join(line_of(path, self._table()[path]) for path in self)

    def as_stored(self) -> bytes:
        """The same as it was read, without looking at it; whoever looks is told if it is damaged."""
        return self.to_bytes() if self._data is None else self._data

    @classmethod
    def from_bytes(cls, data: bytes) -> Facts:
        """From that form; ValueError if it is none.

        :raises ValueError: a line that is not a path with its fact.
        """
        facts = cls(data)
        facts._table()
        return facts


def line_of(path: bytes, fact: Fact) -> bytes:
    """A path with its fact, as one line."""
    return json.dumps([_text(path), fact.to_json()], separators=(",", ":")).encode() + b"\n"


def _line(line: bytes) -> tuple[bytes, Fact]:
    try:
        pair = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
        raise ValueError(f"not a path with a fact: {line[:80]!r}")
    return _bytes(pair[0]), Fact.from_json(pair[1])


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
