"""Small layers and images for tests, made by Python's tarfile: another hand than the library's."""

from __future__ import annotations

import hashlib
import io
import os
import random
import select
import tarfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from isolate.images import Config, Image, Layer
from isolate.images.documents import layer_type

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from isolate.images import Store


@dataclass(frozen=True)
class Bytes:
    data: bytes

    def open(self) -> IO[bytes]:
        return io.BytesIO(self.data)


def layer(files: Mapping[str, bytes]) -> Layer:
    return of_archive(archive(files))


def archive(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """A tar archive of regular files and symbolic links."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return out.getvalue()


def of_archive(data: bytes) -> Layer:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return Layer(digest, digest, len(data), layer_type("none"), Bytes(data))


def noise(size: int, seed: str = "") -> bytes:
    """Bytes that do not compress, the same each time."""
    found = hashlib.shake_256(seed.encode() or b"noise").digest(size)
    assert len(found) == size
    return found


def contents(seed: int, count: int = 100) -> dict[str, bytes]:
    """Files of 40 kB, different for each seed."""
    made = random.Random(seed)
    return {f"d{n % 9}/f{n}": made.randbytes(40_000) for n in range(count)}


def taken(place: Path) -> int:
    """Bytes on disk, each file once however many names it has."""
    seen: dict[tuple[int, int], int] = {}
    for top, directories, files in os.walk(place):
        for name in [*directories, *files]:
            row = os.lstat(os.path.join(top, name))
            seen[row.st_dev, row.st_ino] = row.st_blocks * 512
    return sum(seen.values())


def image(*layers: Mapping[str, bytes], **config: object) -> Image:
    made = Image.empty("linux/amd64" if os.uname().machine == "x86_64" else None)
    for files in layers:
        made += layer(files)
    return made.with_(Config(**config)) if config else made  # type: ignore[arg-type]


def collected(store: Store, uppers: Path) -> None:
    """Collect until no upper is left: sandboxes of a program that was killed are on their way out."""
    for _ in range(200):
        store.collect()
        if not os.listdir(uppers):
            return
        select.select([], [], [], 0.05)
    assert os.listdir(uppers) == []
