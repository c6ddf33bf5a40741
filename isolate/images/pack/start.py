"""Trees become archives and differences, on this thread or, where owners are not the caller, in a confined child."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isolate.images.archive.names import OPAQUE, WHITEOUT
from isolate.images.confined import words
from isolate.images.facts import Facts
from isolate.images.pack.change import Change, Changes
from isolate.images.pack.diff import Difference, of_trees, of_upper
from isolate.images.pack.pack import pack_tree
from isolate.images.pack.scan import Tree
from isolate.images.pack.stack import Stack, is_opaque, is_whiteout

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from isolate.images.bounds import Bounds
    from isolate.namespaces.ids import IdMap

__all__ = ["Written", "difference", "layer_rows", "remove", "write_layer"]


@dataclass(frozen=True)
class Written:
    """An archive that was written: the digest of its bytes, how many there are, and the sockets that it leaves out."""

    diffid: str
    size: int
    left_out: tuple[bytes, ...]


def layer_rows(tree: Tree) -> Iterator[tuple[bytes, os.stat_result | None]]:
    """The rows of a layer's tree: whiteouts and opaque directories by the names that archives have for them."""
    facts = tree.facts
    for path, found in tree.stats():
        if is_whiteout(found) and (facts is None or facts.get(path) is None):
            parent, _, base = path.rpartition(b"/")
            yield (parent + b"/" if parent else b"") + WHITEOUT + base, None
            continue
        if path or found.st_mode != 0o40755 or found.st_uid or found.st_gid or found.st_mtime_ns:
            yield path, found
        if (found.st_mode & 0o170000) == 0o040000 and is_opaque(tree.directory(path)):
            yield (path + b"/" if path else b"") + OPAQUE, None


def write_layer(
    tree: int,
    out: int,
    *,
    epoch: int | None = 0,
    facts: Facts | None = None,
    contents: int | None = None,
    map: IdMap | None = None,
) -> Written:
    """Write the archive of a directory to a descriptor.

    Whiteouts and opaque directories of overlayfs become those of archives. ``epoch`` is the latest time, in seconds;
    None keeps times as they are. ``facts`` say what the tree could not hold. With ``map`` a child with these ids does
    the reading: owners are as they are in there, and files are read that the caller may not. ``contents`` is where the
    contents of outlines are, for a tree of a store.

    :raises LayerError: the tree changes while it is read, or has what no archive can say.
    """
    if map is not None:
        known = () if facts is None else (facts,)
        return _written(_asked("pack", tree, (), map, out=out, epoch=epoch, facts=known, contents=contents))
    source = Tree(tree, facts, contents)
    try:
        return Written(*_tuples(*pack_tree(source, layer_rows(source), _Writing(out), epoch=epoch)))
    finally:
        source.close()


def difference(
    new: int,
    old: Sequence[int],
    *,
    upper: bool = False,
    stubs: Collection[bytes] = (),
    facts: Sequence[Facts] = (),
    contents: int | None = None,
    out: int | None = None,
    epoch: int | None = 0,
    bounds: Bounds | None = None,
    map: IdMap | None = None,
) -> tuple[Changes, Written | None]:
    """The changes from the old trees (the uppermost first, as one) to the new, and with ``out`` their archive.

    ``upper``: the new tree is the upper directory of an overlay on the old ones. ``stubs`` are places in it that
    something was mounted on. ``facts`` are what the old trees could not hold, in their order: a file that still belongs
    to whom it did keeps the owner that the archive said. ``bounds`` are for the archive. ``contents`` is where the
    contents of outlines in the old trees are.
    """
    if map is not None:
        answer = _asked(
            "diff",
            new,
            old,
            map,
            out=out,
            epoch=epoch,
            facts=facts,
            contents=contents,
            upper=upper,
            stubs=stubs,
            bounds=bounds,
        )
        rows = [Change(words.data(str(p)), str(kind), int(size)) for p, kind, size in answer["changes"]]
        left_out = tuple(words.data(str(path)) for path in answer["left"])
        return Changes(rows, left_out), None if out is None else _written(answer)
    done, written = compare(
        new,
        old,
        facts,
        contents=contents,
        upper=upper,
        stubs=stubs,
        out=out,
        epoch=epoch,
        limits=None if bounds is None else bounds.limits(),
    )
    return Changes(done.changes, written.left_out if written else ()), written


def compare(
    new: int,
    old: Sequence[int],
    facts: Sequence[Facts],
    *,
    contents: int | None,
    upper: bool,
    stubs: Collection[bytes],
    out: int | None,
    epoch: int | None,
    limits: Sequence[int] | None,
) -> tuple[Difference, Written | None]:
    """The same, here."""
    tree, below = Tree(new), Stack(old, facts, contents)
    try:
        done = of_upper(tree, below, stubs) if upper else of_trees(tree, below)
        if out is None:
            return done, None
        tree.facts = Facts(done.kept)
        return done, Written(*_tuples(*pack_tree(tree, done.rows.items(), _Writing(out), epoch=epoch, limits=limits)))
    finally:
        tree.close()
        below.close()


def remove(directory: int, name: bytes | str, *, map: IdMap | None = None) -> None:
    """Remove a tree, whoever owns what is in it: as a child with these ids, where the caller alone may not.

    ``directory`` is the descriptor of the directory that the name stands in. Links are not followed. What is not there
    is no error.

    :raises StoreError: something cannot be removed: it is a mount, immutable, or of ids that are not mapped.
    """
    from isolate.images.confined.remove import remove_tree  # loaded late: removing is rare

    remove_tree(directory, os.fsencode(name), map)


def _asked(
    task: str,
    tree: int,
    old: Sequence[int],
    ids: IdMap,
    *,
    out: int | None,
    epoch: int | None,
    facts: Sequence[Facts] = (),
    contents: int | None = None,
    upper: bool = False,
    stubs: Collection[bytes] = (),
    bounds: Bounds | None = None,
) -> dict[str, Any]:
    from isolate.images.confined.start import confined  # loaded late: a program that only reads values needs none of it

    held = os.memfd_create("facts", os.MFD_CLOEXEC)
    try:
        texts = [fact.to_bytes() for fact in facts]
        with open(held, "wb", closefd=False) as file:
            file.writelines(texts)
        os.lseek(held, 0, os.SEEK_SET)
        fds = {words.TARGET: tree, words.FACTS: held, **{words.LOWER + i: fd for i, fd in enumerate(old)}}
        if out is not None:
            fds[words.OUT] = out
        if contents is not None:
            fds[words.CONTENTS] = contents
        options: dict[str, Any] = {"lower": len(old), "epoch": epoch, "upper": upper, "out": out is not None}
        options["limits"] = None if bounds is None else bounds.limits()
        options["facts"] = [len(text) for text in texts]
        options["contents"] = contents is not None
        options["stubs"] = [words.text(path) for path in stubs]
        return confined(
            task, options, ids=ids, fds=fds, readable=(tree, *old, *(() if contents is None else (contents,)))
        )
    finally:
        os.close(held)


def _written(answer: dict[str, Any]) -> Written:
    left_out = tuple(words.data(str(path)) for path in answer["left"])
    return Written(str(answer["diffid"]), int(answer["size"]), left_out)


def _tuples(diffid: str, size: int, left_out: list[bytes]) -> tuple[str, int, tuple[bytes, ...]]:
    return diffid, size, tuple(left_out)


class _Writing:
    """Writes everything that it is given to a descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self, data: bytes) -> None:
        done = os.write(self._fd, data) if data else 0
        while done < len(data):
            done += os.write(self._fd, data[done:])
