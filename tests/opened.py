"""An open container for a module of tests, with an empty directory inside, and what they say about it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

import isolate
from isolate import SetupError, presets

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["c", "refused", "sh", "work"]


@pytest.fixture(scope="module")
def c() -> Iterator[isolate.Container]:
    """The container."""
    with presets.untrusted().open() as container:
        yield container


@pytest.fixture
def work(c: isolate.Container) -> str:
    """An empty directory inside."""
    sh(c, "chmod -R u+rwx /tmp/work 2>/dev/null; rm -rf /tmp/work; mkdir /tmp/work")
    return "/tmp/work"


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    """The block raises a SetupError with this errno."""
    with pytest.raises(SetupError) as caught:
        yield
    assert caught.value.errno == number, caught.value


def sh(c: isolate.Container, text: str) -> bytes:
    """The output of a script inside, which ends well."""
    result = c.run(["sh", "-c", text])
    assert result.ok, result
    return result.stdout or b""
