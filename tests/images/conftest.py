"""What the tests of images share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from isolate.images import Store
from tests.images.archives import close_all
from tests.images.registries import docker_registry

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``host:port`` of Debian's docker-registry."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture
def store(tmp_path: object) -> Iterator[Store]:
    with Store(f"{tmp_path}/store") as made:
        yield made


@pytest.fixture
def other(tmp_path: object) -> Iterator[Store]:
    """A second machine's store, so to say."""
    with Store(f"{tmp_path}/other") as made:
        yield made


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """Descriptors that a test's helper opened are closed after it."""
    yield
    close_all()
