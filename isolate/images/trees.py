"""The extracted layers of a store: ``layers/<diffid>/tree``, with ``facts`` and ``info`` beside it.

A layer whose archive has hard links to files of lower layers is only good above those, and one whose files have their
contents elsewhere only as the lowest: its directory's name then also has the digest of what is below.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isolate.images.confined.maps import map_for
from isolate.images.contents import outline, outlined
from isolate.images.digests import digest_of, split
from isolate.images.disk import (
    HELD,
    Patience,
    doing,
    is_named,
    new_directory,
    open_directory,
    read_small,
    rename_new,
    replace,
    syncfs,
    try_lock,
)
from isolate.images.documents import packing_of
from isolate.images.errors import StoreError
from isolate.images.facts import Facts
from isolate.images.sharing import share as share_files
from isolate.images.unpack.start import extract

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from isolate.images.blobs import Lease
    from isolate.images.bounds import Bounds
    from isolate.images.layer import Layer
    from isolate.images.opening import Opened
    from isolate.namespaces.ids import IdMap

__all__ = ["Staged", "Trees", "above"]

_LARGEST_INFO = 1 << 20
_LARGEST_FACTS = 1 << 30


def above(diffids: Sequence[str]) -> str:
    """The digest of a stack of layers (image-spec's ChainID); ``""`` for none."""
    chain = ""
    for diffid in diffids:
        chain = digest_of(f"{chain} {diffid}".encode()) if chain else diffid
    return chain


@dataclass
class Staged:
    """A layer that has been extracted and has no name yet. ``fd`` holds its directory, locked."""

    fd: int
    name: str  # where it is
    wanted: str  # what it is to be called
    size: int


class Trees:
    """``layers/`` of a store."""

    def __init__(self, opened: Opened, map: IdMap | None = None, *, share: bool | str = False) -> None:
        self._opened = opened
        self.map = map
        #: How files are shared: not, by links (True), or their ``"contents"`` alone.
        self.share = share

    def reading_map(self) -> IdMap | None:
        """With whose ids files of layers can all be read: those of the map, or the caller's for who is not root."""
        return None if os.geteuid() == 0 and self.map is None else map_for(self.map)

    @property
    def _at(self) -> int:
        return self._opened.layers_fd

    def names(self, diffid: str, below: Sequence[str]) -> tuple[str, str]:
        """The names that a layer's directory can have: anywhere, and above these alone."""
        digits = split(diffid)[1]
        return digits, f"{digits}-{split(above(below))[1][:32] if below else '0' * 32}"

    def _candidates(self, diffid: str, below: Sequence[str]) -> tuple[str, ...]:
        """The same, in the order in which they are looked for: of the lowest layer first the one with outlines."""
        names = self.names(diffid, below)
        return names if below or self._opened.contents() is None else names[::-1]

    def hold(self, diffid: str, below: Sequence[str]) -> int | None:
        """A descriptor of a layer's directory, with a shared lock; None where it is not there."""
        for name in self._candidates(diffid, below):
            fd = self.hold_name(name)
            if fd is not None:
                return fd
        return None

    def hold_name(self, name: str) -> int | None:
        """The same by the directory's name."""
        patience = Patience(f"the layer {name}", HELD)
        while True:
            try:
                fd = open_directory(name, self._at)
            except FileNotFoundError:
                return None
            if try_lock(fd, exclusive=False) and is_named(fd, name, self._at):
                return fd
            os.close(fd)
            patience.pause(0.005)  # a collector holds it, for the moment in which it moves it away

    def lease(self, diffids: Sequence[str], lease: Lease) -> list[int]:
        """Descriptors of the trees of a stack, the lowest first, kept from collection by the lease.

        :raises StoreError: one is not there.
        """
        found = []
        for index, diffid in enumerate(diffids):
            fd = self.hold(diffid, diffids[:index])
            if fd is None:
                raise StoreError(
                    f"layer {diffid} is not unpacked in this store",
                    path=self._opened.path,
                    remedy="pull, load or add the image with unpack=True",
                )
            lease.add(fd)
            found.append(lease.add(open_directory("tree", fd)))
        return found

    def stage(
        self,
        archive: int,
        layer: Layer,
        below: Sequence[str],
        trees: Sequence[int],
        bounds: Bounds | None,
        *,
        share: bool | str = False,
    ) -> Staged:
        """Extract a layer's archive into a directory that has no name yet. ``trees`` are those below, lowest first.

        :raises LayerError, DigestError: as :func:`extract`; nothing is left. :raises StoreError: contents cannot be
            shared here.
        """
        outlines = share == "contents" and not below  # only the lowest layer can have them; others share by links
        if outlines:
            from isolate.images.trial import can_share_contents  # loaded late: for stores that share contents

            can_share_contents()
        name, fd = new_directory(self._at, ".new-")
        try:
            os.mkdir("tree", 0o755, dir_fd=fd)
            tree = open_directory("tree", fd)
            try:
                done = extract(
                    archive,
                    tree,
                    bounds=bounds,
                    compression=packing_of(layer.media_type),
                    map=self.map,
                    lower=tuple(reversed(trees)),
                    known=self.facts_of(trees, checked=False)[::-1],
                    contents=self._opened.contents(),
                    digest=layer.digest,
                    diffid=layer.diffid,
                )
                if outlines:
                    self._outline(tree, fd)
                elif share:
                    share_files(tree, self._opened.objects_fd, map=self.reading_map())
            finally:
                os.close(tree)
            tied = bool(done.from_lower or done.left_out) or outlines
            info = {
                "diffid": done.diffid,
                "size": done.unpacked,
                "data": done.data,
                "entries": done.entries,
                "above": above(below) if tied else None,
            }
            replace(fd, "info", json.dumps(info).encode())
            if done.facts:
                replace(fd, "facts", done.facts.to_bytes())
        except BaseException:
            self.throw_away(name, fd)
            raise
        return Staged(fd, name, self.names(layer.diffid, below)[1 if tied else 0], done.unpacked)

    def _outline(self, tree: int, fd: int) -> None:
        contents = self._opened.contents(create=True)
        assert contents is not None
        os.mkdir("contents", 0o755, dir_fd=fd)
        own = open_directory("contents", fd)
        try:
            outline(tree, contents, own, map=self.reading_map())
        finally:
            os.close(own)

    def has_outlines(self, diffids: Sequence[str]) -> bool:
        """Whether files of a stack of layers have their contents elsewhere: of its lowest; not if that is not there."""
        if self._opened.contents() is None or not diffids:
            return False
        for name in self._candidates(diffids[0], ()):
            try:
                fd = open_directory(name, self._at)
            except FileNotFoundError:
                continue
            try:
                return outlined(fd)
            finally:
                os.close(fd)
        return False

    def publish(self, staged: Iterable[Staged], lease: Lease) -> None:
        """Force the layers to disk, all at once, and name them; who was first, has the name."""
        waiting = list(staged)
        if not waiting:
            return
        try:
            syncfs(waiting[0].fd)
            while waiting:
                one = waiting[0]
                try_lock(one.fd, exclusive=False)
                if rename_new(self._at, one.name, self._at, one.wanted):
                    lease.add(one.fd)
                else:
                    held = self.hold_name(one.wanted)
                    if held is None:
                        continue  # it has been collected meanwhile: the name is free again
                    lease.add(held)
                    self.throw_away(one.name, one.fd)
                waiting.pop(0)
            os.fsync(self._at)
        finally:
            for one in waiting:
                self.throw_away(one.name, one.fd)

    def throw_away(self, name: str, fd: int) -> None:
        """Move a directory out of the way and remove it."""
        from isolate.images.trash import discard  # loaded late: a pull that goes well throws nothing away

        try:
            discard(self._opened, self._at, name, self.map)
        finally:
            os.close(fd)

    def info(self, fd: int) -> dict[str, Any]:
        """The record of a layer: ``size`` and ``data`` in bytes, ``entries``."""
        with doing("reading what is known of a layer"):
            found = json.loads(read_small(fd, "info", _LARGEST_INFO))
        if not isinstance(found, dict):
            raise StoreError("a layer's info is damaged", remedy="check(), then pull the image again")
        return found

    def facts_of(self, trees: Sequence[int], *, checked: bool = True) -> list[Facts]:
        """The facts of a stack of leased trees, in the order of the trees. Not ``checked``: for those who may need none
        of them, and take a ValueError then."""
        found = []
        for tree in trees:
            layer = open_directory("..", tree)
            try:
                found.append(self.facts(layer, checked=checked))
            finally:
                os.close(layer)
        return found

    def facts(self, fd: int, *, checked: bool = True) -> Facts:
        """The metadata that a layer's tree cannot hold."""
        try:
            data = read_small(fd, "facts", _LARGEST_FACTS)
            return Facts.from_bytes(data) if checked else Facts(data)
        except FileNotFoundError:
            return Facts()
        except ValueError as error:
            raise StoreError(f"a layer's facts are damaged: {error}", remedy="check(), then pull it again") from None
