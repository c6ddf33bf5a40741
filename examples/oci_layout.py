"""Run a program from an OCI image layout, as skopeo, buildah and umoci write it.

    python examples/oci_layout.py [LAYOUT [COMMAND…]]

LAYOUT is a directory or an archive: ``skopeo copy docker://busybox oci:busybox``. Without one a small layout is made
first, of a shell and what it needs. The image's own configuration holds: user, variables, directory, entry point.
Works as root and as an ordinary user.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import isolate
from isolate.images import Config, Image, Layer, Store


def make(layout: str) -> None:
    """A layout with one image: a shell, the libraries that it is linked with, and a script."""
    shell = os.path.realpath("/bin/sh")
    linked = subprocess.run(["ldd", shell], capture_output=True, text=True, check=False).stdout.split()
    programs = {path: Path(path).read_bytes() for path in (shell, *(word for word in linked if word.startswith("/")))}
    image = (
        Image.empty()
        + Layer.files(programs, mode=0o755)
        + Layer.files({"srv/hello": "echo hello from $NAME, in $(pwd)\n"})
    )
    image = image.with_(Config(entrypoint=(shell,), cmd=("/srv/hello",), env={"NAME": "a layout"}, workdir="/srv"))
    with tempfile.TemporaryDirectory() as place, Store(place) as store:
        store.save(store.add(image, "example.org/hello:1"), layout)


def main(args: list[str]) -> int:
    """Load it, run it."""
    with tempfile.TemporaryDirectory() as place:
        layout, command = (args[0], args[1:]) if args else (place + "/layout", [])
        if not args:
            make(layout)
            print("layout   ", *sorted(os.listdir(layout)))
        with Store(place + "/store") as store:
            (image, *_) = store.load(layout)
            box = isolate.presets.container(image, store=store)
            result = box.run(command, text=True, timeout=60)
            print(f"{result.verdict!s:9} {(result.stdout or result.stderr or '').strip()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
