"""Debian's docker-registry on loopback, for tests."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.ports import free_port

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


@contextlib.contextmanager
def docker_registry(directory: Path, users: str = "") -> Iterator[str]:
    """``host:port`` of a registry that keeps its things in the directory.

    :param users: the lines of a file of htpasswd, with bcrypt; none: everybody may do all.
    """
    program = need("docker-registry")
    config, log = directory / "config.yml", directory / "log"
    auth = ""
    if users:
        (directory / "htpasswd").write_text(users)
        auth = f"auth: {{htpasswd: {{realm: tests, path: {directory}/htpasswd}}}}\n"
    # A run of the tests that is killed runs no `finally`: the registry dies with it all the same.
    command = [need("setpriv"), "--pdeathsig", "KILL", program, "serve", str(config)]
    for _ in range(5):
        port = free_port()
        config.write_text(
            f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
            f"storage: {{filesystem: {{rootdirectory: {directory}/data}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: '127.0.0.1:{port}'}}\n{auth}"
        )
        with open(log, "wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
        try:
            if _serves(process, port, log):
                yield f"127.0.0.1:{port}"
                return
        finally:
            process.kill()
            process.wait()
    pytest.fail(f"every port was taken by others meanwhile: {log.read_text()}")


def _serves(process: subprocess.Popen[bytes], port: int, log: Path) -> bool:
    """Wait until it answers; False where somebody else took the port after it was found free."""
    end = time.monotonic() + 60
    while True:
        ended = process.poll() is not None
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            with contextlib.closing(connection):
                connection.request("GET", "/v2/")
                connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            if ended and "address already in use" in log.read_text():
                return False
            assert not ended, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        else:
            return not ended  # else it is another that answers
