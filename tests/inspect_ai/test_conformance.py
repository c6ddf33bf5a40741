"""Inspect AI's own conformance suite for sandbox providers, all of its checks; run by ``tests/inspect_ai/run``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("inspect_ai", reason="a lane of its own: tests/inspect_ai/run")

from inspect_ai.util._sandbox.registry import registry_find_sandboxenv
from inspect_ai.util._sandbox.self_check import *  # noqa: F403

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio
#: What the sandbox of a single id cannot do: become another user.
_OTHER_USERS = "test_exec_as_user"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=[None, "/"], ids=["untrusted", "root"])
async def sandbox_env(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """The provider that the entry point registers: with its default, and with a root file system of its own."""
    if request.param is not None and os.geteuid() != 0:
        pytest.skip("a root file system with all of its ids needs root")
    if request.param is None and request.node.originalname == _OTHER_USERS:
        request.applymarker(pytest.mark.xfail(reason="presets.untrusted() has a single id", strict=True))
    provider = registry_find_sandboxenv("isolate")
    environments = await provider.sample_init("check", request.param, {})
    try:
        yield environments["default"]
    finally:
        await provider.sample_cleanup("check", request.param, environments, False)
