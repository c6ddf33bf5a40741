"""What the tests of cgroups share. Those marked ``vm`` also run in a machine with unified v2; see ``tests/vm``."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from isolate.cgroups import Limits, naming
from isolate.cgroups.hierarchy import discover
from isolate.errors import UnsupportedError
from isolate.sandbox.box import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isolate.sandbox.result import Result

HOST = discover()
UNIFIED = HOST.mode == "unified"
PYTHON = [sys.executable, "-I", "-S", "-c"]
MIB = 1 << 20


def python(code: str, *parts: Any, **options: Any) -> Result[bytes]:
    """Run a Python program in a sandbox of these parts."""
    options.setdefault("timeout", 60)
    return Sandbox(*parts).run([*PYTHON, code], **options)


def our_groups() -> set[str]:
    """Directories of groups of this process, in every hierarchy."""
    return {g for g in every_group() if (name := naming.parse(os.path.basename(g))) and name.pid == os.getpid()}


def every_group() -> set[str]:
    """Directories of groups with a name of the library's, also of others that use it meanwhile."""
    found: set[str] = set()
    for hierarchy in HOST.hierarchies:
        for directory, names, _ in os.walk(hierarchy.mount):
            found |= {os.path.join(directory, n) for n in names if n.startswith("isolate-")}
    return found


@pytest.fixture
def groups() -> None:
    """This host lets us make groups."""
    try:
        Sandbox(Limits(memory="1G", pids=100))
    except UnsupportedError as error:
        if os.environ.get("ISOLATE_REQUIRE_KERNEL"):
            raise
        pytest.skip(f"no cgroups here: {error}")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No test leaves a group behind."""
    before = every_group()
    yield
    # Whoever else uses the library on this machine makes groups, too: those of a program that lives are its own.
    left = every_group() - before
    deadline = time.monotonic() + 20
    while any(abandoned_or_ours(group) for group in left) and time.monotonic() < deadline:
        time.sleep(0.01)
        left &= every_group()
    assert not [group for group in left if abandoned_or_ours(group)]


def abandoned_or_ours(group: str) -> bool:
    """Whether a group is this process's, or its owner has ended."""
    name = naming.parse(os.path.basename(group))
    return name is not None and (name.pid == os.getpid() or naming.abandoned(name))
