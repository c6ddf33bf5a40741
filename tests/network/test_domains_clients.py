"""Real clients through ``Domains``, by the proxy and without one: pip, curl, Node, Go; as root and as an ordinary user.

``tests/network/golang`` fetches Go from Debian, which is too large for every day.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from isolate import PidNamespace, Sandbox, UserNamespace
from isolate.network import Domains
from tests.ordinary import NOBODY, as_ordinary_user

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.root]
NAME = "index.example.org"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that an ordinary user can read, and write to."""
    with tempfile.TemporaryDirectory(prefix="isolate-clients-") as directory:
        os.chmod(directory, 0o755)
        os.chown(directory, NOBODY, NOBODY)
        yield Path(directory)


@pytest.fixture
def index(machine: object, place: Path) -> Iterator[tuple[int, Path]]:
    """A package index with TLS on the machine's loopback: its port, and the certificate to be trusted."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = place / "key", place / "certificate"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={NAME}"]
    request += ["-addext", f"subjectAltName=DNS:{NAME}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(request, check=True, capture_output=True)
    served = place / "served/simple/nothing"
    served.mkdir(parents=True)
    wheel = "nothing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(served / wheel, "w") as archive:
        archive.writestr("nothing.py", "")
        archive.writestr("nothing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: nothing\nVersion: 1.0\n")
        archive.writestr(
            "nothing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("nothing-1.0.dist-info/RECORD", "")
    (served / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(place / "served"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], certificate
    server.shutdown()
    server.server_close()


def box(port: int, *, names: tuple[str, ...] = (NAME,)) -> Sandbox:
    part = Domains(*names, port=port, resolve=lambda name, number: ["127.0.0.1"], private=["127.0.0.0/8"])
    return Sandbox(PidNamespace(), part, *([] if os.geteuid() == 0 else [UserNamespace()]))


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": "/tmp", "PIP_CONFIG_FILE": "/dev/null", **Domains.environment()}


# ---- one function a client: run by whoever calls it --------------------------------------------------------------


def pip(port: int, certificate: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        wheel = Path(directory, "nothing-1.0-py3-none-any.whl")
        command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "--retries=0", "download"]
        command += ["--no-deps", "--no-cache-dir", "--index-url", f"https://{NAME}:{port}/simple"]
        command += ["--cert", certificate, "-d", directory, "nothing"]
        refused = box(port, names=("other.example.org",)).run(command, timeout=90, text=True, env=environment())
        assert not refused.ok
        assert not wheel.exists()
        done = box(port).run(command, timeout=90, text=True, env=environment())
        assert done.ok, done.stderr
        assert wheel.exists()


def curl(port: int, certificate: str) -> None:
    url = f"https://{NAME}:{port}/simple/nothing/"
    for options in ([], ["--noproxy", "*"], ["-x", "socks5h://127.0.0.1:3128"], ["--proxytunnel"]):
        done = box(port).run(["curl", "-sS", "--cacert", certificate, *options, url], timeout=60, text=True)
        assert "nothing-1.0" in str(done.stdout), (options, done.stderr)
        other = url.replace(NAME, "evil.example.org")
        refused = box(port).run(["curl", "-sS", "-k", *options, other], timeout=60, text=True)
        assert not refused.ok


def node(port: int, certificate: str) -> None:
    """Its fetch knows no proxy: it resolves the name, and is led to the proxy by the address that it gets."""
    variables = {"PATH": os.environ["PATH"], "NODE_EXTRA_CA_CERTS": certificate}
    for name, good in ((NAME, True), ("evil.example.org", False)):
        code = f"fetch('https://{name}:{port}/simple/nothing/').then(r => r.text()).then(t => console.log(t))"
        done = box(port).run(["node", "-e", code], timeout=60, text=True, env=variables)
        assert done.ok is good, done.stderr
        assert ("nothing-1.0" in str(done.stdout)) is good


def go(port: int, certificate: str, program: str) -> None:
    """By the variables of the environment, and by its own resolver without them."""
    plain = {"PATH": os.environ["PATH"], "SSL_CERT_FILE": certificate}
    for variables in (plain, plain | Domains.environment()):
        for name, good in ((NAME, True), ("evil.example.org", False)):
            url = f"https://{name}:{port}/simple/nothing/"
            done = box(port).run([program, url], timeout=60, text=True, env=variables)
            assert done.ok is good, (variables, done.stderr)
            assert ("nothing-1.0" in str(done.stdout)) is good


def by(user: str, function: str, *args: object) -> None:
    """Run one of them as root or as an ordinary user."""
    if user == "root":
        globals()[function](*args)
        return
    words = json.dumps(args)
    as_ordinary_user(
        f"import sys, json; sys.path.insert(0, {str(ROOT)!r})\n"
        f"from tests.network import test_domains_clients as clients; clients.{function}(*json.loads({words!r}))"
    )


users = pytest.mark.parametrize("user", ["root", "ordinary"])


@users
@pytest.mark.parametrize("client", ["pip", "curl", "node"])
def test_client(index: tuple[int, Path], client: str, user: str) -> None:
    if client != "pip" and shutil.which(client) is None:
        pytest.skip(f"{client} is not installed")
    port, certificate = index
    by(user, client, port, str(certificate))


CLIENT = """
package main

import ("fmt"; "io"; "net/http"; "os")

func main() {
	answer, err := http.Get(os.Args[1])
	if err != nil { fmt.Fprintln(os.Stderr, err); os.Exit(1) }
	io.Copy(os.Stdout, answer.Body)
}
"""


def golang() -> str | None:
    """The Go tool: installed, or fetched by ``tests/network/golang``."""
    fetched = sorted((ROOT / ".cache/go/usr/lib").glob("go-*/bin/go"))
    return shutil.which("go") or (str(fetched[-1]) if fetched else None)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A client of Go's net/http, built without C, so with Go's own resolver."""
    tool = golang()
    if tool is None:
        pytest.skip("Go is not installed, and tests/network/golang has not fetched it")
    with tempfile.TemporaryDirectory(prefix="isolate-go-") as directory:
        os.chmod(directory, 0o755)
        source = Path(directory, "client.go")
        source.write_text(CLIENT)
        caches = {name: str(tmp_path_factory.mktemp(name)) for name in ("GOCACHE", "GOPATH")}
        variables = {**os.environ, **caches, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOROOT": ""}
        if not shutil.which("go"):
            variables["GOROOT"] = str(Path(tool).parents[1])
        subprocess.run(
            [tool, "build", "-o", f"{directory}/client", str(source)], env=variables, check=True, timeout=300
        )
        yield f"{directory}/client"


@users
@pytest.mark.timeout(400)
def test_go(index: tuple[int, Path], program: str, user: str) -> None:
    port, certificate = index
    by(user, "go", port, str(certificate), program)
