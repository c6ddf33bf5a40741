"""A root to run programs in, in each way there is: as root, and in a user namespace (as root and as an ordinary
user).
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from isolate import Bind, Proc, Result, Root, Sandbox, Symlink, UserNamespace

#: The host's programs. Whatever is a link on the host (/bin, on a merged /usr) is one inside.
SYSTEM: tuple[Any, ...] = (
    Bind("/usr"),
    *(
        Symlink(os.readlink(path), path) if os.path.islink(path) else Bind(path)
        for path in ("/bin", "/lib", "/lib64")
        if os.path.exists(path)
    ),
)

Shell = Callable[..., "Result[str]"]


@pytest.fixture(params=["plain", "user namespace"])
def parts(request: pytest.FixtureRequest) -> tuple[Any, ...]:
    """What a sandbox with a root needs beside it."""
    if request.param == "plain":
        if os.geteuid() != 0:
            pytest.skip("needs root")
        return ()
    return (UserNamespace(),)


@pytest.fixture
def natural() -> tuple[Any, ...]:
    """The same, in one way only: for long tests, which an ordinary user runs in the other."""
    return (UserNamespace(),) if os.geteuid() else ()


@pytest.fixture
def in_user_namespace(parts: tuple[Any, ...]) -> bool:
    return bool(parts)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of the host that every user may use, and that nothing is left mounted on."""
    with tempfile.TemporaryDirectory(prefix="isolate-test-", dir="/var/tmp") as name:
        os.chmod(name, 0o777)
        yield Path(name)
        assert name not in mount_table()
        for directory, names, _ in os.walk(name):  # overlayfs leaves a directory that nobody may enter
            for each in names:
                path = os.path.join(directory, each)
                if not os.path.islink(path) and not stat.S_IMODE(os.lstat(path).st_mode) & 0o700:
                    os.chmod(path, 0o700)


@pytest.fixture
def shell(parts: tuple[Any, ...]) -> Shell:
    """Run a script of the shell in a root with the host's programs and these entries."""

    def run(script: str, *entries: Any, extra: tuple[Any, ...] = (), **root: Any) -> Result[str]:
        return Sandbox(Root(*SYSTEM, *entries, **root), *parts, *extra).run(
            ["/bin/sh", "-c", script], text=True, timeout=60
        )

    return run


def mount_table() -> str:
    """The caller's mounts, without the counters that other programs move."""
    return Path("/proc/self/mountinfo").read_text()


def mounts(shell: Shell, *entries: Any, **root: Any) -> dict[str, list[str]]:
    """For each mount inside, by its place: the root within its file system, and its options."""
    result = shell('while read line; do echo "$line"; done < /proc/self/mountinfo', Proc(), *entries, **root)
    assert result.ok, result.stderr
    return {f[4]: [f[3], *f[5].split(",")] for f in (line.split() for line in (result.stdout or "").splitlines())}
