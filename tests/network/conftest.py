"""Every test has a host of its own: a network namespace that stands for the machine's, with nothing but loopback."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from isolate import NetNamespace

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
