"""Sandboxes of thousands of entries start; what is too much is refused by name before anything starts."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING, Any

import pytest

from isolate import Bind, Dir, File, Landlock, Root, Sandbox, UserNamespace
from isolate.engine.native import lib
from isolate.engine.plan import Phase, Step, call
from tests.boxes import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Room for a descriptor for each bind."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 8192:
        pytest.skip("each bind needs a descriptor, and the hard limit is below 8192")
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


MANY: dict[str, tuple[Any, ...]] = {
    "4078 binds": tuple(Bind("/usr/share", f"/b{i}") for i in range(4078)),
    "2500 files": tuple(File(f"/f{i}", b"x") for i in range(2500)),
    "5000 directories": tuple(Dir(f"/d{i}") for i in range(5000)),
    "deep directories": tuple(Dir(f"/d{i}/a/b/c") for i in range(1500)),
}


@pytest.mark.parametrize(
    "entries",
    # Each bind is a mount, and the most of what there is: the others are small beside it.
    [pytest.param(e, id=n, marks=[] if n == "4078 binds" else pytest.mark.slow) for n, e in MANY.items()],
)
def test_31_thousands_of_entries(entries: tuple[Any, ...], descriptors: None) -> None:
    box = Sandbox(UserNamespace(), Root(*SYSTEM, *entries))
    last = os.fsdecode(entries[-1].target)
    found = box.run(["ls", "-d", last], timeout=60)
    assert found.stdout == last.encode() + b"\n", found.stderr


def test_31_thousands_of_landlock_paths(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(6000)]
    for path in paths:
        path.write_text("x")
    other = tmp_path / "other"
    other.write_text("x")
    box = Sandbox(Landlock(read=["/usr", "/etc", "/lib", "/lib64", "/bin", *paths], execute=["/usr"]))
    assert box.run(["cat", paths[-1]], timeout=60).stdout == b"x"
    assert box.run(["cat", other], timeout=60).returncode != 0


class Large:
    """More than can be."""

    def __init__(self, steps: int, ops: int) -> None:
        self._steps, self._ops = steps, ops

    def steps(self, context: object) -> Iterator[Step]:
        """Steps that do nothing much."""
        ops = (call("getpid"),) * self._ops
        for _ in range(self._steps):
            yield Step(Phase.SCHEDULING, "one of many", ops)


@pytest.mark.parametrize(
    ("steps", "ops", "word"),
    [(100_001, 1, "steps"), pytest.param(1, (1 << 20) + 1, "operations", marks=pytest.mark.slow)],
)
def test_31_what_is_too_much_is_refused_by_name(steps: int, ops: int, word: str) -> None:
    with pytest.raises(ValueError, match=rf"the sandbox needs \d+ {word} .*Large has"):
        Sandbox(Large(steps, ops)).compile()
    assert lib.ISO_MAX_STEPS == 100_000


def test_31_as_many_steps_as_can_be_run() -> None:
    """The last record, with a byte for each, fits into one message."""
    assert Sandbox(Large(lib.ISO_MAX_STEPS - 100, 1)).run(["true"], timeout=60).ok
