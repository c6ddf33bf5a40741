"""Real clients through ``Domains``: pip from an index with TLS, curl and Node, by proxy and without one."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import ssl
import subprocess
import sys
import threading
import zipfile
from typing import TYPE_CHECKING

import pytest

from isolate import PidNamespace, Sandbox
from isolate.network import Domains

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.root]
NAME = "index.example.org"


@pytest.fixture
def index(machine: object, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A package index with TLS on the machine's loopback: its port, and the certificate to be trusted."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            key,
            "-out",
            certificate,
            "-days",
            "2",
            "-subj",
            f"/CN={NAME}",
            "-addext",
            f"subjectAltName=DNS:{NAME}",
        ],
        check=True,
        capture_output=True,
    )
    served = tmp_path / "served/simple/nothing"
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
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
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
    return Sandbox(PidNamespace(), part)


def test_pip(index: tuple[int, Path], tmp_path: Path) -> None:
    port, certificate = index
    command = [
        sys.executable,
        "-m",
        "pip",
        "--isolated",
        "--disable-pip-version-check",
        "--retries=0",
        "download",
        "--no-deps",
        "--index-url",
        f"https://{NAME}:{port}/simple",
        "--cert",
        str(certificate),
        "-d",
        str(tmp_path),
        "nothing",
    ]
    refused = box(port, names=("other.example.org",)).run(command, timeout=90, text=True, env=environment())
    assert not refused.ok
    assert not (tmp_path / "nothing-1.0-py3-none-any.whl").exists()
    done = box(port).run(command, timeout=90, text=True, env=environment())
    assert done.ok, done.stderr
    assert (tmp_path / "nothing-1.0-py3-none-any.whl").exists()


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": "/tmp", "PIP_CONFIG_FILE": "/dev/null", **Domains.environment()}


def test_curl(index: tuple[int, Path]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    port, certificate = index
    url = f"https://{NAME}:{port}/simple/nothing/"
    for options in ([], ["--noproxy", "*"], ["-x", "socks5h://127.0.0.1:3128"], ["--proxytunnel"]):
        done = box(port).run(["curl", "-sS", "--cacert", str(certificate), *options, url], timeout=60, text=True)
        assert "nothing-1.0" in str(done.stdout), (options, done.stderr)
        other = url.replace(NAME, "evil.example.org")
        refused = box(port).run(["curl", "-sS", "-k", *options, other], timeout=60, text=True)
        assert not refused.ok


def test_node(index: tuple[int, Path]) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    port, certificate = index
    code = f"fetch('https://{NAME}:{port}/simple/nothing/').then(r => r.text()).then(t => console.log(t))"
    variables = {"PATH": os.environ["PATH"], "NODE_EXTRA_CA_CERTS": str(certificate)}
    done = box(port).run(["node", "-e", code], timeout=60, text=True, env=variables)
    assert "nothing-1.0" in str(done.stdout), done.stderr
