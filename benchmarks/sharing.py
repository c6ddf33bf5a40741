"""What sharing files between images saves on disk: links, or data-only layers of overlayfs.

    python benchmarks/sharing.py DIRECTORY [--place DIRECTORY]

DIRECTORY is a tree of files, such as /usr/lib/python3. PLACE is where copies are made (default: /var/tmp;
the file system there decides). A second image is one of which one file in ten differs; a third one has the same files
as the first, all with another time.

    links               Store(share=True): files that are equal in everything are one
    contents            Store(share="contents"): files whose contents are equal have them once, whatever else differs
    names of digests    how much it would be if contents were named by their whole digest, "/ab/abcd…", and not by
                        eleven letters: then ext4 cannot keep the attributes of a file in its inode
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from isolate import Sandbox, UserNamespace
from isolate.images import Image, ImageRoot, Layer, Store
from isolate.mounts import Bind, Root, Tmpfs


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


def described(tree: Path, target: Path, objects: Path) -> None:
    """A tree's metadata over the files of ``objects``, named by their digests."""
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
            word = f"{digest[:2]}/{digest}"
            if not (objects / word).exists():
                (objects / word).parent.mkdir(parents=True, exist_ok=True)
                (objects / word).write_bytes(data)
            with own.open("wb") as file:
                file.truncate(row.st_size)
            own.chmod(row.st_mode & 0o7777)
            os.setxattr(own, "user.overlay.metacopy", b"")
            os.setxattr(own, "user.overlay.redirect", f"/{word}".encode())
            os.utime(own, ns=(row.st_atime_ns, row.st_mtime_ns))


def added(store: Store, images: list[Image]) -> list[int]:
    """What each image adds to a store, on disk."""
    sizes: list[int] = []
    for image in images:
        store.add(image)
        sizes.append(disk(Path(store.path, "layers"), Path(store.path, "contents")) - sum(sizes))
    return sizes


def read(store: Store, image: Image) -> float:
    """Milliseconds of CPU to read all files of an image in a sandbox, the best of five."""
    code = (
        "import os, time\nbest = 1e9\nfor _ in range(5):\n    begin = time.process_time()\n"
        "    for top, _, names in os.walk('/tmp/image'):\n        for name in names:\n"
        "            path = os.path.join(top, name)\n"
        "            if not os.path.islink(path):\n                open(path, 'rb').read()\n"
        "    best = min(best, (time.process_time() - begin) * 1000)\nprint(best)"
    )
    root = Root(Bind("/", "/"), Tmpfs("/tmp"), ImageRoot(image, "/tmp/image", store=store))
    done = Sandbox(UserNamespace(), root).run([sys.executable, "-c", code], text=True, check=True)
    return float(done.stdout or 0)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--place", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="isolate-sharing-", dir=options.place))
    try:
        places = trees(options.source, place)
        whole = disk(places[0])
        print(f"{len(regular(places[0]))} files, {whole / 1e6:.1f} MB; added by each image, of that:")
        images = [Image.empty() + Layer.of(tree, epoch=None) for tree in places]
        rows: dict[str, list[int]] = {}
        times: dict[str, float] = {}
        for name, share in (("nothing shared", False), ("links", True), ("contents", "contents")):
            with Store(place / f"store-{share}", share=share) as store:
                rows[name] = added(store, images)
                times[name] = read(store, images[0])
        objects = place / "objects"
        objects.mkdir()
        sizes: list[int] = []
        for tree in places:
            described(tree, place / f"{tree.name}-described", objects)
            made = [place / f"{one.name}-described" for one in places[: len(sizes) + 1]]
            sizes.append(disk(objects, *made) - sum(sizes))
        rows["names of digests"] = sizes
        for row, values in rows.items():
            print(f"{row:20}" + "".join(f"{value / whole:8.3f}" for value in values))
        print("read all, ms of CPU:", ", ".join(f"{name} {value:.1f}" for name, value in times.items()))
    finally:
        shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
