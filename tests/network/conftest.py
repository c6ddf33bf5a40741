"""Every test has a host of its own: a network namespace that stands for the machine's, with nothing but loopback."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from isolate import NetNamespace
from tests.network.hosts import Outside

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def machine() -> Iterator[NetNamespace | None]:
    """The network of the thread that the test runs on."""
    if os.geteuid() != 0:
        yield None
        return
    namespace = NetNamespace.create()
    with namespace:
        yield namespace
    namespace.close()


@pytest.fixture(params=["pasta", pytest.param("slirp4netns", marks=pytest.mark.slow)])
def helper(request: pytest.FixtureRequest) -> str:
    """A program that is a way out without privileges."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.fixture
def outside(machine: NetNamespace) -> Iterator[Outside]:
    """A host beside the machine's."""
    with Outside(machine) as found:
        yield found
