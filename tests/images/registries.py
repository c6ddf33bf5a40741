"""Debian's docker-registry on loopback, for tests."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def need(program: str) -> str:
    """The path of a program that a test compares with; without it the test skips, or fails where all must run."""
    found = shutil.which(program)
    if found is None:
        reason = f"{program} is not installed"
        if os.environ.get("ISOLATE_REQUIRE_KERNEL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def docker_registry(directory: Path, users: str = "") -> Iterator[str]:
    """``host:port`` of a registry that keeps its things in the directory.

    :param users: the lines of a file of htpasswd, with bcrypt; none: everybody may do all.
    """
    program = need("docker-registry")
    port = free_port()
    config = directory / "config.yml"
    auth = ""
    if users:
        (directory / "htpasswd").write_text(users)
        auth = f"auth: {{htpasswd: {{realm: tests, path: {directory}/htpasswd}}}}\n"
    config.write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory}/data}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{auth}"
    )
    # A run of the tests that is killed runs no `finally`: the registry dies with it all the same.
    command = [need("setpriv"), "--pdeathsig", "KILL", program, "serve", str(config)]
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 20
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/v2/")
                connection.getresponse().read()
                connection.close()
                break
            except OSError:
                assert process.poll() is None, (directory / "log").read_text()
                assert time.monotonic() < end
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
