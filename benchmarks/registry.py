"""What goes over the wire, and what it costs, between a store and Debian's docker-registry on loopback.

    python benchmarks/registry.py TREE [--json FILE]

TREE is a directory that becomes the large layer. Needs docker-registry; skopeo is compared with where it is installed.
Bytes are those of the TCP streams in both directions, headers and tokens included, counted by a forwarder in between.

    push        the image of the large layer into an empty registry
    again       the same once more
    more        a layer of 20 kB of noise on top: the bound is 1.2 times its compressed size, plus manifest and config
    mount       the same image into another repository
    pull        the image into an empty store: bytes, and CPU of this process and its children
    pull more   the layer of 20 kB on top, into the store that has the rest
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isolate.images import Image, Layer, Registry, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Forwarder:
    """Hands connections on to a port, and counts their bytes."""

    def __init__(self, port: int) -> None:
        self.count = 0
        self._port = port
        self._lock = threading.Lock()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            ours, _ = self._socket.accept()
            theirs = socket.create_connection(("127.0.0.1", self._port))
            for pair in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._copy, args=pair, daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 18):
                with self._lock:
                    self.count += len(data)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def registry(place: Path) -> Iterator[int]:
    """Debian's docker-registry on a port of loopback."""
    port = free_port()
    (place / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {place}/data}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
    )
    # A benchmark that is killed runs no `finally`: the registry dies with it all the same.
    command = ["setpriv", "--pdeathsig", "KILL", "docker-registry", "serve", str(place / "config.yml")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                http.client.HTTPConnection("127.0.0.1", port, timeout=5).request("GET", "/v2/")
                break
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def cpu() -> float:
    """Seconds of this process and of its children."""
    rows = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(row.ru_utime + row.ru_stime for row in rows)


def main() -> None:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    if shutil.which("docker-registry") is None:
        sys.exit("docker-registry is not installed")
    rows: list[dict[str, Any]] = []
    place = Path(tempfile.mkdtemp(prefix="isolate-registry-"))
    try:
        with registry(place) as port, Store(place / "store") as store, Store(place / "other") as other:
            forwarder = Forwarder(port)
            host = f"127.0.0.1:{forwarder.port}"
            client = Registry(host, credentials=())

            def measure(name: str, do: Callable[[], Any]) -> Any:
                forwarder.count, before, start = 0, cpu(), time.perf_counter()
                found = do()
                time.sleep(0.05)  # what the last answer still has to say
                wall = time.perf_counter() - start - 0.05
                spent = cpu() - before
                rows.append(
                    {"row": name, "wire": forwarder.count, "cpu_ms": round(1000 * spent), "wall_ms": round(1000 * wall)}
                )
                return found

            base = Image.empty() + Layer.of(options.tree)
            more = base + Layer.files({"more": os.urandom(20_000)})
            measure("push", lambda: store.push(base, client, "me/app:1"))
            measure("again", lambda: store.push(base, client, "me/app:1"))
            sent = measure("more", lambda: store.push(more, client, "me/app:2"))
            kept = store.open(sent.digest)
            bound = 1.2 * kept.layers[-1].size + len(kept.manifest) + len(kept.document)
            rows[-1]["bound"] = round(bound)
            measure("mount", lambda: store.push(more, client, "other/app:1"))
            measure("pull", lambda: other.pull(f"{host}/me/app:1", registry=client))
            measure("pull more", lambda: other.pull(f"{host}/me/app:2", registry=client))
            if shutil.which("skopeo"):
                where = [f"docker://{host}/me/app:2", f"dir:{place}/dir"]
                copy = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", *where]
                measure("skopeo copy to a directory", lambda: subprocess.run(copy, check=True))
            client.close()
            for name in (*store.tags(), *other.tags()):
                store.untag(name)
                other.untag(name)
            store.collect()
            other.collect()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(f"{'':28}{'wire bytes':>14}{'bound':>10}{'CPU ms':>9}{'wall ms':>9}")
    for row in rows:
        print(f"{row['row']:28}{row['wire']:>14,}{row.get('bound', ''):>10}{row['cpu_ms']:>9}{row['wall_ms']:>9}")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
