"""What images cost, beside the tools that do the same, in one run: rows take turns, the minimum counts.

    python benchmarks/images.py ROOT [--rounds 5] [--place DIRECTORY] [--json FILE]

ROOT is the root file system of a distribution, such as debootstrap makes (``--variant=minbase``). Needs root. PLACE is
where everything is unpacked (default: a directory below /dev/shm); tools that are not installed are left out.

    unpack      an image of one layer (gzip), verified and unpacked: CPU of all processes together
    floor       what of that cannot be saved: inflate and both hashes in this process, and what GNU tar takes to unpack
                the plain archive
    load        the same image from docker's archive (plain) into an empty store: CPU, dockerd's with it
    first       the first program from an image, in a process that runs already: wall
    commit      the difference of 1,000 new files and its archive: CPU
    share       bytes of disk for 50 sandboxes of one image at once; and for a second image of which one file in ten
                differs, in a store that shares file by file: what it adds to the unpacked layers
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isolate import Dev, MountNamespace, Overlay, PidNamespace, Proc, Root, Sandbox, UserNamespace
from isolate.images import Image, ImageRoot, Layer, Store, Upper, extract
from isolate.images.pack.start import remove

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.hosts import Missing, docker_daemon

if TYPE_CHECKING:
    from collections.abc import Callable

_inside = 0.0  # CPU seconds of sandboxes, which no rusage of ours has


def _counted() -> None:
    """Let every sandbox of this process report its CPU."""
    original = Sandbox.run

    def run(self: Sandbox, *args: Any, **options: Any) -> Any:
        global _inside
        result = original(self, *args, **options)
        _inside += result.cpu_time
        return result

    Sandbox.run = run  # type: ignore[method-assign, assignment]


def cpu() -> float:
    """Seconds of this process, of its children, and of its sandboxes."""
    rows = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return _inside + sum(row.ru_utime + row.ru_stime for row in rows)


def shell(*command: str, **options: Any) -> None:
    """A peer."""
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr.decode()[-300:]}")


def layout(place: Path, archive: bytes, packed: bytes) -> None:
    """An OCI layout of one image with one layer, for the peers."""
    blobs = place / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    layer = put(packed, "application/vnd.oci.image.layer.v1.tar+gzip")
    diffid = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    rootfs = {"type": "layers", "diff_ids": [diffid]}
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    config = put(
        json.dumps({"architecture": machine, "os": "linux", "config": {}, "rootfs": rootfs}).encode(),
        "application/vnd.oci.image.config.v1+json",
    )
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = put(
        json.dumps({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]}).encode(), kind
    )
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "test"}
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


class Bench:
    """The rows, and the best of each."""

    def __init__(self, root: Path, place: Path, rounds: int) -> None:
        self.root, self.place, self.rounds = root, place, rounds
        self.best: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.packed = place / "layer.tar.gz"
        layer = Layer.of(root, epoch=None)
        with layer.open() as data:
            self.archive = data.read()
        packed = gzip.compress(self.archive, 6)
        self.packed.write_bytes(packed)
        layout(place / "layout", self.archive, packed)
        (place / "layer.tar").write_bytes(self.archive)
        self.store = Store(place / "store")
        self.image = self.store.add(Image.empty() + layer, "bench:test")
        self.store.save("bench:test", place / "docker.tar", format="docker-archive")

    def note(self, name: str, do: Callable[[], object], clock: Callable[[], float]) -> None:
        """One turn of a row."""
        if name in self.failed:
            return
        begin = clock()
        try:
            do()
        except (RuntimeError, OSError) as error:
            self.failed[name] = str(error)
            return
        self.best[name] = min(self.best.get(name, 1e9), (clock() - begin) * 1000)

    def fresh(self) -> Path:
        """An empty directory; the last one is removed."""
        # containers-storage mounts its own directory on itself.
        subprocess.run(["umount", "-q", "--lazy", f"{self.place}/unpacked/root/overlay"], check=False, stderr=-3)
        top = os.open(self.place, os.O_RDONLY)
        remove(top, "unpacked")
        os.close(top)
        (self.place / "unpacked").mkdir()
        return self.place / "unpacked"

    # ---- unpack ------------------------------------------------------------------------------------------------

    def ours(self) -> None:
        """Unpacked by a confined child, both digests."""
        fd = os.open(self.place / "unpacked", os.O_RDONLY)
        with self.packed.open("rb") as data:
            extract(data, fd, devices=True)
        os.close(fd)

    def floor(self) -> None:
        """Inflate and hashes, nothing else."""
        from isolate.images.unpack.read import Pass

        with self.packed.open("rb") as data:
            for _ in Pass(data.read, None, (1 << 40, 1, 1, 0)).source.rest():
                pass

    def peers(self) -> dict[str, list[str]]:
        """Commands that unpack the same."""
        target, oci = str(self.place / "unpacked"), f"{self.place}/layout:test"
        storage = f"[overlay@{target}/root+{target}/run]bench:test"
        return {
            "unpack: GNU tar": ["tar", "-C", target, "-xpzf", str(self.packed)],
            "unpack: GNU tar, plain": ["tar", "-C", target, "-xpf", str(self.place / "layer.tar")],
            "unpack: umoci": ["umoci", "unpack", "--image", oci, f"{target}/bundle"],
            "unpack: skopeo, containers-storage": ["skopeo", "copy", f"oci:{oci}", f"containers-storage:{storage}"],
        }

    # ---- load --------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Into a store that has nothing."""
        with Store(self.place / "unpacked/store") as store:
            store.load(self.place / "docker.tar")

    def docker(self, stack: contextlib.ExitStack) -> list[str]:
        """The client of a daemon of our own; none where there is no Docker."""
        try:
            if not (shutil.which("dockerd") and shutil.which("docker")):
                raise Missing("dockerd is not installed")
            (self.place / "docker").mkdir()
            return stack.enter_context(docker_daemon(self.place / "docker", "overlay2"))
        except Missing as error:
            self.failed["load: docker"] = str(error)
            return []

    def docker_cpu(self) -> float:
        """Seconds of this process and its children, and of the daemon and its own."""
        pid = (self.place / "docker/docker.pid").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return cpu() + sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    # ---- first program, commit ---------------------------------------------------------------------------------

    def box(self, entry: Any) -> Sandbox:
        """The same around either."""
        return Sandbox(UserNamespace(), PidNamespace(), MountNamespace(), Root(entry, Proc(), Dev()))

    def commit(self, upper: Upper) -> None:
        """Difference and archive."""
        upper.commit()

    def run(self) -> None:
        """All rounds."""
        tree = next(Path(self.store.path, "layers").iterdir()) / "tree"
        boxes = {
            "first: ImageRoot": self.box(ImageRoot(self.image, store=self.store)),
            "first: Overlay": self.box(Overlay("/", lower=[tree])),
        }
        podman = ["podman", f"--root={self.place}/podman", f"--runroot={self.place}/podman-run"]
        podman += ["--cgroup-manager=cgroupfs", "--runtime=runc", "--storage-driver=overlay"]
        self.note("(load)", lambda: shell(*podman, "load", "-i", str(self.place / "layout")), time.perf_counter)
        name = self._podman_image(podman)
        limits = [
            "--network=none",
            "--security-opt=seccomp=unconfined",
            "--ulimit=nofile=1024:1024",
            "--ulimit=nproc=4096:4096",
        ]
        with contextlib.ExitStack() as stack, Upper(self.store) as upper:
            docker = self.docker(stack)
            script = "mkdir /new && cd /new && for i in $(seq 1000); do echo $i > f$i; done"
            self.box(ImageRoot(self.image, store=self.store, writable=upper)).run(
                ["/bin/sh", "-ec", script], check=True
            )
            if name:
                shell(*podman, "run", "--name=changed", *limits, name, "/bin/sh", "-ec", script)
            for _ in range(self.rounds):
                for row, command in self.peers().items():
                    self.fresh()
                    if shutil.which(command[0]):
                        self.note(row, lambda command=command: shell(*command), cpu)  # type: ignore[misc]
                self.fresh()
                self.note("unpack: isolate", self.ours, cpu)
                self.note("unpack: inflate and hashes", self.floor, cpu)
                self.fresh()
                self.note("load: isolate", self.load, cpu)
                if docker:
                    command = [*docker, "load", "-q", "-i", str(self.place / "docker.tar")]
                    self.note("load: docker", lambda command=command: shell(*command), self.docker_cpu)  # type: ignore[misc]
                    subprocess.run([*docker, "rmi", "-f", "bench:test"], check=False, stdout=-3, stderr=-3)
                for _ in range(60):
                    for row, box in boxes.items():
                        self.note(row, lambda box=box: box.run(["/bin/true"], check=True), time.perf_counter)  # type: ignore[misc]
                self.note("commit: isolate", lambda: self.commit(upper), cpu)
                if name:
                    run = [*podman, "run", "--rm", *limits, name, "/bin/true"]
                    self.note("first: podman", lambda run=run: shell(*run), time.perf_counter)  # type: ignore[misc]
                    self.note("commit: podman", lambda: shell(*podman, "commit", "-q", "changed"), cpu)
        self.fresh()
        self.share()

    @staticmethod
    def _podman_image(podman: list[str]) -> str:
        done = subprocess.run([*podman, "images", "-q"], capture_output=True, text=True, check=False)
        return done.stdout.split()[0] if done.returncode == 0 and done.stdout.split() else ""

    def share(self) -> None:
        """Bytes on disk that fifty sandboxes take."""

        def used() -> int:
            row = os.statvfs(self.place)
            return (row.f_blocks - row.f_bfree) * row.f_frsize

        box = self.box(ImageRoot(self.image, store=self.store))
        before = used()
        processes = [box.spawn(["/bin/sleep", "60"]) for _ in range(50)]
        self.best["share: bytes for 50 sandboxes"] = used() - before
        for process in processes:
            process.kill()
            process.wait()
        second = self.place / "second"
        shell("cp", "-a", str(self.root), str(second))
        files = sorted(path for path in second.rglob("*") if path.is_file() and not path.is_symlink())
        for path in files[::10]:
            path.write_bytes(path.read_bytes()[::-1] + b"!")
        with Store(self.place / "shared", share=True) as store:
            store.add(Image.empty() + Layer.of(self.root, epoch=None))
            before = self.unpacked(store)
            store.add(Image.empty() + Layer.of(second, epoch=None))
            self.best["share: a second image, of the first"] = self.unpacked(store) / before - 1

    @staticmethod
    def unpacked(store: Store) -> int:
        """Bytes on disk of unpacked layers: each file once, however many names it has."""
        seen: dict[int, int] = {}
        for top, directories, files in os.walk(Path(store.path, "layers")):
            for name in [*directories, *files]:
                row = os.lstat(os.path.join(top, name))
                seen[row.st_ino] = row.st_blocks * 512
        return sum(seen.values())


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--place", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid():
        parser.error("the owners of files are for root to give")
    MountNamespace().enter()  # what the peers mount stays here
    _counted()
    place = Path(tempfile.mkdtemp(prefix="isolate-images-", dir=options.place))
    try:
        bench = Bench(options.root, place, options.rounds)
        bench.run()
        bench.store.close()
    finally:
        subprocess.run(["umount", "-q", "--lazy", f"{place}/podman/overlay"], check=False)
        top = os.open(options.place, os.O_RDONLY)
        remove(top, place.name)
        os.close(top)
    for name in sorted(bench.best):
        if not name.startswith("("):
            unit = "" if name.startswith("share") else " ms"
            print(f"{name:45} {bench.best[name]:10.3f}{unit}")
    for name, why in bench.failed.items():
        print(f"{name:45} left out: {why.strip()}")
    best = bench.best
    floor = best["unpack: inflate and hashes"] + best["unpack: GNU tar, plain"]
    best["unpack: floor"] = floor
    for name, one, other in (
        ("unpack / umoci", "unpack: isolate", "unpack: umoci"),
        ("unpack / containers-storage", "unpack: isolate", "unpack: skopeo, containers-storage"),
        ("unpack / floor", "unpack: isolate", "unpack: floor"),
        ("load / docker", "load: isolate", "load: docker"),
        ("first / Overlay", "first: ImageRoot", "first: Overlay"),
        ("first / podman", "first: ImageRoot", "first: podman"),
        ("commit / podman", "commit: isolate", "commit: podman"),
    ):
        if one in best and other in best:
            print(f"{name:45} {best[one] / best[other]:10.3f}")
    if options.json:
        options.json.write_text(json.dumps(best, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
