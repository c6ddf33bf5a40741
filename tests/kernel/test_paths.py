"""``~`` of a user without a home: an error, never a file of that name in the directory the caller happens to be in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from isolate import SetupError
from isolate.images import Store
from isolate.images.errors import StoreError
from isolate.images.registry.credentials import files
from isolate.kernel.paths import expanded
from isolate.sandbox.containers import records

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a uid that no system knows, without variables."""
    for name in (
        "HOME",
        "XDG_RUNTIME_DIR",
        "XDG_CONFIG_HOME",
        "DOCKER_CONFIG",
        "REGISTRY_AUTH_FILE",
        "ISOLATE_CONTAINERS",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("getuid", "geteuid"):
        monkeypatch.setattr(os, name, lambda: 4242424)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/a") == f"{tmp_path}/a"
    assert [expanded(path) for path in ("/a", "a", "./~/a", "a~")] == ["/a", "a", "./~/a", "a~"]


def test_no_home(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="uid 4242424 has no home directory"):
        expanded("~/a")
    with pytest.raises(FileNotFoundError, match="no user 'no-such-user'"):
        expanded("~no-such-user/a")
    with pytest.raises(StoreError, match="HOME is not set") as of_store:
        Store()
    assert of_store.value.remedy
    assert "ISOLATE_STORE" in of_store.value.remedy
    with pytest.raises(SetupError, match="HOME is not set") as of_container:
        records.base_directory()
    assert of_container.value.remedy
    assert "ISOLATE_CONTAINERS" in of_container.value.remedy
    assert files() == ["/run/user/4242424/containers/auth.json", "/run/containers/4242424/auth.json"]
    assert os.listdir(homeless) == []
    monkeypatch.setenv("ISOLATE_CONTAINERS", str(homeless / "kept"))  # the remedy
    assert records.base_directory() == f"{homeless}/kept"
    monkeypatch.setenv("HOME", "here")
    with pytest.raises(FileNotFoundError, match="an absolute path, not 'here'"):
        expanded("~/a")
