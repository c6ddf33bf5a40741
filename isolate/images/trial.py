"""Whether this kernel shows contents that lie elsewhere to this caller: an outline is mounted, and read."""

from __future__ import annotations

import errno
import functools
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isolate.engine.beneath import O_DIRECTORY
from isolate.engine.plan import Phase, Register, Step, call
from isolate.errors import SetupError
from isolate.images.errors import StoreError, printable
from isolate.kernel.constants import AT_FDCWD, O_CLOEXEC, O_RDONLY
from isolate.mounts import Bind, Root, Tmpfs
from isolate.mounts.outlines import mark
from isolate.mounts.stacking import Stacking
from isolate.namespaces.part import UserNamespace
from isolate.sandbox.box import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.mounts.building import Building

__all__ = ["can_share_contents", "try_it"]

_OPEN = O_RDONLY | O_DIRECTORY | O_CLOEXEC
_NAME = "a" * 11


@functools.lru_cache(maxsize=1)
def can_share_contents() -> None:
    """Try it; once in a process, if it works.

    :raises StoreError: the kernel does not mount such layers for this caller.
    """
    try:
        try_it()
    except SetupError as error:
        raise StoreError(
            "the contents of files cannot be shared here",
            errno=error.errno or errno.EINVAL,
            cause=error.cause or str(error).partition("\n")[0],
            remedy="Store(path, share=True) shares files that are equal in everything, by links",
        ) from error


@dataclass(frozen=True)
class _Tried:
    """A layer with an outline, at /tmp/tried."""

    place: bytes
    layer: bytes
    contents: bytes

    def steps_in(self, building: Building) -> Iterator[Step]:
        """Mount it with its contents."""
        layer, contents, out = Register("layer"), Register("contents"), Register("tried")
        opened = ((self.layer, layer), (self.contents, contents))
        ops = tuple(call("openat", AT_FDCWD, path, _OPEN, 0, out=fd) for path, fd in opened)
        yield Step(Phase.SOURCES, "open the layer and the contents", ops)
        stacking = Stacking(self.place, 1, read_only=True, own_xattrs=True)
        yield from stacking.steps(building, [layer], None, out, contents=contents)
        yield building.mount(out, self.place)


def try_it() -> None:
    """Mount a layer of which a file has its contents elsewhere, in a user namespace, and read the file there.

    :raises SetupError: it cannot be mounted. :raises StoreError: the file cannot be read, or no such file be made.
    """
    data = secrets.token_hex(2048).encode()
    with tempfile.TemporaryDirectory() as place:
        layer, contents = os.path.join(place, "layer"), os.path.join(place, "contents")
        for directory in (layer, contents):
            os.mkdir(directory)
        with open(os.path.join(contents, _NAME), "wb") as file:
            file.write(data)
        with open(os.path.join(layer, "file"), "wb") as file:
            file.truncate(len(data))
            try:
                mark(file.fileno(), _NAME)
            except OSError as error:
                raise StoreError(
                    "the contents of files cannot be shared here",
                    errno=error.errno,
                    path=place,
                    cause="the file system there has no extended attributes for users",
                ) from error
        tried = _Tried(b"/tmp/tried", os.fsencode(layer), os.fsencode(contents))
        root = Root(Bind("/", "/"), Tmpfs("/tmp", size="1M"), tried)
        cat = [shutil.which("cat") or "/bin/cat", "/tmp/tried/file"]
        read = Sandbox(UserNamespace(), root).run(cat, timeout=20)
    if read.stdout != data:
        said = printable((read.stderr or b"")[-200:].decode("utf-8", "replace"))
        raise StoreError(
            "the contents of files cannot be shared here",
            cause=said or f"of a file with {len(data)} bytes {len(read.stdout or b'')} came",
        )
