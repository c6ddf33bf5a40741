"""A registry that can misbehave: a test says what it does instead of the right thing."""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from isolate.images.digests import digest_of
from isolate.images.documents import OCI_MANIFEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

    from isolate.images import Image


class Request(BaseHTTPRequestHandler):
    """One request, with short ways to answer."""

    protocol_version = "HTTP/1.1"
    server: Adversary

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path, dict(self.headers)))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            instead = self.server.instead
            if instead is None or not instead(self):
                self.server.right(self)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_GET

    def answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def redirect(self, where: str) -> None:
        self.answer(307, Location=where)


class Adversary(ThreadingHTTPServer):
    """Serves what it was given, unless ``instead`` does something else (and says so by True)."""

    daemon_threads = True

    def __init__(self, *images: Image, instead: Callable[[Request], bool] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.instead = instead
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.stopped = threading.Event()
        for image in images:
            self.manifests["1"] = self.manifests[image.digest] = OCI_MANIFEST, image.manifest
            self.blobs[image.id] = image.document
            for layer in image.layers:
                self.blobs[layer.digest] = layer.open().read()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def right(self, request: Request) -> None:
        kind, wanted = request.path.rsplit("/", 2)[1:]
        if kind == "manifests" and wanted in self.manifests:
            media_type, data = self.manifests[wanted]
            request.answer(200, data, Content_Type=media_type, Docker_Content_Digest=digest_of(data))
        elif kind == "blobs" and wanted in self.blobs:
            data = self.blobs[wanted]
            said = request.headers.get("Range")
            if said is None:
                request.answer(200, data)
            else:
                start = int(said.removeprefix("bytes=").removesuffix("-"))
                request.answer(206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            request.answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not here"}]}')

    def count(self, kind: str) -> int:
        return sum(f"/{kind}/" in path for _, path, _ in self.asked)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()


@contextlib.contextmanager
def adversary(*images: Image, instead: Callable[[Request], bool] | None = None) -> Iterator[Adversary]:
    with Adversary(*images, instead=instead) as server:
        yield server
