"""Build in a root file system and keep the difference: as a list, and as a layer of an image.

    python examples/build_root.py

Each step runs in the root that the steps before it have made. What it changed is told, and becomes a layer with the
same digest whenever and wherever it is built. Works as root and as an ordinary user.
"""

from __future__ import annotations

import os
import sys
import tempfile

import isolate
from isolate.images import Image, ImageRoot, Layer, Store, Upper

STEPS = (
    "mkdir -p /srv/app && echo 'print(6 * 7)' > /srv/app/main.py",
    "sed -i s/6/7/ /srv/app/main.py && rm /etc/unwanted && python3 /srv/app/main.py > /srv/result",
)


def system() -> list[isolate.Bind]:
    """The tools of the steps: the host's, read-only, and in no layer."""
    paths = [path for path in ("/usr", "/bin", "/lib", "/lib64") if os.path.isdir(path)]
    return [isolate.Bind(os.path.realpath(path), path) for path in paths]


def build(store: Store, image: Image, command: str) -> Image:
    """The image with one layer more."""
    with Upper(store) as upper:
        root = isolate.Root(ImageRoot(image, store=store, writable=upper), *system(), isolate.Proc(), isolate.Dev())
        user = isolate.UserNamespace(map=isolate.IdMap.unprivileged() if os.geteuid() == 0 else None)
        box = isolate.Sandbox(user, isolate.PidNamespace(), isolate.NetNamespace(), root)
        box.run(["sh", "-ec", command], env={"PATH": "/usr/bin:/bin"}, timeout=60).check()
        for change in upper.changes():
            if change.kind != "metadata":
                print(" ", change)
        return store.add(image + upper.commit())


def main() -> int:
    """Build twice."""
    with tempfile.TemporaryDirectory() as place:
        store = Store(place + "/store")
        base = store.add(Image.empty() + Layer.files({"etc/name": "base\n", "etc/unwanted": "x\n"}))
        image = base
        for command in STEPS:
            print(command.partition(" && ")[0])
            image = build(store, image, command)
        again = build(store, build(store, base, STEPS[0]), STEPS[1])
        print("layers   ", len(image.layers), "the same digest again:", again.id == image.id)
        # Without a place for the changes they are in memory, and the result tells them.
        root = isolate.Root(ImageRoot(image, store=store), *system(), isolate.Proc(), isolate.Dev())
        result = isolate.Sandbox(isolate.UserNamespace(), isolate.PidNamespace(), root).run(["cp", "/srv/result", "/x"])
        print("thrown away:", *(change for change in result.changes or () if change.kind == "added"))
        store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
