"""What sharing files between images saves on disk: the store's hard links beside overlayfs's data-only layers.

    python benchmarks/sharing.py DIRECTORY [--place DIRECTORY]

DIRECTORY is a tree of files, such as /usr/lib/python3. Needs root. PLACE is where copies are made (default: /var/tmp;
the file system there decides). A second image is one of which one file in ten differs; a third one has the same files
as the first, all with another time.

    hard links          Store(share=True): files that are equal in everything are one
    data-only, digest   a tree of metadata (sparse files with trusted.overlay.metacopy and .redirect) over files named
                        by their digest, "/ab/abcd…"
    data-only, short    the same with names of eleven letters, so that ext4 keeps both attributes in the inode

The store does not use data-only layers; docs/layers.rst says why.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from isolate import MountNamespace
from isolate.images import Image, Layer, Store


def regular(top: Path) -> list[Path]:
    """The regular files below."""
    return sorted(path for path in top.rglob("*") if path.is_file() and not path.is_symlink())


def disk(*tops: Path) -> int:
    """Bytes on disk, each file once."""
    seen: dict[int, int] = {}
    for top in tops:
        for path in top.rglob("*"):
            row = path.lstat()
            seen[row.st_ino] = row.st_blocks * 512
    return sum(seen.values())


def trees(source: Path, place: Path) -> list[Path]:
    """The three images' files."""
    made = [place / name for name in ("first", "second", "third")]
    for tree in made:
        shutil.copytree(source, tree, symlinks=True)
    for path in regular(place / "second")[::10]:
        row = path.lstat()
        path.write_bytes(path.read_bytes() + b"!")
        os.utime(path, ns=(row.st_atime_ns, row.st_mtime_ns))
    for path in regular(place / "third"):
        row = path.lstat()
        os.utime(path, ns=(row.st_atime_ns, row.st_mtime_ns + 5_000_000_000))
    return made


def described(tree: Path, target: Path, objects: Path, *, short: bool) -> None:
    """A tree's metadata over the files of ``objects``."""
    for directory, _, names in os.walk(tree):
        here = target / Path(directory).relative_to(tree)
        here.mkdir(parents=True, exist_ok=True)
        for name in names:
            path, own = Path(directory, name), here / name
            if path.is_symlink():
                own.symlink_to(os.readlink(path))
                continue
            data, row = path.read_bytes(), path.lstat()
            digest = hashlib.sha256(data).hexdigest()
            word = digest[:11] if short else f"{digest[:2]}/{digest}"
            if not (objects / word).exists():
                (objects / word).parent.mkdir(parents=True, exist_ok=True)
                (objects / word).write_bytes(data)
            with own.open("wb") as file:
                file.truncate(row.st_size)
            own.chmod(row.st_mode & 0o7777)
            os.setxattr(own, "trusted.overlay.metacopy", b"")
            os.setxattr(own, "trusted.overlay.redirect", f"/{word}".encode())
            os.utime(own, ns=(row.st_atime_ns, row.st_mtime_ns))


def linked(place: Path, images: list[Path]) -> list[int]:
    """What each image adds to a store that shares file by file."""
    added: list[int] = []
    with Store(place / "store", share=True) as store:
        for tree in images:
            store.add(Image.empty() + Layer.of(tree, epoch=None))
            added.append(disk(Path(store.path, "layers")) - sum(added))
    return added


def reading(top: Path) -> float:
    """Milliseconds of CPU to read all, the best of five."""
    best = 1e9
    for _ in range(5):
        begin = time.process_time()
        for path in regular(top):
            path.read_bytes()
        best = min(best, (time.process_time() - begin) * 1000)
    return best


def shown(place: Path, name: str, lower: str, *options: str) -> float:
    """What reading all costs by an overlay."""
    target = place / name
    target.mkdir()
    words = ",".join([f"lowerdir={lower}", *options])
    subprocess.run(["mount", "-t", "overlay", "none", "-o", words, str(target)], check=True)
    try:
        return reading(target)
    finally:
        subprocess.run(["umount", str(target)], check=True)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--place", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    if os.geteuid():
        parser.error("trusted.overlay attributes are for root to set")
    MountNamespace().enter()  # what is mounted stays here
    place = Path(tempfile.mkdtemp(prefix="isolate-sharing-", dir=options.place))
    try:
        images = trees(options.source, place)
        whole = disk(images[0])
        print(f"{len(regular(images[0]))} files, {whole / 1e6:.1f} MB; added by each image, of that:")
        rows = {"hard links": linked(place, images)}
        for name in ("digest", "short"):
            objects = place / f"objects-{name}"
            objects.mkdir()
            before, added = 0, []
            for tree in images:
                described(tree, place / f"{tree.name}-{name}", objects, short=name == "short")
                now = disk(objects, *(place / f"{one.name}-{name}" for one in images[: len(added) + 1]))
                added.append(now - before)
                before = now
            rows[f"data-only, {name}"] = added
        for row, values in rows.items():
            print(f"{row:20}" + "".join(f"{value / whole:8.3f}" for value in values))
        (place / "none").mkdir()
        plain = shown(place, "plain", f"{images[0]}:{place}/none")
        data = shown(place, "data", f"{place}/first-digest::{place}/objects-digest", "metacopy=on", "redirect_dir=on")
        print(f"read all: plain overlay {plain:.1f} ms of CPU, data-only {data:.1f}")
    finally:
        shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
