"""``extract``: an archive becomes a tree, by a confined child."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from isolate.images.archive.compression import COMPRESSIONS
from isolate.images.bounds import Bounds
from isolate.images.confined import words
from isolate.images.confined.maps import inside_ranges, map_for
from isolate.images.errors import DigestError
from isolate.images.facts import Facts
from isolate.kernel.serving import serving

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from isolate.namespaces.ids import IdMap

__all__ = ["Extracted", "extract"]

_MAX_FACTS = 1 << 30


@dataclass(frozen=True)
class Extracted:
    """The result of unpacking an archive.

    ``diffid`` is the digest of the decompressed archive, ``digest`` the digest of its bytes as they came, and ``size``
    their number. ``unpacked`` is the number of bytes of the decompressed archive, and ``data`` that of its files.
    ``entries`` is the number of entries, including whiteouts and parents that the archive left out. ``facts`` is the
    metadata that the tree cannot hold. ``replaced_links`` lists (directory, target): a directory of this layer where a
    lower one has a symbolic link. ``from_lower`` lists names of lower layers to which this one has hard links. Those
    files are copied, so the tree is valid only above the same layers. So is it if ``left_out`` is not 0: the number of
    directories that the archive has no entry for. They are made as the lower layers have them, or else as root's.
    ``implied`` are their names, of an archive that is no layer.
    """

    diffid: str
    digest: str
    size: int
    entries: int
    facts: Facts
    replaced_links: tuple[tuple[bytes, bytes], ...]
    compression: str
    unpacked: int
    data: int
    from_lower: tuple[bytes, ...] = ()
    left_out: int = 0
    implied: tuple[bytes, ...] = ()


def extract(
    archive: int | IO[bytes],
    target: int,
    *,
    bounds: Bounds | None = None,
    compression: str | None = None,
    map: IdMap | None = None,
    devices: bool = False,
    lower: Sequence[int] = (),
    known: Sequence[Facts] = (),
    contents: int | None = None,
    links: str = "replace",
    layer: bool = True,
    digest: str | None = None,
    diffid: str | None = None,
    timeout: float | None = None,
) -> Extracted:
    """Make the tree of a layer's archive in an empty directory.

    ``archive`` is a descriptor, a file or anything with ``read``; it is read to its end. ``target`` is the descriptor
    of the directory. The work is done by a child that can reach nothing but it.

    ``compression``
        ``"none"``, ``"gzip"``, ``"zstd"``, or None: told by the first bytes.
    ``map``
        The ids that files can have here. None: for root all of them, for others root alone, who is the caller. Owners
        that are not in it are kept as facts.
    ``devices``
        Make device nodes: for root on the host only, and then without a user namespace around the child. Else they are
        kept as facts.
    ``lower``
        Descriptors of the trees below, the uppermost first: for hard links to files of theirs, and to tell where a
        directory replaces a symbolic link.
    ``known``
        The facts of these trees, in the same order: owners that are not in the map are then those of what is below.
    ``contents``
        Descriptor of the directory with the contents of the lower trees' files, for those of a store that has one.
    ``links``
        The action if a parent is a symbolic link of a lower layer: ``"replace"`` makes a directory, as other
        tools do, and names it in the result; ``"follow"`` makes the entry where the link leads.
    ``layer``
        False: any archive, in which a whiteout means nothing and is refused.
    ``digest``, ``diffid``
        The expected digest of the bytes, and of the decompressed archive. An archive without the zeros at its end is
        accepted only if one of them is given, because it may have been cut off.

    The tree has the set-user-ID files of the archive: keep it in a directory that other users cannot enter. After an
    error the files made so far are left: give a directory that you can remove (see ``isolate.images.trees.remove``).

    :raises LayerError: the archive breaks a rule; it names the entry and the rule.
    :raises DigestError: the bytes are others. :raises SetupError: the child cannot be confined here.
    """
    limits = (bounds or Bounds()).limits()
    if compression is not None and compression not in COMPRESSIONS:
        raise ValueError(f"compression must be one of {', '.join(COMPRESSIONS)} or None, not {compression!r}")
    if links not in ("replace", "follow"):
        raise ValueError(f"links must be 'replace' or 'follow', not {links!r}")
    if devices and (os.geteuid() != 0 or map is not None):
        raise ValueError("devices=True is for root on the host, without a map: others keep devices as facts")
    if os.listdir(target):
        raise ValueError("the target of an archive must be an empty directory")
    from isolate.images.confined.start import confined  # loaded late: a program that only reads values needs none of it

    ids = None if devices else map_for(map)
    every = [(0, 2**32 - 1)]
    options: dict[str, Any] = {
        "uids": every if ids is None else inside_ranges(ids.uids),
        "gids": every if ids is None else inside_ranges(ids.gids),
        "limits": limits,
        "devices": devices,
        "compression": compression,
        "ended": digest is None and diffid is None,
        "lower": len(lower),
        "follow": links == "follow",
        "contents": contents is not None,
        "layer": layer,
        "facts": [],
    }
    fds = {words.TARGET: target, **{words.LOWER + i: fd for i, fd in enumerate(lower)}}
    if contents is not None:
        fds[words.CONTENTS] = contents
    facts = os.memfd_create("facts", os.MFD_CLOEXEC)
    below = os.memfd_create("known", os.MFD_CLOEXEC) if any(known) else -1
    try:
        if below >= 0:
            options["facts"] = _written(below, known)
            fds[words.KNOWN] = below
        with _Input(archive) as stdin:
            answer = confined(
                "extract",
                options,
                ids=ids,
                fds={**fds, words.FACTS: facts},
                writable=(target,),
                readable=(*lower, *(() if contents is None else (contents,))),
                devices=devices,
                stdin=stdin,
                timeout=timeout,
            )
        for asked, got, what in ((digest, "digest", "the layer"), (diffid, "diffid", "the layer, decompressed,")):
            if asked is not None and asked != answer[got]:
                raise DigestError(asked, str(answer[got]), what)
        return Extracted(
            diffid=str(answer["diffid"]),
            digest=str(answer["digest"]),
            size=int(answer["packed"]),
            entries=int(answer["entries"]),
            facts=Facts(_whole(facts)),
            replaced_links=tuple((words.data(str(a)), words.data(str(b))) for a, b in answer["replaced"]),
            compression=str(answer["compression"]),
            unpacked=int(answer["size"]),
            data=int(answer["bytes"]),
            from_lower=tuple(words.data(str(name)) for name in answer["lower"]),
            left_out=int(answer["left_out"]),
            implied=tuple(words.data(str(name)) for name in answer["implied"]),
        )
    finally:
        os.close(facts)
        if below >= 0:
            os.close(below)


def _written(fd: int, facts: Sequence[Facts]) -> list[int]:
    """Write facts one behind the other, to be read from the beginning: the bytes of each."""
    texts = [each.as_stored() for each in facts]
    with open(fd, "wb", closefd=False) as file:
        file.writelines(texts)
    os.lseek(fd, 0, os.SEEK_SET)
    return [len(text) for text in texts]


def _whole(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    if size > _MAX_FACTS:
        raise ValueError(f"facts of {size} bytes")
    return os.pread(fd, size, 0)


class _Input:
    """The archive as a descriptor; what has none is fed through a pipe by a thread."""

    def __init__(self, archive: int | IO[bytes]) -> None:
        self._archive = archive
        self._pipe = -1
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> int:
        archive = self._archive
        if isinstance(archive, int):
            return archive
        raw = archive.raw if isinstance(archive, io.BufferedReader) else archive
        if isinstance(raw, io.FileIO):
            # A file of ours: the child goes on where its reader stands.
            try:
                fd = archive.fileno()
                os.lseek(fd, archive.tell(), os.SEEK_SET)
            except OSError:
                pass  # no file, or a pipe or socket of which something may be in the buffer already
            else:
                return fd
        self._pipe, write = os.pipe2(os.O_CLOEXEC)
        self._thread = serving(self._feed, "isolate-archive", archive, write)
        self._thread.start()
        return self._pipe

    def _feed(self, archive: IO[bytes], write: int) -> None:
        try:
            while data := archive.read(1 << 18):
                view = memoryview(data)
                while view:
                    view = view[os.write(write, view) :]
        except BrokenPipeError:
            pass  # the child has ended: its answer says why
        except BaseException as error:
            self._error = error
        finally:
            os.close(write)

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
        if self._thread is not None:
            self._thread.join(5)
        if self._error is not None:
            raise self._error
