"""Many times in and out: nothing leaks, nothing drifts."""

from __future__ import annotations

import gc
import os
import resource
from typing import Any

import pytest

import isolate
from tests.snapshot import alone
from tests.thread.test_blocks import PARTS, state

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def churn(part: Any, times: int) -> None:
    gc.collect()  # no descriptor of an earlier test's is closed meanwhile
    with part:
        pass
    before = state()
    grown = []
    while len(grown) < 3:  # the kernel may put a huge page in the place of small ones once
        for turn in range(times):
            if turn == times // 10:
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with part:
                pass
        assert state() == before
        grown.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
        if grown[-1] < 1024:  # KiB
            return
    raise AssertionError(grown)


@pytest.mark.parametrize("name", PARTS)
def test_nothing_drifts(name: str) -> None:
    if name == "time":
        alone()
    churn(PARTS[name][0], 100)


@pytest.mark.slow
@pytest.mark.skipif("ISOLATE_SLOW" not in os.environ, reason="takes minutes: ISOLATE_SLOW=1")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PARTS)
def test_nothing_drifts_in_10_000(name: str) -> None:
    churn(PARTS[name][0], 10_000)


def test_many_mounts(tmp_path: Any) -> None:
    churn(isolate.Tmpfs(tmp_path, size="64K"), 100)


@pytest.mark.slow
@pytest.mark.skipif("ISOLATE_SLOW" not in os.environ, reason="takes minutes: ISOLATE_SLOW=1")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_mounts_in_10_000(kind: str, tmp_path: Any) -> None:
    churn(isolate.Tmpfs(tmp_path, size="64K") if kind == "tmpfs" else isolate.Bind("/usr", tmp_path), 10_000)


@pytest.mark.slow
@pytest.mark.skipif("ISOLATE_SLOW" not in os.environ, reason="takes minutes: ISOLATE_SLOW=1")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("who", ["process", "thread"])
def test_a_cgroup_in_10_000(who: str) -> None:
    with isolate.Cgroup() as group:
        churn(group.inside(who), 10_000)


def test_together() -> None:
    churn(isolate.Sandbox(*(PARTS[n][0] for n in ("uts", "ipc", "capabilities", "mount", "credentials"))), 100)
