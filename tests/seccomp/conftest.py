from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.seccomp.tools import Libseccomp, build

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def libseccomp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libseccomp]:
    """libseccomp, told policies and asked for programs."""
    oracle = Libseccomp(build("oracle", tmp_path_factory.mktemp("oracle"), "-lseccomp"))
    yield oracle
    oracle.close()


@pytest.fixture(scope="session")
def probe_helper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C program that makes calls under a filter."""
    return build("probe", tmp_path_factory.mktemp("probe"))
