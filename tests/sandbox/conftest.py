"""What a test of the verbs may not leave behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.leaks import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def warm() -> None:
    """What is made once for the whole program is made now: the launcher's memfd, modules imported when first used."""
    import isolate.diagnosis

    isolate.Sandbox().run(["true"])
    with isolate.Sandbox().spawn(["true"]):
        pass


@pytest.fixture
def clean() -> Iterator[Snapshot]:
    """Fails the test if processes, descriptors, threads, mounts or cgroups are left a second after it."""
    before = Snapshot.take()
    yield before
    before.compare(1.0)
