"""What a build costs, beside docker, podman and buildah, in one run: rows take turns.

    python benchmarks/builds.py [--rounds 9] [--files 200] [--place DIRECTORY] [--json FILE]

One Dockerfile for all, on a base of a static busybox: COPY of a tree, three RUNs, the configuration. Needs root and
busybox-static; a tool that is not installed is left out. PLACE (default: the directory of temporary files) has to be a
file system that overlayfs can write to. Docker has a daemon of its own with overlay2, which is ready before the rounds.

    cold      every step is done
    cached    nothing has changed
    first     the first program from an image: `docker run`, and a sandbox in a process that runs already
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from isolate import Dev, MountNamespace, PidNamespace, Proc, Root, Sandbox, UserNamespace  # noqa: E402
from isolate.build import Context, Dockerfile  # noqa: E402
from isolate.images import Config, Image, ImageRoot, Layer, Store  # noqa: E402
from tests.hosts import Missing, docker_daemon  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

BASE = "localhost/base:1"
TEXT = f"""FROM {BASE}
WORKDIR /srv
COPY . .
RUN busybox find . -type f | busybox sort > /list
RUN busybox mkdir -p /var/lib/app && busybox cp -r /srv /var/lib/app/
RUN busybox rm -r /var/lib/app/srv/d0
ENV A=b
CMD ["/bin/busybox", "true"]
"""
LIMITS = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"]


def peer(*words: str) -> None:
    """A command of a peer's; what it says where it fails."""
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{words[0]}: {done.stderr.decode()[-300:]}")


def base() -> Image:
    """A busybox."""
    program = shutil.which("busybox")
    if program is None:
        sys.exit("busybox (Debian's busybox-static) is not installed")
    files = Layer.files({"bin/busybox": Path(program).read_bytes(), "bin/sh": Path(program).read_bytes()}, mode=0o755)
    return (Image.empty() + files).with_(Config(env={"PATH": "/bin"}))


def rows(place: Path, store: Store, context: Path) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    recipe = Dockerfile.parse(TEXT)
    image = recipe.build(store, Context(context))
    box = Sandbox(UserNamespace(), PidNamespace(), Root(ImageRoot(image, store=store), Proc(), Dev()))
    found: dict[str, Callable[[], object]] = {
        "cold: isolate": lambda: recipe.build(store, Context(context), cache=False),
        "cached: isolate": lambda: recipe.build(store, Context(context)),
        "first: isolate": lambda: box.run(["/bin/busybox", "true"], check=True),
    }
    store.save(BASE, place / "base", format="docker-archive")
    storage = [f"--root={place}/containers", f"--runroot={place}/run", "--storage-driver=overlay"]
    podman = ["podman", *storage, "--cgroup-manager=cgroupfs", "--runtime=runc"]
    buildah = ["buildah", *storage]
    options = ["--network=none", "-q", "-t", "made:1", str(context)]
    if shutil.which("podman"):
        peer(*podman, "load", "-q", "-i", str(place / "base"))
        found["cold: podman"] = lambda: peer(*podman, "build", "--no-cache", *LIMITS, *options)
        found["cached: podman"] = lambda: peer(*podman, "build", "--layers", *LIMITS, *options)
        run = [*podman, "run", "--rm", "--network=none", *LIMITS, "localhost/made:1"]
        found["first: podman"] = lambda: peer(*run)
        if shutil.which("buildah"):
            wanted = ["bud", "--runtime=runc", "--layers", *LIMITS]
            found["cold: buildah"] = lambda: peer(*buildah, *wanted, "--no-cache", *options)
            found["cached: buildah"] = lambda: peer(*buildah, *wanted, *options)
    return found


def of_docker(docker: list[str], place: Path, context: Path) -> dict[str, Callable[[], object]]:
    """The same by a daemon."""
    peer(*docker, "load", "-q", "-i", str(place / "base"))
    build = [*docker, "build", "-q", "--network=none", "-t", "made:1"]
    return {
        "cold: docker": lambda: peer(*build, "--no-cache", str(context)),
        "cached: docker": lambda: peer(*build, str(context)),
        "first: docker": lambda: peer(*docker, "run", "--rm", "--network=none", "made:1"),
    }


def measure(found: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Milliseconds of each row, all rows once in each round."""
    taken: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for turn in range(rounds + 1):
        for name, do in found.items():
            for _ in range(20 if name == "first: isolate" else 1):
                if name in failed:
                    continue
                begin = time.perf_counter()
                try:
                    do()
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    failed[name] = str(error)
                else:
                    if turn:  # the first one warms up
                        taken.setdefault(name, []).append((time.perf_counter() - begin) * 1000)
    return taken, failed


def quantile(values: list[float], part: float) -> float:
    """The value that so much of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid():
        parser.error("the peers' storage is root's")
    MountNamespace().enter()  # what the peers mount stays here
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="isolate-b-", dir=options.place)))
        stack.callback(subprocess.run, ["umount", "-q", "--lazy", f"{place}/containers/overlay"], check=False)
        context = place / "context"
        for number in range(options.files):
            path = context / f"d{number % 10}/f{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{number}\n".encode() * 500)
        (context / "Dockerfile").write_text(TEXT)
        store = stack.enter_context(Store(place / "store"))
        store.add(base(), BASE)
        found = rows(place, store, context)
        try:
            if not (shutil.which("dockerd") and shutil.which("docker")):
                raise Missing("dockerd is not installed")
            (place / "docker").mkdir()
            found |= of_docker(stack.enter_context(docker_daemon(place / "docker", "overlay2")), place, context)
        except (Missing, RuntimeError) as error:
            print(f"without docker: {error}")
        taken, failed = measure(found, options.rounds)
    for name, values in sorted(taken.items()):
        print(f"{name:20} p50 {quantile(values, 0.5):9.1f}   p99 {quantile(values, 0.99):9.1f} ms   of {len(values)}")
    for name, why in failed.items():
        print(f"{name:20} left out: {why.strip()}")
    for kind in ("cold", "cached", "first"):
        own = taken.get(f"{kind}: isolate")
        for name, values in sorted(taken.items()):
            if own and name.startswith(kind) and not name.endswith("isolate"):
                print(f"{kind} / {name.partition(': ')[2]:12} {quantile(own, 0.5) / quantile(values, 0.5):9.3f} (p50)")
    if options.json:
        options.json.write_text(json.dumps(taken, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
